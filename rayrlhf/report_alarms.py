"""The detector's alarms in a run's report: as recorded, or of an older run what the rules find in its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayrlhf.alarms import AlarmRecord, read_alarms, record_of
from rayrlhf.detector import detect
from rayrlhf.errors import RunFolderError
from rayrlhf.report_page import text
from rayrlhf.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class RunAlarms:
    """The alarms of a run."""

    records: Sequence[AlarmRecord]
    recorded: bool  # by the run itself; else found afterwards

    @property
    def iterations(self) -> list[int]:
        """Of the alarms that the run's curves still show: those before its last rollback belong to what it took back."""
        last = max((record.attempt for record in self.records), default=0)
        return sorted({record.iteration for record in self.records if record.attempt == last})


def alarms_of(run: RunFolder) -> RunAlarms:
    """Raises RunFolderError for damaged records. A run whose config this version cannot read has none to find."""
    if run.alarms.exists():
        return RunAlarms(read_alarms(run.path), recorded=True)
    try:
        config = run.read_config()
    except RunFolderError:
        return RunAlarms((), recorded=False)
    from rayrlhf.run_parts import logprob_gap  # loads torch and Ray, which reports of newer runs do without

    found = detect(run.path, config.detector, logprob_gap(config))
    return RunAlarms([record_of(alarm, attempt=0, dump=None) for alarm in found], recorded=False)


def alarm_table(alarms: RunAlarms) -> str:
    """A row an alarm; nothing where the detector was silent."""
    if not alarms.records:
        return ""
    rows = "".join(_row(record, alarms.recorded) for record in alarms.records)
    note = "" if alarms.recorded else "<p>Found in the records: the run had no detector.</p>"
    return (
        f'<h2>Alarms</h2><div class="notes">{note}</div><div class="wide"><table class="evaluation">'
        "<tr><th>Iteration</th><th>Rule</th><th>Done</th><th>What it found</th><th>Batch</th></tr>"
        f"{rows}</table></div>"
    )


def _row(record: AlarmRecord, recorded: bool) -> str:
    iteration = f"{record.iteration}" + (f" (attempt {record.attempt})" if record.attempt else "")
    done = text(record.action) if recorded else "–"
    found = f'<td style="white-space:normal;text-align:left">{text(record.message)}</td>'
    batch = text(record.dump or "")
    return f"<tr><td>{iteration}</td><td>{text(record.rule)}</td><td>{done}</td>{found}<td>{batch}</td></tr>"
