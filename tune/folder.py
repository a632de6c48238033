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
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rayrlhf.config_loading import dump_config, load_config
from rayrlhf.errors import RunFolderError
from rayrlhf.files import replace_file, sync_folder
from rayrlhf.lock import FolderLock, Held, is_held
from rayrlhf.tune.plan import Trial
from rayrlhf.tune.sweep_config import SweepConfig

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
    seconds: float  # wall time of its iterations, over all sessions


def write_ending(run_folder: Path, ending: Ending) -> None:
    """Marks a trial as ended, durably."""
    run_folder.mkdir(parents=True, exist_ok=True)
    replace_file(run_folder / "trial.json", [json.dumps(asdict(ending)).encode() + b"\n"])


def read_ending(run_folder: Path) -> Ending | None:
    """How the trial of this run folder ended; None where it has not."""
    path = run_folder / "trial.json"
    try:
        return Ending(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged ({error}); remove it to have the trial continued") from None


def is_over(run_folder: Path) -> bool:
    """Whether the trial is never to be run again."""
    ending = read_ending(run_folder)
    return ending is not None and ending.status in NEVER_AGAIN


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
        try:
            return SweepConfig.model_validate(YAML(typ="safe", pure=True).load(StringIO(self.sweep.read_text())))
        except (YAMLError, ValidationError) as error:
            raise RunFolderError(
                f"{self.sweep} is damaged or was written by another version of RayRLHF: {error}"
            ) from None

    def read_trials(self) -> list[Trial]:
        """The trials planned so far, each with the config that it was planned with."""
        rows = [json.loads(line) for line in self.planned.read_text().splitlines()]
        return [Trial(**row, config=load_config(str(self.config(row["name"])))) for row in rows]

    def add_trials(self, trials: Sequence[Trial]) -> None:
        """Plans more of them."""
        for trial in trials:
            replace_file(self.config(trial.name), [dump_config(trial.config).encode()])
        replace_file(self.planned, [self.planned.read_bytes(), *(_line(trial) for trial in trials)])

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
