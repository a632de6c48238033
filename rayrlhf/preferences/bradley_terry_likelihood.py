"""Davidson's likelihood (1970) of comparisons with ties, and its derivatives. Pure numpy.

With d the difference of two latent scores and nu >= 0 the readiness to call a tie, Z = e^(d/2) + e^(-d/2) + nu,
P(first) = e^(d/2) / Z, P(second) = e^(-d/2) / Z, P(tie) = nu / Z. nu = 0 is Bradley-Terry, P(first) = sigmoid(d).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """m verdicts over two items each."""

    first: Ints  # [m] index of an item
    second: Ints  # [m] index of another item
    sign: Ints  # [m] 1: the first won, -1: the second won, 0: a tie
    weight: Floats  # [m] evidence, >= 0; 1 is one comparison
    rater: Ints  # [m] index of the rater

    @classmethod
    def of(
        cls,
        first: ArrayLike,
        second: ArrayLike,
        sign: ArrayLike,
        weight: ArrayLike | None = None,
        rater: ArrayLike | None = None,
    ) -> Outcomes:
        """From any sequences; all of weight 1 and by one rater where these are left out."""
        ones = np.ones(len(np.asarray(sign)))
        return cls(
            np.asarray(first, np.int64),
            np.asarray(second, np.int64),
            np.asarray(sign, np.int64),
            ones if weight is None else np.asarray(weight, np.float64),
            np.zeros(len(ones), np.int64) if rater is None else np.asarray(rater, np.int64),
        )

    def __len__(self) -> int:
        return len(self.sign)


def probabilities(difference: ArrayLike, nu: float) -> tuple[Floats, Floats, Floats]:
    """P(first), P(second), P(tie), each in the shape of `difference` (first score minus second)."""
    half = np.asarray(difference, np.float64) / 2
    top = np.abs(half)  # the largest exponent is taken out, so that none overflows
    first, second, tie = np.exp(half - top), np.exp(-half - top), nu * np.exp(-top)
    total = first + second + tie
    return first / total, second / total, tie / total


def log_likelihood(sign: Ints, difference: Floats, nu: float) -> Floats:
    """[m] natural log of each verdict's probability.

    With nu = 0 a tie counts as half a win for each side: (log P(first) + log P(second)) / 2.
    """
    half = difference / 2
    top = np.abs(half)
    log_total = top + np.log1p(np.exp(-2 * top) + nu * np.exp(-top))
    tie = np.log(nu) if nu > 0 else 0.0
    return np.asarray(sign * half + (sign == 0) * tie - log_total)


@dataclass(frozen=True, slots=True)
class Derivatives:
    """Of the log-likelihood by the difference d and by eta = log nu; the second ones with the sign changed."""

    by_difference: Floats  # [m]
    by_eta: Floats  # [m]
    information: Floats  # [m] >= 0, by d twice
    information_both: Floats  # [m] by d and eta
    information_eta: Floats  # [m] >= 0, by eta twice


def derivatives(sign: Ints, difference: Floats, nu: float) -> Derivatives:
    """Closed forms: log Z is a log-sum-exp of (d/2, -d/2, eta), so its second derivatives are a covariance."""
    first, second, tie = probabilities(difference, nu)
    lead = first - second
    return Derivatives(
        by_difference=(sign - lead) / 2,
        by_eta=(sign == 0) - tie,
        information=(first + second - lead**2) / 4,
        information_both=-tie * lead / 2,
        information_eta=tie * (1 - tie),
    )


def summed(index: Ints, values: Floats, size: int) -> Floats:
    """[size] sums of the values [m] that fall on each index [m]; of type float even without any."""
    return np.bincount(index, values, size).astype(np.float64)
