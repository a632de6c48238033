"""NaN out of a reward, an environment or a model; an environment or a reward that hangs, exits, raises or floods."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayrlhf.checkpoint import CheckpointStore
from rayrlhf.errors import UserError
from rayrlhf.metrics import read_metrics
from rayrlhf.trainer import train
from tests.faults import disks, job

ENVIRONMENT, REWARD = "tests.faults.plugins:Faulty", "tests.faults.plugins:FaultyReward"
HEALTHY_RUNS = 40


def environment(fault: str, marks: Path, **more: Any) -> dict[str, Any]:
    prompts = {"text": "Once upon a time"}
    return {"environment": {"name": ENVIRONMENT, "prompts": prompts, "fault": fault, "marks": str(marks), **more}}


def with_nan(model: Path, folder: Path) -> Path:
    """A copy of the model one of whose weights is no number."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def nan_reward(model: Path, folder: Path) -> dict[str, Any]:
    return {"reward": [{"name": REWARD, "fault": "nan", "marks": str(folder), "at": 4}]}


def nan_environment(model: Path, folder: Path) -> dict[str, Any]:
    return environment("nan", folder)


def nan_model(model: Path, folder: Path) -> dict[str, Any]:
    return {"model": {"path": str(with_nan(model, folder / "nan"))}}


@pytest.mark.faults
@pytest.mark.parametrize("source", [nan_reward, nan_environment, nan_model])
def test_numbers_that_are_none_stop_the_run_and_are_named(
    tiny_model: Path, tmp_path: Path, ray_cluster: None, source: Callable[[Path, Path], dict[str, Any]]
) -> None:
    """Nothing that is not finite enters the records, and no checkpoint holds it."""
    config = job.small_config(tiny_model, tmp_path, "job", **source(tiny_model, tmp_path))
    with pytest.raises(UserError, match=r"(?i)\bnan\b|not a finite|not finite"):
        train(config)
    if (tmp_path / "job/metrics.jsonl").exists():
        assert all(value == value for row in read_metrics(tmp_path / "job") for value in row.values())
        for weights in (tmp_path / "job").glob("checkpoints/*/model/model.safetensors"):
            assert all(bool(tensor.isfinite().all()) for tensor in load_file(weights).values())


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["hang", "exit", "raise", "flood"])
def test_a_step_that_goes_wrong_once_changes_nothing(
    tiny_model: Path, tmp_path: Path, ray_cluster: None, fault: str
) -> None:
    """A game's process that hangs, ends, raises or writes 26 MB is replaced or drained: the trajectories are those of a run
    without fault."""
    for name, at in (("plain", 10**9), ("faulty", 9)):
        (tmp_path / f"marks-{name}").mkdir()
        settings = environment(fault, tmp_path / f"marks-{name}", at=at, step_timeout_s=3)
        train(job.small_config(tiny_model, tmp_path, name, **settings))
    assert job.results(tmp_path / "faulty", 4)[:1] == job.results(tmp_path / "plain", 4)[:1]
    assert job.results(tmp_path / "faulty", 4)[2] == job.results(tmp_path / "plain", 4)[2]


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["hang", "exit", "flood"])
def test_a_reward_that_goes_wrong_is_named_or_drained(
    tiny_model: Path, tmp_path: Path, ray_cluster: None, fault: str
) -> None:
    """A reward that hangs or ends its process ends the run by its name, and `--resume` goes on to the end. One that floods
    does no harm."""
    reward = [{"name": REWARD, "fault": fault, "marks": str(tmp_path), "at": 3}]
    config = job.small_config(tiny_model, tmp_path, "job", reward=reward, reward_timeout_s=5)
    try:
        train(config)
        told = None
    except UserError as error:
        told = str(error)
        train(config, resume=True)
    assert (tmp_path / "calls").stat().st_size > 3  # the one that was to go wrong did
    assert (told is None) == (fault == "flood")
    assert told is None or f"reward `{REWARD}`" in told
    assert len(read_metrics(tmp_path / "job")) == 4


@pytest.mark.faults
@pytest.mark.parametrize("bit", [3, 5_000, 100_003, 700_001])
@pytest.mark.parametrize("name", ["model/model.safetensors", "trainer_state.json", "manifest.json"])
def test_a_flipped_bit_in_a_checkpoint_is_named_and_the_one_before_it_is_taken(
    tmp_path: Path, finished: Path, name: str, bit: int
) -> None:
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    disks.flip_bit(tmp_path / "checkpoints/000004" / name, bit)
    with pytest.warns(UserWarning, match=r"000004.*the one of iteration 3 is taken"):
        latest = CheckpointStore(tmp_path / "checkpoints", 20, 2).latest()
    assert latest is not None
    assert latest.iteration == 3


@pytest.mark.faults
@pytest.mark.parametrize("record", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("missing", [1, 20, 200])
def test_a_torn_last_line_blocks_no_resume(
    tiny_model: Path, tmp_path: Path, finished: Path, ray_cluster: None, record: str, missing: int
) -> None:
    """Cut off with a copy beside, said, and written again: bit for bit what it was."""
    shutil.copytree(finished, tmp_path / "job")
    shutil.rmtree(tmp_path / "job/checkpoints/000004")
    disks.tear(tmp_path / "job" / record, missing)
    with pytest.warns(UserWarning, match=rf"{record}: its last line was cut short.*{record}\.torn"):
        train(kept_states(tiny_model, tmp_path), resume=True)
    assert job.results(tmp_path / "job", 4) == job.results(finished, 4)
    assert (tmp_path / "job" / f"{record}.torn").stat().st_size > 0


def kept_states(model: Path, storage: Path) -> Any:
    return job.small_config(model, storage, "job", checkpoint={"every": 1, "keep": 4, "keep_trainer_state": 4})


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    storage = tmp_path_factory.mktemp("finished")
    train(kept_states(tiny_model, storage))
    return storage / "job"


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_healthy_runs_are_never_stopped(tiny_model: Path, tmp_path: Path, ray_cluster: None) -> None:
    """Runs of two iterations with other seeds, lengths, temperatures and algorithms: each comes to its end."""
    for seed in range(HEALTHY_RUNS):
        algorithm = ("rloo", "grpo", "reinforce", "ppo")[seed % 4]
        rollout = {"group_size": 1 if algorithm in ("reinforce", "ppo") else 3, "max_new_tokens": 4 + seed}
        summary = train(
            job.small_config(
                tiny_model, tmp_path, f"seed-{seed}", iterations=2, seed=seed, baseline_episodes=0, rollout=rollout,
                algorithm={"name": algorithm}, checkpoint={"every": 2},
            )
        )  # fmt: skip
        assert summary.iterations == 2
