"""Rewards in a child process of their own: one that hangs or crashes is killed, and the run is told which and where.

A time limit in a thread would not hold: a regular expression that backtracks keeps the interpreter's lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rayrlhf.child_process import ChildProcess
from rayrlhf.errors import RewardError
from rayrlhf.types import EpisodeScore, Trajectory

if TYPE_CHECKING:
    from rayrlhf.config import RewardPart

_SCORING = "to score a batch"


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
            try:
                return self._child.score(trajectories, self._timeout_s)
            except _DiedBefore:  # its end was not seen yet: a killed process counts as alive until its last thread ends
                self._start_child()
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


class _DiedBefore(RewardError):
    """The child ended before it began with what it was asked for."""


class _Child(ChildProcess):
    """The child of the rewards and the talk with it. Once it failed to answer it is dead and of no more use."""

    def __init__(self) -> None:
        super().__init__("rayrlhf.reward_child")

    def build(self, parts: Sequence[RewardPart], timeout_s: float) -> tuple[str, ...]:
        keys: tuple[str, ...] = self._ask(tuple(parts), "to load", timeout_s)
        return keys

    def score(self, trajectories: Sequence[Trajectory], timeout_s: float) -> list[EpisodeScore]:
        scores: list[EpisodeScore] = self._ask(list(trajectories), _SCORING, timeout_s)
        return scores

    def _ask(self, request: Any, task: str, timeout_s: float) -> Any:
        running: list[str] = []
        begun = False
        deadline = time.monotonic() + timeout_s
        try:
            self.channel.send(request, deadline)
            while True:
                answer, content = self.channel.receive(deadline)
                if answer == "running":
                    running.append(content)
                    begun = True
                elif answer == "idle":
                    running.remove(content)
                elif answer == "failed":
                    raise RewardError(content)
                else:
                    return content
        except TimeoutError:
            place = self.place_of_hang()
            self.kill()
            hint = " `reward_timeout_s` sets the limit." if task == _SCORING else ""
            raise RewardError(
                f"{_named(running)} took longer than {timeout_s:g} s {task}{place} and was stopped.{hint}"
            ) from None
        except (EOFError, OSError):
            fault = RewardError if begun else _DiedBefore
            raise fault(f"{_named(running)} ended the process of the rewards: {self.death()}") from None
        except RewardError:
            raise
        except BaseException:  # Ctrl-C in the parent: the answer that is on its way must not be taken for the next one
            self.kill()
            raise


def _named(running: Sequence[str]) -> str:
    if not running:
        return "a reward"
    return f"reward{'s' if len(running) > 1 else ''} {', '.join(f'`{key}`' for key in running)}"
