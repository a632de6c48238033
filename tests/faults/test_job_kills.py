"""The real job with its driver, a worker or a rank killed: at chosen system calls, or at any moment; time after time in
one run, which has to end as if nothing had happened."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rayrlhf.checkpoint import whole_checkpoints
from rayrlhf.config import RunConfig
from tests.faults import job, system_calls

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
KILLS_EACH_WAY = 15
RANDOM_KILLS = int(os.environ.get("RAYRLHF_RANDOM_KILLS", "12"))
"""Of the driver, a worker and a rank in turn; more of them take about 10 s each."""
ITERATIONS = 12 * max(KILLS_EACH_WAY, RANDOM_KILLS)


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("undisturbed")
    code, errors = job.run(config(tiny_model, storage), storage)
    assert code == 0, errors
    return storage / "job"


@pytest.fixture
def traced() -> None:
    if reason := system_calls.why_not():
        pytest.skip(reason)


def config(model: Path, storage: Path) -> RunConfig:
    return job.small_config(
        model, storage, "job", iterations=ITERATIONS, baseline_episodes=0, rollout={"workers": 2},
        learner={"max_rebuilds": KILLS_EACH_WAY + RANDOM_KILLS},
    )  # fmt: skip


def at_checkpoints(folder: Path) -> Callable[[system_calls.Call], bool]:
    return lambda call: call.path.startswith(str(folder / "job/checkpoints"))


def test_a_driver_killed_while_it_saves_or_prunes_leaves_a_whole_state(
    tiny_model: Path, tmp_path: Path, undisturbed: Path, traced: None
) -> None:
    """Killed just before the n-th change that the driver itself makes among the checkpoints, for 15 n: each time what is
    there resumes, as the folder was left, and nothing that was whole is lost; the end is bit for bit that without fault."""
    folder, calls = tmp_path / "job", []
    for at in range(KILLS_EACH_WAY):
        had, recorded = job.resumable(folder) or 0, job.recorded(folder)
        process = job.start(config(tiny_model, tmp_path), tmp_path, *job.resuming(folder))
        family = []
        try:
            job.wait_for_iteration(folder, recorded, process)
            family = job.family_of(process)
            calls.append(system_calls.kill_running(process.pid, 4 * at, at_checkpoints(tmp_path)))
            assert calls[-1] is not None, "the run ended before that call"
        finally:
            job.clear_away(process, family)
        whole, resumable = whole_checkpoints(folder / "checkpoints"), job.resumable(folder) or 0
        assert resumable >= max(had, recorded), calls
        assert not recorded or resumable in whole[-2:], (calls, whole)
    assert len({call.name for call in calls if call}) > 3
    code, errors = job.run(config(tiny_model, tmp_path), tmp_path, "--resume")
    assert code == 0, errors
    assert job.results(folder, ITERATIONS) == job.results(undisturbed, ITERATIONS)


def test_a_rank_killed_while_it_saves_changes_nothing(
    tiny_model: Path, tmp_path: Path, undisturbed: Path, traced: None
) -> None:
    """Killed just before the n-th change that it makes among the checkpoints, for 15 n in one run: each time the learner
    is built anew, and the run ends bit for bit as the run without fault does."""
    process = job.start(config(tiny_model, tmp_path), tmp_path)
    try:
        for at in range(KILLS_EACH_WAY):
            rank = job.wait_for_child(process, "LearnerRank")
            call = system_calls.kill_running(rank.pid, 5 * at, at_checkpoints(tmp_path))
            assert call is not None, "the rank ended before that call"
        _, errors = process.communicate(timeout=job.TIMEOUT_S)
        assert process.returncode == 0, errors
        assert errors.count("rebuilding it") == KILLS_EACH_WAY
    finally:
        job.clear_away(process)
    assert job.results(tmp_path / "job", ITERATIONS) == job.results(undisturbed, ITERATIONS)


def test_killed_at_random_moments_the_run_ends_as_if_nothing_had_happened(
    tiny_model: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """SIGKILL of a worker, a rank or the driver, in turn, at moments drawn from a seed, of their start too: bit-equal
    after recovery and `--resume`."""
    folder, drawn, kills = tmp_path / "job", random.Random(0), []
    run = config(tiny_model, tmp_path)
    process = job.start(run, tmp_path)
    family: list[psutil.Process] = []
    try:
        for number in range(RANDOM_KILLS):
            whom = ("RolloutActor", "LearnerRank", "driver")[number % 3]
            victim = psutil.Process(process.pid) if whom == "driver" else job.wait_for_child(process, whom)
            if drawn.random() < 0.8:
                job.wait_for_iteration(folder, job.recorded(folder) + drawn.randrange(3), process)
            time.sleep(drawn.uniform(0, 1.0))
            family = job.family_of(process)
            kills.append(f"{whom} after {job.recorded(folder)} iterations")
            assert process.poll() is None, (kills, "the run ended before that moment")
            if victim.is_running():  # another one in its place may have come by itself
                victim.kill()
            if whom == "driver" or not goes_on(process, folder):
                job.clear_away(process, family)
                process = job.start(run, tmp_path, *job.resuming(folder))
        _, errors = process.communicate(timeout=job.TIMEOUT_S)
        assert process.returncode == 0, (kills, errors)
    finally:
        job.clear_away(process, family)
    assert job.results(folder, ITERATIONS) == job.results(undisturbed, ITERATIONS), kills


def goes_on(process: subprocess.Popen[str], folder: Path) -> bool:
    """Whether a run goes on to its next iteration; where an actor was killed before it had started, it ends and says so."""
    had = job.recorded(folder)
    while process.poll() is None and job.recorded(folder) == had:
        time.sleep(0.02)
    if process.poll() in (None, 0):
        return True
    errors = process.stderr.read() if process.stderr else ""
    assert process.returncode == 2, errors
    assert "did not start" in errors
    return False
