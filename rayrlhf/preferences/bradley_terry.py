"""Fits latent scores to comparisons: the maximum a posteriori by Newton's method, and the Laplace posterior around it.

What all items share (covariates' coefficients, the readiness to call a tie, raters' discriminations) maximises its
marginal density, the scores integrated out; their posterior includes its uncertainty. The model is described in
`bradley_terry_model`, the likelihood in `bradley_terry_likelihood`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator

from rayrlhf.preferences.bradley_terry_likelihood import Floats, Ints, Outcomes, probabilities
from rayrlhf.preferences.bradley_terry_model import Model, Prior
from rayrlhf.preferences.bradley_terry_precision import BorderedPrecision, Precision

_MAX_ITERATIONS = 200  # some ten are needed
_SHARED_TOLERANCE = 1e-4  # of the same for what all items share, logarithms or of order 1
STANDARD_PRIOR = Prior()
_LONGEST_STEP = 1.0  # of a shared parameter, all of which are logarithms or of order 1
_TOLERANCE = 1e-5  # of the largest change of a parameter in the last step


class NotConverged(ArithmeticError):
    """There is no fit: verdicts contradict one another so far that the raters' discriminations cannot be found."""


@dataclass(frozen=True)
class Fit:
    """Scores are in log odds: P(i beats j) = sigmoid(s_i - s_j) where ties are out of the question."""

    scores: Floats  # [n] of highest posterior density
    coefficients: Floats  # [p] of the covariates
    nu: float  # Davidson's: 0 where there are no ties or they count as half wins
    discriminations: Floats  # [R] of the raters, of geometric mean 1
    coefficient_deviations: Floats  # [p] posterior standard deviations
    log_discrimination_deviations: Floats  # [R] posterior standard deviations
    free: Ints  # [f] indices of the items that are no anchors
    information: BorderedPrecision  # of the free items' scores and of the shared parameters

    @cached_property
    def deviations(self) -> Floats:
        """[n] posterior standard deviations of the scores by Laplace's approximation; 0 for anchors."""
        deviations = np.zeros(len(self.scores))
        deviations[self.free] = np.sqrt(self.information.variances())
        return deviations

    def draws(self, count: int, rng: Generator) -> Floats:
        """[count, n] scores from the Laplace posterior."""
        scores = np.tile(self.scores, (count, 1))
        scores[:, self.free] += self.information.draws(count, rng)
        return scores

    def win_probability(self, first: Ints, second: Ints) -> Floats:
        """Of the average rater's preferring first over second at the fitted scores; the rest is losses and ties."""
        return probabilities(self.scores[first] - self.scores[second], self.nu)[0]


def fit(
    outcomes: Outcomes,
    items: int,
    prior: Prior = STANDARD_PRIOR,
    covariates: Floats | None = None,
    anchors: Collection[int] = (),
    davidson: bool = True,
    start: Floats | None = None,
) -> Fit:
    """Latent scores of `items` items.

    covariates: [items, p]. anchors: indices of items that are pinned at 0. davidson: else ties are half wins.
    start: [items] scores to begin from, such as those of a fit before the last verdicts; the result is the same.

    Raises:
        NotConverged: nothing was found; with `rater_deviation` 0 something always is.
    """
    model = Model(outcomes, items, prior, covariates, anchors, davidson)
    scores = np.zeros(len(model.free)) if start is None else start[model.free]
    scores, theta, information = _maximise(model, scores, np.zeros(len(model.theta_precision)))
    everything = np.zeros(items)
    everything[model.free] = scores
    coefficients, nu, log_discriminations = model.parts(theta)
    of_coefficients, of_raters = model.covariances(information.corner_covariance)
    return Fit(
        scores=everything,
        coefficients=coefficients,
        nu=nu,
        discriminations=np.exp(log_discriminations),
        coefficient_deviations=np.sqrt(np.diagonal(of_coefficients)),
        log_discrimination_deviations=np.sqrt(np.diagonal(of_raters)),
        free=model.free,
        information=information,
    )


def _maximise(model: Model, scores: Floats, theta: Floats) -> tuple[Floats, Floats, BorderedPrecision]:
    """The shared parameters of highest marginal density, the scores of highest density given these, the information.

    The joint maximum would not do: it favours small scores and great discriminations without limit, since a density is
    the higher the closer all scores are to their prior's mean. So the scores are integrated out, by Laplace.
    """
    share, change, before = 1.0, np.zeros(len(theta)), 0.0
    for _ in range(_MAX_ITERATIONS):
        scores, core = _best_scores(model, scores, theta)
        gradient, information = model.theta_gradient_and_information(scores, theta, core)
        step = information.corner_covariance @ gradient
        size = np.abs(step).max(initial=0.0)
        if size < _SHARED_TOLERANCE:
            return scores, theta, information
        # The information is not quite the marginal density's curvature: verdicts that contradict one another may make
        # steps too long. The slope along the last change tells: where it has turned round, steps are shortened.
        share = share / 2 if gradient @ change < -before / 2 else min(1.0, 1.2 * share)
        change = step * min(share, _LONGEST_STEP / size)
        before = gradient @ change
        scores, theta = scores - information.solved_border @ change, theta + change
    raise NotConverged(f"the shared parameters did not converge in {_MAX_ITERATIONS} steps")


def _best_scores(model: Model, scores: Floats, theta: Floats) -> tuple[Floats, Precision]:
    """Newton's method on a concave function, a step halved until the density rises; with the precision there.

    It converges quadratically: a last step of 10^-5 leaves an error of some 10^-10.
    """
    density = model.log_density(scores, theta)
    for _ in range(_MAX_ITERATIONS):
        core = model.core(scores, theta)
        step = core.solve(model.score_gradient(scores, theta)[:, None])[:, 0]
        if np.abs(step).max(initial=0.0) < _TOLERANCE:
            return scores + step, core
        share = 1.0
        while (raised := model.log_density(scores + share * step, theta)) < density:
            share /= 2
        scores, density = scores + share * step, raised
    raise NotConverged(f"the scores did not converge in {_MAX_ITERATIONS} Newton steps")
