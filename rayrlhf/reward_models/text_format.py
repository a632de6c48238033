"""What a reward model reads of an episode, as token ids: query and response alone (SPEC LMHP-36).

The policy may see more: a prefix, a suffix, a chat template's markers are its own formatter's. The same format serves
training, normalisation and reinforcement learning; it lies in the model's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from rayrlhf.policy import vocabulary_fingerprint
from rayrlhf.prompt_formats import written
from rayrlhf.prompt_frames import start_ids
from rayrlhf.reading import Count, Whole
from rayrlhf.types import IntArray


@dataclass(frozen=True, slots=True)
class TextFormat:
    """`start`, the query's ids, the response's ids: in the tokens of the model that the reward model was made from.

    Where a text ends is where its last token is: the token that a policy says to end it is left out, for texts that were
    written down and brought here have none, and a model trained on them would not know what to make of it.
    """

    vocabulary: str  # fingerprint of that model's tokenizer: ids of an equal one are read as they are
    start: tuple[Count, ...]  # before every query, so that a text without any token has one to read
    context: Annotated[Whole, Field(ge=2)]  # most tokens
    ends: tuple[Count, ...] = ()  # left out at a response's end; of a model made before there was this rule: none

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, context: int, ends: Sequence[int] = ()) -> TextFormat:
        """`ends`: what ends a response, and is left out; those of the model, as `policy.end_ids` gives them."""
        start = tuple(int(i) for i in start_ids(tokenizer))
        return cls(vocabulary_fingerprint(tokenizer), start, context, tuple(ends))

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        query: str,
        response: str,
        response_ids: Sequence[int] | IntArray | None = None,
        vocabulary: str = "",
    ) -> tuple[IntArray, int]:
        """Ids [L], 1 <= L <= context, and how many tokens did not fit.

        response_ids are taken as they are, but for `ends` after the last, where `vocabulary`, their tokenizer's
        fingerprint, is this format's; else the response's text is tokenised. Text never becomes a special token
        (SPEC GWERN-16). What does not fit: the query loses its beginning first, then the response its end.
        """
        if response_ids is not None and vocabulary == self.vocabulary:
            answer = self._without_ends(np.asarray(response_ids, np.int64))
        else:
            answer = _ids(tokenizer, response)
        question = _ids(tokenizer, query)
        room = self.context - len(self.start)
        dropped = max(0, len(question) + len(answer) - room)
        answer = answer[:room]
        question = question[max(0, len(question) + len(answer) - room) :]
        return np.concatenate([np.asarray(self.start, np.int64), question, answer]), dropped

    def _without_ends(self, ids: IntArray) -> IntArray:
        kept = np.flatnonzero(~np.isin(ids, self.ends))
        return ids[: kept[-1] + 1] if len(kept) else ids[:0]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> IntArray:
    encoded = tokenizer(written(text), add_special_tokens=False, split_special_tokens=True, verbose=False)
    return np.asarray(encoded["input_ids"], np.int64)
