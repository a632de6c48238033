"""Preference data sets of TRL, JSONL: `prompt`, `chosen`, `rejected`, as texts or as lists of messages; or a prompt
that is a text beside `chosen` and `rejected` as messages, which may repeat it.

Without `prompt` it is what `chosen` and `rejected` have in common at their beginning, as in TRL's `extract_prompt`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

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
    shown,
    text_of,
)
from rayrlhf.preferences.formats.pairs import common_length, split_note, text_pairs
from rayrlhf.preferences.records import Comparison, Item

KEPT = "trl"
"""Field of a record's `extra` with the columns that have no place of their own."""
MESSAGES = "messages"
"""Field of an item's `extra` with the messages of `prompt` and `text`, where they came as such."""


def recognises(value: Object) -> bool:
    return "chosen" in value and "rejected" in value


def read(rows: Iterable[Row | Fault], options: ReadOptions) -> Iterator[Outcome]:
    identify = Identifier(KEPT)
    return each(rows, lambda row: _entry(row, identify, options))


def _entry(row: Row, identify: Identifier, options: ReadOptions) -> Entry:
    value = row.value
    for key in ("chosen", "rejected"):
        if key not in value:
            raise Faulty(f'"{key}" is missing')
    if isinstance(value["chosen"], list):
        chosen, rejected = _conversations(value, options)
    else:
        chosen, rejected = _texts(value, options)
    if chosen.id == rejected.id:
        raise Faulty("chosen and rejected are the same: there is nothing to compare")
    extra = extra_of(value, ("prompt", "chosen", "rejected"))
    comparison = Comparison(
        items=(chosen.id, rejected.id),
        best=0,
        created=options.created,
        extra={KEPT: extra} if extra else {},
        id=identify((chosen, rejected), value),
    )
    return Entry(row.line, (chosen, rejected), comparison)


def _texts(value: Object, options: ReadOptions) -> tuple[Item, Item]:
    chosen, rejected = text_of(value, "chosen"), text_of(value, "rejected")
    if "prompt" in value:
        prompt = text_of(value, "prompt")
    else:
        prompt = chosen[: common_length(chosen, rejected)]
        if chosen != rejected and prompt.endswith(" "):
            prompt = prompt[:-1]  # a token begins with its space
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return Item(prompt, chosen, generator=options.generator), Item(prompt, rejected, generator=options.generator)


def _conversations(value: Object, options: ReadOptions) -> tuple[Item, Item]:
    chosen, rejected = _messages(value, "chosen"), _messages(value, "rejected")
    if isinstance(value.get("prompt"), str):
        prompt, chosen, rejected = _after_text(text_of(value, "prompt"), chosen, rejected)
    elif "prompt" in value:
        prompt = _messages(value, "prompt")
    else:
        prompt = chosen[: common_length(chosen, rejected)]
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return _conversation(prompt, chosen, options), _conversation(prompt, rejected, options)


def _after_text(
    prompt: str, chosen: list[Object], rejected: list[Object]
) -> tuple[list[Object], list[Object], list[Object]]:
    """Prompt and answers as messages, of a prompt that is a text: what both begin with ends with it, or they leave it
    out."""
    asked: Object = {"role": "user", "content": prompt}
    at = common_length(chosen, rejected)
    if not at or at == len(chosen) == len(rejected):  # they begin with nothing, or are the same answer twice
        return [asked], chosen, rejected
    last = chosen[at - 1]
    if (last["role"], last["content"]) != ("user", prompt):
        raise Faulty('the messages that "chosen" and "rejected" begin with do not end with the text of "prompt"')
    return chosen[:at], chosen[at:], rejected[at:]


def _conversation(prompt: list[Object], answer: list[Object], options: ReadOptions) -> Item:
    extra = {MESSAGES: {"prompt": prompt, "text": answer}}
    return Item(_written(prompt, "user"), _written(answer, "assistant"), generator=options.generator, extra=extra)


def _written(messages: list[Object], role: str) -> str:
    """A single message of the usual role is its content; several are told apart by their roles."""
    if len(messages) == 1 and messages[0]["role"] == role:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _messages(value: Object, key: str) -> list[Object]:
    found: Any = value[key]
    if not isinstance(found, list):
        raise Faulty(f'"{key}" has to be a list of messages, as "chosen" is one, not {shown(found)}')
    for message in found:
        if not isinstance(message, dict):
            raise Faulty(f'"{key}" has to be a list of messages, not of {shown(message)}')
        text_of(message, "role")
        if isinstance(message.get("content"), list):
            raise Faulty('the "content" of a message is a list of parts: write their text as one')
        text_of(message, "content")
    return found


def write(content: Content) -> Export:
    """Decisive comparisons; of k > 2 texts, as pairs of the best with each other one."""
    found, left_out = text_pairs(content)
    rows: list[Object] = []
    for record, pairs in found:
        for chosen, rejected in pairs:
            if (row := _row(chosen, rejected)) is None:
                left_out["pairs of texts with different prompts"] += 1
            else:
                rows.append({**row, **record.extra.get(KEPT, {})})
    return Export(tuple(rows), +left_out, split_note(sum(len(pairs) > 1 for _, pairs in found)))


def _row(chosen: Item, rejected: Item) -> Object | None:
    forms = chosen.extra.get(MESSAGES), rejected.extra.get(MESSAGES)
    if forms[0] and forms[1]:
        if forms[0]["prompt"] != forms[1]["prompt"]:
            return None
        return {"prompt": forms[0]["prompt"], "chosen": forms[0]["text"], "rejected": forms[1]["text"]}
    if chosen.prompt != rejected.prompt:
        return None
    return {"prompt": chosen.prompt, "chosen": chosen.text, "rejected": rejected.text}
