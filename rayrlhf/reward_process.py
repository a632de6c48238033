"""Rewards in a child process of their own: one that hangs or crashes is killed, and the run is told which and where.

A time limit in a thread would not hold: a regular expression that backtracks keeps the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rayrlhf.error_location import is_user_file, shown_path
from rayrlhf.errors import RewardError
from rayrlhf.reward_child import DUMP_SIGNAL, Channel
from rayrlhf.types import EpisodeScore, Trajectory

if TYPE_CHECKING:
    from rayrlhf.config import RewardPart

# -P and the parent's own sys.path: the child imports what the parent would, and never the caller's __main__.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from rayrlhf.reward_child import main; main(*map(int, sys.argv[2:]))"
)
_SCORING = "to score a batch"
_DUMP_WAIT_S = 0.5
_EXIT_WAIT_S = 2.0
_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in ', re.MULTILINE)


class RewardProcess:
    """`RewardMixture` behind a deadline. Several threads may use it; their batches are scored one after the other."""

    def __init__(self, parts: Sequence[RewardPart], timeout_s: float, load_timeout_s: float = 120.0) -> None:
        """Starts the child and builds the parts in it; raises RewardError where one cannot be loaded or built.

        timeout_s: how long one batch may take, in seconds.
        load_timeout_s: how long importing and building all parts may take.
        """
        self._parts = tuple(parts)
        self._timeout_s = timeout_s
        self._load_timeout_s = load_timeout_s
        self._child: _Child | None = None
        self._lock = threading.Lock()
        # Linux ends a child with the thread that started it: this one lives as long as this object.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="reward-process")
        self._closed = False
        try:
            self.keys = self._start_child()
        except BaseException:
            self.close()
            raise

    def score(self, trajectories: Sequence[Trajectory]) -> list[EpisodeScore]:
        """One score a trajectory, in order.

        Raises RewardError where a part raises, returns what is no score, takes longer than the time limit (the child
        is killed), or ends its process. The next call works again, with a new child where the old one is gone.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this RewardProcess is closed")
            if self._child is None or not self._child.is_alive():
                self._start_child()
            assert self._child is not None
            return self._child.score(trajectories, self._timeout_s)

    @property
    def pid(self) -> int | None:
        """Process id of the latest child; None after `close`."""
        return self._child.pid if self._child is not None else None

    def close(self) -> None:
        """Ends the child; may be called twice."""
        with self._lock:
            self._closed = True
            self._stop_child()
            self._starter.shutdown()

    def __enter__(self) -> RewardProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_child(self) -> tuple[str, ...]:
        self._stop_child()
        self._child = self._starter.submit(_Child).result()
        try:
            return self._child.build(self._parts, self._load_timeout_s)
        except BaseException:
            self._stop_child()  # a child without rewards is of no use to the next call
            raise

    def _stop_child(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None


class _Child:
    """One child process and the talk with it. Once it failed to answer it is dead and of no more use."""

    def __init__(self) -> None:
        mine, its = socket.socketpair()
        self._dump_fd, its_dump_fd = os.pipe()
        os.set_blocking(self._dump_fd, False)
        self._channel = Channel(mine)
        with its:
            arguments = [json.dumps(sys.path), str(its.fileno()), str(its_dump_fd), str(os.getpid())]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,  # `input()` in a reward raises EOFError at once
                stdout=2,  # what a reward prints goes to stderr
                pass_fds=(its.fileno(), its_dump_fd),
                start_new_session=True,  # out of reach of Ctrl-C; programs that a reward starts can be killed with it
            )
        os.close(its_dump_fd)
        self.pid = self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def build(self, parts: Sequence[RewardPart], timeout_s: float) -> tuple[str, ...]:
        keys: tuple[str, ...] = self._ask(tuple(parts), "to load", timeout_s)
        return keys

    def score(self, trajectories: Sequence[Trajectory], timeout_s: float) -> list[EpisodeScore]:
        scores: list[EpisodeScore] = self._ask(list(trajectories), _SCORING, timeout_s)
        return scores

    def stop(self) -> None:
        """Lets the child end by itself for a moment, then kills it and all that it started."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_WAIT_S)
        self._kill()

    def _ask(self, request: Any, task: str, timeout_s: float) -> Any:
        running: list[str] = []
        deadline = time.monotonic() + timeout_s
        try:
            self._channel.send(request, deadline)
            while True:
                answer, content = self._channel.receive(deadline)
                if answer == "running":
                    running.append(content)
                elif answer == "idle":
                    running.remove(content)
                elif answer == "failed":
                    raise RewardError(content)
                else:
                    return content
        except TimeoutError:
            place = self._place_of_hang()
            self._kill()
            hint = " `reward_timeout_s` sets the limit." if task == _SCORING else ""
            raise RewardError(
                f"{_named(running)} took longer than {timeout_s:g} s {task}{place} and was stopped.{hint}"
            ) from None
        except (EOFError, OSError):
            raise RewardError(f"{_named(running)} ended the process of the rewards: {self._death()}") from None
        except RewardError:
            raise
        except BaseException:  # Ctrl-C in the parent: the answer that is on its way must not be taken for the next one
            self._kill()
            raise

    def _place_of_hang(self) -> str:
        """Asks the child for its stacks, which it can give while it is busy; ` (at FILE:LINE)` of the user's code."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, DUMP_SIGNAL)
        wait_s = _DUMP_WAIT_S
        dump = b""
        while select.select([self._dump_fd], [], [], wait_s)[0]:
            if not (chunk := os.read(self._dump_fd, 1 << 16)):
                break
            dump, wait_s = dump + chunk, 0.05
        return _place(dump)

    def _death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_WAIT_S)
        code = self._process.poll()
        dump = b""
        with contextlib.suppress(BlockingIOError):
            dump = os.read(self._dump_fd, 1 << 16)
        self._kill()
        if code is None:
            return "it closed its connection."
        if code >= 0:
            return f"exit code {code}."
        hint = " (the system sends it when memory runs out)" if code == -signal.SIGKILL else ""
        return f"exit code {code}, {signal.Signals(-code).name}{hint}{_place(dump)}."

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # its own group, see start_new_session
        self._process.wait()
        self._channel.close()
        if self._dump_fd >= 0:
            os.close(self._dump_fd)
            self._dump_fd = -1


def _named(running: Sequence[str]) -> str:
    if not running:
        return "a reward"
    return f"reward{'s' if len(running) > 1 else ''} {', '.join(f'`{key}`' for key in running)}"


def _place(dump: bytes) -> str:
    """The innermost frame of a user's file in the stacks that `faulthandler` wrote."""
    for frame in _FRAME.finditer(dump.decode("ascii", "replace")):
        if is_user_file(frame["file"]):
            return f" (at {shown_path(frame['file'])}:{frame['line']})"
    return ""
