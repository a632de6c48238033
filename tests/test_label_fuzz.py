"""Damaged label files: an error with file and line for each, never a traceback, and no line is passed over in silence."""

from __future__ import annotations

import copy
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.formats.content import Entry, ReadOptions
from rayrlhf.preferences.formats.registry import FORMATS, encode
from rayrlhf.preferences.label_check import check
from rayrlhf.preferences.label_import import LabelFile, import_file, refuse_faults
from rayrlhf.preferences.label_text import check_lines, import_lines
from rayrlhf.preferences.store import FILE_NAME, RatingStore
from tests.label_files import EXAMPLES, content_of, data_of, read

FILES_A_STORE = 50
DEEP = "<deep>"
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 10**30, -(2**63), 2**64, 1.5, 1e308, -0.0, float("nan"), float("inf"), "", "tie", "\0",
    "\ud800", "\x1b[2J", "a" * 5000, [], {}, [[]], [None], [-1], [10**40], [1.5], {"": {}}, [{"text": None}], DEEP,
    [{"role": "user"}], [{"role": "user", "content": "x"}], {"text": "a"}, [{"text": "a"}, {"text": "b"}],
]  # fmt: skip
RAW = [b"NaN", b"1e999", b"-Infinity", b"9" * 5000, b"[" * 3000, b"[" * 40 + b"]" * 40, b'{"a":1,"a":2}', b"\xff", b"\0",
       b'"', b"}", b",", b"\n", b"\xef\xbb\xbf", b"\\ud800", b'"\\ud83d\\ude00"', b"-", b"tru", b"// no"]  # fmt: skip


def odd_value(rows: list[dict[str, Any]], drawn: random.Random) -> list[dict[str, Any]]:
    """Some field, at any depth, gets another value, goes, or gets another name."""
    rows = copy.deepcopy(rows)
    place: Any = rows
    while True:
        key = drawn.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not (isinstance(place[key], dict | list) and place[key]) or (place is not rows and drawn.random() < 0.3):
            break
        place = place[key]
    change = drawn.random()
    if change < 0.7:
        place[key] = copy.deepcopy(drawn.choice(ODD))
    elif change < 0.85:
        del place[key]
    elif isinstance(place, dict):
        place[drawn.choice(["query", "best", "id", "type", "text", "sample2", "x" * 300, ""])] = place.pop(key)
    else:
        place.append(copy.deepcopy(place[key]))
    return rows


def dumped(rows: list[Any], is_array: bool) -> bytes:
    """JSON with NaN and the like, and with a value nested 3,000 deep in the place of `DEEP`."""
    lines = [json.dumps(row).replace(json.dumps(DEEP), "[" * 3000 + "]" * 3000).encode() for row in rows]
    return b"[\n" + b",\n".join(lines) + b"\n]\n" if is_array else b"\n".join(lines) + b"\n"


def cut(data: bytes, drawn: random.Random) -> bytes:
    return data[: drawn.randrange(len(data))]


