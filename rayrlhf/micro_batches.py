"""Cuts an update's sequences into micro-batches: a budget of tokens each, the same number on every rank.

Pure: the same lengths give the same plan on every rank, so that no rank has to tell another what it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayrlhf.types import TrainingSequence


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
class MicroBatch:
    """B sequences, padded on the right to L tokens. Column t of [B, L-1] speaks of token t+1 (SPEC X-1).

    A causal model sees nothing to the right of a token: with padding there, real positions need no attention mask.
    """

    input_ids: Tensor  # [B, L] int64; any id stands in the padding: `mask` says what is real
    advantages: Tensor  # [B, L-1] float32
    behaviour_logprobs: Tensor  # [B, L-1] float32, nats
    weights: Tensor  # [B, L-1] float32
    mask: Tensor  # [B, L-1] bool: scored tokens, built from lengths, never by comparing ids (SPEC X-2)
    first: int  # first column that any row scores
    last: int  # one past the last such column

    @property
    def targets(self) -> Tensor:
        """[B, L-1] the token that the logits of each column predict."""
        return self.input_ids[:, 1:]

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch with its tensors on `device`."""
        return MicroBatch(
            self.input_ids.to(device), self.advantages.to(device), self.behaviour_logprobs.to(device),
            self.weights.to(device), self.mask.to(device), self.first, self.last,
        )  # fmt: skip


def collate(sequences: Sequence[TrainingSequence]) -> MicroBatch:
    """Pads `sequences` into one micro-batch; none gives one that can run through a model and carries no loss."""
    rows = max(1, len(sequences))
    length = max((len(sequence) for sequence in sequences), default=2)
    input_ids = np.zeros((rows, length), np.int64)
    advantages, behaviour, weights = (np.zeros((rows, length - 1), np.float32) for _ in range(3))
    mask = np.zeros((rows, length - 1), np.bool_)
    for row, sequence in enumerate(sequences):
        scored = slice(sequence.start - 1, len(sequence) - 1)
        input_ids[row, : len(sequence)] = sequence.input_ids
        advantages[row, scored] = sequence.advantages
        behaviour[row, scored] = sequence.behaviour_logprobs
        weights[row, scored] = sequence.weights
        mask[row, scored] = True
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        advantages=torch.from_numpy(advantages),
        behaviour_logprobs=torch.from_numpy(behaviour),
        weights=torch.from_numpy(weights),
        mask=torch.from_numpy(mask),
        first=min((sequence.start - 1 for sequence in sequences), default=0),
        last=length - 1,
    )
