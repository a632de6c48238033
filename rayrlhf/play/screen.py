"""How `rayrlhf play` looks, as rich renderables: the state, the commands with the policy's bars, the end of a game.

A game's text is a stranger's: control characters in it are shown, never sent to the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rayrlhf.play.decisions import View
from rayrlhf.play.transcripts import PlayedTurn
from rayrlhf.reading import printable

BAR = 24  # characters of a probability of 1
BLOCK, PLAIN = "━", "#"
"""What bars are made of, where a terminal can show it and where only text is sure."""


def numbered(view: View) -> list[str]:
    """The commands in the order of their numbers: the likeliest first; without a policy in the game's own."""
    commands = view.now.state.commands
    if view.advice is None:
        return list(commands)
    order = np.argsort(-view.advice.probabilities, kind="stable")
    return [commands[i] for i in order]


def state_screen(title: str, view: View, bar: str) -> RenderableType:
    """A game's state: what it says, and the commands. `bar`: BLOCK or PLAIN."""
    parts: list[RenderableType] = [Text(), _status(title, view, bar), _said(view.now.observation)]
    if view.over:
        parts.append(_end(view))
    elif view.now.state.commands:
        parts.append(_commands(view, bar))
    if view.advice is not None and view.advice.value is not None:
        parts.append(Text(f"value {view.advice.value:.2f}", style="magenta"))
    return Group(*parts)


def move_line(turn: PlayedTurn) -> Text:
    """`> go east  (policy, 0.87)`: who has moved, with the policy's probability, and the reward if there was one."""
    told = "you" if turn.who == "human" else "policy"
    if turn.probability is not None:
        told += f", {turn.probability:.2f}"
    line = Text(f"> {printable(turn.action)}", style="bold green" if turn.who == "human" else "bold cyan")
    line.append(f"  ({told})", style="dim")
    if turn.reward:
        line.append(f"  reward {turn.reward:+g}", style="yellow")
    return line


def _status(title: str, view: View, bar: str) -> Text:
    state = view.now.state
    of_most = f"/{state.max_score:g}" if state.max_score else ""
    facts = [title, f"seed {view.seed}", f"moves {len(view.moves)}", f"score {state.score:g}{of_most}"]
    if view.temperature is not None:
        facts.append("greedy" if view.greedy else f"T {view.temperature:g}")
    dashes = ("─" if bar == BLOCK else "-") * 3
    return Text.assemble((dashes, "dim"), (f" {' · '.join(facts)} ", "bold"), (dashes, "dim"))


def _said(observation: str) -> Text:
    text = printable(observation)
    return Text(text) if text.strip() else Text("(the game says nothing)", style="dim")


def _end(view: View) -> Text:
    state, moves = view.now.state, f"{len(view.moves)} move{'s' if len(view.moves) != 1 else ''}"
    if state.won:
        return Text(f"Won in {moves}.", style="bold green")
    if state.lost:
        return Text(f"Lost after {moves}.", style="bold red")
    if view.now.terminated:
        return Text(f"The end, after {moves}.", style="bold")
    return Text(f"Cut off: {moves} is the limit.", style="bold yellow")


def _commands(view: View, bar: str) -> RenderableType:
    commands = numbered(view)
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    if view.advice is None:
        for number, command in enumerate(commands, start=1):
            table.add_row(str(number), Text(printable(command)))
        return table
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    probabilities = sorted(view.advice.probabilities.tolist(), reverse=True)
    for number, (command, probability) in enumerate(zip(commands, probabilities, strict=True), start=1):
        name = Text(printable(command), style="bold" if number == 1 else "")
        table.add_row(str(number), name, f"{probability:.3f}", bar * round(BAR * probability))
    return table


def solution_line(commands: Sequence[str]) -> Text:
    """A hint: the next command of a solution, and how many follow."""
    line = Text("hint: ", style="dim").append(printable(commands[0]), style="bold yellow")
    after = len(commands) - 1
    return line.append(f", then {after} more" if after else ", and it is won", style="dim")
