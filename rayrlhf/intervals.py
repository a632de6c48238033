"""95 % intervals of what is seen on a sample of games: Wilson's for shares, the bootstrap for means. Pure numpy.

Episodes of one game are alike, so the game is the unit: games, not episodes, are what an interval says more of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval; without one (None) where a single game tells nothing of others."""

    value: float
    low: float | None
    high: float | None


def won_share(won: Sequence[int], episodes_per_game: int) -> Estimate:
    """Share of episodes won, with Wilson's interval (1927), from the episodes won of each game.

    Several episodes of a game count as fewer that are independent, p (1 - p) / Var(share) by the spread between games:
    at least one a game (so many where all or none are won), at most each (Korn and Graubard 1998).
    """
    shares = np.asarray(won, np.float64) / episodes_per_game
    share, games = float(shares.mean()), len(shares)
    independent = float(games)
    if episodes_per_game > 1 and games > 1 and 0 < share < 1:
        variance = float(shares.var(ddof=1)) / games
        most = games * episodes_per_game
        independent = float(np.clip(share * (1 - share) / variance, games, most)) if variance else float(most)
    return Estimate(share, *wilson(share, independent))


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Wilson's score interval of a share seen in so many independent trials (need not be whole: effective ones)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre = share + z * z / (2 * trials)
    spread = z * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low, high = float((centre - spread) / scale), float((centre + spread) / scale)
    return 0.0 if share == 0 else low, 1.0 if share == 1 else high  # where the formula is exact and its rounding is not


def mean(games: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """Mean over all episodes, with the percentile bootstrap (Efron 1979) over games.

    games: the values of each game's episodes, at least one each. seed: of the resampling.
    """
    sums = np.array([float(np.sum(values)) for values in games])
    counts = np.array([len(values) for values in games], np.float64)
    value = float(sums.sum() / counts.sum())
    if len(games) < 2:
        return Estimate(value, None, None)
    from scipy.stats import bootstrap  # a second to import, for evaluations alone

    interval = bootstrap(
        (sums, counts), _pooled_mean, paired=True, vectorized=True, method="percentile", confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES, rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Estimate(value, float(interval.low), float(interval.high))


def _pooled_mean(sums: NDArray[Any], counts: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.asarray(sums.sum(axis=axis) / counts.sum(axis=axis))
