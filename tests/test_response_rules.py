"""Where a response ends and what a missing stop costs: by hand, with a sampler, and in whole runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayrlhf.actions import make_actor
from rayrlhf.algorithm_config import PPOConfig, RLOOConfig
from rayrlhf.algorithms import build_algorithm
from rayrlhf.config import AgentConfig, RewardPart, RunConfig
from rayrlhf.environments import EnvironmentSettings, LocalEnvironments
from rayrlhf.errors import ConfigError
from rayrlhf.generate import sample
from rayrlhf.kl import turn_kl
from rayrlhf.metrics import read_metrics, read_samples
from rayrlhf.player import Player
from rayrlhf.prompts import Prompt
from rayrlhf.replay import replay
from rayrlhf.response_config import NO_RULES, MissingStopConfig, ResponseConfig
from rayrlhf.response_rules import (
    Marks,
    ResponseRules,
    ResponseScorer,
    Stop,
    StopFinder,
    as_shown,
    penalised,
    penalised_stop,
)
from rayrlhf.reward_contract import example_trajectory
from rayrlhf.reward_mixture import RewardMixture
from rayrlhf.rollout import deal_specs
from rayrlhf.sampling.transformers_engine import SamplingSettings, TransformersSampler
from rayrlhf.trainer import Observer, train
from rayrlhf.types import EpisodeScore, IntArray, Trajectory
from tests.faults.hostile import Ground
from tests.test_training import records, small_config, weights_hash

PIECES = ["<eos>", "a", " b", ".", '."', "..", " no", "\n", "END", "EN", "D", "x.D"]
EOS, A, B, DOT, DOT_QUOTE, DOTS, NO, NEWLINE, END, EN, D, X_DOT_D = range(len(PIECES))


def decode(ids: IntArray) -> str:
    """Ids as their pieces, EOS as nothing."""
    return "".join(PIECES[i] for i in ids if i != EOS)


def ids(*tokens: int) -> IntArray:
    return np.array(tokens, np.int64)


def rules(**config: Any) -> ResponseConfig:
    return ResponseConfig.model_validate(config)


def found(text: str | None, after_tokens: int, *tokens: int) -> int | None:
    return StopFinder(Stop(text, after_tokens), decode, EOS).tokens(ids(*tokens))


@pytest.mark.parametrize(
    ("text", "after", "tokens", "expected"),
    [
        (".", 0, (A, DOT, B, DOT), 2),  # the first
        (".", 1, (A, DOT, B, DOT), 2),  # index 1 is the second token
        (".", 2, (A, DOT, B, DOT), 4),  # an earlier one does not count
        (".", 4, (A, DOT, B, DOT), None),
        (".", 0, (A, B), None),
        (".", 0, (A, DOT_QUOTE), None),  # more behind the stop: that token is another
        (".", 0, (A, DOTS), 2),
        (".", 2, (A, DOT, EOS, B), None),  # EOS has no text: the stop before it came too early
        (".", 0, (A, DOT, EOS), 2),
        ("\n", 0, (A, NEWLINE, B), 2),
        ("END", 0, (A, END), 2),
        ("END", 0, (A, EN, D), 3),  # of two tokens: the second completes it
        ("END", 2, (A, EN, D), 3),  # and its index counts
        ("END", 0, (EN, A, D), None),
        (".D", 0, (A, X_DOT_D), 2),  # the end of a longer token
        (".D", 0, (DOT, D), 2),
        (None, 0, (A, EOS), 2),
        (None, 2, (A, EOS), None),
        (None, 0, (A, DOT), None),
        (".", 0, (), None),
    ],
)
def test_the_first_token_from_after_tokens_on_that_completes_the_stop(
    text: str | None, after: int, tokens: tuple[int, ...], expected: int | None
) -> None:
    """LMHP-15: first occurrence at an index of at least truncate_after; the length up to it, itself included."""
    assert found(text, after, *tokens) == expected


def test_a_stop_in_a_real_vocabulary(tiny_model: Path) -> None:
    """LMHP-15: the token filter finds what decoding every prefix finds, parts of characters included."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def read(tokens: IntArray) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    rng = np.random.default_rng(0)
    written = [
        np.asarray(tokenizer(text)["input_ids"])
        for text in ("one. two.", "a café. é", "sat \n. mat", "été.été", "a mat. b")
    ]
    drawn = [rng.integers(0, len(tokenizer), 24) for _ in range(150)]
    for stop in (".", "é", "the", " ", "\n", "t."):
        finder = StopFinder(Stop(stop, 3), read, tokenizer.eos_token_id)
        hits = 0
        for tokens in written + drawn:
            texts = [read(tokens[:t]) for t in range(len(tokens) + 1)]
            ends = [t for t in range(4, len(tokens) + 1) if texts[t].endswith(stop) and texts[t] != texts[t - 1]]
            assert finder.tokens(tokens) == (ends[0] if ends else None)
            hits += bool(ends)
        assert hits, stop


