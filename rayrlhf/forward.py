"""How a causal language model of transformers is called: which of the usual arguments its forward pass takes, and the
plain pass over whole sequences, padded on the right, that all else is held against."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

CACHES = ("past_key_values", "cache_params")
"""What forward passes call the cache that they are given."""


def takes(model: nn.Module, name: str) -> bool:
    """Whether the forward pass has a parameter of this name. What it takes beside them it may ignore."""
    return name in _parameters(model)


def taken(model: nn.Module, **options: Any) -> dict[str, Any]:
    """Those of the options that the forward pass has parameters for."""
    parameters = _parameters(model)
    return {name: value for name, value in options.items() if name in parameters}


def _parameters(model: nn.Module) -> frozenset[str]:
    return _names(getattr(model.forward, "__func__", model.forward))


@lru_cache
def _names(function: Callable[..., Any]) -> frozenset[str]:
    """Remembered: it is asked at every token, and to look takes some percent of a small model's step."""
    return frozenset(inspect.signature(function).parameters)


def cache_name(model: nn.Module) -> str | None:
    """What the forward pass calls the cache that it is given; None where it takes none."""
    return next((name for name in CACHES if takes(model, name)), None)


def logits_after(model: nn.Module, input_ids: Tensor, columns: Tensor | int) -> Tensor:
    """Logits [B, C, V] after each of the columns [C] of input_ids [B, L], or after the last so many.

    Rows may be padded on the right, where a causal model does not see it from real positions. No logits are computed of
    columns that nobody looks at, where the model can leave them out.
    """
    if takes(model, "logits_to_keep"):
        return model(input_ids=input_ids, use_cache=False, logits_to_keep=columns).logits
    logits = model(input_ids=input_ids, use_cache=False).logits
    return logits[:, -columns:] if isinstance(columns, int) else logits[:, columns]
