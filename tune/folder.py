"""The folder of a sweep: what is planned, what has ended, and who may write it.

<storage_path>/<sweep>/sweep.yaml          the resolved sweep config
                      /trials.jsonl        one object a trial: name, parameters, seed; fixed before the first one starts
                      /configs/<name>.yaml the run config that each trial starts with
                      /trials/<name>/      its run folder; `trial.json` in it once it has ended
                      /exploits.jsonl      one object each time a trial went on from another's checkpoint (pbt.py)
                      /best.yaml, /report.html ... (sweep.py, sweep_report.py)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rayrlhf.config_loading import dump_config, load_config
from rayrlhf.errors import RunFolderError
from rayrlhf.files import check_plain, replace_file, sync_folder
from rayrlhf.lock import FolderLock, Held, is_held
from rayrlhf.reading import (
    SHOWN,
    Count,
    Damage,
    Number,
    json_value,
    printable,
    read_bytes,
    read_record,
    read_text,
    typed,
    typed_value,
)
from rayrlhf.tune.plan import Trial
from rayrlhf.tune.sweep_config import SweepConfig
from rayrlhf.yaml_text import parse_yaml

Status = Literal["done", "crashed", "stopped", "diverged"]
NEVER_AGAIN: tuple[Status, ...] = ("done", "stopped", "diverged")
"""Endings that `--resume` keeps; a crashed trial is tried again, from its last checkpoint."""
MAY_CHANGE_ON_RESUME = ("name", "storage_path", "objective", "max_concurrent")

_RELEASE_WAIT_S = 30.0  # what the processes of a killed sweep get to give a run folder back


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trial ended: the completion marker in its run folder, written last."""

    status: Status
    error: str | None  # first line of what it crashed or diverged with
    seconds: Number  # wall time of its iterations, over all sessions


def write_ending(run_folder: Path, ending: Ending) -> None:
    """Marks a trial as ended, durably."""
    run_folder.mkdir(parents=True, exist_ok=True)
    replace_file(run_folder / "trial.json", [json.dumps(asdict(ending)).encode() + b"\n"])


def read_ending(run_folder: Path) -> Ending | None:
    """How the trial of this run folder ended; None where it has not."""
    path = run_folder / "trial.json"
    if not os.path.exists(path):
        return None
    return read_record(path, Ending, RunFolderError, "remove it to have the trial continued")