def test_everything_is_off_by_default() -> None:
    """LMHP-16: neither is on unless it is asked for, in the section or in a run."""
    assert RunConfig().response == ResponseConfig() == NO_RULES
    assert NO_RULES.truncation is None
    assert NO_RULES.missing_stop.mode == "none"
    off = ResponseRules(NO_RULES, decode, EOS)
    assert not off.active
    assert not off.stops_sampling
    assert off.marks(ids(A, DOT, B)) == Marks(None, False)
    score = EpisodeScore(np.array([2.5], np.float32), {"length": 2.5})
    assert penalised(score, missing(True), NO_RULES.missing_stop) is score


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Stop(None, 0)),
        ({"truncation": {}}, Stop(".", 16)),
        ({"truncation": {"text": "\n", "after_tokens": 55}}, Stop("\n", 55)),
        ({"missing_stop": {"text": "!"}}, Stop("!", 0)),
        ({"missing_stop": {"after_tokens": 3}}, Stop(None, 3)),
        ({"truncation": {"after_tokens": 5}, "missing_stop": {"text": "!", "after_tokens": 0}}, Stop("!", 0)),
        ({"truncation": {"after_tokens": 5}, "missing_stop": {"text": "!"}}, Stop("!", 5)),
    ],
)
def test_the_penalty_names_its_stop_or_takes_truncations_or_eos(config: dict[str, Any], expected: Stop) -> None:
    """LMHP-16: what the penalty leaves open comes from truncation; without that its stop is the EOS."""
    assert penalised_stop(rules(**config)) == expected


@pytest.mark.parametrize("truncation", [None, {"after_tokens": 1}, {"after_tokens": 1, "train_after_stop": True}])
@pytest.mark.parametrize("mode", ["none", "fixed", "add"])
def test_penalty_and_truncation_do_not_need_each_other(truncation: dict[str, Any] | None, mode: str) -> None:
    """LMHP-16 (GWERN's patch took both out at once): all nine combinations, each doing its own part alone."""
    config = rules(truncation=truncation, missing_stop={"mode": mode, "text": ".", "after_tokens": 1})
    made = ResponseRules(config, decode, EOS)
    assert made.stops_sampling == (truncation is not None and "train_after_stop" not in truncation)
    with_stop, without = made.marks(ids(A, B, DOT, NO)), made.marks(ids(A, B, NO))
    parity = truncation is not None and "train_after_stop" in truncation
    assert with_stop == Marks(3 if parity else None, False)
    assert without == Marks(None, mode != "none")


def test_a_penalty_of_its_own_stop_looks_at_what_is_shown() -> None:
    """LMHP-16: truncated at `.`, a `!`-like stop behind it is none of the response."""
    config = rules(
        truncation={"after_tokens": 0, "train_after_stop": True},
        missing_stop={"mode": "add", "text": "END", "after_tokens": 0},
    )
    made = ResponseRules(config, decode, EOS)
    assert made.marks(ids(A, DOT, END)) == Marks(2, True)
    assert made.marks(ids(END, DOT, A)) == Marks(2, False)


def missing(*turns: bool) -> Trajectory:
    """An episode with a turn for each, its response without the stop where that is True."""
    episode = example_trajectory("p", "a b", *[("o", "c d")] * (len(turns) - 1))
    marked = tuple(replace(turn, missing_stop=is_missing) for turn, is_missing in zip(episode.turns, turns))
    return replace(episode, turns=marked)


@pytest.mark.parametrize(
    ("mode", "turns", "expected", "count"),
    [
        ("fixed", (True,), [-1.5], 1.0),  # replaces, whatever the score was
        ("fixed", (False,), [4.0], 0.0),
        ("add", (True,), [2.5], 1.0),
        ("add", (False,), [4.0], 0.0),
        ("none", (True,), [4.0], None),
        ("fixed", (True, False, True), [-1.5, 2.0, -1.5], 2.0),
        ("add", (True, False, True), [-1.5, 2.0, 2.5], 2.0),
    ],
)
def test_the_penalty_by_hand(mode: str, turns: tuple[bool, ...], expected: list[float], count: float | None) -> None:
    """LMHP-15, -16: fixed replaces, add adds; the parts stay unweighted, and one of their own counts the penalised."""
    before = [4.0] if len(turns) == 1 else [0.0, 2.0, 4.0]
    score = EpisodeScore(np.array(before, np.float32), {"length": 8.0})
    config = MissingStopConfig.model_validate({"mode": mode, "value": -1.5})
    after = penalised(score, missing(*turns), config)
    assert after.total.dtype == np.float32
    assert after.total.tolist() == expected
    assert after.parts == ({"length": 8.0} if count is None else {"length": 8.0, "missing_stop": count})


