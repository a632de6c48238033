"""How each setting of a sweep did over its seeds, and what is asked of a checkpoint before it is recommended."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rayrlhf.tune.objectives import MIN_DIVERSITY, RewardUnderKL
from rayrlhf.tune.results import Mean, Point, SweepResults, TrialResult, mean_of
from rayrlhf.tune.settings import Setting, settings_of


@dataclass(frozen=True, slots=True)
class Guards:
    """What a recommended checkpoint has to keep, and a recommended setting to the end of its training."""

    max_kl: float | None  # nats a sequence; None: no bound
    min_diversity: float | None  # share of the base model's; None: no floor

    def admit(self, point: Point) -> bool:
        """What is not known is not admitted."""
        near = self.max_kl is None or (point.kl is not None and point.kl <= self.max_kl)
        varied = self.min_diversity is None or (point.diversity is not None and point.diversity >= self.min_diversity)
        return near and varied


@dataclass(frozen=True, slots=True)
class Standing:
    """How a setting did, over the seeds that count: all but those that crashed or cannot be read."""

    setting: Setting
    trials: tuple[TrialResult, ...]  # that count and have a checkpoint
    base_reward: float | None
    reward: Mean | None  # of the last checkpoints, as are the next two
    kl: Mean | None  # nats a sequence
    diversity: Mean | None  # share of the base model's
    best: Mean | None  # each seed's highest reward among its admitted checkpoints; None where a seed has none
    holds: bool  # every seed's last checkpoint is admitted, and none diverged


def guards_of(results: SweepResults) -> Guards:
    """The objective's own, and beside a bound on the KL a floor under the diversity, which games do not have."""
    if isinstance(results.objective, RewardUnderKL):
        return Guards(results.objective.max_kl, None if results.plays_games else MIN_DIVERSITY)
    return Guards(None, results.objective.min_diversity)


def standings(results: SweepResults) -> list[Standing]:
    """Every setting's, in the order of the settings."""
    guards = guards_of(results)
    return [_standing(setting, guards) for setting in settings_of(results)]


def _standing(setting: Setting, guards: Guards) -> Standing:
    counted = [trial for trial in setting.trials if trial.status not in ("crashed", "unreadable")]
    trials = tuple(trial for trial in counted if trial.history.points)
    last = [trial.history.points[-1] for trial in trials]
    best = [max((p.reward for p in trial.history.points if guards.admit(p)), default=None) for trial in trials]
    admitted = [reward for reward in best if reward is not None]
    diverged = any(trial.status == "diverged" for trial in counted)
    base = [trial.history.base_reward.value for trial in setting.trials if trial.history.base_reward is not None]
    return Standing(
        setting=setting,
        trials=trials,
        base_reward=statistics.fmean(base) if base else None,
        reward=_mean([point.reward for point in last]),
        kl=_mean([point.kl for point in last if point.kl is not None]),
        diversity=_mean([point.diversity for point in last if point.diversity is not None]),
        best=_mean(admitted) if len(admitted) == len(trials) else None,
        holds=bool(trials) and not diverged and all(guards.admit(point) for point in last),
    )


def _mean(values: Sequence[float]) -> Mean | None:
    return mean_of(values) if values else None
