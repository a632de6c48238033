"""Runs a sweep on Ray Tune: trials side by side, each a gang of its own; then the recommendation, its recipe, the report.

A sweep is resumed from its own folder and never from Tune's snapshot, which may be seconds older than the run folders.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from rich.console import Console

from rayrlhf.cluster import check_shared_storage, ray_cluster
from rayrlhf.config_loading import dump_config
from rayrlhf.errors import ConfigError, LearnerError
from rayrlhf.files import replace_file
from rayrlhf.gang import gang_bundles
from rayrlhf.interrupts import ended_as_by_ctrl_c
from rayrlhf.room import check_start
from rayrlhf.trust import NOBODY, Trust, remember
from rayrlhf.tune import pbt
from rayrlhf.tune.capacity import at_once, check_gangs_fit, logical_cpus
from rayrlhf.tune.folder import Ending, SweepFolder, is_over, path_of, read_ending, refuse_taken, write_ending
from rayrlhf.tune.frontier import recommend
from rayrlhf.tune.live_table import LiveTable
from rayrlhf.tune.optuna_search import OptunaPoints, require_optuna
from rayrlhf.tune.plan import Trial, TrialMaker, dimensions, plan
from rayrlhf.tune.results import read_sweep
from rayrlhf.tune.sweep_code import code_of_trials, require_planned
from rayrlhf.tune.sweep_config import ASHAConfig, OptunaSearchConfig, PBTConfig, SweepConfig, SweepRequest
from rayrlhf.tune.sweep_report import write_sweep_report
from rayrlhf.tune.trial import TrialSettings, choice_of, config_of, run_trial, seconds_of

TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run folders have the records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: nothing is saved but what the runs have saved
    "RAY_AIR_NEW_OUTPUT": "0",  # the other one prints a banner, however quiet it is to be
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a run may end before its first checkpoint
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


def run_sweep(
    request: SweepRequest, resume: bool = False, console: Console | None = None, trust: Trust = NOBODY
) -> Path:
    """Runs a sweep, or what is left of it, to its report; returns its folder. trust: for the trials of one to resume.

    Raises a UserError for every fault before anything starts; LearnerError where all trials crashed; KeyboardInterrupt
    for Ctrl-C and SIGTERM, with what the runs had saved left in place for `--resume`.
    """
    sweep = request.config
    check_start({})
    with contextlib.ExitStack() as stack:
        earlier = stack.enter_context(SweepFolder.resume(sweep)) if resume else None
        if earlier is not None:
            require_planned(request, earlier, trust)
        checked = _checked(request, earlier)
        configs = [trial.config for trial in checked]
        side_by_side = at_once(sweep.max_concurrent, configs)
        stack.enter_context(_tune_settings())
        stack.enter_context(ended_as_by_ctrl_c())
        stack.enter_context(ray_cluster(logical_cpus(configs, side_by_side or 1)))
        check_gangs_fit(configs)
        check_shared_storage(path_of(sweep).parent)
        planned = [] if _proposes(sweep) else checked
        folder = earlier or stack.enter_context(SweepFolder.create(sweep, planned))
        remember(folder.path, code_of_trials(checked))
        table = LiveTable(folder, console)
        table.expect(folder.read_trials())
        side = f"{side_by_side} side by side" if side_by_side else "as many side by side as there is room for"
        table.message(f"sweep {sweep.name}: {_count(sweep, checked)} trials, {side}, folder {folder.path}")
        try:
            with table:
                _run_trials(request, folder, side_by_side, [Endings(folder), table])
        except KeyboardInterrupt:
            table.message("stopped; `--resume` goes on from the trials' checkpoints")
            raise
        finally:
            shutil.rmtree(folder.tune, ignore_errors=True)
        _conclude(folder, table)
    return folder.path


class Endings(tune.Callback):
    """Marks what ended without doing so itself: trials that the scheduler stopped, and those whose process died."""

    def __init__(self, folder: SweepFolder) -> None:
        self._folder = folder

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run_folder = self._folder.run_folder(trial.custom_trial_name)
        if read_ending(run_folder) is None:
            write_ending(run_folder, Ending("stopped", None, seconds_of(run_folder)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run_folder = self._folder.run_folder(trial.custom_trial_name)
        if read_ending(run_folder) is None:
            write_ending(run_folder, Ending("crashed", _reason(Path(trial.error_file)), seconds_of(run_folder)))


def _reason(error_file: Path) -> str:
    """What Tune has noted of a trial's end: a line with the time, then the error."""
    lines = error_file.read_text(errors="replace").splitlines()
    return lines[1] if len(lines) > 1 else "Tune noted no reason"


def _checked(request: SweepRequest, earlier: SweepFolder | None) -> list[Trial]:
    """The sweep's trials; of Optuna, which proposes them later, some that stand for all. Every fault is a UserError."""
    sweep = request.config
    if isinstance(sweep.search, OptunaSearchConfig):
        require_optuna()
        if isinstance(sweep.scheduler, PBTConfig):
            raise ConfigError(
                "sweep.scheduler.kind pbt moves parameters itself: use it with sweep.search.kind random or grid"
            )
    if earlier is None:
        refuse_taken(sweep)
    if earlier is None or _proposes(sweep):
        trials = plan(request, path_of(sweep) / "trials")
    else:
        trials = earlier.read_trials()
    if isinstance(sweep.scheduler, PBTConfig):
        pbt.check_checkpoints_last(sweep.scheduler, [trial.config for trial in trials])
    return trials


