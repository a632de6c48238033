"""Choosing among a trie's children: softmax over the logits of the allowed tokens alone, by inversion. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayrlhf.sampling.command_trie import Branch
from rayrlhf.types import FloatArray, IntArray


def branch_logprobs(logits: Tensor, branches: Sequence[Branch], temperature: float) -> FloatArray:
    """log softmax(logits[ids] / temperature) over each branch's C tokens, nats, fp32.

    logits: [N, V], one row a branch; returns [N, largest C] with -inf beyond a branch's own C.
    """
    widest = max(len(branch.ids) for branch in branches)
    ids = np.zeros((len(branches), widest), np.int64)
    beyond = np.ones((len(branches), widest), bool)
    for row, branch in enumerate(branches):
        ids[row, : len(branch.ids)] = branch.ids
        beyond[row, : len(branch.ids)] = False
    scores = logits.gather(1, torch.from_numpy(ids).to(logits.device)).float().cpu() / temperature
    return scores.masked_fill(torch.from_numpy(beyond), -torch.inf).log_softmax(-1).numpy()


def draw(logprobs: FloatArray, uniforms: NDArray[np.float64], greedy: NDArray[np.bool_]) -> IntArray:
    """One choice a row, [N]: the likeliest where greedy, else by inversion of the cumulative distribution.

    logprobs: [N, C], -inf where a row has no such choice; uniforms: [N] in [0, 1).
    """
    cumulative = np.exp(logprobs.astype(np.float64)).cumsum(1)
    # A uniform is at most 1 - 2^-53, so its product with the total rounds to less than the total: never past the end.
    drawn = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(1)
    return np.where(greedy, logprobs.argmax(1), drawn)
