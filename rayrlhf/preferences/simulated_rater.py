"""A rater made of a rule and noise: Bradley-Terry around the rule's score, with Davidson's ties.

The noise is set from pairs of texts so that the rater agrees with itself as often as a person would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from rayrlhf.config import RewardPart
from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.records import Best, Item
from rayrlhf.reward_contract import example_trajectory
from rayrlhf.reward_process import RewardProcess
from rayrlhf.text_statistics import words

Floats = NDArray[np.float64]
TIMEOUT_S = 60.0
_STEEPEST = 1e3  # of noise so small that only equal texts tie


@dataclass(frozen=True, slots=True)
class Noise:
    """log odds = steepness * difference of the rule's scores; nu is Davidson's parameter of ties."""

    steepness: float
    nu: float

    def probabilities(self, difference: Floats) -> Floats:
        """[N, 3] of first wins, second wins, tie, for the first text's score minus the second's [N]."""
        half = np.clip(self.steepness * difference / 2, -300, 300)
        weights = np.stack([np.exp(half), np.exp(-half), np.full_like(half, self.nu)], axis=-1)
        return np.asarray(weights / weights.sum(-1, keepdims=True))

    def agreement(self, difference: Floats) -> float:
        """How often two verdicts on the same pair agree, given that both are decisive, over all pairs."""
        first, second, _ = self.probabilities(difference).T
        return float((first**2 + second**2).sum() / ((first + second) ** 2).sum())


def set_noise(difference: Floats, agreement: float, ties: float) -> Noise:
    """The noise at which pairs of these differences are agreed upon and tie so often.

    Raises:
        PreferenceError: no noise does: too many of the pairs are of equal score.
    """

    def with_ties(steepness: float) -> Noise:
        def excess(log_nu: float) -> float:
            return float(Noise(steepness, np.exp(log_nu)).probabilities(difference)[:, 2].mean()) - ties

        return Noise(steepness, float(np.exp(brentq(excess, -700, 700))) if ties else 0.0)

    spread = float(np.std(difference))
    if not spread:
        raise PreferenceError("the simulated rater's rule scores all texts alike: choose another rule")

    def surplus(log_steepness: float) -> float:
        return with_ties(float(np.exp(log_steepness)) / spread).agreement(difference) - agreement

    low, high = np.log(1e-3), np.log(_STEEPEST)
    if surplus(high) < 0:
        raise PreferenceError(
            f"the simulated rater cannot agree with itself in {agreement:.0%} of the pairs: too many texts score alike by "
            "its rule; choose another rule, or per_word: true"
        )
    return with_ties(float(np.exp(brentq(surplus, low, high))) / spread)


def rule_scores(items: Sequence[Item], rule: str, per_word: bool) -> Floats:
    """[items] the rule's scores of prompt and text together; a text without a word scores 0 per word."""
    with RewardProcess([RewardPart(name=rule)], TIMEOUT_S) as process:
        scores = process.score([example_trajectory(item.prompt, item.text) for item in items])
    values = np.array([float(score.total.sum()) for score in scores])
    if per_word:
        counts = np.array([len(words(item.prompt + item.text)) for item in items])
        values = values / np.maximum(counts, 1)
    return values


def verdicts(
    pairs: Sequence[tuple[str, str]], scores: Mapping[str, float], noise: Noise, rng: np.random.Generator
) -> list[Best]:
    """One verdict a pair of item ids, drawn anew each time."""
    difference = np.array([scores[first] - scores[second] for first, second in pairs])
    drawn = rng.random((len(pairs), 1)) > noise.probabilities(difference).cumsum(-1)
    outcomes: tuple[Best, ...] = (0, 1, "tie")
    return [outcomes[min(int(index), 2)] for index in drawn.sum(-1)]


def random_differences(scores: Floats, pairs: int, seed: int) -> Floats:
    """Differences of scores of random pairs of different texts, to set the noise from."""
    rng = np.random.default_rng([seed, 0xD1FF])
    first = rng.integers(0, len(scores), pairs)
    second = (first + rng.integers(1, len(scores), pairs)) % len(scores)
    return np.asarray(scores[first] - scores[second])
