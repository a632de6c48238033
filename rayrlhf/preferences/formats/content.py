"""What readers and writers of label files exchange: rows, entries, faults, options; and checks of a row's fields."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from rayrlhf.preferences.records import Item, Source
from rayrlhf.preferences.schema import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Object = dict[str, Any]
_LARGEST = 2**63 - 1
SOURCES: tuple[Source, ...] = get_args(Source)


class Faulty(ValueError):
    """A row is no label; the message says why, without file and line."""


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object of a file, and the line on which it begins, from 1."""

    line: int
    value: Object


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a line of a file cannot be read."""

    line: int
    message: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A sound line that was not asked for."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Header:
    """What a native file says of itself."""

    line: int
    meta: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """What one label of a file says."""

    line: int  # on which it begins
    items: tuple[Item, ...]
    record: Record | None = None  # None: items alone, or a retraction
    retracts: str = ""  # id of a record that is taken back
    rows: int = 1  # of the file: a tie may be written as several (SPEC LMHP-4)


Outcome = Entry | Fault | LeftOut | Header


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a reader has to know beside the file."""

    tokenizer: PreTrainedTokenizerBase | None = None  # makes text of ids
    without_text: bool = False  # ids are kept without text, whatever they mean
    pad_id: int | None = None  # a run of this id at the end of a sample is padding (SPEC GWERN-17)
    min_characters: int = 0  # of a sample (SPEC GWERN-9)
    separator: str = "<|endoftext|>"  # between and after samples, of any length; "": none (SPEC LMHP-31)
    generator: str = ""  # of samples that name none
    created: float = field(default_factory=time.time)  # of labels that have no time


@dataclass(frozen=True, slots=True)
class Content:
    """All that a store holds."""

    items: Mapping[str, Item]  # in order
    history: tuple[tuple[Record, bool], ...]  # records with whether they are retracted
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        """Those that stand."""
        return [record for record, retracted in self.history if not retracted]


@dataclass(frozen=True, slots=True)
class Export:
    """A file's content, and what of the store it does not hold."""

    rows: tuple[Object, ...]
    left_out: Mapping[str, int]  # what the format cannot express -> how many
    notes: tuple[str, ...] = ()  # what it expresses in another way


class Identifier:
    """Ids of the labels of a file: equal content gives equal ids, so a file that is read again adds nothing.

    A label that stands n times in a file is n labels.
    """

    def __init__(self, format_name: str) -> None:
        self._format = format_name
        self._seen: Counter[str] = Counter()

    def __call__(self, items: Iterable[Item], content: Any) -> str:
        key = json.dumps([self._format, [item.id for item in items], content], sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()
        self._seen[digest] += 1
        return hashlib.sha256(f"{digest} {self._seen[digest]}".encode()).hexdigest()[:32]


def each(rows: Iterable[Row | Fault], parse: Callable[[Row], Outcome]) -> Iterator[Outcome]:
    """What `parse` makes of each row, or its fault."""
    for row in rows:
        if isinstance(row, Fault):
            yield row
            continue
        try:
            yield parse(row)
        except ValueError as error:  # Faulty, or what a record says of itself
            yield Fault(row.line, str(error))


def text_of(value: Mapping[str, Any], key: str, default: str | None = None) -> str:
    found = value.get(key, default)
    if not isinstance(found, str):
        raise Faulty(f'"{key}" has to be a text, not {shown(found)}')
    return found


def number_of(value: Mapping[str, Any], key: str, default: float | None = None) -> float | None:
    found = value.get(key, default)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not _representable(found):
        raise Faulty(f'"{key}" has to be a number, not {shown(found)}')
    return found


def required_number(value: Mapping[str, Any], key: str) -> float:
    found = number_of(value, key)
    if found is None:
        raise Faulty(f'"{key}" is missing')
    return found


def whole_of(value: Mapping[str, Any], key: str) -> int | None:
    found = value.get(key)
    if found is not None and (isinstance(found, bool) or not isinstance(found, int) or abs(found) > _LARGEST):
        raise Faulty(f'"{key}" has to be a whole number, not {shown(found)}')
    return found


def index_of(value: Mapping[str, Any], key: str, length: int) -> int:
    found = value.get(key)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < length:
        raise Faulty(f'"{key}" has to be an index below {length}, not {shown(found)}')
    return found


def indices_of(value: Mapping[str, Any], key: str, length: int) -> tuple[int, ...]:
    found = value.get(key, ())
    if not isinstance(found, list | tuple) or not all(type(index) is int and 0 <= index < length for index in found):
        raise Faulty(f'"{key}" has to be a list of indices below {length}, not {shown(found)}')
    return tuple(found)


def ids_of(value: Any, key: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token <= _LARGEST for token in value):
        raise Faulty(f'"{key}" has to be a list of token ids, not {shown(value)}')
    return tuple(value)


def rater_of(value: Mapping[str, Any], key: str) -> str:
    """A rater's name; numbers are names, too."""
    found = value.get(key)
    if found is None:
        return ""
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise Faulty(f'"{key}" has to be a name, not {shown(found)}')
    return str(found)


def source_of(value: Mapping[str, Any], default: Source) -> Source:
    found = value.get("source", default)
    if found not in SOURCES:
        raise Faulty(f'"source" has to be one of {", ".join(SOURCES)}, not {shown(found)}')
    return found


def extra_of(value: Mapping[str, Any], known: Iterable[str]) -> Object:
    """The fields without a place of their own, kept as they are."""
    names = set(known)
    return {key: content for key, content in value.items() if key not in names}


def shown(value: Any) -> str:
    """A value in a message: short, and ASCII."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "so large a number"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _representable(number: float) -> bool:
    return abs(number) <= _LARGEST if isinstance(number, int) else math.isfinite(number)
