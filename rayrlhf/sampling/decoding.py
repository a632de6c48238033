"""A batch in the middle of decoding with the model's own cache: prompts padded on the left, one token a row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, LinearAttentionCacheLayerMixin

from rayrlhf.forward import cache_name, taken
from rayrlhf.types import IntArray


@dataclass(slots=True)
class Decoding:
    """A batch with its cache, which positions of it are real, and where each row stands."""

    cache: Cache
    mask: Tensor | None  # [B, capacity] 0 at left padding, 1 elsewhere; None where nothing is padded, or no step asks
    positions: Tensor  # [B] position id of each row's next token
    length: int  # columns of the cache in use

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders rows of the batch."""
        select_rows(self.cache, rows)
        self.mask = None if self.mask is None else self.mask.index_select(0, rows)
        self.positions = self.positions.index_select(0, rows)

    def advance(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Feeds one token [B] a row; returns the logits [B, V] of the next."""
        self.length += 1
        options = cache_options(
            model,
            self.cache,
            attention_mask=None if self.mask is None else self.mask[:, : self.length],
            position_ids=None if self.mask is None else self.positions.unsqueeze(1),
        )
        logits = model(input_ids=tokens.unsqueeze(1), use_cache=True, **options).logits
        self.positions = self.positions + 1
        return logits[:, -1]


def start_decoding(
    model: nn.Module, prompts: Sequence[IntArray], room: int, every: bool = False, mask_steps: bool = True
) -> tuple[Decoding, Tensor, Tensor]:
    """Feeds prompts [P >= 1 each], padded on the left, with room for so many tokens more.

    Returns the batch, its logits [B, longest P or 1, V] after every column or the last alone, and the ids [B, longest P].
    mask_steps: the padding is told at each step too; a recurrent state has taken it in once the prompts are fed.
    """
    device = next(model.parameters()).device
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest + room, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    padded = len({len(prompt) for prompt in prompts}) > 1
    decoding = Decoding(
        cache=_preallocated_cache(model, longest + room),
        mask=mask if padded and mask_steps else None,
        positions=mask[:, :longest].sum(1),
        length=longest,
    )
    options = cache_options(
        model,
        decoding.cache,
        attention_mask=mask[:, :longest] if padded else None,
        position_ids=(mask[:, :longest].cumsum(1) - 1).clamp(min=0),
        logits_to_keep=0 if every else 1,
    )
    logits = model(input_ids=ids, use_cache=True, **options).logits
    return decoding, logits if every else logits[:, -1:], ids


def cache_options(model: nn.Module, cache: Cache, **options: Any) -> dict[str, Any]:
    """What a forward pass with a cache is given: those of the options that it takes, the cache by the name it has for it."""
    name = cache_name(model)
    return taken(model, **options) | ({} if name is None else {name: cache})


def select_rows(cache: Cache, rows: Tensor) -> None:
    """Keeps, repeats or reorders rows of a cache, its recurrent states included."""
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.reorder_cache(rows)  # type: ignore[arg-type]  # selects from all that it holds, keys and values too
        else:
            layer.batch_select_indices(rows)  # type: ignore[union-attr]


class PreallocatedLayer(DynamicLayer):
    """A full-attention cache layer that writes into room set aside at the start, where the stock one copies all keys
    and values at each token."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.room_keys: Tensor | None = None  # [B, H, capacity, D]
        self.room_values: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.room_keys is None or self.room_values is None:
            self.room_keys = self._room(key_states)
            self.room_values = self._room(value_states)
        self.room_keys[:, :, start:end] = key_states
        self.room_values[:, :, start:end] = value_states
        self.keys, self.values = self.room_keys[:, :, :end], self.room_values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.room_keys is None or self.room_values is None:
            return
        length = self.get_seq_length()
        self.room_keys = self.room_keys.index_select(0, indices)
        self.room_values = self.room_values.index_select(0, indices)
        self.keys, self.values = self.room_keys[:, :, :length], self.room_values[:, :, :length]

    def _room(self, states: Tensor) -> Tensor:
        return states.new_empty(*states.shape[:-2], self.capacity, states.shape[-1])


def empty_cache(model: nn.Module) -> Cache:
    """The model's own kind of cache."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    cache = DynamicCache(config=config)
    if not cache.layers:
        cache.layers = [DynamicLayer() for _ in range(config.num_hidden_layers)]
    return cache


def _preallocated_cache(model: nn.Module, capacity: int) -> Cache:
    """The model's own kind of cache, with its plain growing layers replaced by preallocated ones."""
    cache = empty_cache(model)
    cache.layers = [PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
