"""What a sweep's run folders say: a point for each checkpoint, an outcome for each trial, finished or not.

<storage_path>/<sweep>/sweep.yaml             the sweep's config
                      /trials.jsonl           one object a trial: name, parameters, seed
                      /trials/<name>/         its run folder; alarms.jsonl in it where the detector spoke
                      /trials/<name>/trial.json  how it ended; a trial without it has not
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from rayrlhf.alarms import AlarmRecord, read_alarms
from rayrlhf.checkpoint import whole_checkpoints
from rayrlhf.errors import RunFolderError
from rayrlhf.files import check_plain, read_text, typed
from rayrlhf.metrics import BASELINE_ITERATION, SampleRecord, iter_samples
from rayrlhf.run_folder import RunFolder
from rayrlhf.summary import DIVERSITY_TEXTS, REWARD_EPISODES, BaseDiversity
from rayrlhf.tune.folder import PlannedTrial, planned_rows, read_ending
from rayrlhf.tune.objectives import ObjectiveConfig, RewardUnderKL
from rayrlhf.yaml_text import parse_yaml

TrialStatus = Literal["done", "crashed", "stopped", "diverged", "unfinished", "unreadable"]
"""`trial.json` says the first four; a trial without one is unfinished, one with damaged records unreadable."""
LAST_TEXTS = 2


@dataclass(frozen=True, slots=True)
class Point:
    """A run where one checkpoint was made. None where it cannot be said: no reference, no base texts, games."""

    iteration: int  # iterations done, as in the checkpoint's name
    reward: float  # mean score of the last 40 episodes
    reward_se: float | None  # its standard error, the episodes taken as independent; None for a single one
    kl: float | None  # nats a sequence, mean of the same episodes; sampled, so it may be just under 0
    kl_per_token: float | None  # nats a response token
    diversity: float | None  # distinct-2 of the last 50 texts over the base model's for equally many


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its standard error; None of a single value."""

    value: float
    standard_error: float | None
    count: int


@dataclass(frozen=True, slots=True)
class RunHistory:
    """What one pass over a run's episodes leaves in memory."""

    base_reward: Mean | None  # score of the base model's episodes; None where none were played
    points: tuple[Point, ...]  # rising iterations
    reward: tuple[tuple[int, float], ...]  # (iterations done, mean score of the iteration's episodes)
    diversity: tuple[tuple[int, float], ...]  # (iterations done, share of the base model's); () of games
    last_texts: tuple[str, ...]  # at most two, whole episodes
    plays_games: bool


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial: what was asked for, how it ended, what it recorded."""

    name: str
    folder: Path
    parameters: Mapping[str, Any]  # dotted key -> value
    seed: int
    status: TrialStatus
    error: str | None
    seconds: float | None  # of the whole trial; None until it has ended
    history: RunHistory
    alarms: tuple[AlarmRecord, ...]  # of the divergence detector, in its order (SPEC GWERN-12)

    @property
    def last(self) -> Point | None:
        return self.history.points[-1] if self.history.points else None

    def diversity_broken_at(self, floor: float) -> int | None:
        """Iterations done when the diversity was first under `floor` (SPEC ALLIT-10); None where it never was."""
        return next((done for done, share in self.history.diversity if share < floor), None)


@dataclass(frozen=True, slots=True)
class SweepResults:
    """A sweep so far."""

    name: str
    folder: Path
    objective: ObjectiveConfig
    config_yaml: str  # sweep.yaml as it stands
    trials: tuple[TrialResult, ...]  # in the order of trials.jsonl

    @property
    def plays_games(self) -> bool:
        return any(trial.history.plays_games for trial in self.trials)


_NOTHING = RunHistory(None, (), (), (), (), False)


def objective_value(points: Sequence[Point], objective: ObjectiveConfig) -> float | None:
    """The highest reward so far among the checkpoints that the objective admits; None while there is none."""
    return max((point.reward for point in points if meets(point, objective)), default=None)


def meets(point: Point, objective: ObjectiveConfig) -> bool:
    """Whether a checkpoint is within the objective's bound; one of unknown KL or diversity is not."""
    if isinstance(objective, RewardUnderKL):
        return point.kl is not None and point.kl <= objective.max_kl
    return point.diversity is not None and point.diversity >= objective.min_diversity


def checkpoint_point(run_folder: Path, done: int) -> Point:
    """The point of the run's checkpoint after `done` iterations; RunFolderError where it has no episode of them."""
    for iterations, recent, reference in _windows(run_folder):
        if iterations == done:
            return _point(done, recent, _share(recent, reference))
    raise RunFolderError(f"{run_folder} has no episodes of iteration {done - 1}: there is no checkpoint {done} of it")


def points(run_folder: Path) -> list[Point]:
    """The points of all checkpoints the run at `run_folder` has made, those among them that were pruned since."""
    return list(read_history(run_folder).points)


