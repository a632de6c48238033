"""Advantages of whole episodes from their shaped rewards. Pure numpy; [G, K] is G groups of K episodes of one prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rewards = NDArray[np.float64]


def leave_one_out(rewards: Rewards) -> Rewards:
    """RLOO: each reward minus the mean of the others of its group, [G, K] -> [G, K]; needs K >= 2.

    A_i = r_i - mean_{j != i} r_j = K / (K - 1) * (r_i - mean r); a group's advantages sum to 0.
    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024, arXiv 2402.14740.
    """
    size = rewards.shape[1]
    if size < 2:
        raise ValueError(f"leave-one-out needs groups of at least 2 episodes, not {size}")
    return (rewards - rewards.mean(axis=1, keepdims=True)) * (size / (size - 1))


def group_standardised(rewards: Rewards, by_std: bool, epsilon: float = 1e-4) -> Rewards:
    """GRPO: reward minus its group's mean, over the group's standard deviation + epsilon, [G, K] -> [G, K].

    Shao et al. 2024, arXiv 2402.03300 (sample standard deviation); without `by_std` Liu et al. 2025, arXiv 2503.20783.
    """
    if rewards.shape[1] < 2:
        raise ValueError(f"a group's mean and deviation need at least 2 episodes, not {rewards.shape[1]}")
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + epsilon) if by_std else centred


def minus_moving_average(rewards: Rewards, average: float | None, decay: float) -> tuple[Rewards, float]:
    """REINFORCE with a baseline from the past: rewards [N] minus the average before this batch; returns the new average.

    Of the first batch (average None) its own mean is subtracted; then b <- decay * b + (1 - decay) * mean(rewards).
    From the second batch on the baseline does not depend on the batch's actions: the gradient is unbiased (Williams 1992).
    """
    mean = float(rewards.mean())
    if average is None:
        return rewards - mean, mean
    return rewards - average, decay * average + (1 - decay) * mean
