"""What the prior mean of a score may depend on: the iteration that an item is from, or a number kept with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.bradley_terry_likelihood import Floats
from rayrlhf.preferences.records import Item


def covariates_of(items: Sequence[Item], names: Sequence[str]) -> Floats:
    """[n, p], each column of mean 0 and standard deviation 1; an item without the number stands at the mean, 0.

    names: iteration, log_iteration (of 1 + iteration), or a field of the items' `extra`, such as a critic's score.

    Raises:
        PreferenceError: no item has such a number, or one has something else in its place.
    """
    columns = np.zeros((len(items), len(names)))
    for column, name in enumerate(names):
        values = [_value(item, name) for item in items]
        known = np.array([value is not None for value in values], bool)
        if not known.any():
            raise PreferenceError(f"ranking.covariates: no item has {name}: leave it out, or add it to the items")
        numbers = np.array([value for value in values if value is not None])
        spread = numbers.std()
        columns[known, column] = (numbers - numbers.mean()) / (spread if spread > 0 else 1.0)
    return columns


def _value(item: Item, name: str) -> float | None:
    if name == "iteration":
        return item.iteration
    if name == "log_iteration":
        return None if item.iteration is None else math.log1p(item.iteration)
    value = item.extra.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PreferenceError(f"ranking.covariates: item {item.id} has {name} = {value!r}, which is no finite number")
    return value
