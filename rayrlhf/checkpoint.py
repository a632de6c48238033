"""Checkpoints of a run: a folder each, written aside, checksummed, manifest last, renamed into place.

    checkpoints/000050/model/               what `from_pretrained` loads; the reference is never in it (SPEC TW-23)
                      /trainer/             the learner's state, kept for the latest few
                      /value/               a value network, where there is one
                      /trainer_state.json   all else that a resumed run needs
                      /manifest.json        size and sha256 of every file

The process may be killed at any point: what counts is under a name of digits, what is on its way under `.partial-`,
what is on its way out under `.removed-`. One that gives way to a new one of the same name exchanges names with it; where the
file system cannot do that at once, it waits under `.replaced-`.
The checksums guard against damage, not against malice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrlhf.errors import CheckpointError, UserError
from rayrlhf.files import (
    Count,
    exchange,
    parse_json,
    printable,
    read_bytes,
    read_record,
    replace_file,
    storage_error,
    storing,
    sync_folder,
    typed,
)

FORMAT = 1  # of the manifest; raised when an older reader could not read a newer checkpoint
MANIFEST = "manifest.json"
STATE = "trainer_state.json"
MODEL = "model"
TRAINER = "trainer"
VALUE = "value"

_WHOLE = re.compile(r"\d{6,}")
_LEFTOVER = re.compile(r"\.(partial|removed|replaced)-(\d{6,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint whose files were all found as they were written."""

    iteration: int  # iterations done
    model: Path  # folder for `from_pretrained`: the policy alone
    trainer: Path  # folder of the learner's state
    state: Mapping[str, Any]  # what `commit` was given


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint's manifest says of it."""

    iteration: int
    files: Mapping[str, tuple[int, str]]  # path inside the checkpoint -> (bytes, sha256 in hex)

    @property
    def resumable(self) -> bool:
        """Whether the learner's state is still there."""
        return any(path.startswith(f"{TRAINER}/") for path in self.files)

    def to_json(self) -> bytes:
        files = {path: {"bytes": size, "sha256": digest} for path, (size, digest) in sorted(self.files.items())}
        return json.dumps({"format": FORMAT, "iteration": self.iteration, "files": files}, indent=1).encode()


class _Damaged(UserError):
    """A manifest is not what `Manifest.to_json` writes."""


@dataclass(frozen=True, slots=True)
class _Format:
    format: Any


@dataclass(frozen=True, slots=True)
class _File:
    bytes: Count
    sha256: str


@dataclass(frozen=True, slots=True)
class _Told:
    """What a manifest holds."""

    iteration: Count
    files: dict[str, _File]


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint at `path`; raises CheckpointError where it is missing, unreadable or another's."""
    try:
        if not os.path.isfile(path / MANIFEST):
            raise CheckpointError(f"checkpoint {path} has no {MANIFEST}: it is no checkpoint, or was cut short")
        content = parse_json(read_bytes(path / MANIFEST, CheckpointError), MANIFEST, _Damaged)
        if typed(_Format, content, MANIFEST, _Damaged).format != FORMAT:
            raise CheckpointError(
                f"checkpoint {path} has format {content['format']!r:.40}; this version of RayRLHF reads format {FORMAT}: "
                "use the version that wrote it"
            )
        told = typed(_Told, content, MANIFEST, _Damaged)
        if STATE not in told.files:
            raise _Damaged(f"{MANIFEST}: it does not list {STATE}")
    except _Damaged as error:
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} is damaged ({error})") from None
    manifest = Manifest(told.iteration, {name: (file.bytes, file.sha256) for name, file in told.files.items()})
    if f"{manifest.iteration:06d}" != path.name:
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} is that of iteration {manifest.iteration}")
    return manifest


def verify(path: Path) -> Manifest:
    """Reads every file of the checkpoint at `path`; CheckpointError names what is missing, changed or strange."""
    manifest = read_manifest(path)
    found = _regular_files(path)
    for name, (size, digest) in manifest.files.items():
        if name not in found:
            raise CheckpointError(f"checkpoint {path}: {name} is missing")
        if found[name] != size:
            raise CheckpointError(f"checkpoint {path}: {name} has {found[name]} bytes instead of {size}")
        if _sha256(path / name) != digest:
            raise CheckpointError(f"checkpoint {path}: {name} is damaged (its sha256 differs)")
    _refuse_added(path, manifest, found.keys() - manifest.files.keys())
    return manifest


