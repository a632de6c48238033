"""Checks a label file, or a project's store: what it holds, and what is wrong or suspicious, place by place.

Faults are what no import takes, or what would make text of ids with the wrong tokenizer; the rest is warned of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rayrlhf.preferences.formats.content import Header, ReadOptions
from rayrlhf.preferences.formats.registry import read_file
from rayrlhf.preferences.label_drift import drift
from rayrlhf.preferences.label_findings import Finding, Label
from rayrlhf.preferences.label_import import LabelFile
from rayrlhf.preferences.label_specials import padding, spelled_specials
from rayrlhf.preferences.records import Comparison, Rating
from rayrlhf.preferences.store import FILE_NAME, RatingStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_AUTOMATIC_SHARE = 0.3  # of comparisons that nobody looked at (SPEC GWERN-8)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a file holds and what was found in it."""

    path: Path
    format: str
    types: Counter[str]  # label type -> labels
    items: int  # different texts
    ties: Counter[str]  # "tie", "both bad" -> comparisons
    doubled_ties: int  # ties that the file writes as several records, each with another winner
    first_wins: tuple[int, int]  # decisive comparisons that the first text won, and all of them
    sources: Counter[str]  # of comparisons and ratings
    raters: Counter[str]
    left_out: Counter[str]  # sound lines that are no labels or texts to rate
    findings: tuple[Finding, ...]
    statements: tuple[str, ...] = field(default=())  # what comparing with rollouts gave

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.fault]


def check(
    path: Path,
    options: ReadOptions,
    format: str | None = None,
    rollouts: Path | None = None,
    fingerprint: str | None = None,
) -> CheckReport:
    """Reads a label file, or the store of a project's folder, and reports on it.

    options: its tokenizer, where there is one, makes text of ids. rollouts: a run's folder or any file of texts, whose
    queries, first tokens and lengths the labels are held against. fingerprint: of the tokenizer.

    Raises:
        PreferenceError: a file cannot be read at all.
    """
    if (path / FILE_NAME).is_file():
        name, labels, findings, left_out = "project", *_of_store(path, fingerprint)
    else:
        file = LabelFile(path, *read_file(path, options, format))
        name = file.format
        labels, findings, left_out = _labels(file), list(_file_faults(file, fingerprint)), file.left_out
    tokenizer = options.tokenizer
    findings += _outside_vocabulary(labels, tokenizer)
    findings += _empty(labels)
    findings += _repeated(labels)
    findings += _automatic(path, labels)
    findings += spelled_specials(labels, tokenizer)
    findings += padding(labels, tokenizer)
    statements: tuple[str, ...] = ()
    if rollouts is not None:
        played = LabelFile(rollouts, *read_file(rollouts, options))
        findings += _unreadable(played)
        labelled = [item for label in labels for item in label.items]
        statements, drifts = drift(path, labelled, list(played.items()), tokenizer)
        findings += drifts
    return _report(path, name, labels, left_out, findings, statements)


def _unreadable(file: LabelFile) -> list[Finding]:
    return [Finding("unreadable", f"{file.path}:{fault.line}", fault.message, fault=True) for fault in file.faults]


def _labels(file: LabelFile) -> list[Label]:
    return [Label(f"{file.path}:{entry.line}", entry.items, entry.record, entry.rows) for entry in file.entries]


def _of_store(folder: Path, fingerprint: str | None) -> tuple[list[Label], list[Finding], Counter[str]]:
    with RatingStore(folder / FILE_NAME) as store:
        history, items, meta = store.history(), store.items(), store.meta()
    labels: list[Label] = []
    used: set[str] = set()
    for record, retracted in history:
        ids = (record.item,) if isinstance(record, Rating) else record.items
        used.update(ids)
        if not retracted:
            place = f"{folder}: {type(record).__name__.lower()} {record.id}"
            labels.append(Label(place, tuple(items[item] for item in ids), record))
    labels += [Label(f"{folder}: item {item.id}", (item,), None) for item in items.values() if item.id not in used]
    findings: list[Finding] = []
    if fingerprint is not None and meta.get("tokenizer", fingerprint) != fingerprint:
        findings.append(_other_tokenizer(str(folder), meta["tokenizer"], fingerprint))
    return labels, findings, Counter({"retracted": sum(retracted for _, retracted in history)})


