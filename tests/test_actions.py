"""The policy's ways to act, against brute force over full forward passes of the same model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rayrlhf.actions import AutoActor, ConstrainedActor, FreeActor, RankActor, make_actor
from rayrlhf.agent_text import PlainPrompter
from rayrlhf.errors import ConfigError, EpisodeError
from rayrlhf.policy import score_allowed
from rayrlhf.sampling.stopping import clean_action, ends_sentence
from rayrlhf.sampling.transformers_engine import SamplingSettings, TransformersSampler
from rayrlhf.types import GameState, Situation
from tests.rounding import FORWARD, rounding
from tests.test_constrained import counted_tokens, next_logits, sharp_model

COMMANDS = ("go", "go east", "go east again", "take cat", "take cat from mat", "look")
TEXTS = ("Once upon a time", "Tim took the tall tree to town, and", "A brave bear", "a small cat sat")


class Policy:
    """A tiny model, its tokenizer and a prompter."""

    def __init__(self, folder: Path, architecture: str = "llama"):
        self.model = sharp_model(folder, architecture)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        self.prompter = PlainPrompter(self.tokenizer, ())
        self.eos = int(self.tokenizer.eos_token_id)

    def situations(self, texts: Sequence[str] = TEXTS, commands: Sequence[str] = COMMANDS) -> list[Situation]:
        state = GameState(commands=tuple(commands))
        return [
            Situation(i, self.prompter.prompt((), text, state), text, state, seed=i) for i, text in enumerate(texts)
        ]

    def sampler(self, max_new_tokens: int = 12, temperature: float = 1.0) -> TransformersSampler:
        return TransformersSampler(self.model, self.eos, SamplingSettings(max_new_tokens, temperature))

    def constrained_logprobs(self, situation: Situation, temperature: float) -> list[float]:
        """Of every command: at each of its tokens the full-vocabulary logits, cut to what another command has there."""
        ids = {command: self.prompter.command_ids(command).tolist() for command in situation.state.commands}
        results = []
        for own in ids.values():
            total = 0.0
            for t in range(len(own)):
                allowed = sorted({other[t] for other in ids.values() if other[:t] == own[:t]})
                logits = next_logits(self.model, np.append(situation.prompt_ids, own[:t]).astype(np.int64))
                total += log_softmax(logits[allowed].astype(np.float64) / temperature)[allowed.index(own[t])]
            results.append(total)
        return results

    def mean_logprobs(self, situation: Situation) -> np.ndarray:
        means = []
        for command in situation.state.commands:
            own = self.prompter.command_ids(command)
            prefixes = [np.append(situation.prompt_ids, own[:t]) for t in range(len(own))]
            means.append(np.mean([log_softmax(next_logits(self.model, p))[v] for p, v in zip(prefixes, own)]))
        return np.array(means)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neo"])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_constrained_probabilities_are_exact(tmp_path: Path, architecture: str, temperature: float) -> None:
    """TW-3, X-6: they add to 1 over all commands, shared beginnings and one the prefix of another included, and equal
    the product over full forward passes."""
    policy = Policy(tmp_path, architecture)
    situations = policy.situations()
    situations[1] = replace(situations[1], state=GameState(commands=COMMANDS[1:3]))
    for situation, logprobs in zip(
        situations, ConstrainedActor(policy.model, policy.prompter, temperature).command_logprobs(situations)
    ):
        assert abs(np.exp(logprobs.astype(np.float64)).sum() - 1) < 1e-5
        np.testing.assert_allclose(logprobs, policy.constrained_logprobs(situation, temperature), atol=2e-5)


def test_actions_carry_what_the_learner_needs(policy: Policy) -> None:
    """X-5: the log-probabilities are those of the constrained distribution that a fresh scoring gives again."""
    situations = policy.situations() * 5
    situations = [replace(situation, episode=i, seed=i) for i, situation in enumerate(situations)]
    actions = ConstrainedActor(policy.model, policy.prompter, 0.7).act(situations)
    assert len({action.text for action in actions}) > 3
    made = [action.generation for action in actions]
    sets = [generation.allowed for generation in made if generation.allowed is not None]
    scored = score_allowed(
        policy.model,
        [np.concatenate([s.prompt_ids, g.response_ids]) for s, g in zip(situations, made)],
        [len(situation.prompt_ids) for situation in situations],
        sets,
        0.7,
    )
    for action, allowed, (of_sets, of_tokens) in zip(actions, sets, scored, strict=True):
        generation = action.generation
        np.testing.assert_array_equal(generation.response_ids, policy.prompter.command_ids(action.text))
        np.testing.assert_allclose(allowed.logprobs, of_sets, atol=2e-5)
        np.testing.assert_allclose(generation.logprobs, of_tokens, atol=2e-5)
        assert (generation.logprobs[allowed.forced] == 0).all()
        assert (generation.logprobs[~allowed.forced] < 0).all()
        np.testing.assert_array_equal(generation.filtered_logprobs, generation.logprobs)
        assert (generation.finish, len(generation.prompt_logprobs)) == ("eos", 0)


def test_commands_are_drawn_with_their_probabilities(policy: Policy) -> None:
    """Frequencies over 4,000 seeds, to 4 standard errors."""
    actor, situation, count = ConstrainedActor(policy.model, policy.prompter, 2.5), policy.situations()[0], 4000
    actions = actor.act([replace(situation, episode=i, seed=1000 + i) for i in range(count)])
    probabilities = np.exp(policy.constrained_logprobs(situation, 2.5))
    assert (probabilities > 0.01).sum() >= 4
    for command, p in zip(COMMANDS, probabilities):
        frequency = np.mean([action.text == command for action in actions])
        assert abs(frequency - p) < 4 * np.sqrt(p * (1 - p) / count)


def test_greedy_takes_the_likeliest_branch(policy: Policy) -> None:
    """At each branch, which need not lead to the likeliest command; the seed does not matter."""
    actor = ConstrainedActor(policy.model, policy.prompter, 1.0)
    for situation in policy.situations():
        ids = [policy.prompter.command_ids(command).tolist() for command in COMMANDS]
        expected: list[int] = []
        while expected not in ids:
            logits = next_logits(policy.model, np.append(situation.prompt_ids, expected).astype(np.int64))
            allowed = {own[len(expected)] for own in ids if own[: len(expected)] == expected}
            expected.append(max(allowed, key=lambda token: logits[token]))
        for seed in (1, 2):
            action = actor.act([replace(situation, seed=seed, greedy=True)])[0]
            assert action.generation.response_ids.tolist() == expected


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_cache_kept_from_turn_to_turn_changes_nothing(tmp_path: Path, architecture: str) -> None:
    """TW-3: prompts that grow by the answer and the next observation; episodes end; one sits a turn out."""
    policy, rng = Policy(tmp_path, architecture), np.random.default_rng(0)
    kept, fresh = (ConstrainedActor(policy.model, policy.prompter, 1.0) for _ in range(2))
    situations = policy.situations([*TEXTS, TEXTS[0]])
    fed_kept, fed_fresh = 0, 0
    for turn in range(6):
        playing = [s for s in situations if not (s.episode == 1 and turn == 2)]
        fresh.reset()
        with counted_tokens(policy.model) as fed:
            actions = kept.act(playing)
        fed_kept += sum(rows * columns for rows, columns in fed)
        with counted_tokens(policy.model) as fed:
            again = fresh.act(playing)
        fed_fresh += sum(rows * columns for rows, columns in fed)
        assert [action.text for action in actions] == [action.text for action in again]
        for one, other in zip(actions, again):
            np.testing.assert_allclose(one.generation.logprobs, other.generation.logprobs, atol=2e-5)
        follows = {s.episode: rng.integers(2, 300, 6) for s in situations}
        for s, action in zip(playing, actions):
            follows[s.episode] = np.concatenate([action.generation.response_ids, follows[s.episode]])
        situations = [
            replace(s, prompt_ids=np.concatenate([s.prompt_ids, follows[s.episode]]), seed=s.seed + 10)
            for s in situations
            if not (s.episode == 3 and turn == 3)
        ]
    assert fed_kept < 0.6 * fed_fresh


def test_equal_situations_are_computed_once(policy: Policy) -> None:
    """Sixteen episodes in two states cost what two episodes do, and act as each does alone."""
    actor = ConstrainedActor(policy.model, policy.prompter, 1.0)
    situations = [replace(situation, episode=i, seed=i) for i, situation in enumerate(policy.situations(TEXTS[:2] * 8))]
    with counted_tokens(policy.model) as fed:
        actions = actor.act(situations)
    assert fed[0][0] == 2
    assert len({action.text for action in actions}) > 2
    for situation, action in zip(situations, actions):
        alone = ConstrainedActor(policy.model, policy.prompter, 1.0).act([situation])[0]
        assert action.text == alone.text
        np.testing.assert_allclose(action.generation.logprobs, alone.generation.logprobs, atol=1e-5)


def test_the_same_seeds_give_the_same_bits(policy: Policy) -> None:
    actor = ConstrainedActor(policy.model, policy.prompter, 1.0)
    runs = []
    for _ in range(2):
        actor.reset()
        runs.append(actor.act(policy.situations()))
    for one, other in zip(*runs):
        assert one.text == other.text
        np.testing.assert_array_equal(one.generation.logprobs, other.generation.logprobs)
    different = actor.act([replace(s, seed=s.seed + 100) for s in policy.situations()])
    assert [action.text for action in different] != [action.text for action in runs[0]]


def test_forced_tokens_cost_no_forward_pass(policy: Policy) -> None:
    actor = ConstrainedActor(policy.model, policy.prompter, 1.0)
    with counted_tokens(policy.model) as fed:
        only = actor.act(policy.situations(commands=["take cat from mat"]))[0]
        assert [values.tolist() for values in actor.command_logprobs(policy.situations(commands=["look"])[:1])] == [
            [0.0]
        ]
    assert fed == []
    assert only.generation.allowed is not None
    assert only.generation.allowed.forced.all()
    assert (only.generation.logprobs == 0).all()
    prompt, shared = policy.situations(TEXTS[:1])[0].prompt_ids, policy.prompter.command_ids("take cat")[:-1]
    with counted_tokens(policy.model) as fed:
        actor.act(policy.situations(TEXTS[:1], ["take cat", "take cat from mat"]))
    assert fed == [(1, len(prompt) + len(shared))]


def test_new_weights_count_after_a_reset(tmp_path: Path) -> None:
    policy = Policy(tmp_path)
    actor, situations = ConstrainedActor(policy.model, policy.prompter, 1.0), policy.situations()
    before = actor.command_logprobs(situations)[0]
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[20:].mul_(0.5)
    actor.reset()
    after = actor.command_logprobs(situations)[0]
    np.testing.assert_allclose(after, policy.constrained_logprobs(situations[0], 1.0), atol=2e-5)
    assert np.abs(after - before).max() > 0.01


def test_nothing_to_choose_from_is_an_error(policy: Policy) -> None:
    with pytest.raises(EpisodeError, match=r"no command to choose from: use agent.actions free"):
        ConstrainedActor(policy.model, policy.prompter, 1.0).act(policy.situations(commands=[]))
    for actor in (RankActor, ConstrainedActor):
        assert actor(policy.model, policy.prompter, 1.0).act([]) == []


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_ranking_is_the_softmax_of_mean_logprobs(policy: Policy, temperature: float) -> None:
    situations = policy.situations()
    actor = RankActor(policy.model, policy.prompter, temperature)
    for situation, logprobs in zip(situations, actor.command_logprobs(situations)):
        np.testing.assert_allclose(logprobs, log_softmax(policy.mean_logprobs(situation) / temperature), atol=2e-5)
    greedy = actor.act([replace(situation, greedy=True) for situation in situations])
    for situation, action in zip(situations, greedy):
        assert action.text == COMMANDS[int(policy.mean_logprobs(situation).argmax())]


def test_ranked_commands_are_drawn_with_their_probabilities(policy: Policy) -> None:
    actor, situation, count = RankActor(policy.model, policy.prompter, 0.5), policy.situations()[0], 2000
    with counted_tokens(policy.model) as fed:
        actions = actor.act([replace(situation, episode=i, seed=i) for i in range(count)])
    assert fed[0][0] == 1
    assert fed[1][0] == len(COMMANDS)
    logprobs = actor.command_logprobs([situation])[0]
    for command, p in zip(COMMANDS, np.exp(logprobs.astype(np.float64))):
        frequency = np.mean([action.text == command for action in actions])
        assert abs(frequency - p) < 4 * np.sqrt(p * (1 - p) / count)
    tolerance = rounding(FORWARD, logprobs)
    for action in actions[:20]:
        np.testing.assert_array_equal(action.generation.response_ids, policy.prompter.command_ids(action.text))
        assert abs(action.generation.logprobs.sum() - logprobs[COMMANDS.index(action.text)]) < tolerance


def test_free_actions_are_the_samplers_own(policy: Policy) -> None:
    """Single-turn episodes: the sampler's tokens and log-probabilities bit for bit, decoded."""
    situations = policy.situations(commands=[])
    expected = policy.sampler().sample([s.prompt_ids for s in situations], [s.seed for s in situations])
    for actor in (FreeActor(policy.sampler(), policy.prompter), make_actor("auto", policy.sampler(), policy.prompter)):
        for action, generation in zip(actor.act(situations), expected, strict=True):
            np.testing.assert_array_equal(action.generation.response_ids, generation.response_ids)
            np.testing.assert_array_equal(action.generation.logprobs, generation.logprobs)
            assert action.generation.finish == generation.finish
            assert action.text == policy.tokenizer.decode(generation.response_ids, skip_special_tokens=True)


