"""Learned rewards in Ray actors of their own: the same scores, a dead actor replaced, faults by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from rayrlhf.config import RewardPart
from rayrlhf.config_loading import load_config
from rayrlhf.errors import RewardError
from rayrlhf.policy import load_tokenizer, resolve_model
from rayrlhf.reward_actors import CHUNK, RunRewards
from rayrlhf.reward_contract import example_trajectory
from rayrlhf.reward_mixture import RewardMixture
from rayrlhf.reward_models.folder import write_start
from rayrlhf.reward_models.network import new_reward_network
from rayrlhf.reward_models.sidecar import Sidecar
from rayrlhf.reward_models.text_format import TextFormat

TINY = load_config("alliteration").model
EPISODES = [
    example_trajectory("Once upon a time", f" there were {n} apes and an ant", index=n) for n in range(CHUNK + 9)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with random weights in its head."""
    path = tmp_path_factory.mktemp("reward-model")
    tokenizer = load_tokenizer(TINY)
    text_format = TextFormat.of(tokenizer, 512)
    network = new_reward_network(resolve_model(TINY.path), tokenizer, seed=0)
    write_start(path, network, tokenizer, Sidecar(0.25, text_format))
    return path


@pytest.fixture(scope="module")
def rewards(ray_cluster: None, folder: Path) -> Iterator[RunRewards]:
    parts = [
        RewardPart.model_validate({"name": "reward_model", "path": str(folder), "weight": 2.0, "actors": 2}),
        RewardPart(name="starts_with_a", weight=0.5),
    ]
    with RunRewards(parts, timeout_s=60.0) as made:
        made.start()
        yield made


def expected(rewards: RunRewards) -> np.ndarray:
    """All parts in this process, chunk by chunk."""
    mixture = RewardMixture(rewards._parts)
    return np.array(
        [s.total[-1] for n in range(0, len(EPISODES), CHUNK) for s in mixture.score(EPISODES[n : n + CHUNK])]
    )


def test_the_sum_is_that_of_one_process(rewards: RunRewards) -> None:
    scores = rewards.score(EPISODES)
    assert np.allclose([score.total[-1] for score in scores], expected(rewards), rtol=1e-5)
    assert [list(score.parts) for score in scores[:2]] == [["reward_model", "starts_with_a"]] * 2
    assert scores[0].parts["starts_with_a"] == 5
    assert rewards.score([]) == []


def test_a_killed_actor_changes_nothing(rewards: RunRewards) -> None:
    """It had two chunks of four, and is replaced once."""
    episodes = EPISODES * 3
    before = rewards.score(episodes)
    [own] = rewards.actors
    pid = ray.get(own.actors[0].__ray_call__.remote(lambda actor: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    after = rewards.score(episodes)
    assert own.deaths == 1
    assert all(np.array_equal(a.total, b.total) for a, b in zip(before, after, strict=True))


def test_what_cannot_be_loaded_is_told_by_name(rewards: RunRewards, tmp_path: Path) -> None:
    bad = RewardPart.model_validate({"name": "reward_model", "path": str(tmp_path)})
    with (
        RunRewards([bad], 60.0) as broken,
        pytest.raises(RewardError, match=r"reward `reward_model` cannot be built .* no reward_model\.json is there"),
    ):
        broken.start()