def _file_faults(file: LabelFile, fingerprint: str | None) -> Iterator[Finding]:
    yield from _unreadable(file)
    headers = [outcome for outcome in file.outcomes if isinstance(outcome, Header)]
    for header in headers:
        named = header.meta.get("tokenizer")
        if fingerprint is not None and named is not None and named != fingerprint:
            yield _other_tokenizer(f"{file.path}:{header.line}", named, fingerprint)
    if file.format == "native" and file.has_ids and "tokenizer" not in file.meta:
        yield Finding("no fingerprint", f"{file.path}:1", "it has token ids, and no header names their tokenizer")


def _other_tokenizer(place: str, named: str, fingerprint: str) -> Finding:
    return Finding(
        "other tokenizer", place, f"its ids are of the tokenizer {named}, the one given is {fingerprint}", fault=True
    )


def _outside_vocabulary(labels: Sequence[Label], tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Finding]:
    if tokenizer is None:
        return
    for label in labels:
        highest = max(
            (token for item in label.items for token in (*(item.prompt_ids or ()), *(item.text_ids or ()))), default=0
        )
        if highest >= len(tokenizer):
            yield Finding(
                "outside the vocabulary",
                label.place,
                f"id {highest}; the tokenizer has {len(tokenizer)} tokens",
                fault=True,
            )


def _empty(labels: Sequence[Label]) -> Iterator[Finding]:
    """Texts of no character, or of blanks alone: most often a field that was left out."""
    for label in labels:
        for number, item in enumerate(label.items):
            if not item.text.strip() and not item.text_ids:
                which = f"text {number + 1} of {len(label.items)}" if len(label.items) > 1 else "its text"
                yield Finding("empty text", label.place, f"{which} is empty")


def _repeated(labels: Sequence[Label]) -> Iterator[Finding]:
    """Pairs that one rater judged twice without being asked again: alike (a duplicate), or each way."""
    first: dict[tuple[str, frozenset[str]], tuple[str, str]] = {}
    for label in labels:
        record = label.record
        if not isinstance(record, Comparison) or record.repeats:
            continue
        verdict = record.winner or str(record.best)
        earlier = first.setdefault((record.rater, frozenset(record.items)), (label.place, verdict))
        if earlier[0] == label.place:
            continue
        if earlier[1] == verdict:
            yield Finding("duplicate", label.place, f"the same label as {earlier[0]}")
        else:
            yield Finding(
                "contradiction", label.place, f"contradicts {earlier[0]}: same texts, same rater, another verdict"
            )


def _automatic(path: Path, labels: Sequence[Label]) -> Iterator[Finding]:
    sources = Counter(label.record.source for label in labels if isinstance(label.record, Comparison))
    automatic = sources["auto"] + sources["weak"]
    if automatic > MAX_AUTOMATIC_SHARE * sources.total():
        yield Finding(
            "automatic labels",
            str(path),
            f"{automatic / sources.total():.0%} of the comparisons are automatic, more than {MAX_AUTOMATIC_SHARE:.0%}: a "
            "reward model may learn the check instead of the preference",
        )


def _report(
    path: Path,
    name: str,
    labels: Sequence[Label],
    left_out: Counter[str],
    findings: Sequence[Finding],
    statements: tuple[str, ...],
) -> CheckReport:
    comparisons = [label.record for label in labels if isinstance(label.record, Comparison)]
    judged = [label.record for label in labels if isinstance(label.record, Comparison | Rating)]
    decisive = [record for record in comparisons if record.winner is not None]
    items = {item.id for label in labels for item in label.items}
    return CheckReport(
        path=path,
        format=name,
        types=Counter(_type(label) for label in labels),
        items=len(items),
        ties=Counter(str(record.best).replace("_", " ") for record in comparisons if record.winner is None),
        doubled_ties=sum(label.rows > 1 for label in labels),
        first_wins=(sum(record.best == 0 for record in decisive), len(decisive)),
        sources=Counter(record.source for record in judged),
        raters=Counter(record.rater or "(unnamed)" for record in judged),
        left_out=left_out,
        findings=tuple(findings),
        statements=statements,
    )


def _type(label: Label) -> str:
    """By the names of SPEC LMHP-2."""
    record = label.record
    if isinstance(record, Comparison):
        return "scalar_compare" if record.difference is not None else f"best_of_{len(record.items)}"
    if isinstance(record, Rating):
        return "scalar_rating"
    return "item" if record is None and label.items else "retraction" if record is None else "skip"
