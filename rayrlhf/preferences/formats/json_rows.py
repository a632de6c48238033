"""JSON objects of a file with the lines on which they begin: one a line (JSONL), or the elements of one array.

A line of JSONL that is damaged costs that line alone; a damaged element of an array also hides those after it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from rayrlhf.files import StrictJson, too_deep
from rayrlhf.preferences.formats.content import Fault, Row, shown

_SPACE = re.compile(r"[ \t\r\n]*")
MAX_DEPTH = 50  # of an object: deeper ones can be read, but not always compared or written
_DEEP = f"nested more than {MAX_DEPTH} levels deep"
_BOM = b"\xef\xbb\xbf"


def read_rows(data: bytes) -> Iterator[Row | Fault]:
    """The objects of a file in order; blank lines are passed over, everything else that is no object is a fault."""
    data = data.removeprefix(_BOM)
    if data.lstrip(b" \t\r\n")[:1] == b"[":
        yield from _array(data)
    else:
        yield from _lines(data)


def _lines(data: bytes) -> Iterator[Row | Fault]:
    decoder = StrictJson()
    for number, raw in enumerate(data.split(b"\n"), start=1):
        try:
            text = raw.decode()
            start = _SPACE.match(text).end()  # type: ignore[union-attr]
            if start == len(text):
                continue
            if too_deep(text, MAX_DEPTH) is not None:
                yield Fault(number, _DEEP)
                continue
            value, end, wrong = decoder.read(text, start)
        except (ValueError, RecursionError) as error:
            yield Fault(number, _reason(error))
            continue
        if not wrong and _SPACE.fullmatch(text, end) is None:
            wrong = f"not JSON: more than one value on the line, from character {end + 1} on"
        yield _row(number, value, wrong)


def _array(data: bytes) -> Iterator[Row | Fault]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        yield Fault(data.count(b"\n", 0, error.start) + 1, _reason(error))
        return
    deep = too_deep(text, MAX_DEPTH + 1)  # brackets, the array's own among them
    text = text[:deep]
    decoder = StrictJson()
    line, counted = 1, 0
    at = text.index("[") + 1
    first = True
    while True:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, at), at
        if first and text[at : at + 1] == "]":
            break
        try:
            value, end, wrong = decoder.read(text, at)
        except (ValueError, RecursionError) as error:
            where = line + text.count("\n", at, error.pos) if isinstance(error, json.JSONDecodeError) else line
            reason = "a comma stands before the closing bracket" if text[at : at + 1] == "]" else _reason(error)
            if deep is not None and getattr(error, "pos", deep) >= len(text.rstrip()):
                reason = _DEEP
            yield Fault(where, f"{reason}; nothing after it can be read")
            return
        yield _row(line, value, wrong)
        first = False
        at = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            yield Fault(
                line + text.count("\n", counted, at),
                f"not JSON: a comma or bracket is missing{'' if text[at:] else ' at the end: the file is cut off'}; "
                "nothing after it can be read",
            )
            return
        at += 1
    after = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
    if after < len(text):
        yield Fault(line + text.count("\n", counted, after), "not JSON: something stands after the array")


def _row(line: int, value: Any, wrong: str) -> Row | Fault:
    if wrong:
        return Fault(line, wrong)
    return Row(line, value) if isinstance(value, dict) else Fault(line, f"expected an object, not {shown(value)}")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text (byte {error.object[error.start]:#04x})"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.colno}"
    return _DEEP if isinstance(error, RecursionError) else "a number has too many digits"
