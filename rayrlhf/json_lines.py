"""Records of one JSON object a line, each with its `iteration`: written in ASCII, a line a write, read as they grow.

A killed process may leave its last line torn: readers pass over it, and the next writer removes it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from rayrlhf.errors import RunFolderError
from rayrlhf.files import Damage, append_to, json_value, open_own, typed_value

T = TypeVar("T")
Row = dict[str, Any]


def line(row: Mapping[str, Any]) -> bytes:
    """One line; numpy scalars become plain numbers, a lone surrogate in a text stays as its escape."""
    return json.dumps(row, allow_nan=False, default=lambda scalar: scalar.item()).encode("ascii") + b"\n"


def rows(path: Path, kind: type[T] = Row) -> Iterator[tuple[bytes, T]]:  # type: ignore[assignment]
    """Each line of a record with what it says; nothing where there is no file. A torn last line is left out, with a
    warning.

    kind: what a line is, such as a dataclass. Raises RunFolderError for a damaged line before the last, and for one
    that is not of that kind.
    """
    if not os.path.exists(path):
        return
    torn: RunFolderError | None = None
    for number, text in enumerate(_lines(path), start=1):
        if torn is not None:
            raise torn
        try:
            row = _object(text)
        except Damage as error:
            torn = _damaged(path, number, error)  # a fault only if another line follows
            continue
        try:
            said = typed_value(kind, row)
        except Damage as error:
            raise RunFolderError(
                f"{path}:{number} is damaged or of another version of RayRLHF ({error}): mend it from a copy"
            ) from error
        yield text, said
    if torn is not None:
        warnings.warn(f"{path}: its last line is torn and passed over", stacklevel=2)


def records(path: Path, kind: type[T]) -> Iterator[T]:
    """What the lines of `rows` say."""
    return (row for _, row in rows(path, kind))


def parse(text: bytes) -> dict[str, Any] | None:
    """What a line says, or None where it is torn: no object with an iteration, or without its end of line."""
    try:
        return _object(text)
    except Damage:
        return None


def _object(text: bytes) -> dict[str, Any]:
    if not text.endswith(b"\n"):
        raise Damage("it is cut off")
    row = json_value(text)
    if not isinstance(row, dict):
        raise Damage(f"{type(row).__name__} in place of an object")
    if type(row.get("iteration")) is not int:
        raise Damage("it has no iteration")
    return row


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error


def _damaged(path: Path, number: int, error: Damage) -> RunFolderError:
    return RunFolderError(f"{path}:{number} is damaged ({error}): remove that line, or mend it from a copy")


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
