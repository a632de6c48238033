"""Latent scores of a project's items, from its comparisons.

ranking = fit_project(items, comparisons, RankingConfig())
ranking.mean, ranking.deviation          # [items]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.bradley_terry import Fit, NotConverged, fit
from rayrlhf.preferences.bradley_terry_likelihood import Floats, Ints, Outcomes
from rayrlhf.preferences.bradley_terry_model import Prior
from rayrlhf.preferences.ranking_config import RankingConfig
from rayrlhf.preferences.ranking_covariates import covariates_of
from rayrlhf.preferences.ranking_outcomes import last, outcomes_of, rater_name
from rayrlhf.preferences.records import Comparison, Item


@dataclass(frozen=True)
class Ranking:
    """Scores are on the scale of log odds, or standardised (SPEC GWERN-22); the lists are in the order of the items."""

    ids: tuple[str, ...]  # [n]
    mean: Floats  # [n] latent scores
    deviation: Floats  # [n] posterior standard deviations; 0 for anchors
    wins: Ints  # [n] verdicts over pairs: the best of three wins two
    losses: Ints  # [n]
    ties: Ints  # [n]
    raters: tuple[str, ...]  # [R]
    comparisons: tuple[Comparison, ...]  # those that count, oldest first
    fit: Fit  # before any standardisation
    shift: float  # standardised = (score - shift) / scale
    scale: float

    def draws(self, count: int, rng: Generator) -> Floats:
        """[count, n] scores from the posterior."""
        return (self.fit.draws(count, rng) - self.shift) / self.scale

    def interval(self) -> tuple[Floats, Floats]:
        """[n] lower and upper ends of the 95 % credible intervals of the scores."""
        return self.mean - Z95 * self.deviation, self.mean + Z95 * self.deviation


Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


def fit_project(items: Sequence[Item], comparisons: Sequence[Comparison], config: RankingConfig) -> Ranking:
    """Fits the scores of all items; those without comparisons get the prior's mean and deviation.

    Raises:
        PreferenceError: there are no items, one is there twice, a comparison is of one that is not there, or an anchor
            or a covariate is of none.
    """
    ids = tuple(item.id for item in items)
    position = {item: index for index, item in enumerate(ids)}
    if not items:
        raise PreferenceError("there are no items to rank: `rayrlhf labels import FILE PROJECT` adds some")
    if len(position) < len(ids):
        raise PreferenceError("the same item is there more than once: give each item once")
    counted = last(comparisons, config.window)
    raters = tuple(sorted({rater_name(comparison) for comparison in counted}))
    outcomes = outcomes_of(counted, position, raters, config)
    prior = Prior(config.prior_deviation, config.covariate_deviation, config.rater_deviation)
    try:
        fitted = fit(
            outcomes,
            len(items),
            prior,
            covariates_of(items, config.covariates),
            anchors_of(items, config.anchors),
            davidson=config.ties == "davidson",
        )
    except NotConverged as error:
        raise PreferenceError(
            f"no ranking: {error}. Set ranking.rater_deviation to 0: all raters count alike then"
        ) from error
    shift, scale = _standard(fitted, bool(config.anchors)) if config.standardise else (0.0, 1.0)
    wins, losses, ties = tallies(outcomes, len(items))
    return Ranking(
        ids=ids,
        mean=(fitted.scores - shift) / scale,
        deviation=fitted.deviations / scale,
        wins=wins,
        losses=losses,
        ties=ties,
        raters=raters,
        comparisons=tuple(counted),
        fit=fitted,
        shift=shift,
        scale=scale,
    )


def anchors_of(items: Sequence[Item], names: Sequence[str]) -> list[int]:
    """Indices of the items that have these ids or generators."""
    found: list[int] = []
    for name in names:
        indices = [index for index, item in enumerate(items) if name in (item.id, item.generator)]
        if not indices:
            generators = ", ".join(sorted({item.generator for item in items} - {""})) or "none"
            raise PreferenceError(
                f"ranking.anchors: no item has the id or the generator {name}; generators: {generators}"
            )
        found += indices
    if len(set(found)) == len(items):
        raise PreferenceError("ranking.anchors names every item: none is left to be ranked")
    return sorted(set(found))


def tallies(outcomes: Outcomes, items: int) -> tuple[Ints, Ints, Ints]:
    """[n] wins, losses and ties of each item over pairs, whatever their weights."""
    winner = np.where(outcomes.sign > 0, outcomes.first, outcomes.second)
    loser = np.where(outcomes.sign > 0, outcomes.second, outcomes.first)
    decided = outcomes.sign != 0
    tied = np.concatenate([outcomes.first[~decided], outcomes.second[~decided]])
    wins, losses, ties = (np.bincount(index, minlength=items) for index in (winner[decided], loser[decided], tied))
    return wins, losses, ties


def _standard(fitted: Fit, anchored: bool) -> tuple[float, float]:
    """Shift and scale that give the free items mean 0 and standard deviation 1; anchors stay at 0, so nothing shifts."""
    scores = fitted.scores[fitted.free]
    deviation = float(scores.std()) if len(scores) else 0.0
    # Without comparisons all scores are equal: there is nothing to scale.
    return 0.0 if anchored or not len(scores) else float(scores.mean()), deviation if deviation > 0 else 1.0
