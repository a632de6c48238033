"""Population-based training over run folders: what a scheduler may change, and going on from another trial's checkpoint.

Tune's own checkpoints are pointers, {"trial", "iterations"}: what they point at lies in the run folders.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from rayrlhf.checkpoint import whole_checkpoints
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.errors import CheckpointError, ConfigError, RunFolderError
from rayrlhf.files import append_to, parse_json, read_bytes, read_record, replace_file, replace_folder, typed
from rayrlhf.tune.folder import SweepFolder, check_trial_name
from rayrlhf.tune.plan import TrialMaker
from rayrlhf.tune.space import Dimension, Range
from rayrlhf.tune.sweep_config import PBTConfig, SweepRequest

_POINTER = "pointer.json"
_COPIED = ("metrics.jsonl", "samples.jsonl", "sessions.jsonl", "alarms.jsonl")
"""Records of a run; what is in them beyond the checkpoint is forgotten when the run is resumed."""


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint in the sweep: of which trial, after how many iterations."""

    trial: str
    iterations: int


@contextlib.contextmanager
def pointer(trial: str, iterations: int) -> Iterator[tune.Checkpoint]:
    """A checkpoint for Tune that says where the real one is."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _POINTER).write_text(json.dumps(asdict(Source(trial, iterations))))
        yield tune.Checkpoint(folder)


def pointed_at(checkpoint: tune.Checkpoint | None) -> Source | None:
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return read_record(Path(folder, _POINTER), Source, RunFolderError, "start the sweep anew")


def go_on_from(folder: SweepFolder, source: Source, trial: str, values: Mapping[str, Any]) -> None:
    """Gives `trial` a copy of the source's run up to its checkpoint, with `values` in its config and its own seed.

    Raises CheckpointError where the checkpoint was pruned, ConfigError for values that make no config.
    """
    for name in (source.trial, trial):
        check_trial_name(name, folder.path)
    donor, target = folder.run_folder(source.trial), folder.run_folder(trial)
    aside = target.with_name(f".{trial}.new")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint = donor / "checkpoints" / f"{source.iterations:06d}"
    if not (checkpoint / "trainer").is_dir():
        raise CheckpointError(
            f"trial {trial} was to go on from {checkpoint}, which is not kept any more: raise checkpoint.keep and "
            "checkpoint.keep_trainer_state"
        )
    config = _with_values(folder, trial, values)
    (aside / "checkpoints").mkdir(parents=True)
    for iteration in whole_checkpoints(donor / "checkpoints"):
        if iteration <= source.iterations:
            name = f"checkpoints/{iteration:06d}"
            shutil.copytree(donor / name, aside / name)
    for name in _COPIED:
        if (donor / name).is_file():
            shutil.copyfile(donor / name, aside / name)
    if (donor / "model").is_dir():
        shutil.copytree(donor / "model", aside / "model")
    replace_file(aside / "config.yaml", [dump_config(config).encode()])
    _record(
        folder.exploits, {"trial": trial, "from": source.trial, "iteration": source.iterations, "parameters": values}
    )
    replace_folder(aside, target)


def last_values(exploits: Path) -> dict[str, Mapping[str, Any]]:
    """Trial -> the parameters that it last took up from another; empty where none ever did."""
    if not exploits.exists():
        return {}
    lines = read_bytes(exploits, RunFolderError).split(b"\n")[:-1]
    rows = [
        typed(_Exploit, parse_json(line, place, RunFolderError), place, RunFolderError)
        for place, line in ((f"{exploits}:{number}", line) for number, line in enumerate(lines, start=1))
    ]
    return {row.trial: row.parameters for row in rows}


@dataclass(frozen=True, slots=True)
class _Exploit:
    """What is read of a line of `exploits.jsonl`."""

    trial: str
    parameters: dict[str, Any]


def scheduler(config: PBTConfig, space: Sequence[Dimension], seed: int) -> PopulationBasedTraining:
    """Tune's scheduler, which replaces the parameters of trials within the space."""
    mutations: dict[str, Any] = {}
    for dimension in space:
        stream = dimension.generator(seed)
        mutations[dimension.keys[0]] = (
            _drawing(dimension.values, stream) if isinstance(dimension.values, Range) else list(dimension.values.values)
        )

    def within_the_space(choice: dict[str, Any]) -> dict[str, Any]:
        values = choice["trial"]["values"]
        for dimension in space:
            value = values[dimension.keys[0]]
            if isinstance(dimension.values, Range):
                value = dimension.values.clip(value)
            values.update(dict.fromkeys(dimension.keys, value))
        return choice

    return PopulationBasedTraining(
        time_attr="iteration",
        perturbation_interval=config.every,
        quantile_fraction=config.quantile,
        resample_probability=config.resample_probability,
        hyperparam_mutations={"trial": {"values": mutations}},
        custom_explore_fn=within_the_space,
        log_config=False,
        synch=config.synchronous,
        require_attrs=False,  # a run's last report has no iteration: who has ended neither goes on nor is gone on from
    )


def check_checkpoints_last(config: PBTConfig, configs: Sequence[RunConfig]) -> None:
    """Raises ConfigError where a trial's checkpoint may be pruned before another has gone on from it."""
    for run in configs:
        kept = min(run.checkpoint.keep, run.checkpoint.keep_trainer_state) * run.checkpoint.every
        if run.checkpoint.every > config.every or kept <= config.every:
            raise ConfigError(
                f"sweep.scheduler.every {config.every}: a trial can go on from another's checkpoint only if there is one "
                f"and it is kept: checkpoint.every ({run.checkpoint.every}) must be no more, and "
                f"checkpoint.keep_trainer_state ({run.checkpoint.keep_trainer_state}) and checkpoint.keep "
                f"({run.checkpoint.keep}) above {config.every // run.checkpoint.every}"
            )


def _with_values(folder: SweepFolder, trial: str, values: Mapping[str, Any]) -> RunConfig:
    """The trial's own config but for these values of its parameters."""
    planned = next(known for known in folder.read_trials() if known.name == trial)
    maker = TrialMaker(SweepRequest(folder.read_config(), {}), folder.trials)
    return maker.trial(planned.point, values, planned.seed).config


def _drawing(values: Range, stream: np.random.Generator) -> Any:
    return lambda: values.draw(stream)


def _record(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a line; several trials may do so at once."""
    with append_to(path) as file:
        file.write(json.dumps(row).encode() + b"\n")
