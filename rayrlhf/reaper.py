"""A small process that outlives a run's driver by seconds and ends what is left of the run then.

Killed with SIGKILL, or by any signal while Ray starts, a driver takes most of Ray's daemons with it, but two agents of
Ray 2.60 wait on for minutes (seen: five), and so may what the user's code has started. What belongs to the run is known
by a mark in its environment, which every process inherits that is started while the mark is set: whoever it is by now
the child of, and however early the signal came. Run as a script, this waits for the end of its standard input.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

import psutil

MARK = "RAYRLHF_RUN"
GRACE_S = 2.0  # what a run's processes get to end by themselves
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


def end_marked(mark: str, grace_s: float = GRACE_S) -> list[int]:
    """Kills the processes of a mark that are there after `grace_s`; returns their pids."""
    psutil.wait_procs(marked(mark), timeout=grace_s)
    ended: list[int] = []
    for _ in range(ROUNDS):
        left = marked(mark)
        if not left:
            break
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                ended.append(process.pid)
        psutil.wait_procs(left, timeout=grace_s)
    return ended


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that carry a mark."""
    return [process for process in psutil.process_iter() if _carries(process, mark)]


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return mark in process.environ().get(MARK, "").split(",") and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):  # gone, or somebody else's
        return False


if __name__ == "__main__":
    sys.stdin.read()
    end_marked(sys.argv[1])
