"""The simulated rater: noise and ties by their models, set so that it agrees with itself as often as asked."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.records import Item
from rayrlhf.preferences.simulated_rater import Noise, random_differences, rule_scores, set_noise, verdicts


def test_probabilities_are_davidsons() -> None:
    """By hand: strengths e^(1/2) and e^(-1/2), nu = 0.5, whose geometric mean is 1."""
    first, second, tie = Noise(2.0, 0.5).probabilities(np.array([0.5]))[0]
    total = math.exp(0.5) + math.exp(-0.5) + 0.5
    assert (first, second, tie) == pytest.approx((math.exp(0.5) / total, math.exp(-0.5) / total, 0.5 / total))
    assert Noise(2.0, 0.5).agreement(np.array([0.5])) == pytest.approx(
        (math.exp(0.5) ** 2 + math.exp(-0.5) ** 2) / (math.exp(0.5) + math.exp(-0.5)) ** 2
    )


@pytest.mark.parametrize(("agreement", "ties"), [(0.75, 0.1), (0.85, 0.1), (0.8, 0.0)])
def test_the_noise_is_what_was_asked_for(agreement: float, ties: float) -> None:
    """Of 40,000 pairs asked twice: agreement of decisive ones and share of ties, within four standard errors."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0.1, 0.03, 500)
    difference = random_differences(scores, 40_000, seed=1)
    noise = set_noise(difference, agreement, ties)
    ids = {str(i): score for i, score in enumerate(scores)}
    pairs = [(str(a), str(b)) for a, b in rng.integers(0, 500, (40_000, 2)) if a != b]
    once, again = verdicts(pairs, ids, noise, rng), verdicts(pairs, ids, noise, rng)
    both = [(a, b) for a, b in zip(once, again, strict=True) if a != "tie" and b != "tie"]
    share = np.mean([a == b for a, b in both])
    assert share == pytest.approx(agreement, abs=4 * math.sqrt(agreement * (1 - agreement) / len(both)) + 0.005)
    assert np.mean([verdict == "tie" for verdict in once]) == pytest.approx(ties, abs=0.01)


def test_a_rule_that_tells_too_few_texts_apart_is_refused() -> None:
    scores = np.array([0.0] * 99 + [1.0])
    with pytest.raises(PreferenceError, match="cannot agree with itself in 80%"):
        set_noise(random_differences(scores, 1000, 0), 0.8, 0.1)
    with pytest.raises(PreferenceError, match="scores all texts alike"):
        set_noise(np.zeros(10), 0.8, 0.1)


def test_the_rules_score_a_word() -> None:
    items = [Item("An apple", " a day"), Item("", ""), Item("", "Bees")]
    assert rule_scores(items, "starts_with_a", per_word=True).tolist() == [0.75, 0.0, 0.0]
    unspaced = [Item("", "从前有一只猫e")]
    assert rule_scores(unspaced, "letter_count", per_word=False).tolist() == [1.0]
    assert rule_scores(unspaced, "letter_count", per_word=True).tolist() == [1 / 7]
    assert rule_scores(items, "starts_with_a", per_word=False).tolist() == [3.0, 0.0, 0.0]
