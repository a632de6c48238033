"""Which tokens end a text: the tokenizer's end-of-sequence token, and what the model's generation config names beside it.

Chat models have several: one ends a document, another a turn.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any


def end_tokens(tokenizer: Any, generation_config: Any) -> tuple[int, ...]:
    """All ends of a model, the tokenizer's first; `generation_config` may be None."""
    named = _listed(getattr(generation_config, "eos_token_id", None))
    return tuple(dict.fromkeys([*_listed(tokenizer.eos_token_id), *named]))


def ends_beside(eos_token_id: int | Collection[int], generation_config: Any) -> tuple[int, ...]:
    """A collection as it is; of one end also the others that the generation config names with it."""
    given = _listed(eos_token_id)
    named = _listed(getattr(generation_config, "eos_token_id", None))
    return tuple(dict.fromkeys([*given, *named] if isinstance(eos_token_id, int) and eos_token_id in named else given))


def end_set(eos_token_id: int | Collection[int]) -> frozenset[int]:
    """One end or several, as a set."""
    return frozenset(_listed(eos_token_id))


def _listed(ids: Any) -> list[int]:
    """Of a number, a collection of them, a tensor, or nothing at all. Raises TypeError for what is none of these."""
    if ids is None:
        return []
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    return [int(ids)] if isinstance(ids, int) else [operator.index(one) for one in ids]
