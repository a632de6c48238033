"""Advantages from rewards, of whole episodes and of tokens. Pure numpy; [G, K] is G groups of K episodes of one prompt."""

from __future__ import annotations

from collections.abc import Sequence

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


def discounted_returns(rewards: Rewards, discount: float, last: float = 0.0) -> Rewards:
    """ret_s = r_s + discount * ret_{s+1}, [N] -> [N]; `last` is the return after the end (SPEC TW-12: 0)."""
    returns = np.empty(len(rewards))
    for step in range(len(rewards) - 1, -1, -1):
        last = rewards[step] + discount * last
        returns[step] = last
    return returns


def gae(rewards: Rewards, values: Rewards, discounts: Rewards, traces: Rewards, last_value: float) -> Rewards:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) with a discount and a lambda of each step's own.

    delta_t = r_t + g_t V_{t+1} - V_t and A_t = delta_t + g_t l_t A_{t+1}: rewards, values, discounts g and lambdas l are
    [N] each, and step N - 1 is followed by `last_value` and no advantage (SPEC LMHP-22, TW-11). `last_value` is 0 where
    the episode has terminated, and the value network's where a limit cut it off. Returns are A + V.
    """
    advantages = np.empty(len(rewards))
    following, following_value = 0.0, last_value
    for step in range(len(rewards) - 1, -1, -1):
        delta = rewards[step] + discounts[step] * following_value - values[step]
        following = delta + discounts[step] * traces[step] * following
        advantages[step], following_value = following, values[step]
    return advantages


def turn_links(
    tokens: Sequence[int], of_token: tuple[float, float], of_turn: tuple[float, float]
) -> tuple[Rewards, Rewards]:
    """The discounts and lambdas, [N] each, that `gae` takes for turns of so many `tokens` each, one after the other.

    of_token and of_turn are (discount, lambda). From the last token of a turn to the first of the next the discount is
    the product of both discounts and the lambda the turn's; lambda 0 there restarts at each action (SPEC TW-11).
    """
    ends = np.cumsum(tokens) - 1
    discounts, traces = np.full(sum(tokens), of_token[0]), np.full(sum(tokens), of_token[1])
    discounts[ends], traces[ends] = of_token[0] * of_turn[0], of_turn[1]
    return discounts, traces


def whitening(values: Rewards) -> tuple[float, float]:
    """Shift and factor that give `values` [N] mean 0 and deviation 1: (x - mean) / sqrt(var + 1e-8), population variance
    (SPEC LMHP-21)."""
    if not len(values):
        return 0.0, 1.0
    return float(values.mean()), float(1 / np.sqrt(values.var() + 1e-8))
