"""Takes label files into a rating store: all lines of all files, or none (SPEC LMHP-5: what is not used is said)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.formats.content import Entry, Fault, Header, LeftOut, Outcome
from rayrlhf.preferences.records import Item
from rayrlhf.preferences.schema import Record
from rayrlhf.preferences.store import RatingStore

NAMED_FAULTS = 20  # so many are named one by one


@dataclass(frozen=True, slots=True)
class LabelFile:
    """What the lines of a label file say."""

    path: Path
    format: str
    outcomes: tuple[Outcome, ...]

    @property
    def entries(self) -> list[Entry]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Entry)]

    @property
    def faults(self) -> list[Fault]:
        return sorted(
            (outcome for outcome in self.outcomes if isinstance(outcome, Fault)), key=lambda fault: fault.line
        )

    @property
    def meta(self) -> Mapping[str, str]:
        """What its headers say."""
        return {
            key: value
            for outcome in self.outcomes
            if isinstance(outcome, Header)
            for key, value in outcome.meta.items()
        }

    @property
    def left_out(self) -> Counter[str]:
        return Counter(outcome.reason for outcome in self.outcomes if isinstance(outcome, LeftOut))

    @property
    def has_ids(self) -> bool:
        return any(item.text_ids is not None or item.prompt_ids is not None for item in self.items())

    def items(self) -> Iterable[Item]:
        return (item for entry in self.entries for item in entry.items)


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of a file."""

    labels: int  # comparisons, ratings and skips that it holds
    rows: int  # lines or elements that were read as labels or items
    new: int  # labels that the store did not have
    new_items: int
    retracted: int  # labels that the file takes back
    refused: int  # faulty lines
    left_out: Mapping[str, int]  # why -> how many sound lines

    @property
    def present(self) -> int:
        """Labels that were there already."""
        return self.labels - self.new


def refuse_faults(files: Sequence[LabelFile], advice: str) -> None:
    """Raises PreferenceError that names the first faults of all files, where there are any."""
    faults = [f"{file.path}:{fault.line}: {fault.message}" for file in files for fault in file.faults]
    if not faults:
        return
    more = [f"and {len(faults) - NAMED_FAULTS} more"] if len(faults) > NAMED_FAULTS else []
    raise PreferenceError("\n".join([*faults[:NAMED_FAULTS], *more, advice]))


def import_file(store: RatingStore, file: LabelFile, tokenizer: str | None = None) -> ImportReport:
    """Adds what a file says. Its faulty lines are passed over: whoever calls has accepted them.

    tokenizer: fingerprint of the tokenizer that the user named for the file's ids.

    Raises:
        PreferenceError: the file's header contradicts the store's or the named tokenizer, it takes back a label that
            neither it nor the store has, or an id in it is taken by another item.
    """
    meta = dict(file.meta)
    if tokenizer is not None and file.has_ids:
        if meta.get("tokenizer", tokenizer) != tokenizer:
            raise PreferenceError(
                f"{file.path}: its ids are of the tokenizer {meta['tokenizer']}, the one named by --tokenizer is {tokenizer}"
            )
        meta["tokenizer"] = tokenizer
    known = store.meta()
    for key, value in meta.items():
        if known.get(key, value) != value:
            raise PreferenceError(
                f"{file.path}: its {key} is {value!r}, and that of {store.path} {known[key]!r}: import it into a project "
                "of its own"
            )
    entries = file.entries
    records = [entry.record for entry in entries if entry.record is not None]
    stored = {record.id: record for record, _ in store.history()}
    _refuse_other_labels(store, file, stored)
    _refuse_unknown_retractions(store, file, stored)
    new_items = store.add_items(file.items())
    new = store.add(*records)
    for key, value in meta.items():
        if key not in known:
            store.set_meta(key, value)
    return ImportReport(
        labels=len(records),
        rows=sum(entry.rows for entry in entries),
        new=new,
        new_items=new_items,
        retracted=sum(store.retract(entry.retracts) for entry in entries if entry.retracts),
        refused=len(file.faults),
        left_out=file.left_out,
    )


def _refuse_other_labels(store: RatingStore, file: LabelFile, stored: Mapping[str, Record]) -> None:
    """An id that is there already has to be of the same label, but for the time where a file has none."""
    for entry in file.entries:
        found = stored.get(entry.record.id) if entry.record is not None else None
        if (
            found is not None
            and entry.record is not None
            and replace(found, created=entry.record.created) != entry.record
        ):
            raise PreferenceError(f"{file.path}:{entry.line}: {store.path} has another label with the id {found.id}")


def _refuse_unknown_retractions(store: RatingStore, file: LabelFile, stored: Mapping[str, Record]) -> None:
    entries = file.entries
    own = {entry.record.id for entry in entries if entry.record is not None}
    for entry in entries:
        if entry.retracts and entry.retracts not in own and entry.retracts not in stored:
            raise PreferenceError(
                f"{file.path}:{entry.line}: it takes back {entry.retracts!r}, and neither the file nor {store.path} has "
                "a label of that id"
            )
