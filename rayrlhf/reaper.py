"""A small process that outlives a run's driver by seconds and ends what is left of the run then.

Killed with SIGKILL, or by any signal while Ray starts, a driver takes most of Ray's daemons with it, but two agents of
Ray 2.60 wait on for minutes (seen: five), and so may what the user's code has started. What belongs to the run is known
by a mark in its environment, which every process inherits that is started while the mark is set: whoever it is by now
the child of, and however early the signal came. Run as a script, this waits for the end of its standard input.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

MARK = "RAYRLHF_RUN"
GRACE_S = 2.0  # what a run's processes get to end by themselves
START_UP_S = 60.0  # while Ray's daemons start, who carries the mark is looked for often
ROUNDS = 5  # a process that is being ended may start one more

_marked: str | None = None  # by this process


@contextlib.contextmanager
def reaped() -> Iterator[None]:
    """What is started in this block, and all that it starts, outlives neither the block nor this process by more than a
    few seconds. Within such a block it does nothing."""
    global _marked
    if _marked is not None:
        yield
        return
    mark, before = uuid.uuid4().hex, os.environ.get(MARK)
    reaper = subprocess.Popen(
        [sys.executable, "-P", __file__, mark],  # without our folder in front: its `types.py` is not Python's
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # out of reach of a Ctrl-C at the terminal
    )
    assert reaper.stdin is not None
    try:
        _marked, os.environ[MARK] = mark, f"{before},{mark}" if before else mark  # within another run: of both
        yield
    finally:
        _marked = None
        if before is None:
            os.environ.pop(MARK, None)
        else:
            os.environ[MARK] = before
        reaper.stdin.close()
        reaper.wait()


def end_marked(mark: str, seen: Iterable[psutil.Process] = (), grace_s: float = GRACE_S) -> list[int]:
    """Kills the processes of a mark, and those `seen` with it, that are there after `grace_s`; returns their pids."""
    known = list(seen)
    psutil.wait_procs(_left(mark, known), timeout=grace_s)
    ended: list[int] = []
    for _ in range(ROUNDS):
        left = _left(mark, known)
        if not left:
            break
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                ended.append(process.pid)
        psutil.wait_procs(left, timeout=grace_s)
    return ended


def marked(mark: str) -> list[psutil.Process]:
    """The processes that carry a mark, as far as they still show it."""
    shown = re.compile(rf"{MARK}=(?:[^\0]*,)?{mark}(?:[,\0]|$)".encode())
    return [process for process in psutil.process_iter() if shown.search(_environment(process))]


def _left(mark: str, known: Iterable[psutil.Process]) -> list[psutil.Process]:
    return [process for process in {*marked(mark), *known} if _is_alive(process)]


def _environment(process: psutil.Process) -> bytes:
    """The environment that a process was started with. One that gives itself a title, as Ray's do, writes it over the
    first part: what is left of it can be searched, but not read as names and values."""
    try:
        if sys.platform == "linux":
            return Path(f"/proc/{process.pid}/environ").read_bytes()
        return f"{MARK}={process.environ().get(MARK, '')}".encode()
    except (psutil.Error, OSError):  # gone, or somebody else's
        return b""


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _watch(mark: str) -> None:
    """Remembers who carries the mark until standard input ends, then ends them: a title may hide a mark altogether."""
    over, since, seen = threading.Event(), time.monotonic(), set[psutil.Process]()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    while not over.wait(0.2 if time.monotonic() - since < START_UP_S else 5.0):
        seen = {process for process in {*seen, *marked(mark)} if _is_alive(process)}
    end_marked(mark, seen)


if __name__ == "__main__":
    _watch(sys.argv[1])