def flip(data: bytes, drawn: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(drawn.randrange(1, 8)):
        changed[drawn.randrange(len(changed))] ^= 1 << drawn.randrange(8)
    return bytes(changed)


def drop(data: bytes, drawn: random.Random) -> bytes:
    start = drawn.randrange(len(data))
    return data[:start] + data[start + drawn.randrange(1, 40) :]


def repeat(data: bytes, drawn: random.Random) -> bytes:
    start = drawn.randrange(len(data))
    part = data[start : start + drawn.randrange(1, 200)]
    at = drawn.randrange(len(data))
    return data[:at] + part + data[at:]


def insert(data: bytes, drawn: random.Random) -> bytes:
    at = drawn.randrange(len(data))
    return data[:at] + drawn.choice(RAW) + data[at:]


def replace_value(data: bytes, drawn: random.Random) -> bytes:
    """Some number or text is replaced in the raw file."""
    found = list(re.finditer(rb'\d+|"[a-z_]+"|true|null', data))
    if not found:
        return data
    one = drawn.choice(found)
    return data[: one.start()] + drawn.choice(RAW) + data[one.end() :]


def noise(data: bytes, drawn: random.Random) -> bytes:
    return drawn.randbytes(drawn.randrange(1, 400))


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [cut, flip, drop, repeat, insert, replace_value]


def damaged_file(number: int) -> tuple[str, bytes]:
    """The format that a file once had, and its bytes: the same for a number, whoever asks."""
    drawn = random.Random(number)
    name = drawn.choice(list(EXAMPLES))
    rows: list[dict[str, Any]] = EXAMPLES[name]
    if drawn.random() < 0.2:
        rows = rows + EXAMPLES[drawn.choice(list(EXAMPLES))]
    if drawn.random() < 0.5:
        for _ in range(drawn.randrange(1, 3)):
            rows = odd_value(rows, drawn) or rows
    data = dumped(rows, is_array=drawn.random() < 0.4)
    if rows is EXAMPLES[name] or drawn.random() < 0.5:
        for _ in range(drawn.randrange(1, 4)):
            data = drawn.choice(MUTATIONS)(data, drawn) or b"{"
    return name, noise(data, drawn) if drawn.random() < 0.03 else data


def check_one(number: int, store: RatingStore | None, folder: Path) -> str:
    """Reads a damaged file, as the format that is found or as the one it had, and puts what is sound into the store."""
    name, data = damaged_file(number)
    options = ReadOptions(without_text=number % 4 != 0, pad_id=1 if number % 8 == 1 else None, created=1.0)
    given = name if number % 3 == 0 else "text" if number % 101 == 0 else None
    file = read(data, options, given)
    lines = data.count(b"\n") + 1
    assert all(1 <= outcome.line <= lines for outcome in file.outcomes), (number, file.faults)
    assert all(fault.message.isprintable() for fault in file.faults), (number, file.faults)
    assert file.outcomes, number
    if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") and file.format not in ("", "text"):
        written = sum(bool(line.strip(b" \t\r")) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
        assert sum(outcome.rows if isinstance(outcome, Entry) else 1 for outcome in file.outcomes) == written, number
    if file.faults:
        with pytest.raises(PreferenceError) as refused:
            refuse_faults([file], "mend it")
        *named, advice = str(refused.value).split("\n")
        assert all(re.match(r"labels:\d+: .|and \d+ more$", line) for line in named), (number, named)
        assert advice == "mend it"
    result = "not stored" if store is None else "stored" if imported(file, store) else "refused by the store"
    if number % 10 == 0:
        (folder / "labels").write_bytes(data)
        assert check_lines(check(folder / "labels", options, given))
    return f"{'faulty' if file.faults else 'sound'}, {result}"


def imported(file: LabelFile, store: RatingStore) -> bool:
    """Whether the store took the sound lines; where it did not, it said why."""
    try:
        assert import_lines(file, import_file(store, file))
    except PreferenceError as error:
        if not re.search("its .* is|is taken by|has another label|takes back", str(error)):
            raise
        return False
    return True


def fuzz(folder: Path, numbers: range, stored: int) -> Counter[str]:
    """stored: of every 10 files, so many go into a store: a commit waits for the disk."""
    results: Counter[str] = Counter()
    for start in range(numbers.start, numbers.stop, FILES_A_STORE):
        with RatingStore(folder / f"{start}-{FILE_NAME}") as store:
            for number in range(start, min(start + FILES_A_STORE, numbers.stop)):
                results[check_one(number, store if number % 10 < stored else None, folder)] += 1
            content = content_of(store)
            for form in FORMATS.values():
                if form.write is not None:
                    assert b"".join(encode(form.write(content, None).rows, form.is_array)).isascii()
    return results


def test_examples_are_sound_until_they_are_damaged() -> None:
    assert all(read(data_of(name)).faults == [] for name in EXAMPLES)


def test_damaged_files_are_refused_by_file_and_line(tmp_path: Path) -> None:
    """Done-when: 2,000 of the 20,000 files of the long test below."""
    results = fuzz(tmp_path, range(2000), stored=1)
    assert results.total() == 2000
    assert sum(count for result, count in results.items() if result.startswith("faulty")) > 1000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_20_000_damaged_files_are_refused_by_file_and_line(tmp_path: Path) -> None:
    """Done-when: truncated, binary, of wrong types, huge numbers, NaN, deep nesting, of all formats."""
    results = fuzz(tmp_path, range(20_000), stored=2)
    print(dict(results))
    assert results.total() == 20_000
