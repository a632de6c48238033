"""Shares, Wilson's interval, the exact test and sample sizes: the source's numbers, and brute force."""

from __future__ import annotations

from math import comb

import pytest
from scipy.stats import binom

from rayrlhf.preferences.comparison_statistics import Tally, needed_pairs, pairs_to_settle


def test_the_sources_comparison() -> None:
    """GWERN-10, Q-3: 93 of 210 are 44.3 %, Wilson's interval 37.7 to 51.0 %, p = .11; 46 % is 93 of 202, ties dropped."""
    quoted = Tally(93, 117, 0)
    assert quoted.share is not None
    assert round(100 * quoted.share.value, 1) == 44.3
    assert quoted.share.low is not None
    assert quoted.share.high is not None
    assert (round(100 * quoted.share.low, 1), round(100 * quoted.share.high, 1)) == (37.7, 51.0)
    assert quoted.p_value is not None
    assert round(quoted.p_value, 2) == 0.11
    with_ties = Tally(93, 109, 8)
    assert (with_ties.pairs, with_ties.decisive) == (210, 202)
    assert with_ties.share is not None
    assert round(100 * with_ties.share.value) == 46
    assert with_ties.share_of_all is not None
    assert round(100 * with_ties.share_of_all.value, 1) == 44.3


def test_how_many_pairs_it_takes() -> None:
    """GWERN-10: 783 decisive pairs find 55 %, 194 find 60 %, at 80 % power; either side alike."""
    assert (needed_pairs(0.55), needed_pairs(0.60)) == (783, 194)
    assert (needed_pairs(0.45), needed_pairs(0.40)) == (783, 194)


def test_power_against_the_exact_test() -> None:
    """GWERN-10: with so many pairs the exact test at 5 % finds 60 % in 76 to 84 % of all cases."""
    n = needed_pairs(0.60)
    critical = next(wins for wins in range(n // 2, n) if 2 * binom.sf(wins - 1, n, 0.5) <= 0.05)
    power = binom.sf(critical - 1, n, 0.6) + binom.cdf(n - critical, n, 0.6)
    assert 0.76 < power < 0.84


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, -0.1])
def test_no_number_of_pairs(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        needed_pairs(share)


@pytest.mark.parametrize(("wins", "losses"), [(0, 5), (3, 4), (7, 7), (9, 1)])
def test_the_exact_test_by_counting(wins: int, losses: int) -> None:
    """GWERN-10: p is the probability of all outcomes that are no likelier than the observed one."""
    n = wins + losses
    p = sum(comb(n, k) for k in range(n + 1) if comb(n, k) <= comb(n, wins)) / 2**n
    assert Tally(wins, losses, 3).p_value == pytest.approx(p)


def test_without_decisive_pairs_nothing_is_claimed() -> None:
    for tally in (Tally(0, 0, 0), Tally(0, 0, 4)):
        assert (tally.share, tally.p_value, pairs_to_settle(tally)) == (None, None, None)
    assert pairs_to_settle(Tally(5, 5, 0)) is None


def test_pairs_to_settle_the_observed_difference() -> None:
    assert pairs_to_settle(Tally(55, 45, 7)) == 783
    assert pairs_to_settle(Tally(1, 0, 0)) == needed_pairs(0.75)  # all of one: all but half of two
    assert pairs_to_settle(Tally(0, 9, 0)) == needed_pairs(0.05)
