"""What `rayrlhf labels` prints. A text of a file is shown in ASCII: it may hold what a terminal would obey."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rayrlhf.preferences.formats.content import Export
from rayrlhf.preferences.label_check import CheckReport
from rayrlhf.preferences.label_findings import Finding
from rayrlhf.preferences.label_import import ImportReport, LabelFile

SHOWN = 5  # findings of a kind that are shown one by one


def import_lines(file: LabelFile, report: ImportReport) -> list[str]:
    lines = [
        f"{file.path} ({file.format}): {report.rows} rows read, {report.labels} labels ({report.new} new, "
        f"{report.present} already there), {report.new_items} new texts, {report.refused} rows refused"
    ]
    lines += [f"  left out: {count} {reason}" for reason, count in report.left_out.items()]
    if report.retracted:
        lines.append(f"  taken back: {report.retracted} labels")
    merged = sum(entry.rows > 1 for entry in file.entries)
    if merged:
        lines.append(f"  {merged} ties were written as several rows, each with another winner")
    lines += [f"  refused {file.path}:{fault.line}: {fault.message}" for fault in file.faults]
    return lines


def export_lines(file: Path, export: Export) -> list[str]:
    lines = [f"{file}: {len(export.rows)} rows written"]
    lines += [f"  {note}" for note in export.notes]
    lines += [
        f"  not written, since the format cannot hold them: {count} {name}" for name, count in export.left_out.items()
    ]
    return lines


def check_lines(report: CheckReport) -> list[str]:
    warnings = [finding for finding in report.findings if not finding.fault]
    wins, decisive = report.first_wins
    lines = [
        f"{report.path} ({report.format or 'format unknown'})",
        f"  labels: {_counts(report.types)}; {report.items} different texts",
        f"  ties: {_counts(report.ties)}; {report.doubled_ties} of them written as several rows",
        *([f"  the first text won {wins} of {decisive} decisive comparisons"] if decisive else []),
        f"  sources: {_shares(report.sources)}",
        f"  raters: {_shares(report.raters)}",
    ]
    if +report.left_out:
        lines.append(f"  left out: {_counts(report.left_out)}")
    lines += [f"  {statement}" for statement in report.statements]
    lines += _grouped("fault", report.faults) + _grouped("warning", warnings)
    return [*lines, f"{len(report.faults)} faults, {len(warnings)} warnings"]


def _grouped(name: str, findings: list[Finding]) -> list[str]:
    lines: list[str] = []
    for kind, count in Counter(finding.kind for finding in findings).items():
        shown = [finding for finding in findings if finding.kind == kind][:SHOWN]
        lines += [f"{name}: {finding.place}: {finding.message}" for finding in shown]
        if count > len(shown):
            lines.append(f"{name}: {count - len(shown)} more of the kind: {kind}")
    return lines


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"


def _shares(counts: Counter[str]) -> str:
    total = counts.total()
    return (
        ", ".join(f"{ascii(name)[1:-1]} {count} ({count / total:.0%})" for name, count in counts.most_common())
        or "none"
    )