def test_free_actions_are_greedy_where_asked(policy: Policy) -> None:
    situations = policy.situations(commands=[])
    mixed = [replace(situation, greedy=situation.episode == 1) for situation in situations]
    actor = FreeActor(policy.sampler(), policy.prompter)
    for situation, sampled, action in zip(mixed, actor.act(situations), actor.act(mixed)):
        if not situation.greedy:
            np.testing.assert_array_equal(action.generation.response_ids, sampled.generation.response_ids)
            continue
        expected = situation.prompt_ids
        for _ in range(12):
            expected = np.append(expected, next_logits(policy.model, expected).argmax())
        np.testing.assert_array_equal(action.generation.response_ids, expected[len(situation.prompt_ids) :])


def test_an_action_ends_with_its_sentence(policy: Policy) -> None:
    """TW-4: only after a letter or digit, at EOS (compared as an id), a mark or a newline; tokens without text end
    nothing."""
    ends = ends_sentence(policy.prompter.decode, policy.eos)

    def ids(text: str, *after: int) -> np.ndarray:
        return np.array([*policy.tokenizer(text, add_special_tokens=False)["input_ids"], *after], np.int64)

    half_a_character = policy.tokenizer("é", add_special_tokens=False)["input_ids"][0]
    assert policy.prompter.decode(np.array([half_a_character])) == "\N{REPLACEMENT CHARACTER}"
    ending = [ids("go north."), ids("go\n"), ids("go?"), ids("7!"), ids("go", policy.eos), ids("... go.")]
    going_on = [ids("go"), ids("..."), ids("\n\n"), ids("", policy.eos), ids("-", policy.eos), ids(".\ngo")]
    going_on += [ids("go", half_a_character), ids("", half_a_character), ids("go, ")]
    assert [ends(response) for response in ending] == [True] * len(ending)
    assert [ends(response) for response in going_on] == [False] * len(going_on)


