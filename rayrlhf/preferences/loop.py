"""The loop of a project: sample, check, rate, rank, train a reward model, optimise it, look at it, and go round again.

Each stage is a function of `loop_stages.py`; what is done stands in the round's manifest, so a loop that was stopped
anywhere goes on with the stage it was in. The report is written anew after every round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rayrlhf.cluster import ray_cluster
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import load_config
from rayrlhf.preferences.loop_manifest import STAGES, Round
from rayrlhf.preferences.loop_report import write_loop_report
from rayrlhf.preferences.loop_stages import RUN_STAGES, Stages, Waiting
from rayrlhf.preferences.project import ProjectConfig, open_store


def run_loop(project: Path, config: ProjectConfig, wait: bool, show: Callable[[str], None] = print) -> Path | None:
    """Runs all rounds of the config that are not finished; returns the report's path.

    wait: for people who rate, as long as it takes; else the loop stops there, says how many comparisons are missing, and
    returns None.

    Raises:
        UserError: of any stage; what earlier stages made stays.
    """
    task = load_config(config.task.recipe, config.task.overrides)
    with open_store(project, create=True) as store:
        stages = Stages(project, config, task, store, wait, show)
        for number in range(config.loop.rounds):
            round_ = Round(project, number)
            try:
                _run_round(round_, stages, task)
            except Waiting as missing:
                show(str(missing))
                return None
            path = write_loop_report(project, config, store)
            show(f"round {number}: done; report: {path}")
    return path


def _run_round(round_: Round, stages: Stages, task: RunConfig) -> None:
    for stage in STAGES:
        if round_.done(stage):
            continue
        stages.show(f"round {round_.number}: {stage.replace('_', ' ')}")
        since = time.monotonic()
        if stage in RUN_STAGES:
            with ray_cluster(stages.cpus):
                made_from, made = stages.run(stage, round_)
        else:
            made_from, made = stages.run(stage, round_)
        round_.finish(stage, made_from, made, since)
