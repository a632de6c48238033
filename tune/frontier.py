"""The frontier of reward against KL, and what a sweep recommends: not by the reward alone (SPEC ALLIT-8, ALLIT-10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayrlhf.tune.results import Point, SweepResults, TrialResult
from rayrlhf.tune.settings import parameters_of
from rayrlhf.tune.standings import Guards, Standing, guards_of, standings


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The setting to train with, and the checkpoint to take of what is trained already."""

    reason: str  # one to three sentences
    standing: Standing | None  # None, as the next two: nothing is recommended
    trial: TrialResult | None
    point: Point | None

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint's folder; None where nothing is recommended, or it was pruned since (`checkpoint.keep`)."""
        if self.trial is None or self.point is None:
            return None
        folder = self.trial.folder / "checkpoints" / f"{self.point.iteration:06d}"
        return folder if folder.is_dir() else None


def frontier(checkpoints: Sequence[Point]) -> list[Point]:
    """The checkpoints with more reward than every one of no more KL, by rising KL; those of unknown KL left out."""
    found: list[Point] = []
    known = [(point.kl, point) for point in checkpoints if point.kl is not None]
    for _, point in sorted(known, key=lambda pair: (pair[0], -pair[1].reward)):
        if not found or point.reward > found[-1].reward:
            found.append(point)
    return found


def recommend(results: SweepResults) -> Recommendation:
    """The setting of the highest mean reward, over its seeds' best admitted checkpoints, among those that hold.

    Where none holds to the end of its training, the one whose checkpoints before that have the highest; where no
    setting has an admitted checkpoint in every seed, none.
    """
    guards = guards_of(results)
    all_standings = standings(results)
    candidates = [standing for standing in all_standings if standing.best is not None]
    holding = [standing for standing in candidates if standing.holds]
    if not candidates:
        return Recommendation(" ".join([_nothing(all_standings, guards), *_caveats(results)]), None, None, None)
    chosen = max(holding or candidates, key=_worth)
    trial, point = _best_checkpoint(chosen, guards)
    if holding:
        sentences = [_why(chosen, len(holding), guards), *_rival(chosen, all_standings, guards)]
    else:
        sentences = [_early(chosen, trial, point, guards)]
    sentences += [*_seeds_missing(chosen), *_caveats(results)]
    return Recommendation(" ".join(sentences), chosen, trial, point)


def _worth(standing: Standing) -> tuple[float, float]:
    """By mean reward; of equal ones the smaller KL."""
    assert standing.best is not None
    return standing.best.value, -(standing.kl.value if standing.kl is not None else 0.0)


def _best_checkpoint(standing: Standing, guards: Guards) -> tuple[TrialResult, Point]:
    pairs = [(trial, p) for trial in standing.trials for p in trial.history.points if guards.admit(p)]
    return max(pairs, key=lambda pair: pair[1].reward)


def _why(chosen: Standing, holding: int, guards: Guards) -> str:
    assert chosen.best is not None
    reward = f"{chosen.best.value:.3g}{_times_base(chosen.best.value, chosen.base_reward)}"
    if holding == 1:
        return f"{chosen.setting.label}: the only one that keeps {_kept(guards)}; its mean reward is {reward}."
    return f"{chosen.setting.label}: highest mean reward ({reward}) among those that keep {_kept(guards)}."


def _rival(chosen: Standing, others: Sequence[Standing], guards: Guards) -> list[str]:
    """The setting of the next higher reward, and what speaks against it."""
    assert chosen.best is not None
    ahead = [
        (other.reward.value, index)
        for index, other in enumerate(others)
        if other.reward is not None and not other.holds and other.reward.value > chosen.best.value
    ]
    if not ahead:
        return []
    reward, index = min(ahead)
    return [f"{others[index].setting.label} has more reward ({reward:.3g}) but {_fault(others[index], guards)}."]


def _fault(standing: Standing, guards: Guards) -> str:
    """What a setting that does not hold ends with, in its worst seed where the mean over the seeds is still admitted."""
    diverged = [trial for trial in standing.setting.trials if trial.status == "diverged"]
    if diverged:
        return f"{len(diverged)} of its {len(standing.setting.trials)} trials diverged"
    last = [trial.history.points[-1] for trial in standing.trials]
    diversity = [point.diversity for point in last if point.diversity is not None]
    if guards.min_diversity is not None and diversity and min(diversity) < guards.min_diversity:
        mean = sum(diversity) / len(diversity)
        if mean < guards.min_diversity:
            return f"only {mean:.2g} of the diversity"
        return f"only {min(diversity):.2g} of the diversity in one of its seeds"
    kl = [point.kl for point in last if point.kl is not None]
    if guards.max_kl is not None and kl and max(kl) > guards.max_kl:
        mean = sum(kl) / len(kl)
        return f"a KL of {mean:.3g} nats" if mean > guards.max_kl else f"a KL of {max(kl):.3g} nats in one of its seeds"
    return "its KL or diversity is not known"


def _early(chosen: Standing, trial: TrialResult, point: Point, guards: Guards) -> str:
    diversity = "" if point.diversity is None else f", {point.diversity:.2g} of the diversity"
    kl = "" if point.kl is None else f", {point.kl:.3g} nats"
    return (
        f"None keeps {_kept(guards)} to the end of training. {chosen.setting.label} has the highest reward "
        f"before that: take {trial.name} after {point.iteration} iterations (reward {point.reward:.3g}"
        f"{_times_base(point.reward, chosen.base_reward)}{kl}{diversity}), or train no longer than that."
    )


def _nothing(all_standings: Sequence[Standing], guards: Guards) -> str:
    if not any(standing.trials for standing in all_standings):
        return "Nothing to recommend yet: no trial has a checkpoint."
    return (
        f"Nothing to recommend: no setting has, in every seed, a checkpoint with {_kept(guards)}. "
        "Sweep larger KL coefficients or smaller learning rates, or make checkpoints more often."
    )


def _kept(guards: Guards) -> str:
    parts = []
    if guards.max_kl is not None:
        parts.append(f"a KL within {guards.max_kl:g} nats")
    if guards.min_diversity is not None:
        parts.append(f"at least {guards.min_diversity:g} of the base model's diversity")
    return " and ".join(parts)


def _times_base(reward: float, base: float | None) -> str:
    return f", {reward / base:.1f} times the base" if base is not None and base > 0 else ""


def _seeds_missing(chosen: Standing) -> list[str]:
    counted, asked = len(chosen.trials), len(chosen.setting.trials)
    return [f"This rests on {counted} of its {asked} seeds."] if counted < asked else []


def _caveats(results: SweepResults) -> list[str]:
    """What the reader has to know of the whole sweep."""
    found = []
    running = sum(trial.status == "unfinished" for trial in results.trials)
    if running:
        found.append(f"{running} of {len(results.trials)} trials have not ended: this may change.")
    changing = [p.name for p in parameters_of(results) if p.changes_reward and len(p.values) > 1]
    if changing:
        found.append(f"Rewards under different values of {' and '.join(changing)} are different quantities.")
    return found
