"""A person judges the pairs of a blind comparison at the terminal, one key a verdict."""

from __future__ import annotations

import time
from functools import partial

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rayrlhf.preferences.compare import BlindComparison, ShownPair
from rayrlhf.preferences.records import Best
from rayrlhf.preferences.terminal_keys import END, Keys
from rayrlhf.reading import printable

SECONDS = 60.0  # that the countdown starts from; a verdict after it counts like any other
_VERDICTS: dict[str, Best] = {"1": 0, "2": 1, "3": "tie", "b": "both_bad"}
_KEYS = "1 first is better   2 second is better   3 equally good   b both bad   u take the last one back   x stop"
_SIDE_BY_SIDE = 90  # columns of a terminal from which two texts fit beside each other


def judge_at_terminal(comparison: BlindComparison, rater: str, console: Console, keys: Keys) -> None:
    """Asks until no pair is left or the person stops. Nothing tells which model wrote what."""
    saved: list[str] = []  # ids of this sitting's verdicts
    while waiting := comparison.waiting():
        pair, judged = waiting[0], len(comparison.pairs) - len(waiting)
        _show(console, pair, f"pair {judged + 1} of {len(comparison.pairs)}")
        start = time.monotonic()
        while (key := keys.read(partial(_seconds_left, start + SECONDS))) not in (END, "x", "u", *_VERDICTS):
            console.print(Text(f"{printable(key)!r} is no key here: {_KEYS}"))
        if key in (END, "x"):
            return
        if key == "u":
            if saved:
                comparison.take_back(saved.pop())
            else:
                console.print(Text("there is no verdict of this sitting to take back"))
            continue
        saved.append(comparison.save(pair, _VERDICTS[key], "manual", rater, time.monotonic() - start))


def _seconds_left(end: float) -> float:
    return end - time.monotonic()


def _show(console: Console, pair: ShownPair, title: str) -> None:
    """The prompt once, and the two texts beside or under each other."""
    first, second = (
        Panel(Text(printable(item.text)), title=str(number), title_align="left")
        for number, item in enumerate(pair.items, start=1)
    )
    console.rule(title)
    if pair.items[0].prompt:
        console.print(Text(printable(pair.items[0].prompt), style="dim"))
    if console.width >= _SIDE_BY_SIDE:
        beside = Table.grid(expand=True)
        beside.add_column(ratio=1)
        beside.add_column(ratio=1)
        beside.add_row(first, second)
        console.print(beside)
    else:
        console.print(first, second, sep="\n")
    console.print(Text(_KEYS, style="dim"))
