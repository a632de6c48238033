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
from typing import Any, TypeVar

from rayrlhf.errors import RunFolderError
from rayrlhf.files import LineWriter, append_to, open_own, replace_file, storing
from rayrlhf.reading import Damage, check_file, json_value, typed_value

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
        yield text, _typed(path, number, kind, row)
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


def _typed(path: Path, number: int, kind: type[T], row: Row) -> T:
    try:
        return typed_value(kind, row)
    except Damage as error:
        raise RunFolderError(
            f"{path}:{number} is damaged or of another version of RayRLHF ({error}): mend it from a copy"
        ) from error


def _lines(path: Path) -> Iterator[bytes]:
    check_file(path, RunFolderError)
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error


def _damaged(path: Path, number: int, error: Damage) -> RunFolderError:
    return RunFolderError(f"{path}:{number} is damaged ({error}): remove that line, or mend it from a copy")


def open_append(path: Path) -> LineWriter:
    """Opens a record for appending, without what a killed process left torn at its end: a copy of that stays beside."""
    if os.path.exists(path):
        with open(open_own(path, os.O_RDWR), "r+b") as file:
            end, last = 0, b""
            for last in file:
                end += len(last)
            if last and parse(last) is None:
                _set_aside(path, [last])
                with storing(path):
                    file.truncate(end - len(last))
    return append_to(path)


def keep_lines(path: Path, kind: type[T], wanted: Callable[[T], bool]) -> None:
    """Takes the lines out of a record that are not wanted, at once. kind: what a line is.

    Torn lines behind the last one wanted go with the others, and a copy of them stays beside. Raises RunFolderError for
    one before that, and for a line that is not of that kind.
    """
    kept: list[bytes] = []
    torn: list[tuple[RunFolderError, bytes]] = []
    for number, text in enumerate(_lines(path) if os.path.exists(path) else (), start=1):
        try:
            row = _object(text)
        except Damage as error:
            torn.append((_damaged(path, number, error), text))
            continue
        if wanted(_typed(path, number, kind, row)):
            if torn:
                raise torn[0][0]
            kept.append(text)
    if torn:
        _set_aside(path, [text for _, text in torn])
    replace_file(path, kept)


def _set_aside(path: Path, lines: Sequence[bytes]) -> None:
    """Keeps a copy of torn lines, which are about to be cut off, and says so."""
    copy = path.with_name(f"{path.name}.torn")
    with append_to(copy) as file:
        file.write(b"".join(text.removesuffix(b"\n") + b"\n" for text in lines))
    what = "its last line was" if len(lines) == 1 else f"{len(lines)} lines at its end were"
    warnings.warn(
        f"{path}: {what} cut short (a process was killed, or the disk was full, while it was written) and is taken "
        f"away; a copy is in {copy.name}",
        stacklevel=3,
    )
