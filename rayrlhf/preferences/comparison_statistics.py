"""What a blind comparison of two models shows: shares, Wilson's interval, the exact test, and how many pairs it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import binomtest, norm

from rayrlhf.intervals import Estimate, wilson

POWER = 0.8
SIGNIFICANCE = 0.05  # two-sided


@dataclass(frozen=True, slots=True)
class Tally:
    """Verdicts over pairs of one text by A and one by B. Wins, decisive pairs and ties are told apart (SPEC Q-3)."""

    wins: int  # A's
    losses: int  # A's: B's wins
    ties: int  # both equally good, or both bad

    @property
    def pairs(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def decisive(self) -> int:
        return self.wins + self.losses

    @property
    def share(self) -> Estimate | None:
        """A's share of the decisive pairs, with Wilson's 95 % interval; None without a decisive pair."""
        return _share(self.wins, self.decisive)

    @property
    def share_of_all(self) -> Estimate | None:
        """A's wins over all pairs, ties included."""
        return _share(self.wins, self.pairs)

    @property
    def p_value(self) -> float | None:
        """Of the exact two-sided binomial test that each of the two wins a decisive pair with probability 1/2."""
        return float(binomtest(self.wins, self.decisive).pvalue) if self.decisive else None


def needed_pairs(share: float, power: float = POWER, significance: float = SIGNIFICANCE) -> int:
    """Decisive pairs from which a two-sided test finds that a model wins this share of them, with so much power.

    The sample size of a one-sample test of a proportion p against 1/2 (normal approximation, Fleiss 1981):
    n = ((z_(1 - alpha/2) / 2 + z_power sqrt(p (1 - p))) / (p - 1/2))^2.

    Raises:
        ValueError: the share is not in (0, 1), or is 1/2, which no number of pairs tells from itself.
    """
    if not 0 < share < 1 or share == 0.5:
        raise ValueError(f"the share must be in (0, 1) and not 1/2, not {share}")
    quantiles = norm.ppf(1 - significance / 2), norm.ppf(power)
    spread = quantiles[0] / 2 + quantiles[1] * math.sqrt(share * (1 - share))
    return math.ceil((spread / (share - 0.5)) ** 2)


def pairs_to_settle(tally: Tally) -> int | None:
    """Decisive pairs that it takes to find a difference as large as the observed one; None where there is none.

    A model that won all pairs so far is taken to win all but half a pair of one pair more.
    """
    if tally.share is None or tally.wins == tally.losses:
        return None
    half = 0.5 / (tally.decisive + 1)
    return needed_pairs(min(max(tally.share.value, half), 1 - half))


def _share(wins: int, trials: int) -> Estimate | None:
    return Estimate(wins / trials, *wilson(wins / trials, trials)) if trials else None
