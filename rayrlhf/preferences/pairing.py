"""Which pairs to ask for next.

Each method yields pairs in the order of its preference; `propose` takes the first ones that may be asked for, and
random ones where the method has no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, count

import numpy as np
from numpy.random import Generator

from rayrlhf.preferences.bradley_terry_likelihood import Ints
from rayrlhf.preferences.pairing_config import PairingConfig
from rayrlhf.preferences.racing import race
from rayrlhf.preferences.ranking import Ranking, fit_project
from rayrlhf.preferences.ranking_config import RankingConfig
from rayrlhf.preferences.ranking_diagnostics import contradictions
from rayrlhf.preferences.records import Comparison, Item, Skip

_MOST_LOOKED_AT = 100_000  # of the pairs that random ones are taken from
_DRAWS_AT_ONCE = 32


def propose(
    items: Sequence[Item],
    comparisons: Sequence[Comparison],
    skips: Sequence[Skip],
    config: PairingConfig,
    ranking: RankingConfig,
    count: int,
    seed: int,
    without: Collection[frozenset[str]] = (),
) -> list[tuple[str, str]]:
    """At most `count` pairs of item ids to ask for next, none twice; fewer where there are no more.

    Pairs that were skipped, pairs of `without`, and pairs of equal texts are never among them; pairs that were compared
    before are, where the method wants them again or no others are left. Equal arguments give equal pairs.

    skips: whoever skipped. ranking: how scores are fitted for the methods that need them.
    """
    rng = np.random.default_rng(seed)
    refused = set(without) | {frozenset(pair) for skip in skips for pair in combinations(skip.items, 2)}
    pool = Pool(items, groups_of(items, config.same_prompt), refused)
    asked = {frozenset(pair) for comparison in comparisons for pair in combinations(comparison.items, 2)}
    wanted: Iterator[tuple[int, int]] = iter(())
    if config.method == "halves":
        wanted = _halves(pool, rng)
    elif config.method != "random" and comparisons:  # without a comparison all scores are alike
        fitted = fit_project(items, comparisons, ranking)
        methods = {"racing": _racing, "uncertain": _uncertain, "misjudged": _misjudged}
        wanted = methods[config.method](pool, fitted, rng)
    chosen: dict[frozenset[int], tuple[str, str]] = {}
    for first, second in chain(wanted, _random(pool, asked, rng)):
        if len(chosen) == count:
            break
        if pool.may_meet(first, second):
            chosen.setdefault(frozenset((first, second)), (items[first].id, items[second].id))
    return list(chosen.values())


def groups_of(items: Sequence[Item], same_prompt: bool) -> list[Ints]:
    """Indices of items that may be paired: those of each prompt, or all in one group where no two share a prompt."""
    by_prompt: defaultdict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        by_prompt[item.prompt].append(index)
    groups = [np.array(group) for group in by_prompt.values() if len(group) > 1]
    return groups if same_prompt and groups else [np.arange(len(items))]


def describe(items: Sequence[Item], config: PairingConfig) -> str:
    """One line on what may be paired with what, for whoever starts to rate."""
    groups = groups_of(items, config.same_prompt)
    paired = sum(len(group) for group in groups)
    if not config.same_prompt:
        return f"any two of {len(items)} texts may be paired"
    if len({item.prompt for item in items}) == len(items):
        return f"no two of {len(items)} texts share a prompt, so any two of them may be paired"
    alone = f"; {len(items) - paired} more are alone with their prompt and wait" if paired < len(items) else ""
    return f"texts with the same prompt are paired: {paired} texts of {len(groups)} prompts{alone}"


@dataclass(frozen=True, slots=True)
class Pool:
    """What may be asked for."""

    items: Sequence[Item]
    groups: list[Ints]  # indices into items; pairs are made within a group
    refused: Collection[frozenset[str]]  # pairs of ids

    def may_meet(self, first: int, second: int) -> bool:
        one, other = self.items[first], self.items[second]
        same = (one.prompt, one.text) == (other.prompt, other.text)
        return not same and frozenset((one.id, other.id)) not in self.refused


def halves(n: int, rng: Generator) -> Ints:
    """[floor(n / 2), 2]: n shuffled indices, i with i + floor(n / 2), each at most once (SPEC GWERN-4)."""
    shuffled, half = rng.permutation(n), n // 2
    return np.column_stack([shuffled[:half], shuffled[half : 2 * half]])


def _halves(pool: Pool, rng: Generator) -> Iterator[tuple[int, int]]:
    """One shuffle after another, without end where there is a pair: each uses every item at most once."""
    pairs = sum(len(group) * (len(group) - 1) // 2 for group in pool.groups)
    for _ in range(min(pairs, len(pool.items))):
        together = np.concatenate([group[halves(len(group), rng)] for group in pool.groups])
        yield from map(tuple, rng.permutation(together))


def _random(pool: Pool, asked: Collection[frozenset[str]], rng: Generator) -> Iterator[tuple[int, int]]:
    """All pairs in random order, those that were never compared first; of very many only a sample."""
    sizes = np.array([len(group) for group in pool.groups])
    ends = np.cumsum(sizes * (sizes - 1) // 2)
    total = int(ends[-1])
    numbers = rng.choice(total, min(total, _MOST_LOOKED_AT), replace=False)
    again: list[tuple[int, int]] = []
    for number in numbers.tolist():
        index = int(np.searchsorted(ends, number, side="right"))
        place = number - (int(ends[index - 1]) if index else 0)
        higher = int(
            (1 + np.sqrt(1 + 8 * place)) // 2
        )  # pairs (0,1) (0,2) (1,2) (0,3) ... have the numbers 0 1 2 3 ...
        group = pool.groups[index]
        pair = int(group[place - higher * (higher - 1) // 2]), int(group[higher])
        pair = pair if rng.random() < 0.5 else pair[::-1]
        if frozenset(pool.items[index].id for index in pair) in asked:
            again.append(pair)
        else:
            yield pair
    yield from again


def _racing(pool: Pool, ranking: Ranking, rng: Generator) -> Iterator[tuple[int, int]]:
    """A race in each group, one pair of each in turn, until the leaders have met all others."""
    races = [_race(pool, group, ranking, rng) for group in (pool.groups[k] for k in rng.permutation(len(pool.groups)))]
    while races:
        going = []
        for running in races:
            pair = next(running, None)
            if pair is not None:
                going.append(running)
                yield pair
        races = going


def _race(pool: Pool, group: Ints, ranking: Ranking, rng: Generator) -> Iterator[tuple[int, int]]:
    draws = (draw[group] for _ in count() for draw in ranking.draws(_DRAWS_AT_ONCE, rng))
    for leader, challenger in race(ranking.mean[group], draws, lambda i, j: pool.may_meet(group[i], group[j])):
        yield int(group[leader]), int(group[challenger])


def _uncertain(pool: Pool, ranking: Ranking, rng: Generator) -> Iterator[tuple[int, int]]:
    """The items of largest posterior deviation, each once, with the next such item that it may meet (GWERN-25 b)."""
    order = rng.permutation(len(ranking.ids))  # among equals, at random
    order = order[np.argsort(-ranking.deviation[order], kind="stable")]
    group_of = {int(index): number for number, group in enumerate(pool.groups) for index in group}
    waiting: defaultdict[int, list[int]] = defaultdict(list)
    for index in order.tolist():
        if index not in group_of:
            continue
        mates = waiting[group_of[index]]
        mate = next((mate for mate in mates if pool.may_meet(mate, index)), None)
        if mate is None:
            mates.append(index)
        else:
            mates.remove(mate)
            yield mate, index


def _misjudged(pool: Pool, ranking: Ranking, rng: Generator) -> Iterator[tuple[int, int]]:
    """Pairs whose verdicts go against the scores, the most persistent first (GWERN-25 c)."""
    position = {item: index for index, item in enumerate(ranking.ids)}
    scores = dict(zip(ranking.ids, ranking.mean.tolist(), strict=True))
    for pair in contradictions(ranking.comparisons, scores):
        yield position[pair.preferred], position[pair.other]
