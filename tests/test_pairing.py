"""Which pairs are asked for: what they may be, and what each method prefers."""

from __future__ import annotations

from itertools import combinations
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrlhf.preferences.pairing import describe, halves, propose
from rayrlhf.preferences.pairing_config import PairingConfig, PairingMethod
from rayrlhf.preferences.ranking import fit_project
from rayrlhf.preferences.ranking_config import RankingConfig
from rayrlhf.preferences.records import Comparison, Item, Skip

TRANSITIVE = ((0, 1), (1, 2), (0, 2), (2, 3), (4, 3), (1, 4), (0, 4))
METHODS = get_args(PairingMethod)


def items_of(prompts: int, texts: int) -> list[Item]:
    return [Item(f"prompt {prompt}", f"text {text}") for prompt in range(prompts) for text in range(texts)]


def proposed(
    items: list[Item],
    comparisons: list[Comparison] | None = None,
    count: int = 1000,
    method: PairingMethod = "random",
    same_prompt: bool = True,
    skips: tuple[Skip, ...] = (),
    seed: int = 0,
    without: tuple[frozenset[str], ...] = (),
) -> list[tuple[str, str]]:
    config = PairingConfig(method=method, same_prompt=same_prompt)
    return propose(items, comparisons or [], skips, config, RankingConfig(), count, seed, without)


def some_verdicts(items: list[Item], count: int, seed: int = 0) -> list[Comparison]:
    rng = np.random.default_rng(seed)
    pairs = [rng.choice(len(items), 2, replace=False) for _ in range(count)]
    return [Comparison((items[i].id, items[j].id), int(rng.integers(2))) for i, j in pairs]


