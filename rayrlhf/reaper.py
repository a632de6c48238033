"""A small process that outlives the driver by seconds and ends what is left of its local Ray cluster then.

Killed with SIGKILL, a driver takes Ray's daemons with it, but two agents of Ray 2.60 wait on for minutes (seen: five).
`python -m rayrlhf.reaper` reads lines of `pid created` from its standard input, and acts when that closes.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import psutil

GRACE_S = 2.0  # what Ray's processes get to end by themselves


@contextlib.contextmanager
def reaped(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """The processes do not outlive this block, nor this process, by more than a few seconds."""
    reaper = subprocess.Popen(
        [sys.executable, "-m", "rayrlhf.reaper"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # out of reach of a Ctrl-C at the terminal
    )
    assert reaper.stdin is not None
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in processes:
            reaper.stdin.write(f"{process.pid} {process.create_time()}\n")
    reaper.stdin.flush()
    try:
        yield
    finally:
        reaper.stdin.close()
        reaper.wait()


def end_leftovers(lines: Sequence[str], grace_s: float = GRACE_S) -> list[int]:
    """Kills those of the processes (`pid created` each) that are there after `grace_s`; returns their pids.

    The time of creation tells a process from a later one with the same pid.
    """
    wanted = {int(pid): float(created) for pid, created in (line.split() for line in lines)}
    deadline = time.monotonic() + grace_s
    while (
        alive := [pid for pid, created in wanted.items() if _is_alive(pid, created)]
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    return alive


def _is_alive(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    end_leftovers(sys.stdin.readlines())
