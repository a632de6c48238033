"""Warnings and log messages of a process, RayRLHF's and all libraries': they may repeat what a stranger wrote, and a
terminal would obey it."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from rayrlhf.reading import printable


def show_plainly() -> None:
    """Of this process from now on: `printable`, and our own warnings as one line."""
    warnings.formatwarning = _told_warning
    logging.setLogRecordFactory(_PrintableRecord)


class _PrintableRecord(logging.LogRecord):
    """A message whose tensors, keys and paths are shown, whichever handler takes it."""

    def getMessage(self) -> str:
        return printable(super().getMessage())


def _told_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Ours as one line, for the person who started the command; a library's with its place."""
    own = category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent)
    return f"{'warning' if own else f'{filename}:{lineno}: {category.__name__}'}: {printable(str(message))}\n"
