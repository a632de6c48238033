"""Damaged files, 1,000 a reader: each read is a value or one message, never another exception, never a hang.

An input follows from the reader's name and its number alone. `python -m tests.faults.test_fuzz 10000` tries more, of all
readers or of those named after it.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rayrlhf.errors import UserError
from rayrlhf.reading import printable
from tests.faults.readers import NAMES, Reader, readers
from tests.test_label_fuzz import MUTATIONS, dumped, noise, odd_value

HANG_S = 20
WORDS = [b": ", b"- ", b"&a ", b"*a", b"!!python/object:os.system ", b"<<: *a", b"[" * 3000, b"{a: " * 300, b"9" * 5000,
         b"1e999", b"\x1b[2J", b"\xe9", b"x" * 300, b"../" * 3, b"\x00", b"null", b"true", b"-1", b"\t", b"\r"]  # fmt: skip


class Hang(BaseException):
    """A reader did not come back: no `except Exception` on the way may take it."""


def rows_of(sound: bytes) -> list[Any] | None:
    """The JSON values of a file, one of the whole or one a line; None of any other file."""
    for texts in ([sound], sound.splitlines()):
        try:
            return [json.loads(text) for text in texts]
        except ValueError:
            continue
    return None


def spliced(data: bytes, drawn: random.Random) -> bytes:
    """Something that YAML, a shell or a terminal would heed, somewhere."""
    at = drawn.randrange(len(data) + 1)
    return data[:at] + drawn.choice(WORDS) + data[at + drawn.choice((0, 0, 1, 4)) :]


def damaged(sound: bytes, reader: str, number: int) -> bytes:
    """The file, damaged once or a few times."""
    drawn = random.Random(f"{reader} {number}")
    data, rows = sound, rows_of(sound)
    if rows and all(isinstance(row, dict | list) and row for row in rows) and drawn.random() < 0.6:
        for _ in range(drawn.randrange(1, 3)):
            rows = odd_value(rows, drawn) or rows
        data = dumped(rows, is_array=False)
    if data is sound or drawn.random() < 0.3:
        for _ in range(drawn.randrange(1, 4)):
            data = drawn.choice([*MUTATIONS, spliced])(data or b"{", drawn)
    return noise(data, drawn) if drawn.random() < 0.03 else data


@contextmanager
def no_hang() -> Iterator[None]:
    """Raises Hang in the block after HANG_S. The timer is pytest-timeout's, too, which gets back what was left of it."""

    def stop(*_: object) -> None:
        raise Hang(f"no answer within {HANG_S} s")

    before, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 0.01))


def answer(reader: Reader) -> str:
    """`read` or `refused`; any other exception is the caller's."""
    with warnings.catch_warnings(), no_hang():
        warnings.simplefilter("ignore")
        try:
            reader.read()
        except UserError as error:
            told = printable(str(error))
            assert told.strip()
            assert "Traceback" not in told
            told.encode()
            return "refused"
    return "read"


def fuzz(name: str, reader: Reader, numbers: Iterable[int]) -> Counter[str]:
    sound = reader.file.read_bytes()
    results: Counter[str] = Counter()
    try:
        for number in numbers:
            reader.file.write_bytes(damaged(sound, name, number))
            try:
                results[answer(reader)] += 1
            except (Exception, Hang) as error:
                error.add_note(f"reader {name!r}, input {number}")
                raise
    finally:
        reader.file.write_bytes(sound)
    return results


@pytest.fixture(scope="module")
def all_readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return readers(tmp_path_factory.mktemp("readers"))


def test_the_limit_of_a_reader_gives_the_timer_back() -> None:
    """`pytest-timeout` has set it."""
    before, _ = signal.getitimer(signal.ITIMER_REAL)
    assert before > HANG_S
    with no_hang():
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= HANG_S
    assert 0 < before - signal.getitimer(signal.ITIMER_REAL)[0] < HANG_S


def test_all_readers_are_named(all_readers: dict[str, Reader]) -> None:
    assert tuple(all_readers) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_reader_reads_what_its_writer_wrote(all_readers: dict[str, Reader], name: str) -> None:
    all_readers[name].read()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("labels")])  # test_label_fuzz has 2,000
def test_damaged_files_are_read_or_refused_by_one_message(all_readers: dict[str, Reader], name: str) -> None:
    results = fuzz(name, all_readers[name], range(60))
    assert results.total() == 60
    assert results["refused"] or name == "sessions"


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
def test_1000_damaged_files_are_read_or_refused_by_one_message(all_readers: dict[str, Reader], name: str) -> None:
    assert fuzz(name, all_readers[name], range(60, 1060)).total() == 1000


def main(count: int, wanted: list[str]) -> int:
    """Tries so many inputs of each reader, prints the counts and every fault, and returns how many faults there were."""
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, reader in readers(Path(folder)).items():
            results: Counter[str] = Counter()
            for number in range(count) if not wanted or name in wanted else ():
                try:
                    results += fuzz(name, reader, [number])
                except (Exception, Hang) as error:
                    results["faults"] += 1
                    if results["faults"] <= 5:
                        print(f"{name} {number}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            print(f"{name}: {dict(results)}", flush=True)
            faults += results["faults"]
    return faults


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1]), sys.argv[2:]) else 0)