def _proposes(sweep: SweepConfig) -> bool:
    """Whether points become known only as the sweep goes on."""
    return isinstance(sweep.search, OptunaSearchConfig)


def _run_trials(
    request: SweepRequest, folder: SweepFolder, side_by_side: int | None, callbacks: Sequence[tune.Callback]
) -> None:
    """Hands the trials to Tune and waits for the last of them."""
    sweep, space = request.config, dimensions(request)
    settings = TrialSettings(folder.path, sweep.objective, isinstance(sweep.scheduler, PBTConfig), Path.cwd())
    trials = folder.read_trials()
    for trial in trials:
        folder.wait_until_free(trial.name)
    over = [trial for trial in trials if is_over(folder.run_folder(trial.name))]
    left = [trial for trial in trials if trial not in over]
    if isinstance(sweep.search, OptunaSearchConfig):
        search: Any = OptunaPoints(space, sweep.search, TrialMaker(request, folder.trials), folder)
        param_space, samples = {}, _count(sweep, trials)
    elif left:
        if isinstance(sweep.scheduler, ASHAConfig):
            left = [*over, *left]  # its rungs need what those had reached: they tell it again, nothing is computed
        moved = pbt.last_values(folder.exploits)
        search, samples = None, 1
        param_space = {"trial": tune.grid_search([choice_of(t, moved.get(t.name))["trial"] for t in left])}
    else:
        return
    gangs = {trial.name: gang_bundles(trial.config) for trial in trials}

    def gang(choice: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        name = choice["trial"]["name"]
        bundles = gangs[name] if name in gangs else gang_bundles(config_of(folder, name))
        return tune.PlacementGroupFactory(bundles, strategy="PACK")

    tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, settings=settings), gang),
        param_space=param_space,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max",
            search_alg=search,
            scheduler=_scheduler(request),
            num_samples=samples,
            max_concurrent_trials=side_by_side,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"]["name"],
            trial_dirname_creator=lambda trial: trial.config["trial"]["name"],
        ),
        run_config=tune.RunConfig(
            name=folder.tune.name, storage_path=str(folder.path), callbacks=list(callbacks), verbose=0
        ),
    ).fit()


def _scheduler(request: SweepRequest) -> TrialScheduler:
    config = request.config.scheduler
    if isinstance(config, ASHAConfig):
        longest = 10**9  # runs end by themselves
        return ASHAScheduler(
            time_attr="iteration",
            max_t=longest,
            grace_period=config.grace_iterations,
            reduction_factor=config.reduction_factor,
        )
    if isinstance(config, PBTConfig):
        return pbt.scheduler(config, dimensions(request), seed=request.config.first_seed)
    return FIFOScheduler()


def _conclude(folder: SweepFolder, table: LiveTable) -> None:
    """Says what came of the sweep, and writes the recommended recipe and the report."""
    results = read_sweep(folder.path)
    crashed = [trial for trial in results.trials if trial.status == "crashed"]
    recommendation = recommend(results)
    folder.best.unlink(missing_ok=True)
    table.message(recommendation.reason)
    if recommendation.trial is not None:
        write_best(folder, recommendation.trial.name, recommendation.reason)
        table.message(f"recipe: {folder.best}  (rayrlhf train {os.path.relpath(folder.best)})")
    table.message(f"report: {write_sweep_report(folder.path)}")
    if crashed:
        table.message(f"{len(crashed)} of {len(results.trials)} trials crashed; `--resume` tries them again")
    if crashed and len(crashed) == len(results.trials):
        raise LearnerError(f"all trials of the sweep crashed, the first with: {crashed[0].error}")


def write_best(folder: SweepFolder, trial: str, reason: str) -> None:
    """Writes the config of a trial as a recipe of its own, which `rayrlhf train` runs under another name."""
    sweep = folder.read_config()
    config = config_of(folder, trial).model_copy(
        update={"name": f"{sweep.name}-best", "storage_path": sweep.storage_path}
    )
    comment = " ".join(reason.split())
    replace_file(
        folder.best,
        [f"# {comment}\n# From trial {trial} of the sweep {sweep.name}.\n".encode(), dump_config(config).encode()],
    )


def _count(sweep: SweepConfig, trials: Sequence[Trial]) -> int:
    search = sweep.search
    return search.samples * sweep.seeds if isinstance(search, OptunaSearchConfig) else len(trials)


@contextlib.contextmanager
def _tune_settings() -> Iterator[None]:
    """What Ray Tune reads from the environment, and its log, which would repeat what the table says."""
    before = {name: os.environ.get(name) for name in TUNE_SETTINGS}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ |= TUNE_SETTINGS
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