@given(n=st.integers(0, 60), seed=st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_halves_use_each_item_at_most_once(n: int, seed: int) -> None:
    """GWERN-4: floor(n/2) pairs, no item twice, one left out of an odd number."""
    pairs = halves(n, np.random.default_rng(seed))
    assert pairs.shape == (n // 2, 2)
    used = pairs.ravel().tolist()
    assert len(set(used)) == len(used) == n - n % 2
    assert set(used) <= set(range(n))


@pytest.mark.parametrize(("n", "pairs"), [(0, 0), (1, 0), (2, 1), (7, 3)])
def test_halves_of_few_items(n: int, pairs: int) -> None:
    """GWERN-4: n = 0, 1, 2 and an odd n: the first floor(n/2) pairs use no item twice."""
    found = proposed(items_of(1, n), count=pairs, method="halves")
    assert len(found) == pairs
    assert len({item for pair in found for item in pair}) == 2 * pairs


@given(
    prompts=st.integers(1, 4),
    texts=st.integers(1, 5),
    method=st.sampled_from(METHODS),
    verdicts=st.integers(0, 12),
    count=st.integers(0, 40),
    same_prompt=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=120, deadline=None)
def test_what_is_never_proposed(
    prompts: int, texts: int, method: PairingMethod, verdicts: int, count: int, same_prompt: bool, seed: int
) -> None:
    """GWERN-25: no pair twice in a batch, nothing skipped or left out, no more than asked for, and as many as there are."""
    items = items_of(prompts, texts)
    comparisons = some_verdicts(items, verdicts if len(items) > 1 else 0, seed)
    every = [frozenset(item.id for item in pair) for pair in combinations(items, 2)]
    skips, without = tuple(Skip(tuple(pair)) for pair in every[::5]), tuple(every[1::7])
    found = proposed(items, comparisons, count, method, same_prompt, skips, seed, without)
    asked = [frozenset(pair) for pair in found]
    assert len(set(asked)) == len(asked) <= count
    assert not set(asked) & ({*every[::5]} | {*without})
    prompt = {item.id: item.prompt for item in items}
    allowed = {pair for pair in every if pair not in {*every[::5], *without}}
    if same_prompt and texts > 1:
        allowed = {pair for pair in allowed if len({prompt[item] for item in pair}) == 1}
        if method != "misjudged":  # that one asks again what was asked
            assert set(asked) <= allowed
    assert len(asked) >= min(count, len(allowed))


@pytest.mark.parametrize("method", METHODS)
def test_equal_texts_do_not_meet(method: PairingMethod) -> None:
    """The same text by two models, or added twice with another seed, is no pair."""
    items = [Item("p", "same", seed=seed) for seed in range(3)] + [Item("p", "other")]
    comparisons = [Comparison((items[0].id, items[3].id), 0)]
    found = proposed(items, comparisons, method=method)
    assert {frozenset(pair) for pair in found} == {frozenset((item.id, items[3].id)) for item in items[:3]}


def test_pairs_share_a_prompt_by_default() -> None:
    """GWERN-33: texts that go on from one prompt; a default only."""
    items = items_of(5, 3)
    prompt = {item.id: item.prompt for item in items}
    assert all(prompt[first] == prompt[second] for first, second in proposed(items))
    assert len(proposed(items)) == 5 * 3
    assert len(proposed(items, same_prompt=False)) == 15 * 14 // 2
    assert describe(items, PairingConfig()) == "texts with the same prompt are paired: 15 texts of 5 prompts"


def test_any_two_are_paired_where_none_share_a_prompt() -> None:
    """GWERN-33: the fallback, and that it is said."""
    items = items_of(6, 1)
    assert len(proposed(items)) == 15
    assert "no two of 6 texts share a prompt" in describe(items, PairingConfig())
    assert "1 more are alone" in describe([*items_of(1, 2), Item("lonely", "x")], PairingConfig())


def test_random_pairs_are_new_ones_first_and_fair() -> None:
    """GWERN-25 d: what was compared comes last; all pairs are equally likely, on both sides."""
    items = items_of(1, 4)
    compared = Comparison((items[0].id, items[1].id), 0)
    assert frozenset(proposed(items, [compared])[-1]) == frozenset(compared.items)
    firsts = [proposed(items, count=1, seed=seed)[0] for seed in range(1200)]
    counts = np.array([firsts.count(pair) for pair in {*firsts}])
    assert len(counts) == 12
    assert np.all(np.abs(counts - 100) < 4.5 * np.sqrt(100))


def test_many_items_are_no_trouble() -> None:
    """Of 18 million pairs ten are found without listing them all."""
    assert len(proposed(items_of(1, 6000), count=10)) == 10


def test_equal_seeds_give_equal_pairs() -> None:
    items = items_of(3, 4)
    comparisons = some_verdicts(items, 20)
    for method in METHODS:
        same = [proposed(items, comparisons, 5, method, seed=seed) for seed in (1, 1, 2)]
        assert same[0] == same[1]
    assert proposed(items, seed=1) != proposed(items, seed=2)


def test_racing_sends_challengers_against_the_leader() -> None:
    """GWERN-25 a: every pair of a batch has the leader and another challenger, the likelier ones more often."""
    items = items_of(1, 8)
    order = [Comparison((items[i].id, items[j].id), 0) for i, j in combinations(range(8), 2) for _ in range(4)]
    batch = proposed(items, order, 5, "racing")
    assert all(first == items[0].id for first, _ in batch)
    assert len({second for _, second in batch}) == 5
    challengers = [proposed(items, order, 1, "racing", seed=seed)[0][1] for seed in range(60)]
    assert challengers.count(items[1].id) > challengers.count(items[7].id) + 10


def test_racing_takes_prompts_in_turn() -> None:
    """GWERN-25, GWERN-33: with several prompts each has a race of its own."""
    items = items_of(4, 3)
    batch = proposed(items, [Comparison((items[0].id, items[1].id), 0)], 4, "racing")
    prompt = {item.id: item.prompt for item in items}
    assert len({prompt[first] for first, _ in batch}) == 4


def test_uncertain_takes_the_largest_deviations() -> None:
    """GWERN-25 b: a batch of m/2 pairs is of the m items whose scores are least known, each once."""
    items = items_of(1, 10)
    comparisons = [Comparison((items[i].id, items[j].id), 0) for i, j in combinations(range(6), 2) for _ in range(3)]
    used = {item for pair in proposed(items, comparisons, 2, "uncertain") for item in pair}
    assert used == {item.id for item in items[6:]}
    deviation = fit_project(items, comparisons, RankingConfig()).deviation
    assert deviation[6:].min() > deviation[:6].max()


def test_misjudged_pairs_come_again_the_most_persistent_first() -> None:
    """GWERN-25 c: item 3 beat item 0 twice and item 1 once, against everything else that is known of them."""
    items = items_of(1, 5)
    known = [Comparison((items[i].id, items[j].id), 0) for i, j in TRANSITIVE]
    surprising = [Comparison((items[3].id, items[k].id), 0) for k in (0, 0, 1)]
    found = proposed(items, [*known * 4, *surprising], 2, "misjudged")
    assert found == [(items[3].id, items[0].id), (items[3].id, items[1].id)]