def test_actions_are_cleaned() -> None:
    """TW-4: letters, digits, space . ? ' - stay; the newline is left out, the mark is not."""
    cases = {
        " go north.": "go north.",
        "\n\nGo  north\nYou go": "Go north",
        'say "don\'t!"': "say don't",
        "take red-hot key? now": "take red-hot key?",
        "#7 é, ok": "7 é ok",
        "...": "...",
        "": "",
    }
    assert {text: clean_action(text) for text in cases} == cases


def test_responses_end_where_the_rule_says(policy: Policy) -> None:
    """TW-4: what is trained is what was sampled, up to and including the token that ends it, and at least one token."""
    ends = ends_sentence(policy.prompter.decode, policy.eos)
    actor = FreeActor(policy.sampler(20, temperature=3.0), policy.prompter, stop_at_sentence=True)
    unstopped = policy.sampler(20, temperature=3.0)
    unstopped.eos_token_id = -1
    situations = [replace(s, seed=i, episode=i) for i, s in enumerate(policy.situations(commands=[]) * 30)]
    actions = actor.act(situations)
    everything = unstopped.sample([s.prompt_ids for s in situations], [s.seed for s in situations])
    for action, whole in zip(actions, everything, strict=True):
        ids = action.generation.response_ids
        np.testing.assert_array_equal(ids, whole.response_ids[: len(ids)])
        assert not any(ends(ids[:t]) for t in range(1, len(ids)))
        assert (action.generation.finish == "length") == (not ends(ids))
        assert (action.generation.finish == "eos") == (ends(ids) and ids[-1] == policy.eos)
        assert action.generation.finish != "length" or len(ids) == 20
        assert action.text == clean_action(policy.prompter.decode(ids))
    assert {"stop", "length"} <= {action.generation.finish for action in actions}


