"""`make setup` makes the environment whole or not at all (requirement "two commands on a fresh machine").

Tried on a project without dependencies, whose own build backend waits or fails where a test says so; Makefile and .ci
are the real ones.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 120.0

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "small"
version = "1"
[project.optional-dependencies]
dev = []
"""
BACKEND = """
import pathlib, time, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    if pathlib.Path("fail").exists():
        raise RuntimeError("the build fails as it was told to")
    while pathlib.Path("wait").exists():
        pathlib.Path("waiting").touch()
        time.sleep(0.05)
    name = "small-1-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory, name), "w") as wheel:
        wheel.writestr("small.py", "")
        wheel.writestr("small-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1\\nProvides-Extra: dev\\n")
        wheel.writestr("small-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: small\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("small-1.dist-info/RECORD", "small.py,,\\nsmall-1.dist-info/METADATA,,\\nsmall-1.dist-info/WHEEL,,\\nsmall-1.dist-info/RECORD,,\\n")
    return name
"""  # noqa: E501


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "a path with spaces"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "constraints.txt").write_text("")
    return folder


@pytest.fixture
def start(project: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `make setup` with variables, in a process group of its own as a terminal does; it ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(**variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["make", "setup", *(f"{name}={value}" for name, value in variables.items())],
            cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0,
            env={**{name: value for name, value in os.environ.items() if not name.startswith("MAKE")}, "PIP_NO_INDEX": "1"},
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    (project / "wait").unlink(missing_ok=True)
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=DEADLINE_S)


Start = Callable[..., "subprocess.Popen[str]"]


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=DEADLINE_S)
    return output


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_complete(project: Path) -> bool:
    works = subprocess.run([project / ".venv/bin/python", "-c", "import small"], check=False, capture_output=True)
    return works.returncode == 0 and (project / ".venv/rayrlhf-stamp.json").exists()


def processes_in(project: Path) -> list[psutil.Process]:
    def belongs(process: psutil.Process) -> bool:
        try:
            return Path(process.cwd()) == project or str(project) in " ".join(process.cmdline())
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if belongs(process)]


def test_a_fresh_environment_is_made_once_and_then_left_alone(project: Path, start: Start) -> None:
    first = start()
    output = finish(first)
    assert first.returncode == 0, output
    assert is_complete(project)
    changed = (project / ".venv/rayrlhf-stamp.json").stat().st_mtime_ns
    again = start()
    assert finish(again) == ""
    assert again.returncode == 0
    assert (project / ".venv/rayrlhf-stamp.json").stat().st_mtime_ns == changed


def interrupt_while_pip_works(project: Path, start: Start, stop: Callable[[int], None]) -> None:
    (project / "wait").touch()
    process = start()
    wait_until((project / "waiting").exists)
    stop(process.pid)
    finish(process)
    assert process.returncode != 0
    wait_until(lambda: not (project / ".venv").exists())
    wait_until(lambda: not processes_in(project))
    (project / "wait").unlink()
    again = start()
    assert "making" in finish(again)
    assert is_complete(project)


def test_ctrl_c_leaves_no_environment_and_the_next_call_works(project: Path, start: Start) -> None:
    interrupt_while_pip_works(project, start, lambda group: os.killpg(group, signal.SIGINT))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_make_alone_leaves_no_environment(project: Path, start: Start, number: int) -> None:
    interrupt_while_pip_works(project, start, lambda make: os.kill(make, number))


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.5, 1.5])
def test_ctrl_c_while_the_folder_is_filled(project: Path, start: Start, delay_s: float) -> None:
    process = start()
    wait_until((project / ".venv").exists)
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGINT)
    finish(process)
    assert not (project / ".venv").exists()
    finish(start())
    assert is_complete(project)


def test_an_environment_half_made_by_kill_9_is_made_anew(project: Path, start: Start) -> None:
    (project / "wait").touch()
    process = start()
    wait_until((project / "waiting").exists)
    os.killpg(process.pid, signal.SIGKILL)  # make and the script both: nobody can clean up
    finish(process)
    assert (project / ".venv/rayrlhf-building").exists()
    (project / "wait").unlink()
    again = start()
    assert "making" in finish(again)
    assert is_complete(project)


def test_a_failing_installation_says_all_that_pip_said(project: Path, start: Start) -> None:
    (project / "fail").touch()
    process = start()
    output = finish(process)
    assert process.returncode != 0
    assert "the build fails as it was told to" in output
    assert not (project / ".venv").exists()


@pytest.mark.slow
def test_two_at_once_make_it_once(project: Path, start: Start) -> None:
    (project / "wait").touch()
    first = start()
    wait_until((project / "waiting").exists)
    second = start()
    assert second.stdout is not None
    assert "waiting" in second.stdout.readline()
    (project / "wait").unlink()
    outputs = [finish(first), finish(second)]
    assert first.returncode == second.returncode == 0
    assert [output.count("setup: making") for output in outputs] == [1, 0]


@pytest.mark.slow
def test_new_pins_update_it_and_a_moved_checkout_makes_its_own(project: Path, start: Start) -> None:
    finish(start())
    (project / "constraints.txt").write_text("# changed\n")
    assert "bringing up to date" in finish(start())
    (project / "pyproject.toml").write_text(PYPROJECT + "[tool.ruff]\nline-length = 100\n")
    assert finish(start()) == ""  # a tool's settings change nothing that is installed
    stamp = json.loads((project / ".venv/rayrlhf-stamp.json").read_text())
    (project / ".venv/rayrlhf-stamp.json").write_text(json.dumps({**stamp, "path": "/elsewhere/.venv"}))
    assert "making" in finish(start())


@pytest.mark.slow
def test_an_environment_of_the_users_own_is_never_removed(project: Path, start: Start) -> None:
    subprocess.run(["python3", "-m", "venv", project / ".venv"], check=True)
    (project / ".venv/mine").touch()
    (project / "fail").touch()
    process = start()
    finish(process)
    assert process.returncode != 0
    assert (project / ".venv/mine").exists()
    (project / "fail").unlink()
    assert "bringing up to date" in finish(start())
    assert (project / ".venv/mine").exists()
    assert is_complete(project)


def test_a_machine_without_a_c_compiler_or_python_is_told_what_to_install(project: Path, start: Start) -> None:
    without_python = start(PYTHON="python3.11.no-such")
    assert "needs Python 3.11, 3.12 or 3.13" in finish(without_python)
    assert without_python.returncode != 0
    without_compiler = subprocess.run(
        ["make", "setup"],
        cwd=project,
        env={**os.environ, "CC": "no-such-cc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "`no-such-cc` is not on the PATH" in without_compiler.stderr
    assert "apt install build-essential" in without_compiler.stderr
    assert without_compiler.returncode != 0
    assert not (project / ".venv").exists()
