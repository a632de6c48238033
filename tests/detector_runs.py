"""The signals of recorded runs, which test_divergence.py feeds to the rules.

`python tests/detector_runs.py RUN... > tests/fixtures/detector_runs.json` takes them from runs' folders. Those kept are
of the recipe `alliteration` (60 iterations): healthy-N as it is with seed N, and with its learning rate times 100, its KL
coefficient's sign turned round, or 0 for a coefficient.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path

from rayrlhf.config import RunConfig
from rayrlhf.detector import Detector
from rayrlhf.metrics import BASELINE_ITERATION, iter_samples, read_metrics

GAP = ("learner/logprob_gap_max", 1e-4)
FIXTURE = Path(__file__).with_name("fixtures") / "detector_runs.json"
NATS = "objective/kl"  # a sequence: not a signal, but what the runs are held against


def signals_of_run(folder: Path) -> list[dict[str, float]]:
    """Of each iteration, to four digits."""
    detector = Detector(RunConfig().detector, GAP)
    metrics = {int(row["iteration"]): row for row in read_metrics(folder)}
    rows = []
    for iteration, records in groupby(iter_samples(folder), key=lambda record: record.iteration):
        if iteration == BASELINE_ITERATION:
            detector.base(records)
        elif iteration in metrics:
            detector.observe(iteration, metrics[iteration], records)
            signals = {**detector._recent[-1], NATS: metrics[iteration][NATS]}
            rows.append({name: float(f"{value:.4g}") for name, value in signals.items()})
    return rows


def columns(rows: list[dict[str, float]]) -> dict[str, list[float | None]]:
    names = sorted({name for row in rows for name in row})
    return {name: [row.get(name) for row in rows] for name in names}


def read_runs() -> dict[str, list[dict[str, float]]]:
    """Run -> the signals of its iterations."""
    runs = json.loads(FIXTURE.read_text())
    return {
        run: [
            {name: value for name, value in zip(columns, values) if value is not None}
            for values in zip(*columns.values())
        ]
        for run, columns in runs.items()
    }


if __name__ == "__main__":
    taken = {Path(folder).name: columns(signals_of_run(Path(folder))) for folder in sys.argv[1:]}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(run, separators=(',', ':'))}" for name, run in taken.items())
    print(f"{{\n{lines}\n}}")
