"""The rules that notice a collapse: pure functions of what the last iterations measured (SPEC GWERN-12).

A rule sees signals by name, the first iteration's and the last few's, and its own thresholds; never the KL coefficient.
It answers with a reading, or with None where it has nothing to go by: a signal that the run does not have, or too short
a history. In games the rules of collapse are silent: most of their text is the game's own, and a policy that wins is to
repeat itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rayrlhf.detector_config import (
    DistinctRuleConfig,
    DuplicatesRuleConfig,
    EmptyAnswersRuleConfig,
    EntropyRuleConfig,
    GzipRuleConfig,
    KLGrowthRuleConfig,
    KLSpikeRuleConfig,
    LogprobGapRuleConfig,
    RatioRuleConfig,
    ScoreSaturationRuleConfig,
    ZeroVarianceRuleConfig,
)

DIVERSITY = "text/diversity"
"""Signal: distinct-2 of the last 50 texts over the base model's for as many."""
LOGPROB_GAP = "learner/logprob_gap"
"""Signal: disagreement of learner and sampler as a share of the limit that stops the run."""
WON = "rollout/won"
"""Signal that games alone have."""
SIGNALS = (
    "objective/kl_per_token", "objective/score", "objective/score_std", "objective/zero_variance_groups",
    "policy/entropy", "policy/ratio_max", "policy/approxkl", "text/dup_rate", "text/gzip_ratio", "text/empty_rate",
    WON, DIVERSITY, LOGPROB_GAP,
)  # fmt: skip
"""What the rules look at; all but the last two are metrics of the run."""

Signals = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class History:
    """What the rules are given after an iteration."""

    start: Signals  # of the first iteration, whose policy is untrained
    recent: Sequence[Signals]  # of the last iterations, oldest first, the current one last; at least one

    @property
    def game(self) -> bool:
        return WON in self.start

    def last(self, name: str, count: int = 1) -> list[float] | None:
        """A signal's last `count` values, oldest first; None where one of them is missing."""
        rows = self.recent[-count:]
        if len(rows) < count or any(name not in row for row in rows):
            return None
        return [row[name] for row in rows]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a rule found."""

    fires: bool
    value: float
    threshold: float
    message: str  # one clause with the numbers in it, as if it fires


def entropy(rule: EntropyRuleConfig, history: History) -> Reading | None:
    """Entropy a token, in nats, as a share of the first iteration's."""
    values, start = history.last("policy/entropy"), history.start.get("policy/entropy", 0.0)
    if history.game or values is None or start <= 0:
        return None
    share = values[0] / start
    message = f"the policy's entropy is {values[0]:.3g} nats a token, {share:.0%} of the {start:.3g} it began with"
    return Reading(share < rule.floor, share, rule.floor, message)


def distinct_2(rule: DistinctRuleConfig, history: History) -> Reading | None:
    """Diversity of the last 50 texts as a share of the base model's."""
    values = history.last(DIVERSITY)
    if history.game or values is None:
        return None
    message = f"distinct-2 of the last texts is {values[0]:.0%} of the base model's: they repeat each other"
    return Reading(values[0] < rule.floor, values[0], rule.floor, message)


def duplicates(rule: DuplicatesRuleConfig, history: History) -> Reading | None:
    """Share of the texts that have become duplicates, of those that were none at first."""
    share = _risen_share(history, "text/dup_rate")
    if history.game or share is None:
        return None
    return Reading(
        share > rule.limit, share, rule.limit, f"{share:.0%} of an iteration's texts repeat another word by word"
    )


def gzip_ratio(rule: GzipRuleConfig, history: History) -> Reading | None:
    """Compressed size as a share of the first iteration's (SPEC GWERN-6)."""
    values, start = history.last("text/gzip_ratio"), history.start.get("text/gzip_ratio", 0.0)
    if history.game or values is None or start <= 0:
        return None
    share = values[0] / start
    message = f"the texts compress to {values[0]:.3g} of their size, {share:.0%} of the first iteration's {start:.3g}"
    return Reading(share < rule.floor, share, rule.floor, message)


def kl_spike(rule: KLSpikeRuleConfig, history: History) -> Reading | None:
    """KL a token against the median of the iterations before."""
    values = history.last("objective/kl_per_token", min(len(history.recent), rule.window + 1))
    if values is None or len(values) < 2:
        return None
    usual = max(median(values[:-1]), 0.0)
    threshold = max(rule.factor * usual, rule.least)
    message = f"KL is {values[-1]:.3g} nats a token, after {usual:.3g} in the iterations before"
    return Reading(values[-1] > threshold, values[-1], threshold, message)


