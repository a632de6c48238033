"""`rayrlhf imitate`: known solutions in, a policy that follows them out, through the learner's ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayrlhf import imitation
from rayrlhf.config import ModelConfig
from rayrlhf.environments import open_environments
from rayrlhf.errors import EpisodeError, LearnerError, RunFolderError
from rayrlhf.imitation import ImitationSettings, imitate, training_sequences
from rayrlhf.learner_group import LearnerGroup
from rayrlhf.player import Player
from rayrlhf.policy import context_length, load_policy, load_tokenizer
from rayrlhf.rollout import deal_specs
from rayrlhf.run_parts import environment_settings
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.types import TrainingBatch, UpdateReport
from rayrlhf.walkthroughs import Demonstration, walkthroughs
from rayrlhf.worker_death import Died
from tests.test_game_training import game_config

SETTINGS = ImitationSettings(games=3, epochs=12, turns_per_step=4)


def test_a_policy_learns_the_known_solutions(tmp_path: Path, ray_cluster: None) -> None:
    """From a random model on two ranks: it wins all games it was shown, greedily, and the loss is what it should be."""
    config = game_config(tmp_path, "shown", optimizer={"name": "adamw", "lr": 1e-2})
    folder = imitate(config, tmp_path / "model", SETTINGS)
    model = ModelConfig(path=str(folder))
    tokenizer, policy = load_tokenizer(model), load_policy(model)
    player = Player(policy, tokenizer, context_length(model), config.agent, (), SamplingSettings(16), 6)
    games = open_environments(environment_settings(config)["train"])
    [specs] = deal_specs(0, 0, groups=3, group_size=1, groups_per_batch=3, greedy=True)
    played = player.play(specs, games, 0)
    shown = walkthroughs(games, player.prompter, 3)
    games.close()
    assert [trajectory.turns[-1].after.won for trajectory in played] == [True] * 3
    sequences = training_sequences(policy, shown, 1.0)
    loss = -sum(float((s.weights * s.advantages * s.behaviour_logprobs).sum()) for s in sequences)
    assert loss < 0.3  # nats a choice; a random model has about ln 4


def test_only_choices_are_learned(tiny_model: Path) -> None:
    """Forced tokens carry no loss, and the loss is a mean over the choices of all turns."""
    model = ModelConfig(path=str(tiny_model))
    tokenizer, policy = load_tokenizer(model), load_policy(model)
    config = game_config(Path(), "shown")
    player = Player(policy, tokenizer, 600, config.agent, (), SamplingSettings(40), 6)
    games = open_environments(environment_settings(config)["train"])
    shown: list[Demonstration] = walkthroughs(games, player.prompter, 2)
    with pytest.raises(EpisodeError, match="seed"):
        walkthroughs(_Stuck(games), player.prompter, 1)
    games.close()
    sequences = training_sequences(policy, shown[:2], 1.0)
    for sequence, demonstration in zip(sequences, shown):
        np.testing.assert_array_equal(sequence.weights != 0, ~demonstration.allowed.forced)
    assert sum(sequence.weights.sum() for sequence in sequences) == pytest.approx(1)


class _Stuck:
    """Games whose every step leads nowhere."""

    def __init__(self, games: object) -> None:
        self._games = games

    def reset(self, seeds):  # type: ignore[no-untyped-def]
        self._now = self._games.reset(seeds)  # type: ignore[attr-defined]
        return self._now

    def step(self, actions):  # type: ignore[no-untyped-def]
        return {slot: replace(self._now[slot], truncated=True) for slot in actions}


class Dies(LearnerGroup):
    """A learner without ranks, which is lost where it should learn."""

    def start(self) -> list[str]:
        return []

    def update(self, batch: TrainingBatch, iteration: int) -> UpdateReport:
        raise Died("its process was killed", memory=True)


def test_a_learner_that_dies_is_named(tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imitation, "LearnerGroup", Dies)
    with pytest.raises(
        LearnerError, match=r"the learner died: its process was killed: lower learner.tokens_per_micro_batch"
    ):
        imitate(game_config(tmp_path, "shown"), tmp_path / "model", SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="exists: give a folder that does not"):
        imitate(game_config(tmp_path, "x"), tmp_path, SETTINGS)
