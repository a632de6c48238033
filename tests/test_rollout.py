"""Playing episodes without Ray: seeds, batches, environments that fail, and the reference's scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayrlhf.config import AgentConfig
from rayrlhf.environments import EnvironmentSettings, LocalEnvironments
from rayrlhf.errors import EpisodeError
from rayrlhf.kl import penalised_kl
from rayrlhf.kl_estimators import VocabularyEstimator
from rayrlhf.player import Player
from rayrlhf.policy import score_vocabulary_kl
from rayrlhf.prompts import Prompt
from rayrlhf.rollout import (
    deal_specs,
    episode_seed,
    rollout_metrics,
    turn_seed,
    with_prompt_logprobs,
    with_reference,
    with_vocabulary_kl,
)
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.types import GameState, Trajectory
from tests import game_episodes
from tests.rounding import FORWARD, rounding
from tests.tiny_models import build_tiny_model

TEXTS = ["Once upon a time", "Tim took"]


def play(
    folder: Path, environment: str = "single_turn", temperature: float = 1.0, score_prompt: bool = False
) -> list[Trajectory]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [Prompt(text, np.asarray(tokenizer(text)["input_ids"])) for text in TEXTS]
    settings = SamplingSettings(16, temperature=temperature, score_prompt=score_prompt)
    player = Player(model, tokenizer, 128, AgentConfig(), prompts, settings, max_turns=1)
    [specs] = deal_specs(run_seed=3, iteration=0, groups=2, group_size=3, groups_per_batch=2)
    episodes = player.play(specs, LocalEnvironments(EnvironmentSettings(environment), TEXTS), weights_version=0)
    return with_reference(episodes, model, temperature)


def test_a_group_shares_its_prompt_and_not_its_answers(tiny_model: Path) -> None:
    """ALLIT-3: the k episodes of a group answer one prompt."""
    episodes = play(tiny_model)
    assert [episode.group for episode in episodes] == [0, 0, 0, 1, 1, 1]
    for group in (episodes[:3], episodes[3:]):
        assert len({episode.turns[0].observation for episode in group}) == 1
        assert len({episode.text for episode in group}) == 3
    assert {episode.turns[0].observation for episode in episodes} == set(TEXTS)
    assert all(episode.terminated and not episode.truncated for episode in episodes)


def test_text_is_the_prompt_and_the_answer(tiny_model: Path) -> None:
    """ALLIT-1: the text that rewards see includes the prompt."""
    for episode in play(tiny_model):
        [turn] = episode.turns
        assert episode.text == turn.observation + turn.action
        assert "<|endoftext|>" not in turn.action


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_reference_equals_policy_before_training(tiny_model: Path, temperature: float) -> None:
    """X-5, X-6: with one model for both, at one temperature, the KL of every token is 0; prompt tokens too."""
    for episode in play(tiny_model, temperature=temperature, score_prompt=True):
        [turn] = episode.turns
        np.testing.assert_allclose(turn.logprobs, turn.reference_logprobs, atol=2e-5)
        np.testing.assert_allclose(turn.prompt_logprobs, turn.prompt_reference_logprobs, atol=2e-5)
        assert len(turn.prompt_logprobs) == len(turn.prompt_ids) - 1
        assert len(turn.logprobs) == len(turn.response_ids)


def two_models(policy: Path, folder: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A policy and another model for its reference."""
    paths = (policy, build_tiny_model(folder / "reference", seed=1))
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in paths]
    return models[0], models[1]


@pytest.mark.parametrize("estimator", ["full", "forward"])
def test_the_kl_over_the_vocabulary_is_that_of_whole_softmaxes(
    tiny_model: Path, tmp_path: Path, estimator: VocabularyEstimator
) -> None:
    """TW-15, X-6: at each response token, at the temperature, whatever shares a batch; 0 for a policy and itself."""
    policy, reference = two_models(tiny_model, tmp_path)
    episodes = with_vocabulary_kl(play(tiny_model, temperature=0.7), policy, reference, 0.7, estimator)
    turns = [turn for one in episodes for turn in one.turns]
    sequences = [np.concatenate([turn.prompt_ids, turn.response_ids]) for turn in turns]
    starts = [len(turn.prompt_ids) for turn in turns]
    for turn, ids in zip(turns, sequences):
        rows = [
            model.double()(torch.from_numpy(ids)[None]).logits[0, len(turn.prompt_ids) - 1 : -1]
            for model in (policy, reference)
        ]
        p, q = (row.detach().div(0.7).softmax(-1) for row in rows)
        expected = (p * (p / q).log()).sum(-1) if estimator == "full" else (q * (q / p).log()).sum(-1)
        tolerance = rounding(FORWARD, [float(row.abs().max()) / 0.7 for row in rows])
        np.testing.assert_allclose(turn.vocabulary_kl, expected.numpy(), atol=tolerance)
        np.testing.assert_array_equal(penalised_kl(turn, estimator, include_prompt=False), turn.vocabulary_kl)
    models = policy.float(), reference.float()
    in_batches = score_vocabulary_kl(*models, sequences, starts, 0.7, estimator, tokens_per_batch=40)
    found = np.concatenate([turn.vocabulary_kl for turn in turns])
    np.testing.assert_allclose(np.concatenate(in_batches), found, atol=tolerance)
    for values in score_vocabulary_kl(policy, policy, sequences, starts, 0.7, estimator):
        assert not values.any()


