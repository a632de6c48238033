"""How far comparisons can be put in one order at all: cycles, verdicts against the scores, agreement of raters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import sparse
from scipy.stats import norm

from rayrlhf.intervals import Estimate, wilson
from rayrlhf.preferences.bradley_terry_likelihood import Floats
from rayrlhf.preferences.ranking_outcomes import rater_name, verdicts
from rayrlhf.preferences.records import Comparison


@dataclass(frozen=True, slots=True)
class Intransitivity:
    """Cycles among triples of items (SPEC GWERN-24): A over B, B over C, C over A."""

    triples: int  # whose three pairs all have a majority
    cyclic: int
    consistency: float | None  # Kendall and Babington Smith's zeta (1940); None unless all pairs have a majority

    @property
    def share(self) -> float | None:
        return self.cyclic / self.triples if self.triples else None


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A pair whose verdicts go against the scores."""

    preferred: str  # item id, by the majority of verdicts
    other: str  # item id, whose score is higher
    majority: float  # verdicts for `preferred` minus those for `other`
    margin: float  # score of `other` minus that of `preferred`, > 0


def majorities(comparisons: Sequence[Comparison]) -> dict[tuple[str, str], float]:
    """(item, item), ids in sorted order -> verdicts for the first minus those for the second, by weight."""
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for comparison in comparisons:
        for first, second, sign, share in verdicts(comparison):
            if first > second:
                first, second, sign = second, first, -sign
            found[first, second] += sign * share * comparison.weight
    return dict(found)


def intransitivity(comparisons: Sequence[Comparison]) -> Intransitivity:
    """Counts triples by products of the matrix of majorities, A[i, j] = 1 where i is preferred to j.

    trace(A^3) has each cyclic triple three times, trace((A + A')^3) each triple six times. Where all of n items were
    compared, zeta = 1 - cyclic / most cyclic, at most (n^3 - n) / 24 for odd n and (n^3 - 4 n) / 24 for even n.
    """
    decided = {pair: lead for pair, lead in majorities(comparisons).items() if lead != 0}
    items = {item for comparison in comparisons for item in comparison.items}
    position = {item: index for index, item in enumerate(sorted(items))}
    n = len(position)
    winners = [position[pair[0] if lead > 0 else pair[1]] for pair, lead in decided.items()]
    losers = [position[pair[1] if lead > 0 else pair[0]] for pair, lead in decided.items()]
    beats = sparse.coo_array((np.ones(len(winners), np.int64), (winners, losers)), shape=(n, n)).tocsr()
    met = beats + beats.T
    cyclic = int((beats @ beats).multiply(beats.T).sum()) // 3
    triples = int((met @ met).multiply(met).sum()) // 6
    consistency = None
    if n >= 3 and len(decided) == n * (n - 1) // 2:
        consistency = 1 - 24 * cyclic / (n**3 - (n if n % 2 else 4 * n))
    return Intransitivity(triples, cyclic, consistency)


def contradictions(comparisons: Sequence[Comparison], scores: Mapping[str, float]) -> list[Contradiction]:
    """Pairs whose majority goes against these scores, latent ones or a reward model's: the most persistent ones first.

    Persistent are those of the greatest majority, and among equals of the greatest margin. Pairs with an item that has
    no score are left out.
    """
    found = []
    for (first, second), lead in majorities(comparisons).items():
        if first in scores and second in scores and lead * (scores[first] - scores[second]) < 0:
            preferred, other = (first, second) if lead > 0 else (second, first)
            found.append(Contradiction(preferred, other, abs(lead), scores[other] - scores[preferred]))
    return sorted(found, key=lambda pair: (-pair.majority, -pair.margin, pair.preferred, pair.other))


def disagreement(scores: Floats, others: Floats) -> Estimate:
    """Share of all pairs of items that two scorings order differently, a reward model's and the latent ones (GWERN-24).

    Pairs that are equal by either are left out. It is (1 - Kendall's tau) / 2; the interval is by its variance under
    independence, (4 n + 10) / (9 n (n - 1)), which is the widest.
    """
    if len(scores) != len(others):
        raise ValueError("both scorings must be of the same items")
    differences, other_differences = (np.subtract.outer(values, values) for values in (scores, others))
    upper = np.triu_indices(len(scores), 1)
    product = np.sign(differences[upper]) * np.sign(other_differences[upper])
    ordered = int(np.count_nonzero(product))
    if not ordered:
        raise ValueError("no pair of items is ordered by both scorings")
    share = float(np.count_nonzero(product < 0) / ordered)
    n = len(scores)
    spread = float(norm.ppf(0.975)) * np.sqrt((4 * n + 10) / (9 * n * (n - 1))) / 2
    return Estimate(share, max(0.0, share - spread), min(1.0, share + spread))


def rater_agreement(comparisons: Sequence[Comparison]) -> tuple[int, Estimate | None]:
    """How many pairs of decisive verdicts there are by two raters over the same two items, and how many share a winner.

    The interval takes pairs of verdicts for independent.
    """
    by_pair: defaultdict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    for comparison in comparisons:
        for first, second, sign, _ in verdicts(comparison):
            if sign:
                pair, winner = ((first, second), sign) if first < second else ((second, first), -sign)
                by_pair[pair].append((rater_name(comparison), winner))
    both = [
        one == other
        for judged in by_pair.values()
        for (rater, one), (another, other) in combinations(judged, 2)
        if rater != another
    ]
    if not both:
        return 0, None
    share = sum(both) / len(both)
    return len(both), Estimate(share, *wilson(share, len(both)))
