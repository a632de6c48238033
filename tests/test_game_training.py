"""Whole runs on games through the real joints: any number of workers, a killed driver, rewards by name, every algorithm."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrlhf.config import RunConfig
from rayrlhf.errors import ConfigError
from rayrlhf.metrics import comparable, read_metrics, read_samples
from rayrlhf.trainer import train
from tests.test_training import driver, wait_for_iteration


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("game-runs")


def game_config(storage: Path, name: str, **changes: Any) -> RunConfig:
    """Four iterations of 4 groups of 3 episodes, PPO, from a random model of two layers."""
    values: dict[str, Any] = {
        "name": name,
        "storage_path": str(storage),
        "iterations": 4,
        "baseline_episodes": 4,
        "model": {"scratch": {"hidden_size": 16, "layers": 1, "heads": 2, "context": 256, "vocabulary": 300}},
        "environment": {
            "name": "textworld", "kind": "coin_collector", "level": 2, "games": 6, "held_out_games": 2, "max_turns": 6,
        },
        "agent": {"prompt": "actions", "memory_turns": 2},
        "reward": "game_score",
        "rollout": {
            "workers": 2, "group_size": 3, "groups_per_batch": 2, "max_new_tokens": 16, "cpus_per_worker": 0.1,
        },
        "algorithm": {"name": "ppo", "epochs": 2, "minibatches": 2},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "learner": {"ranks": 2, "cpus_per_rank": 0.1},
        "checkpoint": {"every": 2},
        "evaluation": {"episodes": 2},
    }  # fmt: skip
    for key, value in changes.items():
        merge = isinstance(value, dict) and isinstance(values.get(key), dict) and "name" not in value
        values[key] = {**values[key], **value} if merge else value
    return RunConfig.model_validate(values)


def records(folder: Path) -> tuple[Any, ...]:
    """Everything of a run that must not depend on how it came about: metrics, episodes turn by turn, weights."""
    weights = [folder / f"checkpoints/000004/{part}.safetensors" for part in ("model/model", "value/value")]
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in weights]
    return comparable(read_metrics(folder)), read_samples(folder), hashes


def without_run(records_of: tuple[Any, ...]) -> tuple[Any, ...]:
    metrics, samples, hashes = records_of
    return metrics, [(s.iteration, s.index, s.score, s.kl, s.turns) for s in samples], hashes


@pytest.fixture(scope="module")
def undisturbed(storage: Path, ray_cluster: None) -> Path:
    summary = train(game_config(storage, "undisturbed"))
    assert summary.iterations == 4
    return storage / "undisturbed"


def test_a_run_on_games_leaves_what_its_readers_need(undisturbed: Path) -> None:
    """TW-10, TW-22, TW-23, TW-26: two ranks over gloo; episodes turn by turn with probability, value and reward; a value
    network beside the model."""
    samples = [sample for sample in read_samples(undisturbed) if sample.iteration == 3]
    assert len(samples) == 12
    for sample in samples:
        assert 1 <= len(sample.turns) <= 6
        assert sample.score == pytest.approx(sum(turn.reward for turn in sample.turns))
        assert all(turn.value is not None and turn.probability is not None for turn in sample.turns)
        assert sample.won == (sample.score == 1)
    rows = read_metrics(undisturbed)
    names = {"rollout/won", "val/var_explained", "val/error", "val/clipfrac", "policy/clipfrac", "env/steps"}
    assert all(names <= row.keys() for row in rows)
    assert rows[-1]["eval/episodes"] == 2
    assert "eval/won" not in rows[0]
    checkpoint = undisturbed / "checkpoints/000004"
    assert {path.name for path in checkpoint.iterdir()} >= {"model", "value", "trainer", "manifest.json"}
    assert "of 2 held-out games won, greedy" in (undisturbed / "report.html").read_text()


def test_one_worker_plays_what_two_play(storage: Path, undisturbed: Path) -> None:
    """1 worker and 2 workers, same seed: same episodes, same weights."""
    train(game_config(storage, "alone", rollout={"workers": 1}))
    assert without_run(records(storage / "alone")) == without_run(records(undisturbed))


@pytest.mark.slow  # test_training.py does the same with one network
def test_kill_the_driver_and_resume_bit_for_bit(storage: Path, undisturbed: Path) -> None:
    """Resume mid-run equals uninterrupted: weights of both networks, metrics, episodes, game seeds included."""
    config = game_config(storage, "killed")
    process = driver(config, storage)
    wait_for_iteration(storage / "killed", 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    train(config, resume=True)
    assert without_run(records(storage / "killed")) == without_run(records(undisturbed))


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(  # test_coin_learning.py has it in one process
            {"name": "rloo", "turn_discount": 0.97, "minibatches": 2, "clip_range": 0.2}, marks=pytest.mark.slow
        ),
        {"name": "rejection_sampling", "train_prompt": True, "kl": {"coef": 0.1}},
        {"name": "ppo", "value": {"kind": "head", "head": "mlp"}},
    ],
    ids=["rloo", "rejection_sampling", "ppo"],
)
def test_every_algorithm_plays(storage: Path, ray_cluster: None, algorithm: dict[str, Any]) -> None:
    """TW-20, TW-17: each through the whole path; a growing transcript as the prompt; rewards by their names. Two ranks
    where the prompt is trained on; the others' updates on two are test_learner.py's and test_ppo_learner.py's."""
    rewards = ["game_score", {"name": "letter_count", "letter": "e", "weight": 0.1}]
    config = game_config(
        storage, f"plays-{algorithm['name']}", iterations=2, baseline_episodes=0, algorithm=algorithm, reward=rewards,
        agent={"prompt": "transcript", "memory_turns": 0}, rollout={"workers": 1},
        learner={"ranks": 2 if "train_prompt" in algorithm else 1},
    )  # fmt: skip
    train(config)
    rows = read_metrics(storage / config.name)
    assert len(rows) == 2
    for row in rows:
        assert np.isfinite(list(row.values())).all()
        assert row["objective/score"] == pytest.approx(row["reward/game_score"] + 0.1 * row["reward/letter_count"])
    assert any(turn.action.count("e") for sample in read_samples(storage / config.name) for turn in sample.turns)


def test_ranked_commands_are_not_trained(storage: Path) -> None:
    config = game_config(storage, "ranked", agent={"prompt": "actions", "actions": "rank"})
    with pytest.raises(ConfigError, match=r"agent\.actions: rank is to evaluate and to play with"):
        train(config)
    assert not (storage / "ranked").exists()
