"""One trial of a sweep, as Ray Tune runs it: a training run in the gang that Tune placed, reporting its checkpoints.

Ends with a completion marker in the run folder (`folder.Ending`), written when all else is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.util.placement_group import get_current_placement_group

from rayrlhf.config import RunConfig
from rayrlhf.errors import DivergenceError, NotFiniteError
from rayrlhf.gang import Gang
from rayrlhf.metrics import read_metrics
from rayrlhf.python_path import move_last
from rayrlhf.reading import first_line
from rayrlhf.run_folder import read_run_config
from rayrlhf.trainer import Observer, train
from rayrlhf.tune.folder import Ending, SweepFolder, is_over, write_ending
from rayrlhf.tune.objectives import ObjectiveConfig
from rayrlhf.tune.pbt import go_on_from, pointed_at, pointer
from rayrlhf.tune.plan import Trial
from rayrlhf.tune.results import Point, checkpoint_point, objective_value, points

NOTHING_ADMISSIBLE = -1e9
"""What Tune is told while no checkpoint meets the objective's bound: its schedulers compare numbers."""
STOP_WAIT_S = 120
"""What a stopped trial gets to end its actors before its process is taken for another trial."""


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """What every trial of a sweep is given."""

    sweep: Path  # its folder
    objective: ObjectiveConfig
    exploits: bool  # population-based training: trials go on from each other's checkpoints
    working_directory: Path  # of the driver: what relative paths in configs are relative to


class Reporter(Observer):
    """Tells Tune of every checkpoint but the last, which `run_trial` reports once the run has ended."""

    def __init__(self, run_folder: Path, iterations: int, objective: ObjectiveConfig, exploits: bool) -> None:
        self._run_folder = run_folder
        self._iterations = iterations
        self._objective = objective
        self._exploits = exploits
        self._points: list[Point] = []

    def checkpoint_saved(self, done: int) -> None:
        if done < self._iterations:
            self.report(done)

    def report(self, done: int) -> None:
        """Raises SystemExit where Tune stops or pauses the trial here."""
        if self._points:  # those of later iterations are of a run that has gone back since
            before = [point for point in self._points if point.iteration < done]
            self._points = [*before, checkpoint_point(self._run_folder, done)]
        else:
            self._points = points(self._run_folder)  # a resumed run has some already
        result = result_of(self._points, self._objective)
        if not self._exploits:
            tune.report(result)
        elif done == self._iterations:  # a population compares those that have iterations left
            tune.report({name: value for name, value in result.items() if name != "iteration"})
        else:
            with pointer(self._run_folder.name, done) as checkpoint:
                tune.report(result, checkpoint=checkpoint)


def result_of(so_far: list[Point], objective: ObjectiveConfig) -> dict[str, Any]:
    """What Tune is told at the last of these checkpoints."""
    last, value = so_far[-1], objective_value(so_far, objective)
    return {
        "iteration": last.iteration,  # what schedulers compare by
        "iterations_done": last.iteration,  # never left out, as that is in the last report of a population
        "objective": NOTHING_ADMISSIBLE if value is None else value,
        "reward": last.reward,
        "kl": last.kl,
        "diversity": last.diversity,
    }


def choice_of(trial: Trial, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What Tune is given of a trial. values: its parameters now, where they are not those planned."""
    return {"trial": {"name": trial.name, "values": dict(trial.parameters if values is None else values)}}


def run_trial(choice: dict[str, Any], settings: TrialSettings) -> None:
    """Runs the trial that has the name of Tune's, from its last checkpoint where it has one; its error goes on to Tune.

    choice: what Tune's scheduler decides on, {"trial": {"name": ..., "values": {dotted key: value}}}.
    """
    _settle_in(settings.working_directory)
    folder, name = SweepFolder(settings.sweep), tune.get_context().get_trial_name()
    run_folder = folder.run_folder(name)
    if is_over(run_folder):
        replay(run_folder, settings.objective)
        return
    (run_folder / "trial.json").unlink(missing_ok=True)  # of a crash
    try:
        reporter, iterations = _train(folder, name, choice["trial"]["values"], settings)
    except (DivergenceError, NotFiniteError) as error:
        write_ending(run_folder, Ending("diverged", first_line(error), seconds_of(run_folder)))
        return
    except Exception as error:
        write_ending(run_folder, Ending("crashed", first_line(error), seconds_of(run_folder)))
        raise
    write_ending(run_folder, Ending("done", None, seconds_of(run_folder)))
    reporter.report(iterations)


def _train(folder: SweepFolder, name: str, values: Mapping[str, Any], settings: TrialSettings) -> tuple[Reporter, int]:
    """Runs the trial's training to its end, which it returns: who reports it, after how many iterations."""
    source = pointed_at(tune.get_checkpoint())
    if source is not None and source.trial != name:
        go_on_from(folder, source, name, values)
    run_folder, config, group = folder.run_folder(name), config_of(folder, name), get_current_placement_group()
    assert group is not None
    reporter = Reporter(run_folder, config.iterations, settings.objective, settings.exploits)
    resume = (run_folder / "config.yaml").is_file()
    train(config, resume=resume, observer=reporter, gang=Gang(group, config.learner.ranks, config.rollout.workers))
    return reporter, config.iterations


def replay(run_folder: Path, objective: ObjectiveConfig) -> None:
    """Tells Tune's scheduler again what a trial of an earlier session had reported; nothing is computed."""
    recorded = points(run_folder)
    for count in range(1, len(recorded) + 1):
        tune.report(result_of(recorded[:count], objective))


def config_of(folder: SweepFolder, trial: str) -> RunConfig:
    """The config that the trial is to go on with: its run's own, or the planned one where it has not begun."""
    begun = folder.run_folder(trial) / "config.yaml"
    config = read_run_config(begun if begun.is_file() else folder.config(trial))
    return config.model_copy(update={"storage_path": str(folder.trials)})  # the sweep's folder may have been moved


def seconds_of(run_folder: Path) -> float:
    """Wall time of the run's iterations so far."""
    if not (run_folder / "metrics.jsonl").is_file():
        return 0.0
    return sum(row.get("time/iteration", 0.0) for row in read_metrics(run_folder))


def _settle_in(working_directory: Path) -> None:
    """Makes Tune's process resolve paths and plugins as the driver does."""
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(STOP_WAIT_S)  # read when the process is reused
    if working_directory.is_dir():
        os.chdir(working_directory)
        move_last([str(working_directory)])
