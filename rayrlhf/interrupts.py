"""Signals that end a run."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupts:
    """SIGINT and SIGTERM ask the run to stop after the iteration under way; a second one stops it at once.

    A run in another thread than the main one, such as a sweep's trial, is not asked: whoever started it stops it.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupts:
        alone = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if alone else ()
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt(f"stopped at once by a second {signal.Signals(number).name}")
        self.asked = True
