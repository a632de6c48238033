"""What a person sees of a sweep: a table of its trials on a terminal, a line at each trial's end anywhere else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rayrlhf.progress import duration
from rayrlhf.reading import Damage, Number, json_value, typed_value
from rayrlhf.terminal_output import plain_console
from rayrlhf.tune.folder import SweepFolder, read_ending
from rayrlhf.tune.plan import Trial
from rayrlhf.tune.space import shown_values

REFRESH_S = 2.0
MOST_ROWS = 40  # of a table that is taller than a screen, what runs and what ended last are shown
_TAIL_BYTES = 16_384  # a line of metrics is shorter


@dataclass(slots=True)
class Row:
    """One trial in the table."""

    trial: Trial
    status: str = "waiting"
    result: Mapping[str, Any] = field(default_factory=dict)  # what it last reported: reward, kl, diversity
    changed: int = 0  # when, in the order of all changes

    def cells(self, latest: Mapping[str, float]) -> list[str]:
        """The row's texts. latest: the last line of the run's metrics, where it is running."""
        done = int(latest["iteration"]) + 1 if latest else int(self.result.get("iterations_done", 0))
        iterations = self.trial.config.iterations
        left = duration((iterations - done) * latest["time/iteration"]) if latest else ""
        return [
            self.trial.name,
            shown_values([*self.trial.parameters.items(), ("seed", self.trial.seed)]),
            f"{done}/{iterations}",
            *(_number(self.result.get(name)) for name in ("reward", "kl", "diversity")),
            self.status,
            left,
        ]


class LiveTable(tune.Callback):
    """Follows Tune's trials. Use it in a `with`; `message` prints a line above the table."""

    def __init__(
        self, folder: SweepFolder, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._console = console or plain_console(stderr=True)
        self._clock = clock
        self._rows: dict[str, Row] = {}
        self._changes = 0
        self._drawn_at = float("-inf")
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __getstate__(self) -> dict[str, Any]:
        """Tune's snapshot, which nothing is restored from, pickles its callbacks."""
        return {}

    def expect(self, trials: Sequence[Trial]) -> None:
        """Adds rows; trials that have ended already show how."""
        for trial in trials:
            ending = read_ending(self._folder.run_folder(trial.name))
            self._rows[trial.name] = Row(trial, ending.status if ending else "waiting")

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._change(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "reward" in result:
            self._row(trial).result = result

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._live is not None and self._clock() - self._drawn_at >= REFRESH_S:
            self._draw()

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._draw()
            self._live.stop()

    def table(self) -> Table:
        """The table as it stands."""
        table = Table(box=None, padding=(0, 1))
        for name in ("trial", "parameters", "iteration", "reward", "KL", "diversity", "status", "time left"):
            table.add_column(name, justify="left" if name in ("trial", "parameters", "status") else "right")
        recent = sorted(self._rows.values(), key=lambda row: (row.status == "running", row.changed), reverse=True)
        shown = {row.trial.name for row in recent[:MOST_ROWS]}
        for row in self._rows.values():
            if row.trial.name in shown:
                table.add_row(*map(Text, row.cells(self._latest(row))))
        if len(self._rows) > len(shown):
            table.add_row(f"... {len(self._rows) - len(shown)} more")
        return table

    def _latest(self, row: Row) -> Mapping[str, float]:
        metrics = self._folder.run_folder(row.trial.name) / "metrics.jsonl"
        return last_record(metrics) if row.status == "running" else {}

    def _row(self, trial: Any) -> Row:
        """The row of one of Tune's trials; Optuna plans them as it goes."""
        if trial.custom_trial_name not in self._rows:
            self.expect([known for known in self._folder.read_trials() if known.name not in self._rows])
        return self._rows[trial.custom_trial_name]

    def _change(self, trial: Any, status: str) -> Row:
        row = self._row(trial)
        self._changes += 1
        row.status, row.changed = status, self._changes
        return row

    def _ended(self, trial: Any) -> None:
        row = self._row(trial)
        ending = read_ending(self._folder.run_folder(row.trial.name))
        assert ending is not None  # `Endings` comes before
        self._change(trial, ending.status)
        over = sum(row.status not in ("waiting", "running") for row in self._rows.values())
        cells = row.cells({})
        facts = [f"{name} {text}" for name, text in zip(("reward", "KL", "diversity"), cells[3:6]) if text]
        error = f": {ending.error}" if ending.error else ""
        self.message(
            f"{over} of {len(self._rows)}  {row.trial.name}  {cells[1]}  {ending.status}{error}  {'  '.join(facts)}".rstrip()
        )

    def _draw(self) -> None:
        assert self._live is not None
        self._live.update(self.table(), refresh=True)
        self._drawn_at = self._clock()


def last_record(path: Path) -> Mapping[str, float]:
    """The last whole line of a run's metrics; empty where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    try:
        return typed_value(dict[str, Number], json_value(lines[-1])) if lines else {}
    except Damage:  # what is wrong with it, the trial's own reader says
        return {}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
