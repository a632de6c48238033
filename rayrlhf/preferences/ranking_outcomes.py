"""From comparisons of any number of items to verdicts over pairs: what the ranking's likelihood is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.bradley_terry_likelihood import Floats, Outcomes
from rayrlhf.preferences.ranking_config import RankingConfig
from rayrlhf.preferences.records import Comparison


def outcomes_of(
    comparisons: Sequence[Comparison], position: Mapping[str, int], raters: Sequence[str], config: RankingConfig
) -> Outcomes:
    """Verdicts over pairs. position: item id -> its index. raters: names as `rater_name` gives them.

    Raises:
        PreferenceError: a comparison is of an item that is not there, or its weight is no evidence.
    """
    rater_index = {name: index for index, name in enumerate(raters)}
    columns: tuple[list[float], ...] = ([], [], [], [], [])
    for comparison, recency in zip(comparisons, recency_weights(comparisons, config), strict=True):
        _check(comparison, position)
        rater = rater_index[rater_name(comparison)]
        for first, second, sign, share in verdicts(comparison):
            weight = comparison.weight * recency * share * (config.tie_weight if sign == 0 else 1.0)
            for column, value in zip(columns, (position[first], position[second], sign, weight, rater), strict=True):
                column.append(value)
    return Outcomes.of(*columns)


def rater_name(comparison: Comparison) -> str:
    """Who judged; verdicts without a name are of one rater for each source."""
    return comparison.rater or f"({comparison.source})"


def verdicts(comparison: Comparison) -> Iterator[tuple[str, str, int, float]]:
    """(item, item, sign, weight) for each pair that the comparison says something of; sign 1: the first won, 0: a tie.

    The best of k is k - 1 verdicts of weight 2 / k. Each is what Luce's choice axiom says of it, P(i is best | i or j
    is) = sigmoid(s_i - s_j), so their sum estimates without bias; and with this weight it has, among equals, the
    information of the exact choice likelihood, sum (I - 11'/k) / k, which k - 1 whole verdicts would overstate k / 2 times.
    A full ranking is a best of k, then of the k - 1 that are left, and so on (Plackett and Luce). A tie of k items is
    spread over all its pairs, with the same weight in all. "both_bad" says that they are equally bad: a tie.
    """
    k = len(comparison.items)
    if comparison.ranking is not None:
        ordered = [comparison.items[index] for index in comparison.ranking]
        for place, winner in enumerate(ordered[:-1]):
            for loser in ordered[place + 1 :]:
                yield winner, loser, 1, 2 / (k - place)
    elif comparison.winner is not None:
        for loser in comparison.items:
            if loser != comparison.winner:
                yield comparison.winner, loser, 1, 2 / k
    else:
        for first, second in combinations(comparison.items, 2):
            yield first, second, 0, 4 / k**2


def last(comparisons: Sequence[Comparison], window: int | None) -> list[Comparison]:
    """The newest `window` by the time they were made, oldest first; all where it is None (SPEC GWERN-14)."""
    in_time = sorted(comparisons, key=lambda comparison: comparison.created)
    return in_time if window is None else in_time[-window:]


def recency_weights(comparisons: Sequence[Comparison], config: RankingConfig) -> Floats:
    """[comparisons], oldest first: 1 for the newest, half of that `half_life` comparisons before it."""
    age = np.arange(len(comparisons))[::-1]
    return np.ones(len(comparisons)) if config.half_life is None else 0.5 ** (age / config.half_life)


def _check(comparison: Comparison, position: Mapping[str, int]) -> None:
    missing = [item for item in comparison.items if item not in position]
    if missing:
        raise PreferenceError(
            f"comparison {comparison.id} is of item {missing[0]}, which is not among those to be ranked: rank all items "
            "of the project, or leave out the comparisons of those that are left out"
        )
    if not 0 <= comparison.weight < float("inf"):
        raise PreferenceError(f"comparison {comparison.id} has weight {comparison.weight}: it has to be 0 or more")
