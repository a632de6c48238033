"""Where a freely written action ends, and what of it a text game is given (SPEC TW-4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from rayrlhf.ends import end_set
from rayrlhf.types import IntArray

SENTENCE_END = re.compile(r"[^\W_][^.?!\n]*[.?!\n]")  # a letter or digit, then the first mark or newline after it
LETTER = re.compile(r"[^\W_]")


def ends_sentence(decode: Callable[[IntArray], str], eos_token_id: int | Collection[int]) -> Callable[[IntArray], bool]:
    """Whether response ids [t] end an action: once they hold a letter or digit, with EOS, a sentence mark or a newline.

    eos_token_id: one end, or all of the model's. Tokens without text (parts of a character, special ones) end nothing, nor
    does an EOS before the first letter.
    """
    end_ids = end_set(eos_token_id)

    def ends(ids: IntArray) -> bool:
        text = decode(ids)
        if int(ids[-1]) in end_ids:
            return LETTER.search(text) is not None
        return SENTENCE_END.search(text) is not None

    return ends


def clean_action(text: str) -> str:
    """The text up to its sentence's end, its mark included, in letters, digits, spaces and . ? ' - alone.

    Newlines and runs of spaces become one space; other characters are left out.
    """
    end = SENTENCE_END.search(text)
    sentence = text if end is None else text[: end.end()]
    kept = (character for character in sentence if character.isalnum() or character.isspace() or character in ".?'-")
    return " ".join("".join(kept).split())
