"""Texts to rate: the samples of a run (`samples.jsonl`), or plain text with a separator between samples (SPEC GWERN-9).

A sample that was read before, or is shorter than was asked for, is left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rayrlhf.preferences.formats.content import (
    Entry,
    Fault,
    LeftOut,
    Object,
    Outcome,
    ReadOptions,
    Row,
    each,
    text_of,
    whole_of,
)
from rayrlhf.preferences.records import Item

_HEADLINE = r"^=+ SAMPLE \d+ =+[ \t\r]*$"  # of GPT-2's own sampler


def recognises(value: Object) -> bool:
    return isinstance(value.get("prompt"), str) and isinstance(value.get("response"), str)


def read(rows: Iterable[Row | Fault], options: ReadOptions) -> Iterator[Outcome]:
    """Items of a run's samples: prompt and response, the run's name as generator, iteration."""
    keep = _Filter(options)
    return each(rows, lambda row: keep(row.line, _item(row.value, options)))


def read_text(data: bytes, options: ReadOptions) -> Iterator[Outcome]:
    """Items of a text file without prompts; a file without a separator is one sample."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Fault(data.count(b"\n", 0, error.start) + 1, f"not UTF-8 text (byte {data[error.start]:#04x})")
        return
    keep = _Filter(options)
    separators = [re.escape(options.separator), _HEADLINE] if options.separator else [_HEADLINE]
    found = re.finditer("|".join(separators), text, re.MULTILINE)
    start = 0
    line = 1
    for end, following in [*(match.span() for match in found), (len(text), len(text))]:
        part = text[start:end]
        if sample := part.strip():
            lead = len(part) - len(part.lstrip())
            yield keep(line + part.count("\n", 0, lead), Item("", sample, generator=options.generator))
        line += text.count("\n", start, following)
        start = following


class _Filter:
    """Unique samples that are long enough."""

    def __init__(self, options: ReadOptions) -> None:
        self._least = options.min_characters
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, line: int, item: Item) -> Entry | LeftOut:
        key = item.prompt, item.text
        if not item.text.strip():
            return LeftOut(line, "empty")
        if len(item.text) < self._least:
            return LeftOut(line, f"shorter than {self._least} characters")
        if key in self._seen:
            return LeftOut(line, "read before")
        self._seen.add(key)
        return Entry(line, (item,))


def _item(value: Object, options: ReadOptions) -> Item:
    text = text_of(value, "response")
    while options.separator and text.endswith(options.separator):
        text = text.removesuffix(options.separator)
    return Item(
        prompt=text_of(value, "prompt"),
        text=text,
        generator=text_of(value, "run", options.generator),
        iteration=whole_of(value, "iteration"),
    )
