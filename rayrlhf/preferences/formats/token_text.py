"""Ids of a label file as text, and text as ids, by the tokenizer that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rayrlhf.preferences.formats.content import Faulty

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_vocabulary(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Raises Faulty for an id that the tokenizer does not have: the file was written with another one."""
    if (unknown := next((token for token in ids if token >= len(tokenizer)), None)) is not None:
        raise Faulty(f'"{key}" has the id {unknown}, and the tokenizer only {len(tokenizer)} tokens: name another one')


def decoded(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, key: str) -> str:
    """The text of ids without special tokens at its ends; inside it they stay, spelled out.

    Raises Faulty for an id that the tokenizer does not have.
    """
    check_vocabulary(ids, tokenizer, key)
    special = set(tokenizer.all_special_ids)
    start, end = 0, len(ids)
    while start < end and ids[start] in special:
        start += 1
    while end > start and ids[end - 1] in special:
        end -= 1
    return str(tokenizer.decode(list(ids[start:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def encoded(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text without special tokens around it. Half a surrogate pair, which no tokenizer takes, is U+FFFD."""
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return list(tokenizer(clean, add_special_tokens=False, verbose=False)["input_ids"])


def without_run(ids: tuple[int, ...], pad_id: int) -> tuple[int, ...]:
    """Ids without the run of `pad_id` at their end."""
    end = len(ids)
    while end and ids[end - 1] == pad_id:
        end -= 1
    return ids[:end]