def is_over(run_folder: Path) -> bool:
    """Whether the trial is never to be run again."""
    ending = read_ending(run_folder)
    return ending is not None and ending.status in NEVER_AGAIN


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """A line of `trials.jsonl`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    parameters: dict[str, Any]
    seed: Count


def planned_rows(path: Path) -> list[PlannedTrial]:
    """The lines of trials.jsonl, without a torn last one; none where the sweep has not drawn its trials yet.

    Raises RunFolderError, which names a damaged line.
    """
    if not os.path.exists(path):
        return []
    lines = read_bytes(path, RunFolderError).split(b"\n")[:-1]
    return [_planned(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _planned(line: bytes, place: str) -> PlannedTrial:
    try:
        trial = typed_value(PlannedTrial, json_value(line))
    except Damage as error:
        raise RunFolderError(f"{place} is damaged ({error}); mend it from a copy") from None
    check_trial_name(trial.name, place)
    return trial


class SweepFolder:
    """Where the files of a sweep lie; `create` and `resume` hold its lock until `close` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None

    @classmethod
    def create(cls, config: SweepConfig, trials: Sequence[Trial]) -> SweepFolder:
        """Makes the folder of a new sweep, whole or not at all. Raises RunFolderError where the name is taken."""
        path = path_of(config)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        folder = cls(aside)
        try:
            folder.trials.mkdir(parents=True)
            folder.configs.mkdir()
            replace_file(folder.sweep, [dump_config(config).encode()])
            for trial in trials:
                replace_file(folder.config(trial.name), [dump_config(trial.config).encode()])
            replace_file(folder.planned, [_line(trial) for trial in trials])
            folder._take_lock()
            os.rename(aside, path)  # fails on a folder that holds anything
            sync_folder(path.parent)
        except OSError as error:
            folder.close()
            shutil.rmtree(aside, ignore_errors=True)
            refuse_taken(config)
            raise RunFolderError(
                f"the sweep's folder cannot be made in sweep.storage_path {config.storage_path!r}: {error.strerror}; "
                "give a folder that you may write with sweep.storage_path=..."
            ) from error
        folder.path = path
        return folder

    @classmethod
    def resume(cls, config: SweepConfig) -> SweepFolder:
        """Takes the folder of an earlier sweep to continue it.

        Raises RunFolderError where there is none, another process runs it, or a setting differs that is not in
        `MAY_CHANGE_ON_RESUME`; the message names each.
        """
        folder = cls(path_of(config))
        if not folder.sweep.is_file():
            raise RunFolderError(
                f"there is no sweep {config.name!r} in {config.storage_path!r} to resume: start it without --resume, or "
                "give the name it has with sweep.name=..."
            )
        check_plain(folder.path)
        folder._take_lock()
        try:
            before, now = folder.read_config().model_dump(mode="json"), config.model_dump(mode="json")
            changed = [
                f"{key}: {json.dumps(before[key])} then, {json.dumps(now[key])} now"
                for key in now
                if before[key] != now[key] and key not in MAY_CHANGE_ON_RESUME
            ]
            if changed:
                raise RunFolderError(
                    f"the sweep {config.name!r} cannot be resumed with other settings than it was started with:\n  "
                    + "\n  ".join(changed)
                    + "\ngive it the old ones, or start a sweep of another name with sweep.name=..."
                )
            replace_file(folder.sweep, [dump_config(config).encode()])
        except BaseException:
            folder.close()
            raise
        return folder

    @property
    def sweep(self) -> Path:
        return self.path / "sweep.yaml"

    @property
    def planned(self) -> Path:
        return self.path / "trials.jsonl"

    @property
    def configs(self) -> Path:
        return self.path / "configs"

    @property
    def trials(self) -> Path:
        return self.path / "trials"

    @property
    def exploits(self) -> Path:
        return self.path / "exploits.jsonl"

    @property
    def best(self) -> Path:
        return self.path / "best.yaml"

    @property
    def tune(self) -> Path:
        """What Ray Tune writes of its own; nothing is read from it, and it goes when the sweep ends."""
        return self.path / ".tune"

    def config(self, trial: str) -> Path:
        return self.configs / f"{trial}.yaml"

    def run_folder(self, trial: str) -> Path:
        return self.trials / trial

    def read_config(self) -> SweepConfig:
        found = parse_yaml(read_text(self.sweep, RunFolderError), str(self.sweep), RunFolderError)
        return typed(SweepConfig, found, f"{self.sweep} is damaged or of another version of RayRLHF", RunFolderError)

    def read_trials(self) -> list[Trial]:
        """The trials planned so far, each with the config that it was planned with."""
        return [
            Trial(row.name, row.parameters, row.seed, load_config(str(self.config(row.name))))
            for row in planned_rows(self.planned)
        ]

    def add_trials(self, trials: Sequence[Trial]) -> None:
        """Plans more of them."""
        for trial in trials:
            replace_file(self.config(trial.name), [dump_config(trial.config).encode()])
        replace_file(self.planned, [read_bytes(self.planned, RunFolderError), *(_line(trial) for trial in trials)])

    def wait_until_free(self, trial: str) -> None:
        """Waits for a process of a sweep that was killed to give the trial's run folder back.

        Raises RunFolderError where it does not.
        """
        deadline = time.monotonic() + _RELEASE_WAIT_S
        while is_held(self.run_folder(trial)):
            if time.monotonic() > deadline:
                raise RunFolderError(
                    f"{self.run_folder(trial)} is still being written by another process: stop it, then --resume"
                )
            time.sleep(0.2)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> SweepFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _take_lock(self) -> None:
        try:
            self._lock = FolderLock.take(self.path)
        except Held as holder:
            raise RunFolderError(
                f"the sweep {self.path.name!r} ({self.path}) is run by {holder}: wait for it or stop it, or give "
                "this one another name with sweep.name=..."
            ) from None


def check_trial_name(name: object, place: Path | str) -> None:
    """Raises RunFolderError for what no trial is called: it is the name of a folder among the sweep's trials."""
    if not isinstance(name, str) or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise RunFolderError(f"{place} is damaged: {printable(repr(name))[:SHOWN]} is no trial's name")


def path_of(config: SweepConfig) -> Path:
    """The folder of a sweep of this config."""
    return Path(config.storage_path).expanduser().absolute() / config.name


def refuse_taken(config: SweepConfig) -> None:
    """Raises RunFolderError where a new sweep cannot have its name."""
    if os.path.lexists(path_of(config)):
        raise RunFolderError(
            f"the name {config.name!r} is in use ({path_of(config)}): continue that sweep with --resume, or give this "
            "one another name with sweep.name=..."
        ) from None


def _line(trial: Trial) -> bytes:
    row: dict[str, Any] = {"name": trial.name, "parameters": dict(trial.parameters), "seed": trial.seed}
    return json.dumps(row).encode() + b"\n"
