"""Next-token logits without a cache: whole sequences, padded on the right, read anew for each token.

Slow, and right for every causal model: it is the pass that the learner and the reference's scores are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rayrlhf.forward import logits_after
from rayrlhf.types import IntArray

TOKENS_AT_ONCE = 8192  # most positions, padding included, of the rows that one forward pass takes


class PlainDecoding:
    """A batch in the middle of decoding: the sequences as they are so far."""

    def __init__(self, sequences: Sequence[IntArray]):
        self.sequences = list(sequences)

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders rows of the batch."""
        self.sequences = [self.sequences[row] for row in rows.tolist()]

    def advance(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Adds one token [B] a row; returns the logits [B, V] of the next."""
        self.sequences = [np.append(ids, token) for ids, token in zip(self.sequences, tokens.tolist(), strict=True)]
        return last_logits(model, self.sequences)


def last_logits(model: nn.Module, sequences: Sequence[IntArray]) -> Tensor:
    """Logits [N, V] of the token after each sequence [L >= 1]."""
    return torch.cat([logits[:, -1] for logits, _ in tail_logits(model, sequences, [1] * len(sequences))])


def tail_logits(
    model: nn.Module, sequences: Sequence[IntArray], tails: Sequence[int]
) -> Iterator[tuple[Tensor, range]]:
    """Logits [n, T, V] after each of the last tails[i] >= 1 tokens of the sequences, a part of them at a time, T its
    longest tail and shorter ones at the right, and which these are."""
    longest = max((len(ids) for ids in sequences), default=1)
    at_once = max(1, TOKENS_AT_ONCE // longest)
    for start in range(0, len(sequences), at_once):
        part = range(start, min(start + at_once, len(sequences)))
        yield _tails(model, [sequences[i] for i in part], [tails[i] for i in part]), part


def _tails(model: nn.Module, sequences: Sequence[IntArray], tails: Sequence[int]) -> Tensor:
    device = next(model.parameters()).device
    ends = np.array([len(ids) for ids in sequences])
    rows = torch.zeros(len(sequences), int(ends.max()), dtype=torch.long)
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids)] = torch.from_numpy(ids)
    ages = np.arange(max(tails))[::-1]  # how far each of the wanted columns is from its row's last
    wanted = np.maximum(ends[:, None] - 1 - ages, 0)  # [N, T]
    columns, places = np.unique(wanted, return_inverse=True)
    logits = logits_after(model, rows.to(device), torch.from_numpy(columns).to(device))
    own = torch.from_numpy(places.reshape(wanted.shape)).to(device)
    return logits[torch.arange(len(sequences), device=device).unsqueeze(1), own]
