"""Anthropic's helpful and harmless dialogues, JSONL: `chosen` and `rejected`, each a whole dialogue.

What two dialogues have in common ends with the last "\\n\\nAssistant:" that is in both; the answers follow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rayrlhf.preferences.formats.content import (
    Content,
    Entry,
    Export,
    Fault,
    Faulty,
    Identifier,
    Object,
    Outcome,
    ReadOptions,
    Row,
    each,
    extra_of,
    text_of,
)
from rayrlhf.preferences.formats.pairs import common_length, split_note, text_pairs
from rayrlhf.preferences.records import Comparison, Item

KEPT = "anthropic_hh"
ASSISTANT = "\n\nAssistant:"
HUMAN = "\n\nHuman:"


def recognises(value: Object) -> bool:
    chosen = value.get("chosen")
    return "rejected" in value and "prompt" not in value and isinstance(chosen, str) and chosen.startswith(HUMAN)


def read(rows: Iterable[Row | Fault], options: ReadOptions) -> Iterator[Outcome]:
    identify = Identifier(KEPT)
    return each(rows, lambda row: _entry(row, identify, options))


def split(chosen: str, rejected: str) -> str | None:
    """The prompt of two dialogues: up to the last "\\n\\nAssistant:" of what they have in common; None without one."""
    common = chosen[: common_length(chosen, rejected)]
    at = common.rfind(ASSISTANT)
    return None if at < 0 else common[: at + len(ASSISTANT)]


def _entry(row: Row, identify: Identifier, options: ReadOptions) -> Entry:
    chosen, rejected = text_of(row.value, "chosen"), text_of(row.value, "rejected")
    if chosen == rejected:
        raise Faulty("chosen and rejected are the same: there is nothing to compare")
    prompt = split(chosen, rejected)
    if prompt is None:
        raise Faulty(
            f"chosen and rejected have no {ASSISTANT.strip()!r} in common: they are no answers to one dialogue"
        )
    items = tuple(Item(prompt, text[len(prompt) :], generator=options.generator) for text in (chosen, rejected))
    extra = extra_of(row.value, ("chosen", "rejected"))
    comparison = Comparison(
        items=(items[0].id, items[1].id),
        best=0,
        created=options.created,
        extra={KEPT: extra} if extra else {},
        id=identify(items, row.value),
    )
    return Entry(row.line, items, comparison)


def write(content: Content) -> Export:
    """Decisive comparisons of answers to a dialogue; of k > 2 texts, as pairs of the best with each other one."""
    found, left_out = text_pairs(content)
    rows: list[Object] = []
    for record, pairs in found:
        for chosen, rejected in pairs:
            texts = chosen.prompt + chosen.text, rejected.prompt + rejected.text
            if chosen.prompt == rejected.prompt == split(*texts):
                rows.append({"chosen": texts[0], "rejected": texts[1], **record.extra.get(KEPT, {})})
            else:
                left_out[
                    f"pairs that are no answers to one dialogue (their prompts do not end with {ASSISTANT!r})"
                ] += 1
    return Export(tuple(rows), +left_out, split_note(sum(len(pairs) > 1 for _, pairs in found)))
