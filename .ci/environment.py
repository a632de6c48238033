"""Makes the virtual environment of a checkout, whole or not at all; `make` calls it: `environment.py FOLDER EXTRAS`.

Standard library only: it runs before anything is installed. The environment is current when its stamp says what it was
made from; a `building` mark in it means that somebody was killed there, and it is made anew. Pins: constraints.txt.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

STAMP = "rayrlhf-stamp.json"  # written last: what the finished environment was made from
BUILDING = "rayrlhf-building"  # there while an environment of ours is being made
# Not that of an active environment, which may be the one that is removed and made anew.
BASE_PYTHON: str = getattr(sys, "_base_executable", sys.executable)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.1
GRACE_S = 5.0  # what pip gets to clean up its temporary folders before it is killed
TEXTWORLD_PLATFORMS = {("Linux", "x86_64"), ("Darwin", "x86_64")}  # as the marker in pyproject.toml has it
COMPILER_HINT = "(apt install build-essential | dnf install gcc make | xcode-select --install, by your system)"
MEDDLING = (
    "PYTHONHOME",
    "PYTHONPATH",
    "PIP_USER",
    "PIP_TARGET",
    "PIP_PREFIX",
    "VIRTUAL_ENV",
    "TORCH_INDEX",
    "MAKEFLAGS",
)


class SetupError(Exception):
    """The environment cannot be made; the message says what to do."""


class Interrupted(Exception):
    """Ctrl-C, SIGTERM, a closed terminal, or `make` itself is gone."""


def main() -> int:
    root, target, extras = Path.cwd(), Path(sys.argv[1]).absolute(), sys.argv[2]
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        with _locked(root) as lock:
            _bring_up_to_date(root, target, extras, lock)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except Interrupted:
        print("setup: interrupted; nothing half-made is left, run the command again", file=sys.stderr)
        return 130
    return 0


def _bring_up_to_date(root: Path, target: Path, extras: str, lock: int) -> None:
    wanted, stamp = _stamp(root, target, extras), _read_stamp(target)
    if stamp is not None and not os.environ.get("PYTHON") and os.path.exists(stamp["python"].rpartition(" ")[0]):
        wanted["python"] = stamp["python"]  # made with another one that is still there: no reason to make it anew
    if stamp == wanted:
        return
    # A folder that has neither mark is somebody's own environment: packages are brought up to date in it, and it is
    # never removed.
    foreign = target.is_dir() and stamp is None and not (target / BUILDING).exists() and any(target.iterdir())
    reusable = foreign or (stamp is not None and {**stamp, "made_from": ""} == {**wanted, "made_from": ""})
    _check_machine()
    started = time.monotonic()
    print(f"setup: {'bringing up to date' if reusable else 'making'} the environment {target.name}", flush=True)
    try:
        if not foreign:
            _mark(target, fresh=not reusable)
        _install(root, target, extras, lock, fresh=not reusable)
        _write_stamp(target, wanted)
    except BaseException:
        _ignore_signals()  # a second Ctrl-C must not stop the cleaning up
        if not foreign:
            shutil.rmtree(target, ignore_errors=True)
        raise
    print(f"setup: done in {time.monotonic() - started:.0f} s", flush=True)


def _install(root: Path, target: Path, extras: str, lock: int, fresh: bool) -> None:
    """Runs venv and pip. Raises SetupError with all that pip had to say where one of them fails."""
    pip = [str(target / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input", "--progress-bar=off"]
    pip += ["--disable-pip-version-check", "--constraint", "constraints.txt"]
    pins = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if fresh:
        _step("virtual environment", [BASE_PYTHON, "-m", "venv", str(target)], lock)
    elif not (target / "bin" / "python").exists():
        raise SetupError(f"{target} is no virtual environment: remove it, or use another folder with `make VENV=...`")
    for torch in [pin for pin in pins if pin.startswith("torch==")]:
        index = os.environ.get("TORCH_INDEX")
        if fresh and not index and platform.system() == "Linux" and shutil.which("nvidia-smi") is None:
            print("setup: no NVIDIA driver here; if a large CUDA build is fetched, see TORCH_INDEX in the README")
        _step(torch.replace("==", " "), [*pip, *(["--extra-index-url", index] if index else []), torch], lock)
    _step("RayRLHF and what it depends on", [*pip, "--editable", f".[{extras}]"], lock)


def _check_machine() -> None:
    """Raises SetupError where the C compiler is missing that TextWorld's interpreter is compiled with."""
    if (platform.system(), platform.machine()) not in TEXTWORLD_PLATFORMS:
        print(f"setup: TextWorld has no build for {platform.system()} {platform.machine()}: text games will be missing")
        return
    compiler = os.environ.get("CC") or "cc"
    if shutil.which(compiler.split()[0]) is None:
        raise SetupError(
            f"no C compiler: `{compiler}` is not on the PATH. TextWorld's interpreter is compiled. {COMPILER_HINT}"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n")
        command = [*compiler.split(), str(source), "-o", str(source.with_suffix(""))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"the C compiler `{compiler}` cannot build a program {COMPILER_HINT}:\n{done.stderr.strip()}")


# The stamp ------------------------------------------------------------------------------------------------------------


def _stamp(root: Path, target: Path, extras: str) -> dict[str, str]:
    """What an environment is made from; tool settings in pyproject.toml do not make it stale, but for setuptools'."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    parts = [project.get("build-system"), project.get("project"), project.get("tool", {}).get("setuptools")]
    text = extras + json.dumps(parts, sort_keys=True) + (root / "constraints.txt").read_text(encoding="utf-8")
    return {
        "path": str(target),  # scripts in it carry the path: a copied or moved checkout needs its own
        "python": f"{os.path.realpath(BASE_PYTHON)} {platform.python_version()}",
        "made_from": hashlib.sha256(text.encode()).hexdigest(),
    }


def _read_stamp(target: Path) -> dict[str, str] | None:
    try:
        stamp = json.loads((target / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and not (target / BUILDING).exists() else None


def _mark(target: Path, fresh: bool) -> None:
    if fresh:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    (target / BUILDING).touch()


def _write_stamp(target: Path, stamp: Mapping[str, str]) -> None:
    partial = target / f"{STAMP}.partial"
    partial.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, target / STAMP)
    (target / BUILDING).unlink(missing_ok=True)


# Processes ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[int]:
    """Holds the checkout's lock: two `make`s at once set up once. The lock goes with the processes that hold it."""
    lock = os.open(root / "pyproject.toml", os.O_RDWR)  # NFS locks only what is open for writing
    said = False
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    print("setup: waiting for another one in this checkout", flush=True)
                said = True
                _check_parent()
                time.sleep(POLL_S)
        yield lock
    finally:
        os.close(lock)


def _step(what: str, command: Sequence[str], lock: int) -> None:
    """Runs a command in a session of its own, so that Ctrl-C reaches us first and we end it with all its children."""
    print(f"setup:   {what} ...", end="", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=_environment(), pass_fds=(lock,), preexec_fn=_die_with_parent,
        )  # fmt: skip
        try:
            while process.poll() is None:
                _check_parent()
                time.sleep(POLL_S)
        except BaseException:
            print(flush=True)
            _end(process)
            raise
        print(f" {time.monotonic() - started:.0f} s", flush=True)
        if process.returncode != 0:
            log.seek(0)
            said = "".join(line for line in log if not (line.startswith("WARNING: Location") and "ignored" in line))
            raise SetupError(f"{what}: failed with exit status {process.returncode}\n{said.rstrip()}")


def _environment() -> dict[str, str]:
    """The caller's, without what would make pip install somewhere else or import from there."""
    return {name: value for name, value in os.environ.items() if name not in MEDDLING}


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: kill -9 of this script ends pip too


def _check_parent() -> None:
    """`kill -9` of make tells nobody: its children get a new parent."""
    if os.getppid() != PARENT:
        raise Interrupted


def _end(process: subprocess.Popen[bytes]) -> None:
    _ignore_signals()
    for number, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise Interrupted


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


PARENT = os.getppid()

if __name__ == "__main__":
    sys.exit(main())
