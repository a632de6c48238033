"""Signals that end a run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)  # of a scheduler or a `kill`, of a terminal that is closed


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP ask the run to stop after the iteration under way; a second one stops it at once.

    A run in another thread than the main one, such as a sweep's trial, is not asked: whoever started it stops it.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupts:
        numbers = [signal.SIGINT, *_not_ignored()] if _in_main_thread() else []
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt(f"stopped at once by a second {signal.Signals(number).name}")
        self.asked = True


@contextlib.contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP end what runs in this block as a Ctrl-C does: with all that was to be cleaned up."""
    numbers = _not_ignored() if _in_main_thread() else []
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """What is called in this block may set handlers of its own, as `ray.init` does: they go again at its end."""
    numbers = (signal.SIGINT, *_ENDING) if _in_main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")


def _not_ignored() -> list[signal.Signals]:
    """Those that `nohup` and the like have not switched off."""
    return [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