def played(folder: Path, config: ResponseConfig, episodes: int = 12) -> list[Trajectory]:
    """Single answers of the tiny model, sampled one by one, so that stops change no batch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [Prompt("Once upon a time", np.asarray(tokenizer("Once upon a time")["input_ids"]))]
    player = Player(model, tokenizer, 128, AgentConfig(), prompts, SamplingSettings(16), max_turns=1, response=config)
    environments = LocalEnvironments(EnvironmentSettings("single_turn"), ["Once upon a time"])
    batches = deal_specs(run_seed=3, iteration=0, groups=episodes, group_size=1, groups_per_batch=1)
    return [episode for specs in batches for episode in player.play(specs, environments, weights_version=0)]


TRUNCATE: Mapping[str, Any] = {"text": "n", "after_tokens": 2}  # a third of the tiny model's responses hold it


def test_nothing_is_sampled_after_the_stop(tiny_model: Path) -> None:
    """LMHP-18, Q-7, Q-8: the response is that of the free sampler up to its stop, its last token: there the score lies,
    and no token after it has a KL or a gradient."""
    free, cut = played(tiny_model, NO_RULES), played(tiny_model, rules(truncation=TRUNCATE))
    stopped = 0
    for whole, short in zip(free, cut, strict=True):
        [long], [turn] = whole.turns, short.turns
        length = len(turn.response_ids)
        np.testing.assert_array_equal(turn.response_ids, long.response_ids[:length])
        np.testing.assert_array_equal(turn.logprobs, long.logprobs[:length])
        assert (turn.shown_tokens, turn.missing_stop) == (None, False)
        if turn.finish == "stop":
            assert turn.action.endswith("n")
            assert length >= 3
            stopped += length < len(long.response_ids)
        else:
            assert (length, turn.finish, turn.action) == (len(long.response_ids), long.finish, long.action)
    assert 2 <= stopped < 12
    algorithm = build_algorithm(PPOConfig(), 1)
    cut = [
        replace(episode, turns=(replace(episode.turns[0], reference_logprobs=episode.turns[0].logprobs),))
        for episode in cut
    ]
    scores = [EpisodeScore(np.ones(1, np.float32), {}) for _ in cut]
    batch, _ = algorithm.prepare(cut, scores, [np.zeros(episode.response_tokens, np.float32) for episode in cut], 0)
    for episode, sequence in zip(cut, batch.sequences, strict=True):
        [turn] = episode.turns
        np.testing.assert_array_equal(sequence.input_ids[sequence.start :], turn.response_ids)
        assert sequence.returns[-1] == 1.0  # no KL in it: policy and reference are one


def test_the_parity_flag_trains_on_what_the_rewards_do_not_see(tiny_model: Path) -> None:
    """LMHP-18: with train_after_stop all is sampled, and trained with its KL; rewards see it cut at the stop."""
    free = played(tiny_model, NO_RULES)
    cut = played(tiny_model, rules(truncation=TRUNCATE))
    parity = played(tiny_model, rules(truncation={**TRUNCATE, "train_after_stop": True}))
    for whole, short, episode in zip(free, cut, parity, strict=True):
        [long], [stop], [turn] = whole.turns, short.turns, episode.turns
        np.testing.assert_array_equal(turn.response_ids, long.response_ids)
        assert (turn.action, episode.text) == (stop.action, short.text)
        apart = replace(turn, reference_logprobs=turn.logprobs - 1)
        assert turn_kl(apart, False).sum() == pytest.approx(len(long.response_ids))
        [shown] = as_shown(replace(episode, turns=(apart,))).turns
        assert len(shown.response_ids) == len(shown.reference_logprobs) == len(stop.response_ids)
        assert shown.finish == ("stop" if stop.finish == "stop" else turn.finish)
    rewards = RewardMixture([RewardPart.model_validate({"name": "length"})])
    scorer = ResponseScorer(rewards, rules(truncation=TRUNCATE), 16)
    assert [s.parts["length"] for s in scorer.score(parity)] == [episode.response_tokens for episode in cut]
    batch, _ = build_algorithm(RLOOConfig(), 1).prepare(
        [replace(episode, group=0) for episode in parity], scorer.score(parity), [], 0
    )
    assert [np.count_nonzero(s.weights) for s in batch.sequences] == [e.response_tokens for e in free]


def test_a_missing_eos_is_penalised_without_truncation(tiny_model: Path) -> None:
    """LMHP-16: the penalty alone; its stop is the EOS, and what is sampled stays as it was."""
    free = played(tiny_model, NO_RULES, episodes=40)
    marked = played(tiny_model, rules(missing_stop={"mode": "fixed"}), episodes=40)
    assert [e.turns[0].missing_stop for e in marked] == [e.turns[0].finish == "length" for e in free]
    assert {e.turns[0].missing_stop for e in marked} == {True, False}
    assert [e.text for e in marked] == [e.text for e in free]


def test_more_penalised_than_allowed_is_explained() -> None:
    """LMHP-17: 11 of 20 is more than half, 10 is not; the message names share, stop, limits and ways out."""
    config = rules(truncation={"text": "\n", "after_tokens": 16}, missing_stop={"mode": "fixed"})
    rewards = RewardMixture([RewardPart(name="length")])
    scorer = ResponseScorer(rewards, config, max_new_tokens=24)
    scorer.check_stops([missing(number < 10) for number in range(20)])
    exactly = ResponseScorer(rewards, rules(missing_stop={"mode": "fixed", "refuse_share": 0.29}), max_new_tokens=24)
    exactly.check_stops([missing(number < 29) for number in range(100)])  # .29 * 100 is below 29 as a float
    with pytest.raises(ConfigError) as refused:
        scorer.check_stops([missing(number < 11) for number in range(20)])
    for part in (
        "11 of the first 20 episodes (55%) hold no stop '\\n'", "response tokens 16 to 23", "max_new_tokens 24",
        "after_tokens 16", "replaces their score by -1", "refuse_share 0.5", "raise rollout.max_new_tokens",
        "lower response.truncation.after_tokens", "response.missing_stop.mode=none",
    ):  # fmt: skip
        assert part in str(refused.value)
    alone = ResponseScorer(rewards, rules(missing_stop={"mode": "add", "value": -2}), max_new_tokens=24)
    with pytest.raises(
        ConfigError, match=r"\(100%\) end with no EOS token among .* adds -2 to .* Either raise rollout.max"
    ):
        alone.check_stops([missing(True)])
    ResponseScorer(rewards, rules(missing_stop={"mode": "add", "refuse_share": 1}), 24).check_stops([missing(True)])


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        ({"truncation": {"after_tokens": 64}}, "response.truncation.after_tokens 64: no response reaches its stop"),
        ({"missing_stop": {"mode": "add", "after_tokens": 70}}, "response.missing_stop.after_tokens 70: no response"),
        ({"truncation": {"text": ""}}, "response.truncation.text\n"),
        ({"missing_stop": {"mode": "replace"}}, "response.missing_stop.mode\n"),
        ({"missing_stop": {"value": float("nan")}}, "response.missing_stop.value\n"),
        ({"missing_stop": {"refuse_share": 1.1}}, "response.missing_stop.refuse_share\n"),
    ],
)
def test_what_cannot_be_meant_is_refused(response: dict[str, Any], fault: str) -> None:
    """X-7: by the key's name."""
    with pytest.raises(ValidationError) as refused:
        RunConfig.model_validate({"response": response})
    assert fault in str(refused.value)