def test_auto_follows_the_situation(policy: Policy) -> None:
    situations = policy.situations()
    situations = [s if s.episode % 2 else replace(s, state=GameState()) for s in situations]
    actor = make_actor("auto", policy.sampler(), policy.prompter)
    assert isinstance(actor, AutoActor)
    actions = actor.act(situations)
    constrained = ConstrainedActor(policy.model, policy.prompter, 1.0).act(situations[1::2])
    free = FreeActor(policy.sampler(), policy.prompter).act(situations[0::2])
    assert [action.text for action in actions[1::2]] == [action.text for action in constrained]
    assert [action.text for action in actions[0::2]] == [action.text for action in free]


def test_actors_by_name(policy: Policy) -> None:
    sampler = policy.sampler(temperature=0.5)
    kinds = {"free": FreeActor, "constrained": ConstrainedActor, "rank": RankActor, "auto": AutoActor}
    for kind, expected in kinds.items():
        assert type(make_actor(kind, sampler, policy.prompter)) is expected  # type: ignore[arg-type]
    constrained, auto = (make_actor(kind, sampler, policy.prompter) for kind in ("constrained", "auto"))
    assert isinstance(constrained, ConstrainedActor)
    assert isinstance(auto, AutoActor)
    for actor in (constrained, auto.constrained):
        found = actor.command_logprobs(policy.situations())
        np.testing.assert_allclose(found[0], policy.constrained_logprobs(policy.situations()[0], 0.5), atol=2e-5)


def test_truncated_sampling_among_commands_is_refused(policy: Policy) -> None:
    """X-5: the constrained distribution is never cut further."""
    sampler = TransformersSampler(policy.model, policy.eos, SamplingSettings(4, top_k=5))
    for kind in ("constrained", "rank"):
        with pytest.raises(ConfigError, match=r"rollout\.top_k"):
            make_actor(kind, sampler, policy.prompter)  # type: ignore[arg-type]
    actor = make_actor("auto", sampler, policy.prompter)
    assert len(actor.act(policy.situations(commands=[]))) == len(TEXTS)
    with pytest.raises(ConfigError, match=r"rollout\.top_k"):
        actor.act(policy.situations())