def kl_growth(rule: KLGrowthRuleConfig, history: History) -> Reading | None:
    """Mean KL a token of the last iterations."""
    values = history.last("objective/kl_per_token", rule.window)
    if history.game or values is None:
        return None
    mean = sum(values) / len(values)
    message = f"KL has grown to {mean:.3g} nats a token: the policy has left the reference's language"
    return Reading(mean > rule.limit, mean, rule.limit, message)


def empty_answers(rule: EmptyAnswersRuleConfig, history: History) -> Reading | None:
    """Share of the answers that have become empty (SPEC TW-25)."""
    share = _risen_share(history, "text/empty_rate")
    if share is None:
        return None
    return Reading(share > rule.limit, share, rule.limit, f"{share:.0%} of the answers have become empty")


def score_saturation(rule: ScoreSaturationRuleConfig, history: History) -> Reading | None:
    """The largest of the last standard deviations of the score, as a share of the first iteration's; where that is 0
    already, so is the share as long as nothing varies: such a run is told at once."""
    start = history.start.get("objective/score_std")
    values = history.last("objective/score_std", rule.window if start else min(rule.window, len(history.recent)))
    if history.game or values is None or start is None:
        return None
    if not start:
        message = "all episodes score alike, from the first iteration on: is it the reward that was meant?"
        return Reading(max(values) == 0, float(max(values) > 0), rule.floor, message)
    share = max(values) / start
    message = f"all episodes score alike: their standard deviation is {share:.1%} of the first iteration's {start:.3g}"
    return Reading(share < rule.floor, share, rule.floor, message)


def zero_variance_groups(rule: ZeroVarianceRuleConfig, history: History) -> Reading | None:
    """Mean share of groups whose scores are equal, of as many iterations as there are at first. Of games that are mostly
    won nothing is left to learn; games that nobody wins at first have the rule's whole window."""
    window = rule.window if history.game else min(rule.window, len(history.recent))
    values = history.last("objective/zero_variance_groups", window)
    if values is None or history.recent[-1].get(WON, 0.0) > 0.5:
        return None
    share = sum(values) / len(values)
    message = f"in {share:.0%} of the groups all scores are equal: they teach nothing"
    return Reading(share > rule.limit, share, rule.limit, message)


def ratio(rule: RatioRuleConfig, history: History) -> Reading | None:
    """How far the policy moved within one update: by its likeliest excess, or on the mean token (SPEC LMHP-23)."""
    largest, moved = history.last("policy/ratio_max"), history.last("policy/approxkl")
    if largest is None or moved is None:
        return None
    if moved[0] > rule.max_approxkl:
        message = f"one update moved the policy by {moved[0]:.3g} nats^2 a token (policy/approxkl)"
        return Reading(True, moved[0], rule.max_approxkl, message)
    message = f"one update made a token {largest[0]:.3g} times as likely (policy/ratio_max)"
    return Reading(largest[0] > rule.max_ratio, largest[0], rule.max_ratio, message)


def logprob_gap(rule: LogprobGapRuleConfig, history: History) -> Reading | None:
    """Disagreement of learner and sampler, as a share of what stops the run (SPEC X-5)."""
    values = history.last(LOGPROB_GAP)
    if values is None:
        return None
    message = f"learner and sampler disagree by {values[0]:.0%} of what stops the run"
    return Reading(values[0] > rule.share, values[0], rule.share, message)


RULES: dict[str, Callable[[Any, History], Reading | None]] = {
    rule.__name__: rule
    for rule in (
        entropy, distinct_2, duplicates, gzip_ratio, kl_spike, kl_growth, empty_answers, score_saturation,
        zero_variance_groups, ratio, logprob_gap,
    )
}  # fmt: skip
"""By their names in the config."""


def signals_of(metrics: Mapping[str, float], diversity: float | None, gap: tuple[str, float]) -> dict[str, float]:
    """The signals of an iteration. gap: the metric that says how far learner and sampler disagree, and its limit."""
    signals = {name: float(metrics[name]) for name in SIGNALS if name in metrics}
    if diversity is not None:
        signals[DIVERSITY] = diversity
    name, limit = gap
    if name in metrics:
        signals[LOGPROB_GAP] = metrics[name] / limit
    return {name: value for name, value in signals.items() if math.isfinite(value)}


def _risen_share(history: History, name: str) -> float | None:
    """How far a share has risen, of the way from the first iteration's to 1."""
    values, start = history.last(name), history.start.get(name)
    if values is None or start is None or start >= 1:
        return None
    return max((values[0] - start) / (1 - start), 0.0)
