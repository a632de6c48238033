"""Reads prompts from files: text (a prompt a line), JSONL (an object a line), parquet (a row), or a folder of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrlhf.errors import PromptError
from rayrlhf.reading import check_file, parse_json, read_text

Messages = list[dict[str, Any]]
"""A conversation: `{"role": ..., "content": ...}` in order."""

SUFFIXES = (".txt", ".jsonl", ".parquet")
_TABLE = 'write it as JSONL, a line such as {{"{field}": "..."}} for each prompt, in a file that ends in .jsonl'
_PACKED = "is compressed, and is not read so: unpack it first, and name the file that was in it"
_INSTEAD = {
    ".json": f"one JSON text is not read as prompts: {_TABLE}",
    ".csv": f"a table of this kind is not read: {_TABLE}",
    ".tsv": f"a table of this kind is not read: {_TABLE}",
    ".gz": f"it {_PACKED} (`gunzip {{name}}`)",
    **dict.fromkeys((".zst", ".bz2", ".xz", ".zip"), f"it {_PACKED}"),
}
"""Suffix -> what to do instead."""


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt as it stands in a file."""

    place: str  # `file:line`, or `file row n` in a parquet file (from 1)
    content: str | Messages


def read_file(path: Path, field: str) -> Iterator[Row | None]:
    """The rows of one file in order; None stands for a blank line. By its suffix: .jsonl, .parquet, else text.

    Text lines stay as they are but for the line break: a space at the end of a prompt changes what follows it.

    Raises:
        PromptError: the file is missing, unreadable, or a row of it holds no prompt.
    """
    if os.path.isdir(path):
        raise PromptError(f"{path} is a folder: name it as environment.prompts.folder")
    if not os.path.exists(path):
        raise PromptError(f"{path}: there is no such file (environment.prompts, from {Path.cwd()})")
    if path.suffix in _INSTEAD:
        raise PromptError(f"{path}: {_INSTEAD[path.suffix].format(name=path.name, field=field)}")
    readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    return readers.get(path.suffix, _text_rows)(path, field)


def read_folder(folder: Path, field: str) -> Iterator[Row | None]:
    """The rows of all .txt, .jsonl and .parquet files in a folder, files in the order of their names.

    Raises:
        PromptError: it is no folder, has no such file, or a row of one holds no prompt.
    """
    if not folder.is_dir():
        kind = "is a file: name it as environment.prompts.file" if folder.exists() else "there is no such folder"
        raise PromptError(f"{folder}: {kind} (environment.prompts, from {Path.cwd()})")
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if not files:
        inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
        hint = f"; perhaps they are in its folder {inner[0]}" if inner else ""
        raise PromptError(f"{folder}: no .txt, .jsonl or .parquet file in it{hint}")
    return (row for path in files for row in read_file(path, field))


def _lines(path: Path) -> Iterable[str]:
    """The lines without their breaks. Only \\n and \\r\\n end one: a prompt may hold any other character."""
    text = read_text(path, PromptError)
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return (line.removesuffix("\r") for line in lines)


def _text_rows(path: Path, field: str) -> Iterator[Row | None]:
    for number, line in enumerate(_lines(path), start=1):
        yield Row(f"{path}:{number}", line) if line.strip() else None


def _jsonl_rows(path: Path, field: str) -> Iterator[Row | None]:
    for number, line in enumerate(_lines(path), start=1):
        yield _json_row(line, f"{path}:{number}", field) if line.strip() else None


def _json_row(line: str, place: str, field: str) -> Row:
    record = parse_json(line, place, PromptError)
    if not isinstance(record, dict):
        raise PromptError(f'{place}: a JSONL row is an object such as {{"{field}": "..."}}, not {line.strip()[:40]}')
    if field not in record:
        raise PromptError(f"{place}: no field {field!r}; {_fields_hint(record)}")
    return Row(place, _content(record[field], place, field))


def _parquet_rows(path: Path, field: str) -> Iterator[Row | None]:
    import pyarrow
    import pyarrow.parquet

    check_file(path, PromptError)
    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
        if field not in names:
            raise PromptError(f"{path}: no column {field!r}; {_fields_hint(names)}")
        values = (value for batch in table.iter_batches(columns=[field]) for value in batch.column(0).to_pylist())
        for number, value in enumerate(values, start=1):
            place = f"{path} row {number}"
            yield Row(place, _content(value, place, field))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: cannot be read as parquet: {error}") from error


def _fields_hint(names: Iterable[str]) -> str:
    names = list(names)
    if "messages" in names:
        return "it has messages: set environment.prompts.field=messages"
    return f"it has {', '.join(names) or 'none'}: say which in environment.prompts.field"


def _content(value: Any, place: str, field: str) -> str | Messages:
    """A row's prompt, checked: text that is not empty, or messages with text for role and content."""
    if isinstance(value, str):
        if not value:
            raise PromptError(f"{place}: the prompt is empty; take the row out")
        return value
    if not isinstance(value, list):
        raise PromptError(f"{place}: field {field!r} is {type(value).__name__}, not text or a list of messages")
    if not value:
        raise PromptError(f"{place}: the list of messages is empty; take the row out")
    for message in value:
        if isinstance(message, dict) and isinstance(message.get("content"), list):
            raise PromptError(
                f"{place}: the content of a message is a list of parts: write their text as one, "
                '{"role": "...", "content": "..."}'
            )
        texts = isinstance(message, dict) and [message.get("role"), message.get("content")]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise PromptError(f'{place}: a message is {{"role": "...", "content": "..."}}, not {str(message)[:60]}')
    return value
