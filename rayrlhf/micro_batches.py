"""Cuts an update's sequences into micro-batches: a budget of tokens each, the same number on every rank.

Pure: the same lengths give the same plan on every rank, so that no rank has to tell another what it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayrlhf.packed_sequences import PackedSequences, PackedTokens, ragged
from rayrlhf.types import IntArray, Minibatch


@dataclass(frozen=True, slots=True)
class MicroBatchPlan:
    """Who computes what. Every rank has the same number of micro-batches; the empty ones at the end carry no loss."""

    ranks: tuple[tuple[tuple[int, ...], ...], ...]  # [rank][micro-batch] -> indices of its sequences, longest first
    padding: float  # share of padding in all rows x longest of all ranks, 0 to 1

    @property
    def micro_batches(self) -> int:
        """How many each rank has."""
        return len(self.ranks[0])


def plan_micro_batches(lengths: Sequence[int], ranks: int, tokens_per_micro_batch: int) -> MicroBatchPlan:
    """Deals sequences of `lengths` (tokens) to `ranks` and packs each rank's into micro-batches.

    The longest go first, each to the rank with the fewest tokens so far (Graham's longest-processing-time rule); ties
    go by index, so the plan is a function of its arguments alone. A micro-batch holds rows x longest <=
    `tokens_per_micro_batch` tokens, padding included; a sequence over the budget has one of its own.

    Raises:
        ValueError: no sequences, an empty sequence, or a non-positive number of ranks or tokens.
    """
    if not lengths or min(lengths) < 1 or ranks < 1 or tokens_per_micro_batch < 1:
        raise ValueError(
            "need at least one sequence, each of one token or more, a rank and a token a micro-batch; got lengths "
            f"{list(lengths)}, {ranks} ranks, {tokens_per_micro_batch} tokens_per_micro_batch"
        )
    shards: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = loads.index(min(loads))
        shards[rank].append(index)
        loads[rank] += lengths[index]

    packed = [_pack(shard, lengths, tokens_per_micro_batch) for shard in shards]
    count = max(len(batches) for batches in packed)
    positions = sum(len(batch) * lengths[batch[0]] for batches in packed for batch in batches)
    return MicroBatchPlan(
        ranks=tuple(tuple(batches) + ((),) * (count - len(batches)) for batches in packed),
        padding=1 - sum(lengths) / positions,
    )


def _pack(shard: list[int], lengths: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """Consecutive pieces of a shard that is sorted by falling length: the first of a piece is its longest."""
    batches: list[tuple[int, ...]] = []
    while shard:
        rows = max(1, budget // lengths[shard[0]])
        batches.append(tuple(shard[:rows]))
        shard = shard[rows:]
    return batches


@dataclass(frozen=True, slots=True)
class Choices:
    """The N scored tokens of a micro-batch that were chosen among at most K allowed ones, and the M free ones."""

    rows: Tensor  # [N] int64
    places: Tensor  # [N] int64, in MicroBatch.columns
    ids: Tensor  # [N, K] int64; any id stands in the padding
    allowed: Tensor  # [N, K] bool: which of `ids` are real, one or more a row
    chosen: Tensor  # [N] int64: place in `ids` of the token that was taken
    free_rows: Tensor  # [M] int64, of the tokens whose choice was the whole vocabulary
    free_places: Tensor  # [M] int64

    @property
    def among(self) -> tuple[Tensor, Tensor, Tensor]:
        """The index of the allowed tokens' logits [N, K] in logits [B, C, V]."""
        return self.rows.unsqueeze(1), self.places.unsqueeze(1), self.ids

    def to(self, device: torch.device) -> Choices:
        return Choices(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B sequences, padded on the right to L tokens; the output of column t speaks of token t+1 (SPEC X-1).

    Only the columns that a loss needs are kept: C of them for the policy, D for the values. A causal model sees nothing
    to the right of a token: with padding there, real positions need no attention mask.
    """

    input_ids: Tensor  # [B, L] int64; any id stands in the padding: `scored` and `valued` say what counts
    columns: Tensor  # [C] int64, rising: those in which any row has a policy loss; column 0 where none has
    targets: Tensor  # [B, C] int64: the token each column predicts
    advantages: Tensor  # [B, C] float32
    behaviour_logprobs: Tensor  # [B, C] float32, nats
    reference_logprobs: Tensor  # [B, C] float32, nats; zeros without a KL loss that takes them
    weights: Tensor  # [B, C] float32
    scored: Tensor  # [B, C] bool: tokens with a policy loss; from lengths and weights, never from ids (SPEC X-2)
    choices: Choices | None  # None: the whole vocabulary everywhere
    value_columns: Tensor  # [D] int64, rising: those in which any row has a value loss; column 0 where none has
    old_values: Tensor  # [B, D] float32
    returns: Tensor  # [B, D] float32
    value_weights: Tensor  # [B, D] float32
    valued: Tensor  # [B, D] bool: tokens with a value loss

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch with its tensors on `device`."""
        moved: dict[str, Any] = {
            field.name: None if (value := getattr(self, field.name)) is None else value.to(device)
            for field in fields(self)
        }
        return MicroBatch(**moved)


AS_THEY_ARE = Minibatch(())
"""Shifts and scales nothing."""


def collate(packed: PackedSequences, indices: Sequence[int], minibatch: Minibatch = AS_THEY_ARE) -> MicroBatch:
    """Pads the sequences at `indices` into one micro-batch, advantages and weights as `minibatch` shifts and scales them.

    No indices give one that can run through a model and carries no loss.
    """
    wanted = np.asarray(indices, np.int64)
    input_ids = packed.tokens.padded(wanted)
    rows, columns, scored = packed.tokens.scored(wanted)
    policy, value = packed.weights[scored] != 0, packed.value_weights[scored] != 0
    tokens, of_value = scored[policy], scored[value]
    grid = _Grid.over(len(input_ids), rows[policy], columns[policy])
    value_grid = _Grid.over(len(input_ids), rows[value], columns[value])
    advantages = (packed.advantages[tokens] - minibatch.advantage_shift) * minibatch.advantage_scale
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        columns=torch.from_numpy(grid.columns),
        targets=torch.from_numpy(input_ids[:, grid.columns + 1]),
        advantages=grid.fill(advantages),
        behaviour_logprobs=grid.fill(packed.behaviour_logprobs[tokens]),
        reference_logprobs=grid.fill(packed.reference_logprobs[tokens]),
        weights=grid.fill(packed.weights[tokens] * minibatch.scale),
        scored=grid.fill(np.ones(len(tokens), np.bool_)),
        choices=_choices(packed, tokens, grid),
        value_columns=torch.from_numpy(value_grid.columns),
        old_values=value_grid.fill(packed.values[of_value]),
        returns=value_grid.fill(packed.returns[of_value]),
        value_weights=value_grid.fill(packed.value_weights[of_value] * minibatch.value_scale),
        valued=value_grid.fill(np.ones(len(of_value), np.bool_)),
    )


@dataclass(frozen=True, slots=True)
class _Grid:
    """N tokens in the rows of a micro-batch, in those columns alone that any of them stands in."""

    height: int  # rows of the micro-batch
    rows: IntArray  # [N]
    places: IntArray  # [N], in `columns`
    columns: IntArray  # [C] rising

    @classmethod
    def over(cls, height: int, rows: IntArray, columns: IntArray) -> _Grid:
        if not len(columns):
            return cls(height, rows, columns, np.zeros(1, np.int64))
        kept, places = np.unique(columns, return_inverse=True)
        return cls(height, rows, places, kept)

    def fill(self, values: NDArray) -> Tensor:
        """[N] -> [rows, C] with zeros elsewhere; numbers become float32."""
        filled: NDArray = np.zeros(
            (self.height, len(self.columns)), np.bool_ if values.dtype == np.bool_ else np.float32
        )
        filled[self.rows, self.places] = values
        return torch.from_numpy(filled)


def _choices(packed: PackedSequences, tokens: IntArray, grid: _Grid) -> Choices | None:
    """How the scored `tokens` [N] of a micro-batch were chosen."""
    firsts = packed.allowed_offsets[tokens]
    counts = packed.allowed_offsets[tokens + 1] - firsts
    if not counts.any():
        return None
    among = counts > 0
    widths = counts[among]
    rows, places = ragged(widths)
    ids = np.zeros((len(widths), widths.max()), np.int64)
    ids[rows, places] = packed.allowed_ids[firsts[among][rows] + places]
    arrays = (
        grid.rows[among],
        grid.places[among],
        ids,
        np.arange(ids.shape[1]) < widths[:, None],
        packed.chosen[tokens[among]],
        grid.rows[~among],
        grid.places[~among],
    )
    return Choices(*(torch.from_numpy(array) for array in arrays))


@dataclass(frozen=True, slots=True)
class QueryBatch:
    """B queried sequences, padded on the right to L tokens, and where their N values stand among the outputs [B, D]."""

    input_ids: Tensor  # [B, L] int64
    columns: Tensor  # [D] int64, rising: those that any row asks for; column 0 where there is no row
    rows: Tensor  # [N] int64
    places: Tensor  # [N] int64, in `columns`
    numbers: Tensor  # [N] int64: index among the values of all queries

    def to(self, device: torch.device) -> QueryBatch:
        return QueryBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


def collate_queries(tokens: PackedTokens, indices: Sequence[int]) -> QueryBatch:
    """Pads the queries at `indices` into one micro-batch; none give one that can run through a model."""
    wanted = np.asarray(indices, np.int64)
    input_ids = tokens.padded(wanted)
    rows, columns, numbers = tokens.scored(wanted)
    grid = _Grid.over(len(input_ids), rows, columns)
    arrays = (input_ids, grid.columns, grid.rows, grid.places, numbers)
    return QueryBatch(*(torch.from_numpy(array) for array in arrays))
