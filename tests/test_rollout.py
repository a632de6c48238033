"""Playing episodes without Ray: seeds, batches, environments that fail, and the reference's scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayrlhf.config import AgentConfig
from rayrlhf.environments import EnvironmentSettings, LocalEnvironments
from rayrlhf.errors import EpisodeError
from rayrlhf.player import Player
from rayrlhf.prompts import Prompt
from rayrlhf.rollout import deal_specs, episode_seed, turn_seed, with_reference
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.types import Trajectory

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
