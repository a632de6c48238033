"""Keys from a terminal, one at a time without Enter, or line by line from a pipe or file."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

END = ""  # of the input
ENTER = "\n"
_TICK_S = 0.5
_ESCAPE, _CTRL_D = b"\x1b", b"\x04"
_SEQUENCES = (b"[", b"O")  # after Escape: a key's code goes on to the first byte from @ to ~ (ECMA-48)


class Keys(Protocol):
    def read(self, seconds_left: Callable[[], float]) -> str:
        """The next key in lower case, ENTER, or END. seconds_left: of the time box, for a countdown."""
        ...


class LineKeys:
    """Lines of a stream that is no terminal; an empty line is Enter."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def read(self, seconds_left: Callable[[], float]) -> str:
        line = self._stream.readline()
        return (line.strip().lower() or ENTER) if line else END


class TerminalKeys:
    """Single keys of a terminal that `single_keys` has prepared, with a countdown while it waits."""

    def __init__(self, descriptor: int, screen: TextIO) -> None:
        self._descriptor = descriptor
        self._screen = screen

    def read(self, seconds_left: Callable[[], float]) -> str:
        """Keys that were pressed before are thrown away: they were not meant for what is on the screen now."""
        termios.tcflush(self._descriptor, termios.TCIFLUSH)
        while True:
            left = seconds_left()
            self._screen.write(f"\r{f'{left:.0f} s':>12} " if left > 0 else "\r  time is up ")
            self._screen.flush()
            if select.select([self._descriptor], [], [], _TICK_S)[0]:
                key = self._pressed()
                if key is not None:
                    self._screen.write("\r" + " " * 13 + "\r")
                    self._screen.flush()
                    return key

    def _pressed(self) -> str | None:
        """The key; None for one that has a name and no letter, such as an arrow."""
        pressed = os.read(self._descriptor, 1)
        if pressed == _ESCAPE:
            if self._at_once() in _SEQUENCES:
                while not b"@" <= (self._at_once() or b"~") <= b"~":
                    pass
            return None
        if pressed in (b"", _CTRL_D):
            return END
        return ENTER if pressed in b"\r\n" else pressed.decode("latin-1").lower()

    def _at_once(self) -> bytes:
        """The next byte of what a key with a name sends; empty where it sends no more."""
        waiting = select.select([self._descriptor], [], [], 0)[0]
        return os.read(self._descriptor, 1) if waiting else b""


@contextmanager
def keys_of_standard_input() -> Iterator[Keys]:
    """Single keys where the standard input is a terminal, which is as it was afterwards; else lines."""
    if not sys.stdin.isatty():
        yield LineKeys(sys.stdin)
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield TerminalKeys(descriptor, sys.stdout)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
