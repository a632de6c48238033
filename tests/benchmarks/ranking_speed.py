"""How long a ranking takes, and how exact the intervals of a large one are.

    OMP_NUM_THREADS=1 python tests/benchmarks/ranking_speed.py

Prints seconds for the estimates and for the marginal deviations, of simulated comparisons with and without ties and with
five raters; then the error of the estimated deviations against exact ones, where these can still be had.
"""

from __future__ import annotations

import time

import numpy as np

from rayrlhf.preferences.bradley_terry import fit
from rayrlhf.preferences.bradley_terry_likelihood import Outcomes, probabilities
from rayrlhf.preferences.bradley_terry_model import Model, Prior
from rayrlhf.preferences.bradley_terry_precision import DensePrecision, SparsePrecision

SIZES = ((1_000, 5_000), (10_000, 100_000))
EXACT = (3_000, 30_000)


def simulated(items: int, comparisons: int, nu: float, raters: int) -> Outcomes:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(items)
    first = rng.integers(0, items, comparisons)
    second = (first + rng.integers(1, items, comparisons)) % items
    rater = rng.integers(0, raters, comparisons)
    reliability = np.exp(np.linspace(-0.7, 0.7, raters) if raters > 1 else np.zeros(1))
    wins, losses, _ = probabilities(reliability[rater] * (truth[first] - truth[second]), nu)
    drawn = rng.random(comparisons)
    sign = np.where(drawn < wins, 1, np.where(drawn < wins + losses, -1, 0))
    return Outcomes.of(first, second, sign, None, rater)


def main() -> None:
    for items, comparisons in SIZES:
        for nu, raters in ((0.0, 1), (0.3, 1), (0.3, 5)):
            outcomes = simulated(items, comparisons, nu, raters)
            start = time.perf_counter()
            fitted = fit(outcomes, items)
            middle = time.perf_counter()
            deviations = fitted.deviations
            end = time.perf_counter()
            ties = "with" if nu else "without"
            print(
                f"{items} items, {comparisons} comparisons {ties} ties, {raters} raters: estimates {middle - start:.2f} s, "
                f"deviations {end - middle:.2f} s (mean deviation {deviations.mean():.3f})"
            )
    items, comparisons = EXACT
    model = Model(simulated(items, comparisons, 0.0, 1), items, Prior())
    weight = np.full(comparisons, 0.2)
    exact, estimated = (
        np.sqrt(kind(model.first, model.second, weight, np.ones(items)).variances())
        for kind in (DensePrecision, SparsePrecision)
    )
    error = estimated / exact - 1
    print(
        f"deviations of {items} items estimated against exact ones: relative error {np.sqrt(np.mean(error**2)):.2%} "
        f"root mean square, {np.abs(error).max():.2%} at most"
    )


if __name__ == "__main__":
    main()
