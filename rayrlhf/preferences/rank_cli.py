"""`rayrlhf rank PROJECT`: the items in the order of their latent scores, with intervals; as a table, CSV, JSON, PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayrlhf.terminal_output import plain_console, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayrlhf.preferences.ranking import Ranking
    from rayrlhf.preferences.records import Item


def rank(
    project: Annotated[Path, typer.Argument(help="Folder of a project of preferences.", show_default=False)],
    rows: Annotated[int, typer.Option(help="How many items to print; all of them are written.", min=0)] = 20,
) -> None:
    """Rank the items of a project by its comparisons, with 95 % intervals, and write ranking/ in its folder.

    Settings are those of the section `ranking` of PROJECT/project.yaml.
    """
    from rayrlhf.preferences.project import load_project_config, open_store
    from rayrlhf.preferences.ranking import fit_project
    from rayrlhf.preferences.ranking_files import write_ranking
    from rayrlhf.preferences.ranking_summary import lines, summarise

    config = load_project_config(project).ranking
    with open_store(project) as store:
        items, comparisons = list(store.items().values()), store.comparisons()
    ranking = fit_project(items, comparisons, config)
    summary = summarise(items, ranking)
    written = write_ranking(
        project / "ranking", items, ranking, summary
    )  # first: what prints may be cut short by `head`
    if rows:
        plain_console().print(_table(items, ranking, rows))
        if len(items) > rows:
            say(f"{len(items) - rows} further items are in the files.")
        say("")
    for line in lines(summary):
        say(line)
    for path in written:
        say(f"written: {path}")


def _table(items: Sequence[Item], ranking: Ranking, rows: int) -> object:
    import numpy as np
    from rich.table import Table
    from rich.text import Text

    from rayrlhf.preferences.ranking_plot import shortened

    table = Table(box=None, pad_edge=False)
    for heading in ("rank", "score", "95 % interval", "won", "lost", "tied"):
        table.add_column(
            heading, justify="right", no_wrap=True, min_width=len(heading) + 1
        )  # a narrow screen cuts texts
    table.add_column("generator", overflow="ellipsis", no_wrap=True, min_width=9, max_width=20)
    table.add_column("text", overflow="ellipsis", no_wrap=True)
    low, high = ranking.interval()
    for place, index in enumerate(np.argsort(-ranking.mean, kind="stable")[:rows], start=1):
        table.add_row(
            str(place), f"{ranking.mean[index]:.2f}", f"{low[index]:.2f} to {high[index]:5.2f}",
            *(str(tally[index]) for tally in (ranking.wins, ranking.losses, ranking.ties)),
            Text(items[index].generator), Text(shortened(items[index])),
        )  # fmt: skip
    return table
