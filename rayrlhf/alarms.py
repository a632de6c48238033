"""What a run keeps of its alarms: a line each in `alarms.jsonl`, and for those that act the batch itself (dumps.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rayrlhf.detector import Alarm
from rayrlhf.detector_config import DetectorAction
from rayrlhf.dumps import KeptBatch, write_dump
from rayrlhf.json_lines import keep_lines, line, open_append, records
from rayrlhf.reading import Count, Number, Whole, is_number
from rayrlhf.run_folder import RunFolder
from rayrlhf.types import Weights


@dataclass(frozen=True, slots=True)
class AlarmRecord:
    """A line of `alarms.jsonl`."""

    iteration: Whole
    rule: str
    value: Number | None  # None: not a finite number
    threshold: Number | None
    action: DetectorAction  # what was done
    attempt: Count  # rollbacks before it
    message: str
    dump: str | None  # folder of the batch, inside the run's; None where none was kept


class AlarmLog:
    """The alarms of one run, as the process that holds the run's lock writes them."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        open_append(folder.alarms).close()  # without what a killed process left torn

    def record(self, alarms: Sequence[Alarm], attempt: int, dump: Path | None) -> None:
        """Appends alarms, on the disk when this returns: what they lead to must not outlive them."""
        place = None if dump is None else dump.relative_to(self._folder.path).as_posix()
        lines = [line(asdict(record_of(alarm, attempt, place))) for alarm in alarms]
        with open_append(self._folder.alarms) as file:
            file.write(b"".join(lines))
            file.sync()

    def keep(self, alarm: Alarm, batch: KeptBatch, weights: Weights) -> Path:
        """Writes the batch that set off `alarm` into a folder of its own; returns that."""
        again = f"-attempt-{batch.attempt}" if batch.attempt else ""
        folder = self._folder.dumps / f"{alarm.iteration:06d}-{alarm.rule}{again}"
        write_dump(folder, batch, weights, alarm.message, self._folder.config)
        return folder

    def batches_kept(self) -> int:
        """How many batches lie in the run's folder."""
        return len(list(self._folder.dumps.glob("[0-9]*"))) if self._folder.dumps.is_dir() else 0

    def truncate(self, iteration: int, attempt: int) -> None:
        """Forgets what the run, back at the start of `iteration` in this attempt, is to find again; alarms that led to
        earlier rollbacks stay."""

        def earlier(row: AlarmRecord) -> bool:
            return row.attempt < attempt or (row.attempt == attempt and row.iteration < iteration)

        keep_lines(self._folder.alarms, AlarmRecord, earlier)


def record_of(alarm: Alarm, attempt: int, dump: str | None) -> AlarmRecord:
    value, threshold = (
        number if number is None or is_number(number) else None for number in (alarm.value, alarm.threshold)
    )
    return AlarmRecord(alarm.iteration, alarm.rule, value, threshold, alarm.action, attempt, alarm.message, dump)


def read_alarms(folder: Path) -> list[AlarmRecord]:
    """The alarms of the run at `folder`, in the order they were given; none where there is no record.

    Raises RunFolderError for a damaged line, and for one that another version of RayRLHF wrote.
    """
    return list(records(RunFolder(folder).alarms, AlarmRecord))
