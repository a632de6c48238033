"""Records of one JSON object a line, each with its `iteration`: written in ASCII, a line a write, read as they grow.

A killed process may leave its last line torn: readers pass over it, and the next writer removes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rayrlhf.errors import RunFolderError
from rayrlhf.files import append_to, open_own


def line(row: Mapping[str, Any]) -> bytes:
    """One line; numpy scalars become plain numbers, a lone surrogate in a text stays as its escape."""
    return json.dumps(row, allow_nan=False, default=lambda scalar: scalar.item()).encode("ascii") + b"\n"


def rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line of a record with what it says; nothing where there is no file. A torn last line is left out.

    Raises RunFolderError for a damaged line before the last.
    """
    if not path.exists():
        return
    damaged: int | None = None
    with open(path, "rb") as file:
        for number, text in enumerate(file, start=1):
            if damaged is not None:
                raise RunFolderError(f"{path}:{damaged} is damaged; remove that line, or mend it from a copy")
            row = parse(text)
            if row is None:
                damaged = number  # a fault only if another line follows
            else:
                yield text, row


def parse(text: bytes) -> dict[str, Any] | None:
    """What a line says, or None where it is torn: no object with an iteration, or without its end of line."""
    try:
        row = json.loads(text)
    except ValueError:
        return None
    whole = text.endswith(b"\n") and isinstance(row, dict) and isinstance(row.get("iteration"), int)
    return row if whole else None


def open_append(path: Path) -> IO[bytes]:
    """Opens a record for appending, without what a killed process left torn at its end.

    Unbuffered: a line is one write, there for every reader at once.
    """
    with open(open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab+") as file:
        file.seek(0)
        start = end = 0
        last = b""
        for last in file:
            start, end = end, end + len(last)
        if last and parse(last) is None:
            file.truncate(start)
    return append_to(path)
