"""Sweeps in processes of their own: killed and resumed, stopped with Ctrl-C, spread over two simulated nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rayrlhf.metrics import read_metrics
from rayrlhf.tune.results import read_sweep
from tests.test_sweep import base_file, endings


def command(folder: Path, source: str, *words: str) -> list[str]:
    own = [f"sweep.storage_path={folder}", "sweep.name=s"]
    return [sys.executable, "-m", "rayrlhf", "sweep", source, *words, *own]


def start(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with open(folder / "said.txt", "ab") as said:
        return subprocess.Popen(arguments, cwd=folder, env=environment, stdout=said, stderr=said)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def markers(path: Path) -> dict[str, tuple[float, bytes]]:
    """Each trial's completion marker: when it was written, and what it says."""
    return {
        marker.parent.name: (marker.stat().st_mtime_ns, marker.read_bytes())
        for marker in sorted((path / "trials").glob("*/trial.json"))
    }


def sessions(run_folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (run_folder / "sessions.jsonl").read_text().splitlines()]


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_killed_twice_ends_with_all_trials_and_repeats_none(tiny_model: Path, tmp_path: Path) -> None:
    """12 trials, SIGKILL after at least 2 and at least 6 have ended: 12 results, no marker computed twice, and what was
    under way goes on from its checkpoint."""
    source = base_file(tmp_path, tiny_model, 3)
    arguments = command(tmp_path, source, "algorithm.kl.coef=grid:0,0.1,1", "sweep.seeds=4", "sweep.max_concurrent=3")
    path = tmp_path / "s"
    kept: dict[str, tuple[float, bytes]] = {}
    for done in (2, 6):
        process = start(tmp_path, arguments)
        wait_for(lambda done=done: len(markers(path)) >= done, process, 500)  # type: ignore[misc]
        started = descendants(process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 60
        while not gone(started):
            assert time.monotonic() < deadline, "processes of a killed sweep are left"
            time.sleep(0.2)
        now = markers(path)
        assert {name: now[name] for name in kept} == kept
        kept = now
        if arguments[-1] != "--resume":
            arguments = [*arguments, "--resume"]
    last = start(tmp_path, arguments)
    assert last.wait(timeout=900) == 0, (tmp_path / "said.txt").read_text()[-3000:]
    assert endings(path) == dict.fromkeys(
        (f"{point:03d}-seed{seed}" for point in range(3) for seed in range(4)), "done"
    )
    now = markers(path)
    assert {name: now[name] for name in kept} == kept  # those files were never written again
    for name in kept:
        assert len(read_metrics(path / "trials" / name)) == 3
    results = read_sweep(path)
    assert [len(trial.history.points) for trial in results.trials] == [3] * 12
    assert any("resume" in sessions(path / "trials" / trial.name) for trial in results.trials)
    assert (path / "report.html").is_file()
    assert not (path / ".tune").exists()


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_a_finished_sweep_is_not_run_again(tiny_model: Path, tmp_path: Path) -> None:
    """Interrupted in its first trial, resumed to its end, resumed once more: nothing is computed then."""
    source = base_file(tmp_path, tiny_model, 3)
    arguments = command(tmp_path, source, "algorithm.kl.coef=grid:0.1")
    path = tmp_path / "s"
    process = start(tmp_path, arguments)
    wait_for(lambda: (path / "trials/000-seed0/checkpoints/000001").is_dir(), process, 200)
    started = descendants(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    deadline = time.monotonic() + 20
    while not gone(started):
        assert time.monotonic() < deadline, [p.name() for p in started if p.is_running()]
        time.sleep(0.2)
    assert endings(path) == {"000-seed0": None}
    assert "stopped; `--resume` goes on from the trials' checkpoints" in (tmp_path / "said.txt").read_text()
    for _ in range(2):
        assert start(tmp_path, [*arguments, "--resume"]).wait(timeout=250) == 0, (tmp_path / "said.txt").read_text()
    assert endings(path) == {"000-seed0": "done"}
    assert sessions(path / "trials/000-seed0") == ["start", "resume"]
    assert [row["iteration"] for row in read_metrics(path / "trials/000-seed0")] == [0, 1, 2]


TWO_NODES = """
import sys
import ray
from ray.cluster_utils import Cluster

from rayrlhf.errors import LearnerError
from rayrlhf.tune.sweep import run_sweep
from rayrlhf.tune.sweep_config import load_sweep

folder, source = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
cluster.add_node(num_cpus=2)
ray.init(address=cluster.address, log_to_driver=False)
words = [f"sweep.storage_path={folder}", "algorithm.kl.coef=grid:0,1", "rollout.cpus_per_worker=1"]
try:
    run_sweep(load_sweep(source, [*words, "sweep.name=large", "learner.cpus_per_rank=3"]))
except LearnerError as error:
    print(f"refused: {error}", file=sys.stderr)
run_sweep(load_sweep(source, [*words, "sweep.name=s"]))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_spreads_over_two_nodes(tiny_model: Path, tmp_path: Path) -> None:
    """X-8: each node of 2 CPUs holds one gang of 1.6, and both trials run at once; a gang that never fits is refused."""
    source = base_file(tmp_path, tiny_model, 3)
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(tmp_path), source], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refused: a trial asks for" in done.stderr
    assert "000-seed0" in done.stderr
    assert endings(tmp_path / "s") == {"000-seed0": "done", "001-seed0": "done"}
    spans = [times(tmp_path / "s/trials" / name) for name in ("000-seed0", "001-seed0")]
    assert max(first for first, _ in spans) < min(last for _, last in spans)
    assert not (tmp_path / "large").exists()


def times(run_folder: Path) -> tuple[float, float]:
    """When a run's records began, and when it ended, in seconds."""
    begun = (run_folder / "config.yaml").stat().st_mtime
    return begun, (run_folder / "trial.json").stat().st_mtime
