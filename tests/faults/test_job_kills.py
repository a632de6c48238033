"""The real job with its driver, a worker or a rank killed: at chosen system calls, or at any moment."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rayrlhf.checkpoint import whole_checkpoints
from rayrlhf.config import RunConfig
from tests.faults import job, system_calls

pytestmark = pytest.mark.faults
KILLS_EACH_WAY = 15
RANDOM_KILLS = int(os.environ.get("RAYRLHF_RANDOM_KILLS", "12"))
"""Of the driver, a worker and a rank in turn; more of them take 20 to 40 s each."""


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("undisturbed")
    code, errors = job.run(config(tiny_model, storage), storage)
    assert code == 0, errors
    return storage / "job"


def config(model: Path, storage: Path) -> RunConfig:
    return job.small_config(model, storage, "job", rollout={"workers": 2}, baseline_episodes=0)


def at_checkpoints(folder: Path) -> Callable[[system_calls.Call], bool]:
    return lambda call: call.path.startswith(str(folder / "job/checkpoints"))


@pytest.mark.parametrize("at", range(KILLS_EACH_WAY))
def test_a_driver_killed_while_it_saves_or_prunes_leaves_a_whole_state(
    tiny_model: Path, tmp_path: Path, undisturbed: Path, at: int
) -> None:
    """Killed just before the n-th change that the driver itself makes among the checkpoints, once there is one: what is
    there then resumes, as the folder was left, and ends bit for bit as the run without fault does."""
    if reason := system_calls.why_not():
        pytest.skip(reason)
    process = job.start(config(tiny_model, tmp_path), tmp_path)
    try:
        job.wait_for_iteration(tmp_path / "job", 0, process)
        call = system_calls.kill_running(process.pid, 4 * at, at_checkpoints(tmp_path))
        assert call is not None, "the run ended before that call"
    finally:
        job.clear_away(process)
    before = whole_checkpoints(tmp_path / "job/checkpoints")
    assert not before or job.resumable(tmp_path / "job") in before[-2:], (call, before)
    code, errors = job.run(config(tiny_model, tmp_path), tmp_path, "--resume")
    assert code == 0, errors
    assert job.results(tmp_path / "job", 4) == job.results(undisturbed, 4)


@pytest.mark.parametrize("at", range(KILLS_EACH_WAY))
def test_a_rank_killed_while_it_saves_changes_nothing(
    tiny_model: Path, tmp_path: Path, undisturbed: Path, at: int
) -> None:
    """Killed just before the n-th change that it makes among the checkpoints: the learner is built anew, and the run ends
    bit for bit as the run without fault does."""
    if reason := system_calls.why_not():
        pytest.skip(reason)
    process = job.start(config(tiny_model, tmp_path), tmp_path)
    try:
        rank = job.wait_for_child(process, "LearnerRank")
        call = system_calls.kill_running(rank.pid, 5 * at, at_checkpoints(tmp_path))
        assert call is not None, "the rank ended before that call"
        _, errors = process.communicate(timeout=job.TIMEOUT_S)
        assert process.returncode == 0, errors
        assert "rebuilding it" in errors
    finally:
        job.clear_away(process)
    assert job.results(tmp_path / "job", 4) == job.results(undisturbed, 4)


@pytest.mark.parametrize("number", range(RANDOM_KILLS))
def test_killed_at_a_random_moment_the_run_ends_as_if_nothing_had_happened(
    tiny_model: Path, tmp_path: Path, undisturbed: Path, number: int
) -> None:
    """SIGKILL of the driver, a worker or a rank, in turn, at a moment drawn from a seed: bit-equal after recovery, or
    after `--resume`."""
    whom = ("RolloutActor", "LearnerRank", "driver")[number % 3]
    drawn = random.Random(number)
    process = job.start(config(tiny_model, tmp_path), tmp_path)
    try:
        victim = psutil.Process(process.pid) if whom == "driver" else job.wait_for_child(process, whom)
        if drawn.random() < 0.8:
            job.wait_for_iteration(tmp_path / "job", drawn.randrange(3), process)
        threading.Timer(drawn.uniform(0, 1.0), lambda: psutil.pid_exists(victim.pid) and victim.kill()).start()
        if whom == "driver":
            process.wait(job.TIMEOUT_S)
        else:
            _, errors = process.communicate(timeout=job.TIMEOUT_S)
            assert process.returncode == 0 or "did not start" in errors, errors
    finally:
        job.clear_away(process)
    if process.returncode != 0:
        assert process.returncode in (-signal.SIGKILL, 2)
        time.sleep(0.5)
        resume = ["--resume"] if (tmp_path / "job").exists() else []
        code, errors = job.run(config(tiny_model, tmp_path), tmp_path, *resume)
        assert code == 0, errors
    assert job.results(tmp_path / "job", 4) == job.results(undisturbed, 4)
