"""What anybody may have written, read as data: text, JSON, records.

`read_text`, `parse_json`, `read_json`, `read_record` and `typed` (and `yaml_text.py`) turn every way in which it can be
damaged (no UTF-8, no JSON, nested without end, a number of 5,000 digits, a record of another type) into one error that
names the place: nothing else in the package reads JSON. `printable` makes any text safe to show.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, PlainValidator, TypeAdapter, ValidationError

from rayrlhf.errors import UserError

T = TypeVar("T")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")
_NOT_SHOWN = re.compile(r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)  # of JSON, and whole strings, which may hold some
SHOWN = 200  # characters of a stranger's text that a message repeats
LARGEST = 1e100  # of the numbers in records
MAX_DEPTH = 100  # of nested JSON and YAML: what is deeper can be read, but not always compared or written


def is_number(value: float) -> bool:
    """Whether a record may hold it: finite, and so far from the end of the floats that sums and squares are finite."""
    return abs(value) <= LARGEST


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_number(value):
        raise ValueError(f"it has to be a finite number, at most {LARGEST:g}")
    return value


Number = Annotated[float, PlainValidator(_number)]
"""Of a record: see `is_number`; no text, no truth value."""
Whole = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
"""Of a record: an integer of 64 bits."""
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
"""Of a record: a Whole that is not negative."""


def printable(text: str) -> str:
    """The text for people: controls as their pictures (U+2400 and on), halves of surrogate pairs and marks that turn the
    writing direction as U+FFFD. Ends of lines and tabs stay. It can be encoded as UTF-8, and no terminal obeys it.
    """
    shown = _CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])), text.replace("\r\n", "\n"))
    return _NOT_SHOWN.sub("\N{REPLACEMENT CHARACTER}", shown)


def expanded(path: str | Path) -> Path:
    """The path with `~` as the home folder; where nobody has that name, as it stands, for whoever reads it to say so."""
    return Path(os.path.expanduser(path))


def read_bytes(path: Path, fault: type[UserError], place: str = "", piped: bool = False) -> bytes:
    """What a file holds. Raises `fault`, naming the file, where it cannot be read, or is none: see `check_file`.

    place: its name in messages, where not its path. piped: it may be a pipe, as what a person gives may.
    """
    if not piped:
        check_file(path, fault, place)
    with _unreadable(path, fault, place):
        return path.read_bytes()


def check_file(path: Path, fault: type[UserError], place: str = "") -> None:
    """Before a file is read whose name somebody else may have given: a pipe is waited for, a device read, without end.

    Raises `fault`, naming it, where it is neither a file nor a folder, or there is nothing.
    """
    with _unreadable(path, fault, place):
        mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise fault(f"{place or path}: is no file but a pipe or a device: write what it holds to a file, and name that")


def check_files(folder: Path, fault: type[UserError]) -> None:
    """`check_file` of what lies in a folder or in one of its folders: where a library opens what it finds there."""
    for entry in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if entry.exists():
            check_file(entry, fault)


@contextmanager
def _unreadable(path: Path, fault: type[UserError], place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise fault(f"{place or path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_text(path: Path, fault: type[UserError], place: str = "", piped: bool = False) -> str:
    """The text of a file; a byte order mark goes. Raises `fault`, naming file and line, where it is not UTF-8.

    place, piped: as in `read_bytes`.
    """
    return decoded(read_bytes(path, fault, place, piped), place or str(path), fault)


def decoded(raw: bytes, place: str, fault: type[UserError]) -> str:
    """UTF-8 bytes of `place` as text; a byte order mark goes."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise fault(f"{place}:{line}: not UTF-8 text (byte {raw[error.start]:#04x})") from error


def too_deep(text: str, most: int = MAX_DEPTH) -> int | None:
    """Where JSON opens more than `most` brackets within each other; None where it never does.

    Looked for before JSON is read: millions of nested lists cost minutes and gigabytes.
    """
    if text.count("[") + text.count("{") <= most:
        return None
    depth = 0
    for found in _BRACKET.finditer(text):
        mark = found[0]
        if mark in "[{":
            depth += 1
            if depth > most:
                return found.start()
        elif mark in "]}":
            depth -= 1
    return None


class Damage(ValueError):
    """Why a text or a value is not what it should be; the message names no place."""


def json_value(text: str | bytes, finite: bool = True) -> Any:
    """What a JSON text says. Raises Damage for any text that is none.

    finite: whether NaN, infinities and numbers beyond the floats are faults.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Damage(f"not UTF-8 text (byte {text[error.start]:#04x})") from error
    if too_deep(text) is not None:
        raise Damage(f"nested more than {MAX_DEPTH} levels deep")
    try:
        return (_FINITE if finite else _ANY).decode(text)
    except Damage:
        raise
    except json.JSONDecodeError as error:
        raise Damage(f"not JSON: {error.msg} at line {error.lineno}, character {error.colno}") from error
    except ValueError as error:  # an integer of more digits than Python takes
        raise Damage("a number has too many digits") from error


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Damage(f"{text[:40]} is no finite number")
    return value


_ANY = json.JSONDecoder()
_FINITE = json.JSONDecoder(parse_float=_finite_number, parse_constant=_finite_number)


def typed_value(kind: type[T], value: Any) -> T:
    """`value` as `kind`: a pydantic model, a dataclass, a TypedDict or any other type that pydantic knows.

    Raises Damage, naming the first field that is not as it should be.
    """
    try:
        return _adapter(kind).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        raise Damage(first_fault(error)) from error
    except OverflowError as error:
        raise Damage("a number is too large") from error


def parse_json(text: str | bytes, place: str, fault: type[UserError], finite: bool = True) -> Any:
    """`json_value`, whose fault is `fault` and names the place."""
    try:
        return json_value(text, finite)
    except Damage as error:
        raise fault(f"{place}: {error}") from error


def read_json(path: Path, fault: type[UserError]) -> Any:
    """What a JSON file says. Raises `fault`, naming the file, where it cannot be read or is no JSON."""
    return parse_json(read_bytes(path, fault), str(path), fault)


def typed(kind: type[T], value: Any, place: str, fault: type[UserError]) -> T:
    """`typed_value`, whose fault is `fault` and names the place."""
    try:
        return typed_value(kind, value)
    except Damage as error:
        raise fault(f"{place}: {error}") from error


def read_record(path: Path, kind: type[T], fault: type[UserError], advice: str, finite: bool = True) -> T:
    """A JSON file of ours as `kind`. Raises `fault`, which names the file and ends with the advice, where it is not."""
    raw = read_bytes(path, fault)
    try:
        return typed_value(kind, json_value(raw, finite))
    except Damage as error:
        raise fault(f"{path} is damaged or of another version of RayRLHF ({error}): {advice}") from error


def first_fault(error: ValidationError) -> str:
    """`field: what is wrong with it`, of the first field that is not as it should be."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = printable(".".join(str(part) for part in first["loc"]))[:SHOWN]
    if first["type"] == "missing":
        return f"{field} is missing"
    return f"{field}{': ' if field else ''}{first['msg'].removeprefix('Value error, ')}"


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


class StrictJson:
    """Strict JSON: no NaN, no number beyond the floats, no key twice. Such faults are noted, and reading goes on."""

    def __init__(self) -> None:
        self._noted: list[str] = []
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object, parse_float=self._float, parse_constant=self._constant
        )

    def read(self, text: str, start: int) -> tuple[Any, int, str]:
        """Value, where it ends, and what is wrong with it, "" for nothing. Raises ValueError, RecursionError."""
        self._noted.clear()
        value, end = self._json.raw_decode(text, start)
        return value, end, self._noted[0] if self._noted else ""

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            text = json.dumps(twice)
            self._noted.append(f"the key {text if len(text) <= 40 else f'{text[:40]}...'} stands twice")
        return value

    def _float(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            self._noted.append(f"the number {text[:40]} is too large")
        return value

    def _constant(self, name: str) -> float:
        self._noted.append(f"{name} is no JSON")
        return 0.0
