"""Records of one JSON object a line, each with its `iteration`: written in ASCII, a line a write, read as they grow.

A killed process may leave its last line torn: readers pass over it, and the next writer cuts it off, keeps a copy in
`NAME.torn` beside the record, and says so.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayrlhf.errors import RunFolderError
from rayrlhf.files import open_own, replace_file, storing, write_all


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


class LineWriter:
    """Appends to a record, unbuffered: what one call writes is there for every reader at once, whole or not at all."""

    def __init__(self, path: Path) -> None:
        """Raises StorageError where the disk gives out, RunFolderError where a link stands in the place of the file."""
        self._path = path
        with storing(path):
            self._file = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, lines: bytes) -> None:
        """Raises StorageError where the disk takes only a part of it, which is taken away again."""
        end = os.fstat(self._file).st_size
        with storing(self._path):
            try:
                write_all(self._file, lines)
            except OSError:
                os.ftruncate(self._file, end)
                raise

    def sync(self) -> None:
        """Onto the disk."""
        with storing(self._path):
            os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_append(path: Path) -> LineWriter:
    """Opens a record for appending, without what a killed process left torn at its end: a copy of that stays beside."""
    if path.exists():
        start, text = (_lines(path) or [(0, b"")])[-1]
        if text and parse(text) is None:
            _set_aside(path, [text])
            with storing(path):
                os.truncate(path, start)
    return LineWriter(path)


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Takes the lines out of a record that are not wanted, at once.

    Damaged lines behind the last one wanted go with the others, and a copy of them stays beside. Raises RunFolderError
    for a damaged line before that.
    """
    kept: list[bytes] = []
    damaged: list[tuple[int, bytes]] = []  # with their numbers
    for number, (_, text) in enumerate(_lines(path), start=1):
        row = parse(text)
        if row is None:
            damaged.append((number, text))
        elif wanted(row):
            if damaged:
                raise RunFolderError(f"{path}:{damaged[0][0]} is damaged; remove that line, or mend it from a copy")
            kept.append(text)
    if damaged:
        _set_aside(path, [text for _, text in damaged])
    replace_file(path, kept)


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """Where each line of a file begins, and the line with its end; none where there is no file."""
    if not path.exists():
        return []
    found, start = [], 0
    with open(path, "rb") as file:
        for text in file:
            found.append((start, text))
            start += len(text)
    return found


def _set_aside(path: Path, lines: Sequence[bytes]) -> None:
    """Keeps a copy of damaged lines, which are about to be cut off, and says so."""
    copy = path.with_name(f"{path.name}.torn")
    with LineWriter(copy) as file:
        file.write(b"".join(text.removesuffix(b"\n") + b"\n" for text in lines))
    what = "its last line was" if len(lines) == 1 else f"{len(lines)} lines at its end were"
    warnings.warn(
        f"{path}: {what} cut short (a process was killed, or the disk was full, while it was written) and is taken "
        f"away; a copy is in {copy.name}",
        stacklevel=3,
    )
