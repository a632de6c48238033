"""Special tokens that data spells out in letters (SPEC GWERN-16), and padding with a visible token (SPEC GWERN-17)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rayrlhf.preferences.formats.openai_json import KEPT
from rayrlhf.preferences.label_findings import Finding, Label
from rayrlhf.preferences.records import Item, Skip
from rayrlhf.preferences.schema import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WELL_KNOWN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|pad|>", "</s>", "<eos>", "<pad>", "[PAD]")
GPT2_MARKER = (27, 91, 437, 1659, 5239, 91, 29)  # `<|endoftext|>` in letters, where the token is 50256
GPT2_BACKSLASH_N = (59, 77)
SHORTEST_RUN = 8  # equal ids or characters at the end of a text that count as padding


def spelled_specials(labels: Sequence[Label], tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Finding]:
    """Texts in which a special token, or a line break as backslash and n, stands in letters; each text once.

    With a tokenizer ids are read without its special tokens: what is left of them is letters. Without one, ids that came
    in lm-human-preferences' format are taken for GPT-2's.
    """
    names = tuple(tokenizer.all_special_tokens) if tokenizer is not None else WELL_KNOWN
    for label, what, ids, text in _texts(labels):
        place = label.place
        if ids is not None and tokenizer is not None:
            known = [token for token in ids if token < len(tokenizer)]
            text = str(tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for name in names:
            if name in text:
                yield Finding("special token as text", place, f"{what} spells {name} in letters{_as_ids(ids, name)}")
        if "\\n" in text:
            yield Finding("line break as text", place, f"{what} has a backslash and an n where a line break is meant")
        if ids is not None and tokenizer is None and label.record is not None and _is_gpt2(label.record):
            if _contains(ids, GPT2_MARKER):
                message = f"{what} spells <|endoftext|> in letters{_as_ids(ids, '<|endoftext|>')}, by GPT-2's ids"
                yield Finding("special token as text", place, message)
            if _contains(ids, GPT2_BACKSLASH_N):
                message = f"{what} has a backslash and an n (ids 59 77) where a line break is meant, by GPT-2's ids"
                yield Finding("line break as text", place, message)


def padding(labels: Sequence[Label], tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Finding]:
    """Ids or characters that samples end in a run of: a head at the last position would read only that."""
    special = set(tokenizer.all_special_ids) if tokenizer is not None else set()
    runs: dict[int | str, list[tuple[str, int]]] = {}
    samples = [(label.place, item) for label in labels for item in label.items]
    for place, item in samples:
        ends: Sequence[int | str] = item.text if item.text_ids is None else item.text_ids
        length = _run(ends)
        if length >= SHORTEST_RUN and ends[-1] not in special and str(ends[-1]).strip():
            runs.setdefault(ends[-1], []).append((place, length))
    for end, found in runs.items():
        lengths = [length for _, length in found]
        name = f"the id {end}" if isinstance(end, int) else repr(end)
        advice = f"; if it is padding, import with --pad-id {end}" if isinstance(end, int) else ""
        yield Finding(
            "visible padding",
            found[0][0],
            f"{len(found)} of {len(samples)} samples, this one first, end in a run of {name}, "
            f"{min(lengths)} to {max(lengths)} long (median {statistics.median(lengths):g}){advice}",
        )


def _texts(labels: Sequence[Label]) -> Iterator[tuple[Label, str, tuple[int, ...] | None, str]]:
    """Label, name, ids and text of every query and sample, the first time that it comes by."""
    seen: set[tuple[str, tuple[int, ...] | None]] = set()
    for label in labels:
        for index, item in enumerate(label.items):
            for what, ids, text in _parts(item, index):
                if (text, ids) not in seen:
                    seen.add((text, ids))
                    yield label, what, ids, text


def _parts(item: Item, index: int) -> Iterator[tuple[str, tuple[int, ...] | None, str]]:
    yield "the query", item.prompt_ids, item.prompt
    yield f"sample {index}", item.text_ids, item.text


def _is_gpt2(record: Record) -> bool:
    return not isinstance(record, Skip) and KEPT in record.extra


def _as_ids(ids: tuple[int, ...] | None, name: str) -> str:
    if ids is None or name != "<|endoftext|>" or not _contains(ids, GPT2_MARKER):
        return ""
    return f" (ids {' '.join(map(str, GPT2_MARKER))})"


def _contains(ids: Sequence[int], part: Sequence[int]) -> bool:
    return f" {' '.join(map(str, part))} " in f" {' '.join(map(str, ids))} "


def _run(ends: Sequence[int | str]) -> int:
    """Length of the run of one value at the end."""
    length = 0
    while length < len(ends) and ends[len(ends) - 1 - length] == ends[-1]:
        length += 1
    return length
