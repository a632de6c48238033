"""A ranking as files: ranking.csv with a line an item, ranking.json with all other figures, ranking.png."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayrlhf.files import csv_table, replace_file
from rayrlhf.preferences.ranking import Ranking
from rayrlhf.preferences.ranking_plot import ranking_png
from rayrlhf.preferences.records import Item

COLUMNS = (
    "rank", "id", "score", "deviation", "low", "high", "wins", "losses", "ties", "generator", "checkpoint", "iteration",
    "prompt", "text",
)  # fmt: skip


def write_ranking(folder: Path, items: Sequence[Item], ranking: Ranking, summary: Mapping[str, Any]) -> list[Path]:
    """Writes the three files, each at once; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "ranking.csv": ranking_csv(items, ranking),
        "ranking.json": json.dumps(summary, indent=2, allow_nan=False).encode("ascii") + b"\n",
        "ranking.png": ranking_png(items, ranking),
    }
    for name, content in contents.items():
        replace_file(folder / name, [content])
    return [folder / name for name in contents]


def ranking_csv(items: Sequence[Item], ranking: Ranking) -> bytes:
    """Best item first."""
    low, high = ranking.interval()
    rows: list[Sequence[object]] = [COLUMNS]
    for place, index in enumerate(np.argsort(-ranking.mean, kind="stable").tolist(), start=1):
        item = items[index]
        numbers = [f"{values[index]:.6g}" for values in (ranking.mean, ranking.deviation, low, high)]
        tallies = [int(values[index]) for values in (ranking.wins, ranking.losses, ranking.ties)]
        iteration = "" if item.iteration is None else item.iteration
        rows.append(
            [place, item.id, *numbers, *tallies, item.generator, item.checkpoint, iteration, item.prompt, item.text]
        )
    return csv_table(rows, lineterminator="\r\n")
