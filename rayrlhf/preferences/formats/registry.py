"""All formats by name; which one a file has; and a file's outcomes, whichever it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.formats import anthropic_hh, native, openai_json, samples, summarize, trl
from rayrlhf.preferences.formats.content import Content, Export, Fault, Object, Outcome, ReadOptions, Row
from rayrlhf.preferences.formats.json_rows import read_rows
from rayrlhf.reading import read_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Reader = Callable[[Iterable[Row | Fault], ReadOptions], Iterator[Outcome]]
_LOOKED_AT = 20  # rows from the beginning of a file, until one is recognised
_PAIRS = 'write JSONL, a line such as {"prompt": "...", "chosen": "...", "rejected": "..."} for each comparison'
_PACKED = (b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")  # gzip, zip, zstd, bzip2, xz
TEXT = "text"  # plain samples: whatever text there is, is one, so it is never guessed from content


@dataclass(frozen=True, slots=True)
class Format:
    """How labels of one kind are recognised and read, and written where they can be (`samples` cannot)."""

    recognises: Callable[[Object], bool]
    read: _Reader
    write: Callable[[Content, PreTrainedTokenizerBase | None], Export] | None = None
    is_array: bool = False  # written as one JSON array, not as JSONL


FORMATS = {
    "native": Format(native.recognises, native.read, lambda content, tokenizer: native.write(content)),
    "openai_json": Format(openai_json.recognises, openai_json.read, openai_json.write, is_array=True),
    "summarize": Format(summarize.recognises, summarize.read, lambda content, tokenizer: summarize.write(content)),
    "anthropic_hh": Format(
        anthropic_hh.recognises, anthropic_hh.read, lambda content, tokenizer: anthropic_hh.write(content)
    ),
    "trl": Format(trl.recognises, trl.read, lambda content, tokenizer: trl.write(content)),
    "samples": Format(samples.recognises, samples.read),
}
"""In the order in which a row is held against them: one of Anthropic's is also one of TRL's without a prompt."""
READABLE = (*FORMATS, TEXT)
WRITABLE = tuple(name for name, form in FORMATS.items() if form.write is not None)


def read_file(path: Path, options: ReadOptions, name: str | None = None) -> tuple[str, tuple[Outcome, ...]]:
    """A file's format and what its lines say. A folder is a run's: its samples are read.

    name: the format, where it is not to be found out.

    Raises:
        PreferenceError: the file cannot be read, or no format is known by that name.
    """
    file = path / "samples.jsonl" if path.is_dir() else path
    data = read_bytes(file, PreferenceError, piped=file is path)  # `labels import <(...)` is a person's word
    if name is not None and name not in READABLE:
        raise PreferenceError(f"no format of labels is named {name}: choose from {', '.join(READABLE)}")
    return read_data(data, options, TEXT if name is None and file.suffix == ".txt" else name)


def read_data(data: bytes, options: ReadOptions, name: str | None = None) -> tuple[str, tuple[Outcome, ...]]:
    """A file's format ("" where none is recognised, which is a fault) and its outcomes in the order of the lines."""
    if name == TEXT:
        return TEXT, tuple(samples.read_text(data, options))
    if not data.strip():
        return name or "", (Fault(1, "the file is empty"),)
    if (unread := _unread(data)) is not None:
        return name or "", (Fault(1, unread),)
    rows = list(read_rows(data))
    found = name or detect(row.value for row in rows if isinstance(row, Row))
    if found is None:
        faults = [row for row in rows if isinstance(row, Fault)]
        line = next((row.line for row in rows if isinstance(row, Row)), 1)
        if faults and not any(isinstance(row, Row) for row in rows):
            return "", tuple(faults)
        keys = next((row.value for row in rows if isinstance(row, Row)), {})
        return "", (*faults, Fault(line, _not_recognised(keys)))
    return found, tuple(FORMATS[found].read(rows, options))


def _unread(data: bytes) -> str | None:
    """What to write instead of a file that is no JSON at all; None where it may be some."""
    if data.startswith(_PACKED):
        return "it is compressed: unpack it first"
    first = data.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0]
    if data.startswith(b"PAR1") or (first[:1].isalpha() and b"{" not in first and (b"," in first or b"\t" in first)):
        return f"a table of this kind is not read: {_PAIRS}"
    return None


def _not_recognised(row: Object) -> str:
    if "annotations" in row:
        return f'the export of an annotation tool ("annotations") is not read: {_PAIRS}'
    if isinstance(row.get("completions"), list):
        return (
            'completions in a list ("completions") are not read: write a line for each, '
            '{"query": "...", "sample": {"text": "..."}, "score": 4, "scale": "1-5"}, or '
            'pairs, {"prompt": "...", "chosen": "...", "rejected": "..."}'
        )
    return f"no format of labels is recognised: {_PAIRS}, or name one with --format ({', '.join(READABLE)})"


def detect(values: Iterable[Object]) -> str | None:
    """The format of the first row that any format recognises, among the first few."""
    for value in islice(values, _LOOKED_AT):
        for name, form in FORMATS.items():
            if form.recognises(value):
                return name
    return None


def encode(rows: Iterable[Object], is_array: bool) -> Iterator[bytes]:
    """The bytes of a file, an object a line. ASCII, so that half a surrogate pair is no obstacle."""
    lines = (json.dumps(row, allow_nan=False).encode("ascii") for row in rows)
    if not is_array:
        yield from (line + b"\n" for line in lines)
        return
    start = b"[\n"
    for line in lines:
        yield start + line
        start = b",\n"
    yield b"[]\n" if start == b"[\n" else b"\n]\n"
