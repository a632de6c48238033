"""Signals while a run starts: whenever one comes, no process outlives the run and what was there stays usable."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from rayrlhf.reaper import MARK
from tests.faults.job import small_config, start, wait_for_child

GONE_S = 15.0  # after a signal, nothing of the run is there any more
MOMENTS = 20
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)


def family_of(process: subprocess.Popen[str], token: str) -> list[psutil.Process]:
    """All processes of a run: what its driver and theirs have started, known by a variable in their environment."""
    found = []
    for one in psutil.process_iter():
        try:
            marked = token.encode() in Path(f"/proc/{one.pid}/environ").read_bytes()  # a title may hide it
            if marked and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except (psutil.Error, OSError):
            continue
    return found


def gone_in_time(process: subprocess.Popen[str], token: str, seen: Iterable[psutil.Process] = ()) -> list[list[str]]:
    """Command lines of what is left of a run 15 s after its signal, of those `seen` before too; what is left is ended."""
    deadline = time.monotonic() + GONE_S
    while (left := alive([*family_of(process, token), *seen])) and time.monotonic() < deadline:
        time.sleep(0.1)
    told = []
    for one in left:
        try:
            told.append([str(one.pid), *one.cmdline()])
            one.kill()
        except psutil.NoSuchProcess:
            continue
    return told


def alive(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    return {one for one in processes if one.is_running() and line(one)}  # a zombie has no command line


def started(tiny_model: Path, folder: Path, name: str) -> tuple[subprocess.Popen[str], str]:
    token = f"started-by-{os.getpid()}-{name}-{uuid.uuid4().hex}"
    environment = {key: value for key, value in os.environ.items() if key != MARK}
    config = small_config(tiny_model, folder / "runs", name, iterations=500)
    process = start(config, folder, env={**environment, "STARTED_BY_THE_TEST": token})
    return process, token


@pytest.mark.parametrize("daemon", ["gcs_server", "raylet", "DashboardAgent"])
def test_a_signal_while_ray_starts_leaves_no_process(tiny_model: Path, tmp_path: Path, daemon: str) -> None:
    """As soon as each of Ray's daemons is there; the agents are what outlives a driver otherwise."""
    number = {"gcs_server": signal.SIGTERM, "raylet": signal.SIGHUP, "DashboardAgent": signal.SIGKILL}[daemon]
    process, token = started(tiny_model, tmp_path, "starting")
    deadline = time.monotonic() + 300
    seen: set[psutil.Process] = set()
    while not any(daemon in " ".join(line(one)) for one in seen):
        seen = alive([*seen, *psutil.Process(process.pid).children(recursive=True)])
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert not gone_in_time(process, token, seen)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert "interrupted" in errors


@pytest.fixture(scope="module")
def start_up_s(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds from the first line of Python to the first iteration."""
    process, token = started(tiny_model, tmp_path_factory.mktemp("start-up"), "whole")
    since = time.monotonic()
    wait_for_child(process, "LearnerRank")
    seconds = 1.3 * (time.monotonic() - since)
    process.kill()
    process.communicate()
    assert not gone_in_time(process, token)
    return seconds


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", ENDING)
def test_at_every_moment_of_start_up_a_signal_leaves_no_process(
    tiny_model: Path, tmp_path: Path, start_up_s: float, number: signal.Signals
) -> None:
    """20 moments of SIGTERM, and of the others 5 each, spread over the start-up."""
    moments = MOMENTS if number == signal.SIGTERM else MOMENTS // 4
    left = {}
    for moment in range(moments):
        process, token = started(tiny_model, tmp_path, f"moment-{moment}")
        time.sleep(start_up_s * (moment + 0.5) / moments)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        if number != signal.SIGKILL and process.returncode > 0:
            assert "Traceback" not in errors, errors
        if told := gone_in_time(process, token):
            left[moment] = told
    assert not left


def line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