def _refuse_added(path: Path, manifest: Manifest, added: Iterable[str]) -> None:
    """Raises CheckpointError for a file that would be loaded with the rest of its folder; any other is never read.

    A trainer state on its way out is not loaded.
    """
    for name in sorted(added):
        folder = name.partition("/")[0]
        if folder in (MODEL, VALUE) or (folder == TRAINER and manifest.resumable):
            raise CheckpointError(f"checkpoint {path}: {printable(name)} was added after it was written; remove it")
        if folder != TRAINER:
            warnings.warn(f"checkpoint {path}: {printable(name)} is none of its files and is not read", stacklevel=3)


def whole_checkpoints(folder: Path) -> list[int]:
    """Iterations of the checkpoints in `folder`, rising; says nothing of their health."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if _WHOLE.fullmatch(entry.name))


def newest_model(folder: Path) -> Path:
    """The newest intact model folder among the checkpoints in `folder`; for readers: it changes nothing.

    Raises CheckpointError where there is none; a damaged one is passed over with a warning that names it.
    """
    for iteration in reversed(whole_checkpoints(folder)):
        path = folder / f"{iteration:06d}"
        try:
            verify(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; the one before it is taken", stacklevel=2)
        else:
            return path / MODEL
    raise CheckpointError(f"{folder} holds no intact checkpoint: train until the first one is written")


class CheckpointStore:
    """The checkpoints of one run, as the process that holds the run's lock writes and resumes them."""

    def __init__(self, folder: Path, keep: int, keep_trainer_state: int, keep_back: int | None = None) -> None:
        """folder: is made if missing, and cleared of what a killed process left behind. keep: how many models stay.

        keep_trainer_state: how many of the latest also keep what a resumed run needs. keep_back: of a run that may roll
        back, how many iterations; the checkpoints of the last so many, and the newest one before them, stay whole, so
        that there is always one to go back to.
        """
        if keep < 1 or keep_trainer_state < 1:
            raise ValueError(f"keep ({keep}) and keep_trainer_state ({keep_trainer_state}) must be at least 1")
        self.folder = folder
        self._keep = keep
        self._keep_trainer_state = keep_trainer_state
        self._keep_back = keep_back
        self._damaged: set[int] = set()  # found so by `latest`: left in place, not counted
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._clear_leftovers()

    def begin(self, iteration: int) -> Path:
        """An empty folder into which the caller writes `model/` and `trainer/`, before `commit`."""
        partial = self.folder / f".partial-{iteration:06d}"
        if partial.exists():
            shutil.rmtree(partial)
        with storing(partial):
            partial.mkdir()
        return partial

    def abandon(self, partial: Path) -> None:
        """Removes what `begin` made and could not be finished, so that it takes no room."""
        shutil.rmtree(partial, ignore_errors=True)

    def commit(self, partial: Path, iteration: int, state: Mapping[str, Any]) -> None:
        """Makes what was written into `partial` the checkpoint of `iteration`, on the disk, then prunes older ones.

        state: JSON values (tuples come back as lists). Raises CheckpointError where a file is a link or no plain file,
        StorageError where the disk refuses; the checkpoints before it are untouched then.
        """
        if partial != self.folder / f".partial-{iteration:06d}":
            raise ValueError(f"{partial} is not what begin({iteration}) returned")
        encoded = json.dumps(dict(state), allow_nan=False)
        try:
            (partial / STATE).write_text(encoded)
            names = _regular_files(partial)
            for part in (MODEL, TRAINER):
                if not any(name.startswith(f"{part}/") for name in names):
                    raise ValueError(f"nothing was written into {partial / part}")
            files = {name: (size, _sha256(partial / name, flush=True)) for name, size in names.items()}
            for folder in (entry for entry in partial.rglob("*") if entry.is_dir()):
                sync_folder(folder)
            replace_file(partial / MANIFEST, [Manifest(iteration, files).to_json()])
            self._put_in_place(partial, iteration)
            self._prune()
        except OSError as error:
            raise storage_error(self._path(iteration), error) from error

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint that a run can resume from; None where nothing was ever saved.

        Every file is read. A damaged one is named in a warning and the one before it is taken; CheckpointError where
        there are checkpoints and none serves.
        """
        faults: list[str] = []
        for iteration in reversed(whole_checkpoints(self.folder)):
            path = self._path(iteration)
            try:
                manifest = verify(path)
            except CheckpointError as error:
                self._damaged.add(iteration)
                faults.append(str(error))
                continue
            if not manifest.resumable:
                faults.append(f"checkpoint {path} holds a model only, nothing to resume from")
                continue
            for fault in faults:
                warnings.warn(f"{fault}; the one of iteration {iteration} is taken", stacklevel=2)
            state = read_record(path / STATE, dict[str, Any], CheckpointError, "take an earlier checkpoint")
            return Checkpoint(iteration, path / MODEL, path / TRAINER, state)
        if faults:
            raise CheckpointError("no checkpoint can be resumed from:\n  " + "\n  ".join(faults))
        return None

    def resumable_at_most(self, iteration: int) -> int | None:
        """The newest checkpoint of at most so many iterations that still has the learner's state; files are not read."""
        for found in reversed(whole_checkpoints(self.folder)):
            if found > iteration or found in self._damaged:
                continue
            try:
                if read_manifest(self._path(found)).resumable:
                    return found
            except CheckpointError as error:
                warnings.warn(f"{error}; the one before it is taken", stacklevel=2)
        return None

    def discard_after(self, iteration: int) -> None:
        """Removes the checkpoints of more iterations, newest first: a process killed on the way leaves the older ones.

        The one that is gone back to is read first: CheckpointError where it is damaged, and then nothing is removed.
        """
        kept = self.resumable_at_most(iteration)
        if kept is not None:
            verify(self._path(kept))
        for found in reversed(whole_checkpoints(self.folder)):
            if found > iteration:
                self._remove(found)
        sync_folder(self.folder)

    def _put_in_place(self, partial: Path, iteration: int) -> None:
        target = self._path(iteration)
        replaced = self.folder / f".replaced-{iteration:06d}"
        if not target.exists():
            os.rename(partial, target)
        elif exchange(partial, target):
            replaced = partial  # under this name now; a killed process leaves it for `_clear_leftovers`
        else:  # two renames: a process killed between them finds the old one as `.replaced-`
            os.rename(target, replaced)
            os.rename(partial, target)
        sync_folder(self.folder)
        self._damaged.discard(iteration)
        if replaced.exists():
            shutil.rmtree(replaced)

    def _prune(self) -> None:
        """Removes the oldest models beyond `keep`, and the learner's state of all but the latest few."""
        healthy = [iteration for iteration in whole_checkpoints(self.folder) if iteration not in self._damaged]
        needed = self._needed(healthy)
        for iteration in [old for old in healthy[: -self._keep] if old not in needed]:
            self._remove(iteration)
        for iteration in [old for old in healthy[-self._keep : -self._keep_trainer_state] if old not in needed]:
            self._drop_trainer_state(self._path(iteration))
        sync_folder(self.folder)

    def _needed(self, healthy: Sequence[int]) -> set[int]:
        """What a rollback may go back to, now or later: the last `keep_back` iterations and the newest before them."""
        if self._keep_back is None or not healthy:
            return set()
        edge = healthy[-1] - self._keep_back
        before = self.resumable_at_most(edge)
        return {iteration for iteration in healthy if iteration > edge or iteration == before}

    def _path(self, iteration: int) -> Path:
        return self.folder / f"{iteration:06d}"

    def _remove(self, iteration: int) -> None:
        removed = self.folder / f".removed-{iteration:06d}"
        os.rename(self._path(iteration), removed)  # at once: half of a checkpoint never has its name
        shutil.rmtree(removed)

    def _drop_trainer_state(self, path: Path) -> None:
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; it is left as it is", stacklevel=2)
            return
        if manifest.resumable:
            files = {name: file for name, file in manifest.files.items() if not name.startswith(f"{TRAINER}/")}
            replace_file(path / MANIFEST, [Manifest(manifest.iteration, files).to_json()])
        if (path / TRAINER).exists():
            shutil.rmtree(path / TRAINER)

    def _clear_leftovers(self) -> None:
        """Ends what a killed process had begun."""
        for entry in sorted(self.folder.iterdir()):
            leftover = _LEFTOVER.fullmatch(entry.name)
            if leftover is None:
                continue
            target = self.folder / leftover[2]
            if leftover[1] == "replaced" and not target.exists():
                os.rename(entry, target)
            else:
                shutil.rmtree(entry)


def _regular_files(folder: Path) -> dict[str, int]:
    """Path inside `folder` -> bytes, of all files but the manifest; CheckpointError for what is no plain file."""
    files: dict[str, int] = {}
    for entry in sorted(folder.rglob("*")):  # does not follow links
        status = entry.lstat()
        name = entry.relative_to(folder).as_posix()
        if stat.S_ISREG(status.st_mode):
            files[name] = status.st_size
        elif not stat.S_ISDIR(status.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no plain file"
            raise CheckpointError(
                f"checkpoint {folder}: {name} is {kind}; only plain files can be checksummed and kept"
            )
    return {name: size for name, size in files.items() if name not in (MANIFEST, f".{MANIFEST}.new")}


def _sha256(path: Path, flush: bool = False) -> str:
    """Checksum of a file's bytes; flush: onto the disk with them first."""
    with open(path, "rb") as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
