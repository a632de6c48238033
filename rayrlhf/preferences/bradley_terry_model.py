"""The posterior density of Bradley-Terry with Davidson's ties: its value, gradient and information. Pure numpy.

The model (SPEC GWERN-21): item i has a latent score s_i ~ N(x_i.g, sigma^2) with covariates x_i and g ~ N(0, tau^2).
Rater r sees the difference d = a_r (s_i - s_j) and decides by Davidson's likelihood with log nu ~ N(0, 2^2).

The prior makes everything defined: an item without comparisons keeps the prior's mean and deviation, and the parts of
a disconnected graph are each centred at the prior's mean. The scale of s could be traded for that of all raters'
discriminations a_r: log a_r ~ N(0, rater_deviation^2) under the constraint that the logs add up to 0, so the scale is
that of the (geometrically) average rater, and a single rater has a = 1.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy.linalg import helmert

from rayrlhf.preferences.bradley_terry_likelihood import Floats, Outcomes, derivatives, log_likelihood, summed
from rayrlhf.preferences.bradley_terry_precision import BorderedPrecision, Precision, make_precision

LOG_TIE_DEVIATION = 2.0  # prior of log nu: nu is between 1/50 and 50 with 95 %
_NODES, _NODE_WEIGHTS = hermegauss(15)  # expectations under a normal distribution; with fewer, wide ones come out rough
_NODE_WEIGHTS = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()


@dataclass(frozen=True, slots=True)
class Prior:
    """What is assumed before any comparison."""

    deviation: float = 1.0  # sigma, of scores around what their covariates let expect, in log odds
    covariate_deviation: float = 1.0  # tau, of the covariates' coefficients
    rater_deviation: float = 0.5  # of log discriminations; 0: all raters are alike


class Model:
    """f free items have scores [f]; theta [q] = (g [p], log nu [0 or 1], raters [R - 1 or 0]) is shared by all.

    Without davidson, and where no verdict is a tie (so that nu = 0 fits best), there is no log nu, and a tie counts as
    half a win for each side.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        items: int,
        prior: Prior,
        covariates: Floats | None = None,
        anchors: Collection[int] = (),
        davidson: bool = True,
    ) -> None:
        """items: n. covariates: [n, p], best standardised. anchors: indices of items whose score is 0 for certain."""
        self.outcomes, self.prior = outcomes, prior
        self.free = np.setdiff1d(np.arange(items), np.fromiter(anchors, np.int64, len(anchors)))  # [f] indices
        position = np.full(items, len(self.free))  # of an item among the free ones; anchors stand one past their end
        position[self.free] = np.arange(len(self.free))
        # [m] places among the free items; f for anchors.
        self.first, self.second = position[outcomes.first], position[outcomes.second]
        self._covariates = np.zeros((len(self.free), 0)) if covariates is None else covariates[self.free]
        self._p = self._covariates.shape[1]
        self._etas = int(davidson and bool(np.any((outcomes.sign == 0) & (outcomes.weight > 0))))
        raters = int(outcomes.rater.max(initial=-1)) + 1
        shared_scale = raters > 1 and prior.rater_deviation > 0
        # Columns: an orthonormal basis of the logs that add up to 0.
        self._basis = helmert(raters).T if shared_scale else np.zeros((raters, 0))  # [R, R - 1]
        variances = np.repeat(
            [prior.covariate_deviation**2, LOG_TIE_DEVIATION**2, prior.rater_deviation**2],
            [self._p, self._etas, self._basis.shape[1]],
        )
        self.theta_precision = 1 / variances  # [q]

    def parts(self, theta: Floats) -> tuple[Floats, float, Floats]:
        """g [p], nu, and the raters' log discriminations [R]."""
        raters = self._p + self._etas
        nu = float(np.exp(theta[self._p])) if self._etas else 0.0
        return theta[: self._p], nu, self._basis @ theta[raters:]

    def covariances(self, theta_covariance: Floats) -> tuple[Floats, Floats]:
        """Of g [p, p] and of the log discriminations [R, R], from that of theta [q, q]."""
        raters = self._p + self._etas
        return (
            theta_covariance[: self._p, : self._p],
            self._basis @ theta_covariance[raters:, raters:] @ self._basis.T,
        )

    def log_density(self, scores: Floats, theta: Floats) -> float:
        """Natural log of the posterior density, up to a constant."""
        difference, _ = self._differences(scores, theta)
        likelihood = log_likelihood(self.outcomes.sign, difference, self.parts(theta)[1])
        deviation = self._deviation(scores, theta)
        penalty = deviation @ deviation / self.prior.deviation**2 + theta**2 @ self.theta_precision
        return float(self.outcomes.weight @ likelihood - penalty / 2)

    def score_gradient(self, scores: Floats, theta: Floats) -> Floats:
        """[f] of `log_density` by the scores."""
        difference, discrimination = self._differences(scores, theta)
        slopes = derivatives(self.outcomes.sign, difference, self.parts(theta)[1])
        by_score = self._gather(self.outcomes.weight * slopes.by_difference * discrimination)
        return np.asarray(by_score - self._deviation(scores, theta) / self.prior.deviation**2)

    def core(self, scores: Floats, theta: Floats) -> Precision:
        """[f, f] minus the second derivatives of `log_density` by the scores: positive definite everywhere."""
        difference, discrimination = self._differences(scores, theta)
        slopes = derivatives(self.outcomes.sign, difference, self.parts(theta)[1])
        weight = self.outcomes.weight * slopes.information * discrimination**2
        prior = np.full(len(self.free), 1 / self.prior.deviation**2)
        return make_precision(self.first, self.second, weight, prior)

    def theta_gradient_and_information(
        self, scores: Floats, theta: Floats, core: Precision
    ) -> tuple[Floats, BorderedPrecision]:
        """Gradient [q] of theta's marginal density, and the information [f + q, f + q] on scores and theta.

        scores: of highest density given theta; core: their precision. The gradient is the expectation of that of
        `log_density` under the posterior of the scores (Fisher's identity). Of the information, terms are left out
        whose expectation under the model is 0 (Gauss-Newton), so it is positive definite everywhere.
        """
        middle, discrimination = self._differences(scores, theta)
        spread = discrimination * np.sqrt(core.difference_variances(self.first, self.second))
        g, nu, _ = self.parts(theta)
        p, raters, variance = self._p, self._p + self._etas, self.prior.deviation**2
        gradient, corner = -theta * self.theta_precision, np.diag(self.theta_precision)
        gradient[:p] += self._covariates.T @ (scores - self._covariates @ g) / variance
        corner[:p, :p] += self._covariates.T @ self._covariates / variance
        for node, share in zip(_NODES, _NODE_WEIGHTS, strict=True):
            difference, weight = middle + node * spread, share * self.outcomes.weight
            slopes = derivatives(self.outcomes.sign, difference, nu)
            if self._etas:
                gradient[p] += weight @ slopes.by_eta
                corner[p, p] += weight @ slopes.information_eta
                mixed = self._basis.T @ self._by_rater(weight * slopes.information_both * difference)
                corner[p, raters:] += mixed
                corner[raters:, p] += mixed
            if self._basis.shape[1]:
                gradient[raters:] += self._basis.T @ self._by_rater(weight * slopes.by_difference * difference)
                curvature = self._by_rater(weight * slopes.information * difference**2)
                corner[raters:, raters:] += self._basis.T @ (curvature[:, None] * self._basis)
        return gradient, BorderedPrecision(core, self._border(middle, discrimination, nu), corner)

    def _border(self, difference: Floats, discrimination: Floats, nu: float) -> Floats:
        """[f, q] the information's part between scores and theta."""
        slopes = derivatives(self.outcomes.sign, difference, nu)
        weight = self.outcomes.weight * discrimination
        eta = [self._gather(weight * slopes.information_both)] * self._etas
        raters = self._gather_by_rater(weight * slopes.information * difference) @ self._basis
        return np.column_stack([-self._covariates / self.prior.deviation**2, *eta, raters])

    def _differences(self, scores: Floats, theta: Floats) -> tuple[Floats, Floats]:
        """[m] d = a (s_first - s_second) and a of each verdict."""
        with_anchor = np.append(scores, 0.0)
        discrimination = np.exp(self.parts(theta)[2])[self.outcomes.rater]
        return discrimination * (with_anchor[self.first] - with_anchor[self.second]), discrimination

    def _deviation(self, scores: Floats, theta: Floats) -> Floats:
        return np.asarray(scores - self._covariates @ theta[: self._p])

    def _gather(self, by_difference: Floats) -> Floats:
        """[f] from [m] values by s_first - s_second: what they add up to for each free item."""
        size = len(self.free) + 1
        return (summed(self.first, by_difference, size) - summed(self.second, by_difference, size))[:-1]

    def _gather_by_rater(self, by_difference: Floats) -> Floats:
        """[f, R], as `_gather` for each rater alone."""
        raters = len(self._basis)
        size = (len(self.free) + 1) * raters
        first = summed(self.first * raters + self.outcomes.rater, by_difference, size)
        second = summed(self.second * raters + self.outcomes.rater, by_difference, size)
        return (first - second).reshape(len(self.free) + 1, raters)[:-1]

    def _by_rater(self, values: Floats) -> Floats:
        """[R] sums of [m] values."""
        return summed(self.outcomes.rater, values, len(self._basis))
