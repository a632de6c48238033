"""The folder of one run: where its files lie, who may write it, and whether it may be made or continued.

<storage_path>/<name>/config.yaml      the resolved config
                     /metrics.jsonl    one object an iteration (metrics.py)
                     /samples.jsonl    one object an episode (metrics.py)
                     /alarms.jsonl     one object an alarm of the detector (alarms.py)
                     /alarms/          batches that were kept for `rayrlhf replay`
                     /tensorboard/     the same curves as events
                     /checkpoints/     (checkpoint.py)
                     /sessions.jsonl   one object a start or resume: when, and which versions of what
                     /evaluation.json  held-out games (evaluate.py)
                     /model/           the model of model.scratch, before training
                     /model.json       which model it started from: fingerprints of its config and weights
                     /summary.json, /report.html (summary.py, report.py)
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import uuid
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayrlhf.config import RunConfig
from rayrlhf.config_section import RECORD
from rayrlhf.errors import RunFolderError, UserError
from rayrlhf.files import append_to, check_plain, replace_file, storing, sync_folder
from rayrlhf.lock import FolderLock, Held
from rayrlhf.reading import expanded, first_fault, read_json, read_text, typed
from rayrlhf.yaml_text import parse_yaml

MAY_CHANGE_ON_RESUME = (
    "name",  # the folder may have been renamed
    "storage_path",
    "iterations",
    "schedule",  # what it does to the schedules is said and recorded: run_length.py
    "schedule_iterations",
    "reward_timeout_s",
    "environment.step_timeout_s",
    "environment.max_retries",
    "rollout.workers",  # results do not depend on it
    "rollout.timeout_s",
    "rollout.max_retries",
    "rollout.cpus_per_worker",
    "rollout.gpus_per_worker",
    "learner.tokens_per_micro_batch",
    "learner.max_logprob_gap",
    "learner.max_mean_logprob_gap_bf16",
    "learner.timeout_s",
    "learner.max_rebuilds",
    "learner.cpus_per_rank",
    "learner.gpus_per_rank",
    "checkpoint",
    "detector",
)
"""Settings, and sections of them, that a resumed run may have otherwise than before; any other makes it another run."""

_VERSIONS_OF = ("rayrlhf", "torch", "ray", "deepspeed", "lightning", "pytorch-lightning", "transformers", "numpy")


class RunFolder:
    """Where the files of a run lie; made by `create`, `resume` (both hold the run's lock) or `open` (for readers).

    The lock lasts until `close`, the end of `with`, or the death of the process; a child process does not inherit it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None

    @classmethod
    def create(cls, config: RunConfig, config_yaml: str) -> RunFolder:
        """Makes the folder of a new run, whole or not at all. config_yaml: the resolved config, kept as `config.yaml`.

        What a run of this name left that failed before its first iteration gets another name, and a warning says so.

        Raises RunFolderError where the name is taken or the storage path cannot be written, StorageError where its disk
        is full.
        """
        if parse_config(config_yaml, "config_yaml") != config:
            raise ValueError("config_yaml is not the YAML of config")  # the run could not be resumed later
        path = path_of(config)
        _make_way(path)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        folder = cls(aside)
        try:
            with storing(path):
                aside.mkdir(parents=True)
            replace_file(folder.config, [config_yaml.encode()])
            folder._take_lock()
            os.rename(aside, path)  # fails on a folder that holds anything
            sync_folder(path.parent)
        except UserError:
            folder.close()
            shutil.rmtree(aside, ignore_errors=True)
            raise
        except OSError as error:
            folder.close()
            shutil.rmtree(aside, ignore_errors=True)
            refuse_taken(config)
            raise RunFolderError(
                f"the run's folder cannot be made in storage_path {config.storage_path!r}: {error.strerror}; "
                "give a folder that you may write with storage_path=..."
            ) from error
        folder.path = path
        try:
            folder._record_session("start")
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def resume(cls, config: RunConfig, config_yaml: str) -> RunFolder:
        """Takes the folder of an earlier run to continue it, and puts `config_yaml` in the place of its config.

        With other settings a run that failed before its first iteration is begun anew (`create`).

        Raises RunFolderError where there is no such run, another process writes it, or a setting differs that is not
        in `MAY_CHANGE_ON_RESUME`; the message names each.
        """
        folder = cls(path_of(config))
        if not folder.config.is_file():
            raise RunFolderError(
                f"there is no run {config.name!r} in storage_path {config.storage_path!r} to resume: "
                "start it without --resume, or give the name it has with name=..."
            )
        folder._check()
        folder._take_lock()
        try:
            differences = _differences(folder.read_config(), config)
            if differences and not folder.begun:
                folder.close()
                return cls.create(config, config_yaml)
            if differences:
                raise RunFolderError(
                    f"the run {config.name!r} cannot be resumed with other settings than it was started with:\n  "
                    + "\n  ".join(differences)
                    + "\ngive it the old ones, or start a run of another name with name=..."
                )
            replace_file(folder.config, [config_yaml.encode()])
            folder._record_session("resume")
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run at `path`, to read: no lock is taken. Raises RunFolderError where there is none, or one with links."""
        folder = cls(path)
        if not folder.config.is_file():
            raise RunFolderError(f"{path} is no run's folder: it holds no config.yaml")
        folder._check()
        return folder

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def alarms(self) -> Path:
        return self.path / "alarms.jsonl"

    @property
    def dumps(self) -> Path:
        return self.path / "alarms"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def sessions(self) -> Path:
        return self.path / "sessions.jsonl"

    @property
    def started_from(self) -> Path:
        return self.path / "model.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def begun(self) -> bool:
        """Whether an iteration was recorded or saved; what is damaged counts as one."""
        recorded = self.metrics.exists() and self.metrics.stat().st_size > 0
        return recorded or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))

    def read_config(self) -> RunConfig:
        """The config the run was started, or last resumed, with."""
        return read_run_config(self.config)

    def check_model(self, path: str, fingerprint: Mapping[str, str]) -> None:
        """Keeps what the model at `path` is, or holds it against what was kept when the run began; a run of before there
        was such a file keeps it from now on.

        Raises RunFolderError where it is another.
        """
        if not self.started_from.is_file():
            replace_file(self.started_from, [json.dumps({"path": path, **fingerprint}, indent=1).encode()])
            return
        kept = self._kept()
        changed = [part for part, value in fingerprint.items() if kept.get(part, value) != value]
        if changed:
            raise RunFolderError(
                f"the run {self.name!r} cannot be resumed: the {' and the '.join(changed)} of its model {path} changed "
                "since it began; put the model back as it was, or start a run of another name with name=..."
            )

    def kept_model(self, source: str) -> Path | None:
        """The model that the run started from, where it lies in the folder `source` still, as the checkpoints of another
        run do. Raises RunFolderError where what was kept of it is damaged."""
        if not self.begun or not self.started_from.is_file():
            return None
        found = Path(self._kept().get("path", ""))
        return found if found.is_dir() and found.is_relative_to(Path(os.path.expanduser(source)).resolve()) else None

    def _kept(self) -> dict[str, str]:
        kept = read_json(self.started_from, RunFolderError)
        return typed(dict[str, str], kept, str(self.started_from), RunFolderError)

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check(self) -> None:
        """Raises RunFolderError where something in it leads out of it, or a folder stands in a file's place."""
        files = (self.metrics, self.samples, self.alarms, self.sessions, self.summary, self.report)
        check_plain(self.path, not_folders=[path.name for path in files])

    def _take_lock(self) -> None:
        try:
            self._lock = FolderLock.take(self.path)
        except Held as holder:
            raise RunFolderError(
                f"the run {self.name!r} ({self.path}) is being written by {holder}: "
                "wait for it or stop it, or give this run another name with name=..."
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"{self.path}: the run's lock cannot be taken there: {error.strerror}; give a folder that you may write "
                "with storage_path=..."
            ) from error

    def _record_session(self, event: str) -> None:
        session = {"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **installed_versions()}
        with append_to(self.sessions) as file:
            file.write(json.dumps(session).encode() + b"\n")


def installed_versions() -> dict[str, str]:
    """Versions of Python, the system and the libraries that a run's numbers depend on."""
    versions = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in _VERSIONS_OF:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_probe(storage_path: Path) -> str:
    """Leaves a small file in a folder and returns its token, for `has_probe` on other nodes and `remove_probe` then."""
    token = uuid.uuid4().hex
    try:
        storage_path.mkdir(parents=True, exist_ok=True)
        replace_file(storage_path / f".probe-{token}", [token.encode()])
    except OSError as error:
        raise RunFolderError(f"storage_path {str(storage_path)!r} cannot be written: {error.strerror}") from error
    return token


def has_probe(storage_path: Path, token: str) -> bool:
    """Whether the folder of that path, on the machine where this is called, is the one `write_probe` wrote to."""
    try:
        return (storage_path / f".probe-{token}").read_text() == token
    except OSError:
        return False


def remove_probe(storage_path: Path, token: str) -> None:
    (storage_path / f".probe-{token}").unlink(missing_ok=True)


def refuse_taken(config: RunConfig) -> None:
    """Raises RunFolderError where `RunFolder.create` would, because the run's name is in use."""
    path = path_of(config)
    if os.path.lexists(path) and not _never_began(path) and not (path.is_dir() and not any(path.iterdir())):
        raise RunFolderError(
            f"the run name {config.name!r} is in use ({path}): continue that run with --resume, "
            "or give this one another name with name=..."
        ) from None


def path_of(config: RunConfig) -> Path:
    """Where the run's folder lies, or is to lie. Raises RunFolderError where its storage_path is in no home."""
    return expanded(config.storage_path, RunFolderError).absolute() / config.name


def _never_began(path: Path) -> bool:
    """Whether it is the folder of a run that failed before its first iteration."""
    run = RunFolder(path)
    return not path.is_symlink() and run.config.is_file() and not run.begun


def _make_way(path: Path) -> None:
    """Gives the folder of a run that failed before its first iteration another name, and says so; leaves all others."""
    if not _never_began(path):
        return
    old = RunFolder(path)
    old._take_lock()  # raises RunFolderError where the run has just been started
    try:
        number = 1
        while os.path.lexists(aside := path.with_name(f"{path.name}.failed-{number}")):
            number += 1
        os.rename(path, aside)
    finally:
        old.close()
    warnings.warn(
        f"the run {path.name!r} failed before its first iteration and is begun anew; what it left is in {aside}",
        stacklevel=3,
    )


def read_run_config(path: Path) -> RunConfig:
    """A resolved config that was kept in a file, under the rules of when it was written. Raises RunFolderError."""
    return parse_config(read_text(path, RunFolderError), str(path))


def parse_config(text: str, source: str) -> RunConfig:
    """A resolved config; RunFolderError where `source` is damaged or another version wrote it."""
    found = parse_yaml(text, source, RunFolderError)
    try:
        return RunConfig.model_validate(found, context=RECORD)
    except ValidationError as error:
        raise RunFolderError(
            f"{source} is damaged or was written by another version of RayRLHF: {first_fault(error)}"
        ) from None


def _differences(before: RunConfig, now: RunConfig) -> list[str]:
    """A line for each setting that differs and may not."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    if old.get("algorithm.clip_range") is not None and old.get("algorithm.clip_range") == new.get(
        "algorithm.clip_range"
    ):
        old["algorithm.importance_cap"] = new.get("algorithm.importance_cap")  # without effect in either
    return [
        f"{name}: {json.dumps(old[name]) if name in old else 'absent'} then, "
        f"{json.dumps(new[name]) if name in new else 'absent'} now"
        for name in sorted(old.keys() | new.keys())
        if (name not in old or name not in new or old[name] != new[name]) and not _may_change(name)
    ]


def _may_change(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in MAY_CHANGE_ON_RESUME)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {name: value}
    return {leaf: v for key, item in items for leaf, v in _flat(item, f"{name}.{key}" if name else key).items()}
