"""The files that a session of `rayrlhf play` leaves behind: its transcript, and training data made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayrlhf.play.transcripts import (
    Header,
    PlayedTurn,
    Transcript,
    TranscriptError,
    preference_rows,
    sft_rows,
    write_rows,
    write_transcript,
)

DEFAULT_FILE = Path("transcript.jsonl")


class TranscriptFile:
    """Where a session's transcript goes: a file given at the start is kept up to date, others are written when asked.

    Files of anything else are never written over.
    """

    def __init__(self, header: Header, path: Path | None):
        """Raises TranscriptError for a file that is there already, or whose folder is not."""
        if path is not None:
            check_new(path)
        self._header = header
        self._kept_up = path
        self._last = path or DEFAULT_FILE
        self._own: set[Path] = set() if path is None else {path}

    def keep_up(self, record: Sequence[PlayedTurn]) -> None:
        """To be told of each change of the record."""
        if self._kept_up is not None:
            write_transcript(self._kept_up, Transcript(self._header, tuple(record)))

    def save(self, path: Path | None, record: Sequence[PlayedTurn]) -> Path:
        """Writes the record to this file, None: to the one before; returns which. Raises TranscriptError."""
        target = path or self._last
        if target not in self._own:
            check_new(target)
        write_transcript(target, Transcript(self._header, tuple(record)))
        self._own.add(target)
        self._last = target
        return target


@dataclass(frozen=True, slots=True)
class Exports:
    """Files for training data; None: not written."""

    sft: Path | None = None
    preferences: Path | None = None

    def check(self) -> None:
        """Raises TranscriptError for a file that is there already, or whose folder is not."""
        for path in (self.sft, self.preferences):
            if path is not None:
                check_new(path)

    def write(self, turns: Sequence[PlayedTurn]) -> list[str]:
        """Writes the files; returns a line about each."""
        told = []
        if self.sft is not None:
            write_rows(self.sft, rows := sft_rows(turns))
            told.append(f"{len(rows)} moves to imitate in {self.sft}")
        if self.preferences is not None:
            write_rows(self.preferences, rows := preference_rows(turns))
            told.append(f"{len(rows)} preferences in {self.preferences}")
        return told


def check_new(path: Path) -> None:
    """Raises TranscriptError where the file is there already, or its folder is not."""
    if path.exists():
        raise TranscriptError(f"{path} is there already: give another file, or remove it")
    if not path.absolute().parent.is_dir():
        raise TranscriptError(f"{path}: there is no folder {path.parent}; make it first")
