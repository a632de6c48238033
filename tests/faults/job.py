"""The real job at a small size: what the fault suite puts its faults into."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from rayrlhf.checkpoint import CheckpointStore
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.metrics import comparable, read_metrics, read_samples

TIMEOUT_S = 1200.0  # of a run that comes to an end by itself, on a machine that is busy with other things


def small_config(model: Path, storage: Path, name: str, /, **changes: Any) -> RunConfig:
    """Four iterations of 2 groups of 3 on a tiny model with one worker and one rank, each with a checkpoint."""
    values: dict[str, Any] = {
        "name": name, "storage_path": str(storage), "iterations": 4, "baseline_episodes": 4,
        "model": {"path": str(model)},
        "environment": {"name": "single_turn", "prompts": {"text": "Once upon a time"}}, "reward": "alliteration",
        "rollout": {
            "workers": 1, "groups_per_iteration": 2, "group_size": 3, "max_new_tokens": 8, "cpus_per_worker": 0.1,
        },
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "learner": {"ranks": 1, "cpus_per_rank": 0.1},
        "checkpoint": {"every": 1, "keep": 2, "keep_trainer_state": 1},
    }  # fmt: skip
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if both else value
    return RunConfig.model_validate(values)


def start(config: RunConfig, folder: Path, *options: str, **settings: Any) -> subprocess.Popen[str]:
    """`rayrlhf train` in a process and a Ray cluster of its own. folder: for its config. settings: of Popen."""
    file = folder / f"{config.name}.yaml"
    file.write_text(dump_config(config))
    return subprocess.Popen(
        [sys.executable, "-m", "rayrlhf", "train", str(file), *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, **settings,
    )  # fmt: skip


def run(config: RunConfig, folder: Path, *options: str) -> tuple[int, str]:
    """Runs it to its end; returns the exit code and what it wrote to stderr."""
    process = start(config, folder, *options)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, errors


def wait_for_child(process: subprocess.Popen[str], name: str) -> psutil.Process:
    """The actor of this class among the descendants of a driver, once it is there."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if child.cmdline()[:1] and child.cmdline()[0].startswith(f"ray::{name}"):
                    return child
            except psutil.Error:
                continue
        time.sleep(0.02)
    raise AssertionError(f"no process of {name}")


def recorded(folder: Path) -> int:
    """Lines of the metrics of the run at `folder`: its iterations and, where it plays one, the baseline."""
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_for_iteration(folder: Path, iteration: int, process: subprocess.Popen[str]) -> None:
    """Waits until a run has recorded an iteration."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        if recorded(folder) > iteration:
            return
        time.sleep(0.02)
    raise AssertionError("the run did not get so far")


def resuming(folder: Path) -> list[str]:
    """The option with which a run goes on; none where it has not begun."""
    return ["--resume"] if folder.exists() else []


def family_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All that a driver has started."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def clear_away(process: subprocess.Popen[str], family: Sequence[psutil.Process] = ()) -> None:
    """Ends a driver and waits until nothing that it started is left. family: what it had started before it was killed."""
    if process.poll() is None:
        family = family_of(process)
        os.kill(process.pid, 9)
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, [one.cmdline() for one in alive]


def resumable(folder: Path) -> int | None:
    """Iterations behind the newest whole state of the run at `folder`; None where it has none yet."""
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        return None
    latest = CheckpointStore(checkpoints, 20, 20).latest()
    return None if latest is None else latest.iteration


def results(folder: Path, iterations: int) -> tuple[str, list[dict[str, float]], list[str]]:
    """What has to be equal bit for bit: the last weights' hash, metrics without times, all episodes with their scores."""
    weights = (folder / f"checkpoints/{iterations:06d}/model/model.safetensors").read_bytes()
    samples = read_samples(folder)
    told = [f"{s.iteration} {s.index} {s.score} {s.kl} {s.logprob_sum} {s.text}" for s in samples]
    return hashlib.sha256(weights).hexdigest(), comparable(read_metrics(folder)), told
