"""One process that plays games, as `ProcessEnvironments` sees it: what it was asked, how long it may take, why it ended.

Its other end is `environments.host`.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from rayrlhf.child_process import ChildProcess
from rayrlhf.environments import EnvironmentSettings
from rayrlhf.environments.real_game import Request

_MEGABYTE = 1 << 20
_LOG_BYTES = _MEGABYTE  # of what games print, which is there for error messages
_SHOWN_LOG_BYTES = 500


class EnvironmentProcess(ChildProcess):
    """One child that plays games, and what the parent knows of it."""

    def __init__(
        self,
        settings: EnvironmentSettings,
        prompts: Sequence[str],
        folder: Path,
        step_timeout_s: float,
        load_timeout_s: float,
    ) -> None:
        """folder: a new one, for what the child prints and for the games to play in."""
        self._folder = folder
        (folder / "play").mkdir(parents=True)
        self._log = os.open(folder / "output", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        super().__init__("rayrlhf.environments.host", output=self._log)
        self._step_timeout_s = step_timeout_s
        self._load_timeout_s = load_timeout_s
        self._first_rss: int | None = None
        self.queue: deque[Request] = deque()  # those not done, the one it is at first
        self.built: set[int] = set()  # numbers of the games it has
        self.deadline = math.inf  # of the next answer
        self.episodes = 0  # that it has started
        self._send((settings, prompts, str(folder / "play")))

    def ask(self, requests: Sequence[Request]) -> None:
        """Asks for these, each of another game; the child must be idle."""
        self.queue.extend(requests)
        self.episodes += sum(request.route.seed is not None for request in requests)
        self._send([(request.slot.game.number, request.route.seed, request.route.actions) for request in requests])
        self.expect()

    def expect(self) -> None:
        """Sets the deadline of the next answer, where one is due."""
        self.deadline = time.monotonic() + self._limit_s() if self.queue else math.inf

    def lateness(self) -> str:
        """Says that the child took too long, and where it hangs."""
        return f"it took longer than {self._limit_s():g} s{self.place_of_hang()} and was stopped.{self._printed()}"

    def ending(self) -> str:
        """Says how the child ended."""
        return f"it ended its process: {self.death()}{self._printed()}"

    def growth_mb(self) -> float:
        """Megabytes of memory more than when this was asked first."""
        with suppress(psutil.NoSuchProcess):
            rss = psutil.Process(self.pid).memory_info().rss
            if self._first_rss is None and self.episodes:
                self._first_rss = rss
            return (rss - (self._first_rss or rss)) / _MEGABYTE
        return 0.0

    def forget_prints(self) -> None:
        """Keeps the file of what games print small."""
        if os.fstat(self._log).st_size > _LOG_BYTES:
            os.ftruncate(self._log, 0)

    def stop(self) -> None:
        """Lets the child close its games for a moment, then ends it and removes its folder."""
        super().stop()
        self.discard()

    def discard(self) -> None:
        """Kills the child and removes its folder; may be called twice."""
        self.kill()
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
            shutil.rmtree(self._folder, ignore_errors=True)

    def _send(self, message: Any) -> None:
        with suppress(OSError):  # it has ended: waiting for its answer tells how
            self.channel.send(message)

    def _limit_s(self) -> float:
        return self._step_timeout_s if self.queue[0].slot.game.number in self.built else self._load_timeout_s

    def _printed(self) -> str:
        size = os.fstat(self._log).st_size
        text = os.pread(self._log, _SHOWN_LOG_BYTES, max(0, size - _SHOWN_LOG_BYTES)).decode("utf-8", "replace").strip()
        return f" It printed: {text}" if text else ""
