"""What was made from what in one round of the loop: `rounds/000/manifest.json`, one entry a finished stage."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rayrlhf.errors import PreferenceError
from rayrlhf.files import read_record, replace_file

Stage = Literal["sample", "check", "rate", "rank", "reward_model", "optimise", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished stage."""

    made_from: Mapping[str, Any]  # names and numbers of what went in
    made: Mapping[str, Any]  # counts, figures and paths of what came out
    seconds: float  # wall time of the stage's last go
    finished: float  # seconds since 1970


class Round:
    """One round's folder."""

    def __init__(self, project: Path, number: int) -> None:
        self.number = number
        self.folder = project / "rounds" / f"{number:03d}"
        self.entries: dict[str, Entry] = _read(self.folder / MANIFEST)

    def done(self, stage: Stage) -> bool:
        return stage in self.entries

    @property
    def finished(self) -> bool:
        return all(stage in self.entries for stage in STAGES)

    def made(self, stage: Stage) -> Mapping[str, Any]:
        """What a finished stage made."""
        return self.entries[stage].made

    def finish(self, stage: Stage, made_from: Mapping[str, Any], made: Mapping[str, Any], since: float) -> None:
        """Records that a stage is done. since: `time.monotonic()` of its beginning."""
        self.entries[stage] = Entry(dict(made_from), dict(made), time.monotonic() - since, time.time())
        self.folder.mkdir(parents=True, exist_ok=True)
        told = {name: asdict(entry) for name, entry in self.entries.items()}
        replace_file(self.folder / MANIFEST, [json.dumps(told, indent=1).encode()])


def begun_rounds(project: Path) -> list[Round]:
    """The rounds of a project that have begun, in order."""
    folders = sorted((project / "rounds").glob("[0-9][0-9][0-9]"))
    return [Round(project, int(folder.name)) for folder in folders]


def _read(path: Path) -> dict[str, Entry]:
    if not path.is_file():
        return {}
    return read_record(path, dict[str, Entry], PreferenceError, "move its round's folder away to make it again")
