"""Best-arm racing (SPEC GWERN-25 a): the leader meets whoever looks best in a draw from the posterior. Pure numpy.

An item meets the leader the more often the likelier it is that it is the best one after all (top-two Thompson sampling,
Russo 2016); comparisons among items that are both out of the race are not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from numpy.random import Generator

from rayrlhf.preferences.bradley_terry import fit
from rayrlhf.preferences.bradley_terry_likelihood import Floats, Outcomes, probabilities

MayMeet = Callable[[int, int], bool]


def race(mean: Floats, draws: Iterator[Floats], may_meet: MayMeet) -> Iterator[tuple[int, int]]:
    """(leader, challenger) after (leader, challenger), no pair twice, until the leader has met all that it may meet.

    mean: [n] posterior means. draws: samples [n] from the posterior, one for each pair.
    """
    leader = int(np.argmax(mean))
    waiting = np.array([index != leader and may_meet(leader, index) for index in range(len(mean))], bool)
    while waiting.any():
        challenger = int(np.argmax(np.where(waiting, next(draws), -np.inf)))
        waiting[challenger] = False
        yield leader, challenger


def comparisons_until_best_leads(truth: Floats, racing: bool, horizon: int, batch: int, rng: Generator) -> int:
    """How many simulated comparisons it takes until the item with the highest truth leads, and stays in the lead.

    truth: [n] latent scores that a rater without ties judges by. racing: else pairs are random. horizon: comparisons
    after which it ends; who leads then is taken to lead for good, and `horizon` is returned where that is another item.
    batch: comparisons between two fits.
    """
    n, best = len(truth), int(np.argmax(truth))
    first, second, sign = (np.zeros(horizon, np.int64) for _ in range(3))
    scores = np.zeros(n)
    fitted = fit(Outcomes.of(first[:0], second[:0], sign[:0]), n)
    reached = horizon
    for asked in range(0, horizon, batch):
        now = slice(asked, asked + batch)
        if racing:
            pairs = race(fitted.scores, iter(fitted.draws(batch, rng)), lambda one, other: True)
            chosen = list(islice(pairs, batch))
        else:
            chosen = [tuple(rng.choice(n, 2, replace=False)) for _ in range(batch)]
        first[now], second[now] = np.array(chosen).T
        wins = probabilities(truth[first[now]] - truth[second[now]], 0.0)[0]
        sign[now] = np.where(rng.random(batch) < wins, 1, -1)
        end = asked + batch
        fitted = fit(Outcomes.of(first[:end], second[:end], sign[:end]), n, start=scores)
        scores = fitted.scores
        if int(np.argmax(scores)) != best:
            reached = horizon
        elif reached == horizon:
            reached = end
    return reached