def read_history(run_folder: Path) -> RunHistory:
    """Reads a run's episodes once. RunFolderError where there is no run, or its records are damaged."""
    run = RunFolder.open(run_folder)
    made = _checkpoints_made(run)
    found: list[Point] = []
    rewards: list[tuple[int, float]] = []
    diversity: list[tuple[int, float]] = []
    recent: Sequence[SampleRecord] = ()
    reference: Sequence[SampleRecord] = ()
    for done, recent, base in _windows(run_folder):
        reference = base.episodes
        share = _share(recent, base)
        now = [record.score for record in recent if record.iteration == done - 1]
        rewards.append((done, statistics.fmean(now)))
        if share is not None:
            diversity.append((done, share))
        if made(done):
            found.append(_point(done, recent, share))
    texts = tuple(record.text for record in recent[-LAST_TEXTS:])
    games = any(record.turns for record in recent)
    base_reward = mean_of([record.score for record in reference]) if reference else None
    return RunHistory(base_reward, tuple(found), tuple(rewards), tuple(diversity), texts, games)


def read_sweep(folder: Path) -> SweepResults:
    """All of a sweep, finished or not.

    Raises RunFolderError where `folder` is no sweep's, or what the sweep itself wrote is damaged. A trial whose own
    records are damaged is `unreadable`, and its error says why.
    """
    path = folder / "sweep.yaml"
    if not path.is_file():
        raise RunFolderError(f"{folder} is no sweep's folder: it holds no sweep.yaml")
    check_plain(folder, not_folders=["report.html", "frontier.png", "points.csv", "table.csv", "trials.jsonl"])
    text = read_text(path, RunFolderError)
    found = parse_yaml(text, str(path), RunFolderError)
    told = typed(_Told, found, f"{path} is damaged or of another version of RayRLHF", RunFolderError)
    trials = tuple(_read_trial(folder / "trials", row) for row in planned_rows(folder / "trials.jsonl"))
    return SweepResults(told.name, folder, told.objective, text, trials)


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and standard error (sample standard deviation over the root of the count) of at least one value."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Mean(statistics.fmean(values), error, len(values))


@dataclass(frozen=True, slots=True)
class _Base:
    """The base model's episodes, and what diversity is a share of."""

    episodes: Sequence[SampleRecord]
    diversity: BaseDiversity


def _windows(run_folder: Path) -> Iterator[tuple[int, Sequence[SampleRecord], _Base]]:
    """After each iteration: how many are done, the last episodes (as many as the longest statistic takes, and all of
    the iteration), the base model."""
    base = _Base((), BaseDiversity(()))
    before: deque[SampleRecord] = deque(maxlen=max(REWARD_EPISODES, DIVERSITY_TEXTS))
    for iteration, group in groupby(iter_samples(run_folder), key=lambda record: record.iteration):
        episodes = list(group)
        if iteration == BASELINE_ITERATION:
            base = _Base(episodes, BaseDiversity([record.text for record in episodes]))
            continue
        recent = [*before, *episodes]
        yield iteration + 1, recent, base
        before.extend(episodes)


def _share(recent: Sequence[SampleRecord], base: _Base) -> float | None:
    """None of games: most of their text is the game's own, and a policy that wins is to repeat itself."""
    if recent[-1].turns:
        return None
    return base.diversity.share([record.text for record in recent[-DIVERSITY_TEXTS:]])


def _point(done: int, recent: Sequence[SampleRecord], diversity: float | None) -> Point:
    last = recent[-REWARD_EPISODES:]
    reward = mean_of([record.score for record in last])
    nats = [(record.kl, record.length) for record in last if record.kl is not None]
    total, tokens = sum(kl for kl, _ in nats), sum(length for _, length in nats)
    return Point(
        iteration=done,
        reward=reward.value,
        reward_se=reward.standard_error,
        kl=total / len(nats) if nats else None,
        kl_per_token=total / tokens if tokens else None,
        diversity=diversity,
    )


def _checkpoints_made(run: RunFolder) -> Callable[[int], bool]:
    """Whether one was made after so many iterations, kept or not: what the schedule asked for, and what a signal left."""
    kept = whole_checkpoints(run.checkpoints)
    if not kept:
        return lambda done: False
    every = run.read_config().checkpoint.every
    return lambda done: done in kept or (done <= kept[-1] and done % every == 0)


@dataclass(frozen=True, slots=True)
class _Told:
    """What of a sweep's config its results need."""

    name: str
    objective: ObjectiveConfig


def _read_trial(trials: Path, row: PlannedTrial) -> TrialResult:
    folder = trials / row.name
    empty = TrialResult(row.name, folder, row.parameters, row.seed, "unfinished", None, None, _NOTHING, alarms=())
    try:
        ended = _read_marker(empty)
        if not RunFolder(folder).config.is_file():  # not begun, or it fell before its run had a folder
            return ended
        return replace(ended, history=read_history(folder), alarms=tuple(read_alarms(folder)))
    except RunFolderError as error:
        return replace(empty, status="unreadable", error=str(error))


def _read_marker(trial: TrialResult) -> TrialResult:
    """The trial with what its completion marker says."""
    ended = read_ending(trial.folder)
    return trial if ended is None else replace(trial, status=ended.status, error=ended.error, seconds=ended.seconds)