def test_rules_and_other_ways_to_act() -> None:
    """LMHP-16: two rules cannot end one response, and a choice among commands has no stop to miss."""
    with pytest.raises(ValidationError, match=r"agent.stop_at_sentence and response.truncation"):
        RunConfig.model_validate({"response": {"truncation": {}}, "agent": {"stop_at_sentence": True}})
    sampler = TransformersSampler(torch.nn.Linear(1, 1), EOS, SamplingSettings(4))
    prompter = type("Decodes", (), {"decode": staticmethod(decode)})()
    for kind in ("constrained", "rank"):
        for config in (rules(truncation={}), rules(missing_stop={"mode": "add"})):
            with pytest.raises(ConfigError, match=r"agent.actions to free"):
                make_actor(kind, sampler, prompter, response=config)


class Misnamed:
    """Rewards one of which has the penalty's name."""

    keys = ("length", "missing_stop")

    def score(self, trajectories: Sequence[Trajectory]) -> list[EpisodeScore]:
        return [EpisodeScore(np.ones(1, np.float32), dict.fromkeys(self.keys, 1.0)) for _ in trajectories]


def test_a_reward_may_not_bear_the_penaltys_name() -> None:
    """LMHP-16: their values would stand in one place of the log; without a penalty it may."""
    assert ResponseScorer(Misnamed(), NO_RULES, 8).score([missing(True)])[0].total.tolist() == [1.0]
    with pytest.raises(ConfigError, match="rename the reward"):
        ResponseScorer(Misnamed(), rules(missing_stop={"mode": "add"}), 8)