def test_constrained_turns_are_scored_over_the_vocabulary_where_all_of_it_was_allowed(
    tiny_model: Path, tmp_path: Path
) -> None:
    """An empty range is the whole vocabulary; turns that were constrained throughout and examples are left alone."""
    policy, reference = two_models(tiny_model, tmp_path)
    free, mixed, constrained, example = (
        game_episodes.turn(2), game_episodes.turn(2, sizes=(0, 3)), game_episodes.turn(2, sizes=(2, 3)),
        game_episodes.turn(2, example=True),
    )  # fmt: skip
    one = game_episodes.episode([free, mixed, constrained, example])
    [scored] = with_vocabulary_kl([one], policy, reference, 1.0, "full")
    assert [len(turn.vocabulary_kl) for turn in scored.turns] == [2, 2, 0, 0]
    np.testing.assert_allclose(scored.turns[0].vocabulary_kl, scored.turns[1].vocabulary_kl, atol=rounding(FORWARD))
    charged = penalised_kl(scored.turns[1], "full", include_prompt=False)
    assert charged[0] == scored.turns[1].vocabulary_kl[0] > 0
    assert charged[1] != scored.turns[1].vocabulary_kl[1]


def test_prompts_are_scored_where_decoding_was_constrained(tiny_model: Path, tmp_path: Path) -> None:
    """SPEC Q-5: a prompt's log-probabilities are those of the whole vocabulary under both models, whatever the response
    chose among; an example has none."""
    policy, reference = two_models(tiny_model, tmp_path)
    turns = [game_episodes.turn(2, prompt=(5, 6, 7)), game_episodes.turn(2, prompt=(5, 6, 7), sizes=(2, 3))]
    one = game_episodes.episode([*turns, game_episodes.turn(2, example=True)])
    [scored] = with_reference(with_prompt_logprobs([one], policy, 1.0), reference, 1.0)
    free, constrained, example = scored.turns
    assert len(constrained.prompt_logprobs) == len(constrained.prompt_reference_logprobs) == 2
    expected = free.prompt_reference_logprobs
    tolerance = rounding(FORWARD, expected)
    np.testing.assert_allclose(constrained.prompt_reference_logprobs, expected, atol=tolerance)
    assert np.abs(constrained.prompt_logprobs - constrained.prompt_reference_logprobs).max() > 1e-3
    assert len(penalised_kl(constrained, "k1", include_prompt=True)) == 4
    assert len(penalised_kl(example, "k1", include_prompt=True)) == 2


def test_texts_and_games_are_counted_by_hand() -> None:
    """Episodes, tokens and ends of both; won, turns and what was understood of those that name commands alone."""
    turns = [game_episodes.turn(2), game_episodes.turn(3), game_episodes.turn(4, won=True)]
    texts = [game_episodes.episode(turns[:1]), game_episodes.episode([replace(turns[1], finish="length")], index=1)]
    expected = {"rollout/episodes": 2, "rollout/tokens": 5, "rollout/length_mean": 2.5, "rollout/finished": 0.5}
    assert rollout_metrics(texts) == expected
    named = [replace(turn, before=GameState(commands=("go east", "wait"))) for turn in turns]
    named[0] = replace(named[0], after=GameState(valid=False))
    games = [game_episodes.episode([named[0], named[2]]), game_episodes.episode([named[1]], index=1)]
    expected = {"rollout/episodes": 2, "rollout/tokens": 9, "rollout/length_mean": 4.5, "rollout/finished": 1}
    assert rollout_metrics(games) == pytest.approx(
        {**expected, "rollout/won": 0.5, "rollout/turns": 1.5, "rollout/valid": 2 / 3}
    )


def test_seeds_follow_from_run_iteration_and_index() -> None:
    seeds = [episode_seed(run, iteration, i) for run in (0, 1) for iteration in (-1, 0, 1) for i in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert episode_seed(7, 3, 5) == episode_seed(7, 3, 5)
    assert turn_seed(42, 0) == 42
    assert len({turn_seed(42, turn) for turn in range(20)}) == 20


def test_batches_are_cut_by_the_run_alone() -> None:
    """The decode batch is a fixed unit; groups count on through the iterations so that prompts come by in order."""
    batches = deal_specs(run_seed=0, iteration=2, groups=5, group_size=2, groups_per_batch=2)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    specs = [spec for batch in batches for spec in batch]
    assert [spec.index for spec in specs] == list(range(10))
    assert [spec.environment_seed for spec in specs] == [10, 10, 11, 11, 12, 12, 13, 13, 14, 14]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("tests.broken_environments:Raises", "the dragon ate the game"),
        ("tests.broken_environments:NoReward", "the reward has to be a finite number, not nan"),
    ],
)
def test_a_broken_environment_is_named(tiny_model: Path, environment: str, message: str) -> None:
    with pytest.raises(EpisodeError, match=message):
        play(tiny_model, environment)
