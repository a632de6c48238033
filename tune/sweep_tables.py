"""A sweep as tables for other programs: `points.csv`, a row a checkpoint, and `table.csv`, a row a setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayrlhf.files import csv_table
from rayrlhf.tune.frontier import frontier
from rayrlhf.tune.results import LAST_TEXTS, Mean, SweepResults
from rayrlhf.tune.settings import shown
from rayrlhf.tune.standings import Standing, guards_of


def points_csv(results: SweepResults) -> bytes:
    """Every checkpoint of every trial. Empty cells: not known. KL in nats, diversity as a share of the base model's."""
    guards = guards_of(results)
    keys = _keys(results)
    best = set(frontier([point for trial in results.trials for point in trial.history.points]))
    rows = [
        [
            trial.name, *(_cell(trial.parameters.get(key)) for key in keys), trial.seed, trial.status, point.iteration,
            point.reward, point.reward_se, point.kl, point.kl_per_token, point.diversity,
            int(guards.admit(point)), int(point in best),
        ]
        for trial in results.trials
        for point in trial.history.points
    ]  # fmt: skip
    head = ["trial", *keys, "seed", "status", "iteration", "reward", "reward_se", "kl", "kl_per_token", "diversity"]
    return csv_table([[*head, "admitted", "on_frontier"], *rows])


def table_csv(results: SweepResults, standings: Sequence[Standing]) -> bytes:
    """Every setting: means over its seeds, of the last checkpoints, with standard errors, and two texts of one seed."""
    keys = _keys(results)
    rows = [
        [
            *(_cell(standing.setting.parameters.get(key)) for key in keys),
            len(standing.trials), len(standing.setting.trials), standing.base_reward, *_pair(standing.reward),
            *_pair(standing.kl), *_pair(standing.diversity), *_pair(standing.best), int(standing.holds),
            *_texts(standing),
        ]
        for standing in standings
    ]  # fmt: skip
    figures = ["reward", "kl", "diversity", "best_admitted_reward"]
    means = [name for figure in figures for name in (figure, f"{figure}_se")]
    texts = [f"text_{number + 1}" for number in range(LAST_TEXTS)]
    return csv_table([[*keys, "seeds_counted", "seeds", "base_reward", *means, "holds", *texts], *rows])


def _keys(results: SweepResults) -> list[str]:
    """All dotted keys that any trial sets."""
    return list(dict.fromkeys(key for trial in results.trials for key in trial.parameters))


def _cell(value: Any) -> Any:
    """Numbers in full, all else as a reader writes it."""
    return value if value is None or isinstance(value, int | float) else shown(value)


def _pair(mean: Mean | None) -> tuple[float | None, float | None]:
    return (None, None) if mean is None else (mean.value, mean.standard_error)


def _texts(standing: Standing) -> list[str]:
    texts = list(standing.trials[0].history.last_texts) if standing.trials else []
    return texts + [""] * (LAST_TEXTS - len(texts))