def stopping_config(model: Path, storage: Path, name: str, **changes: Any) -> RunConfig:
    """Two iterations of six episodes, truncated at `n` and penalised without it."""
    values: dict[str, Any] = {
        "iterations": 2,
        "baseline_episodes": 12,
        "rollout": {"workers": 1, "groups_per_iteration": 2},
        "learner": {"ranks": 1},
        "checkpoint": {"every": 1},
        "response": {"truncation": TRUNCATE, "missing_stop": {"mode": "add", "value": -2.0, "refuse_share": 0.95}},
        "detector": {"kl_growth": {"limit": 1e-9, "window": 1, "action": "warn"}},
    }
    return small_config(model, storage, name, **{**values, **changes})


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    storage = tmp_path_factory.mktemp("response-runs")
    train(stopping_config(tiny_model, storage, "whole"))
    return storage / "whole"


def test_a_run_records_the_penalty_beside_the_parts(run: Path) -> None:
    """LMHP-15, -16, X-10: score = alliteration - 2 a missing stop; reward/missing_stop is the share penalised."""
    samples = read_samples(run)
    for episode in samples:
        lacks = not (episode.finish == "stop" and episode.response.endswith("n"))
        assert episode.parts["missing_stop"] == lacks
        assert episode.score == pytest.approx(episode.parts["alliteration"] - 2 * lacks)
        assert (episode.finish == "length") <= (episode.length == 16)
    assert {episode.finish for episode in samples} >= {"stop", "length"}
    for row in read_metrics(run):
        own = [s.parts["missing_stop"] for s in samples if s.iteration == row["iteration"]]
        assert row["reward/missing_stop"] == pytest.approx(sum(own) / 6)


@pytest.mark.slow
def test_the_same_again_resumed_replayed_and_generated(
    run: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LMHP-15: a resumed run and a replayed batch are the same bit for bit; `generate` cuts as the run does."""

    class CutsPower(Observer):
        def checkpoint_saved(self, done: int) -> None:
            raise InterruptedError

    config = stopping_config(tiny_model, run.parent, "resumed")
    with pytest.raises(InterruptedError):
        train(config, observer=CutsPower())
    train(config, resume=True)
    assert records(run.parent, "resumed") == records(run.parent, "whole")
    assert weights_hash(run.parent, "resumed", 2) == weights_hash(run.parent, "whole", 2)
    [kept] = (run / "alarms").glob("00000*")
    assert replay(kept)
    assert "scores of 6 episodes: the same" in capsys.readouterr().out
    texts = [episode.turns[0].action for episode in sample(str(run), None, 30, 16, 1.0, seed=0)]
    assert sum(text.endswith("n") for text in texts) >= 5


@pytest.mark.parametrize("baseline", [12, pytest.param(0, marks=pytest.mark.slow)])
def test_a_run_that_would_penalise_most_episodes_does_not_start(
    tiny_model: Path, tmp_path: Path, ray_cluster: None, baseline: int
) -> None:
    """LMHP-17: refused by the untrained model's episodes, or by the first iteration's where there are none."""
    response = {"missing_stop": {"mode": "fixed", "text": "zebra"}}
    with pytest.raises(ConfigError, match=rf"^{baseline or 6} of the first .* hold no stop 'zebra'"):
        train(stopping_config(tiny_model, tmp_path, "refused", response=response, baseline_episodes=baseline))
    assert read_metrics(tmp_path / "refused") == []


def test_an_empty_prompt_starts_from_nothing_and_says_so(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run, too, that has prompts of its own."""
    ground = Ground(tmp_path / "runs", tiny_model)
    ground.folder.mkdir()
    run = str(ground.run("environment.prompts.text=Once"))
    said = "--prompt is empty: the model starts from its BOS or EOS token alone\n"
    for source, prompt, shown in ((run, None, "Once"), (run, "", ""), (str(tiny_model), "", ""), (run, "Then", "Then")):
        [played] = sample(source, prompt, 1, 2, 1.0, seed=0)
        assert played.turns[0].observation == shown
        assert capsys.readouterr().err == (said if prompt == "" else "")
