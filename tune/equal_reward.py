"""Categories compared at equal reward: the KL and the diversity that each pays for it, such as forward and reverse KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rayrlhf.tune.results import Mean, Point, SweepResults, TrialResult, mean_of
from rayrlhf.tune.settings import Parameter, parameters_of

LEVELS = 6
"""So many levels of reward at most."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a category's trials had paid when they first came to a level of reward."""

    trials: int  # that came to it
    kl: Mean | None  # nats a sequence; None where no trial knows its own, or none came so far
    diversity: Mean | None  # share of the base model's


@dataclass(frozen=True, slots=True)
class EqualReward:
    """A table: levels of reward by categories."""

    parameter: Parameter
    levels: tuple[float, ...]  # rising; each is reached by a trial of every category
    prices: tuple[tuple[Price, ...], ...]  # [level][category], categories in the order of `parameter.values`


def equal_reward(results: SweepResults) -> list[EqualReward]:
    """A table for each swept parameter that is a category, unless it changes what the reward is.

    A trial's path goes from the base model through its checkpoints, straight from one to the next; the first crossing
    of a level counts. Levels lie above the base model's reward, as far as every category comes.
    """
    tables = []
    for parameter in parameters_of(results):
        if parameter.numeric or parameter.changes_reward or len(parameter.values) < 2:
            continue
        paths = [[_path(t) for t in _of_category(results, parameter, value)] for value in parameter.values]
        levels = _levels(paths)
        prices = tuple(tuple(_price(category, level) for category in paths) for level in levels)
        tables.append(EqualReward(parameter, levels, prices))
    return tables


def crossing(path: Sequence[Point], level: float) -> tuple[float | None, float | None] | None:
    """KL and diversity where the reward along `path` first comes up to `level`; None where it never does.

    Linear between the points on either side; each None where one of the two does not know it.
    """
    for before, after in pairwise(path):
        if before.reward < level <= after.reward:
            share = (level - before.reward) / (after.reward - before.reward)
            return _between(before.kl, after.kl, share), _between(before.diversity, after.diversity, share)
    return None


def _between(before: float | None, after: float | None, share: float) -> float | None:
    return None if before is None or after is None else before + share * (after - before)


def _of_category(results: SweepResults, parameter: Parameter, value: Any) -> list[TrialResult]:
    return [trial for trial in results.trials if trial.history.points and parameter.value_of(trial) == value]


def _path(trial: TrialResult) -> list[Point]:
    """The checkpoints, behind the base model where its episodes were played: KL 0, diversity 1."""
    base = trial.history.base_reward
    start = [] if base is None else [Point(0, base.value, base.standard_error, 0.0, 0.0, 1.0)]
    return [*start, *trial.history.points]


def _levels(paths: Sequence[Sequence[Sequence[Point]]]) -> tuple[float, ...]:
    """Round numbers above where every path starts, up to the highest reward of the category that comes least far."""
    if not all(paths):
        return ()
    low = max(path[0].reward for category in paths for path in category)
    high = min(max(point.reward for path in category for point in path) for category in paths)
    if high <= low:
        return ()
    step = _round_step((high - low) / LEVELS)
    first, last = math.floor(low / step) + 1, math.floor(high / step)
    return tuple(float(f"{count * step:.12g}") for count in range(first, last + 1))


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10 ... times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def _price(category: Sequence[Sequence[Point]], level: float) -> Price:
    crossings = [found for path in category if (found := crossing(path, level)) is not None]
    kl = [kl for kl, _ in crossings if kl is not None]
    diversity = [diversity for _, diversity in crossings if diversity is not None]
    return Price(len(crossings), mean_of(kl) if kl else None, mean_of(diversity) if diversity else None)
