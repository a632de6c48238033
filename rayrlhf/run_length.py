"""What a run's length decides: learning rates that decay, KL schedules, and what a resumed run of another length does.

Pure numbers but for `continued`, which reads what the run in the folder was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rayrlhf.algorithm_config import OptimizerSettings
from rayrlhf.checkpoint import whole_checkpoints
from rayrlhf.config import RunConfig
from rayrlhf.controllers import scheduled
from rayrlhf.errors import RunFolderError
from rayrlhf.kl_config import ScheduleControllerConfig
from rayrlhf.run_folder import RunFolder, path_of


def learning_rate(settings: OptimizerSettings, iteration: int, iterations: int) -> float:
    """The learning rate of iteration 0, 1, ... of a run of `iterations`: a pure function, so nothing of it is saved.

    It rises as 1/W, 2/W, ... over W warm-up iterations; linear decay falls from 1 to 1/iterations at the last one, where
    it stays, should more follow.
    """
    lr = settings.lr
    if iteration < settings.warmup_iterations:
        lr *= (iteration + 1) / settings.warmup_iterations
    if settings.decay == "linear":
        lr *= 1 - min(iteration, iterations - 1) / iterations
    return lr


@dataclass(frozen=True, slots=True)
class Spread:
    """A setting whose value is spread over the run."""

    option: str
    value: Callable[[int, int], float]  # of iteration 0, 1, ... where the run has so many


def spread_over_the_run(config: RunConfig) -> list[Spread]:
    """The settings whose value at an iteration depends on how many there are."""
    found = []
    optimizers = {"optimizer": config.optimizer}
    value = getattr(config.algorithm, "value", None)
    if value is not None and value.kind == "separate":
        optimizers["algorithm.value.optimizer"] = value.optimizer
    for option, settings in optimizers.items():
        if settings.decay == "linear":
            found.append(Spread(f"{option}.lr", partial(learning_rate, settings)))
    for option in ("kl", "kl_loss"):
        channel = getattr(config.algorithm, option)
        schedule = None if channel is None else channel.controller
        if isinstance(schedule, ScheduleControllerConfig) and schedule.iterations is None:
            found.append(Spread(f"algorithm.{option}.coef", partial(scheduled, channel.coef, schedule)))
    return found


def continued(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The config that the run in `config`'s folder goes on with, and what to tell: over how many iterations the settings
    are spread that a run's length decides.

    Raises:
        RunFolderError: the run gets another length, such settings would jump, and nobody has said what they shall do.
    """
    folder = RunFolder(path_of(config))
    if not folder.config.is_file():
        return config, []  # there is nothing to go on with, as `RunFolder.resume` will say
    return _continued(config, folder.read_config(), max(whole_checkpoints(folder.checkpoints), default=0))


def _continued(config: RunConfig, before: RunConfig, done: int) -> tuple[RunConfig, list[str]]:
    """The same from the config `before` and the iterations done."""
    spread, old = spread_over_the_run(config), before.schedule_length
    if config.schedule == "keep":
        length = old
    elif config.schedule == "stretch":
        length = config.iterations
    elif config.schedule_iterations is not None:
        length = config.schedule_iterations
    elif config.iterations == before.iterations:
        length = old
    elif done and spread:
        raise RunFolderError(_refusal(config, before, done, spread))
    else:
        length = config.iterations
    settled = {"schedule": None, "schedule_iterations": None if length == config.iterations else length}
    going = config.model_copy(update=settled)  # without the word `schedule`, which was for this time
    if config.iterations == before.iterations and length == old:
        return going, []
    return going, [
        f"{one.option} is spread over {length} iterations: {one.value(done - 1, old):.4g} in iteration {done - 1}, "
        f"{one.value(done, length):.4g} in iteration {done}, {one.value(config.iterations - 1, length):.4g} in the last"
        for one in spread
        if done
    ]


def _refusal(config: RunConfig, before: RunConfig, done: int, spread: list[Spread]) -> str:
    old, new = before.schedule_length, config.iterations
    jumps = ", ".join(
        f"{one.option} from {one.value(done - 1, old):.4g} to {one.value(done, new):.4g}" for one in spread
    )
    return (
        f"the run {config.name!r} has {done} of {before.iterations} iterations behind it, and its schedules are spread over "
        f"{old}; over {new} they would jump ({jumps}). Say schedule=keep (spread over {old}, and then they stay where they "
        f"end) or schedule=stretch (over {new}, with that jump), or give the old iterations={before.iterations}"
    )
