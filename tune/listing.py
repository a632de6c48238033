"""What `rayrlhf sweep --dry-run` prints: the trials and what is swept, with nothing started."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayrlhf.config_loading import dump_config
from rayrlhf.terminal_output import plain_console
from rayrlhf.tune.folder import path_of
from rayrlhf.tune.plan import plan
from rayrlhf.tune.sweep_config import OptunaSearchConfig, SweepRequest


def print_trials(request: SweepRequest, console: Console | None = None) -> None:
    """Checks all trials and lists them. Raises ConfigError with all faults."""
    sweep = request.config
    trials = plan(request, path_of(sweep) / "trials")
    console = console or plain_console(soft_wrap=True, highlight=False)
    console.print(dump_config(sweep), markup=False, end="")
    if isinstance(sweep.search, OptunaSearchConfig):
        console.print(f"\n{sweep.search.samples} points that Optuna proposes, {sweep.seeds} trials each")
        return
    table = Table(box=None, padding=(0, 1))
    for name in ("trial", *trials[0].parameters, "seed"):
        table.add_column(Text(name))
    for trial in trials:
        cells = (trial.name, *trial.parameters.values(), trial.seed)
        table.add_row(*(Text(str(cell)) for cell in cells))
    console.print(f"\n{len(trials)} trials")
    console.print(table)
