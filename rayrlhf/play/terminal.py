"""The players of `rayrlhf play`: a person at a terminal, a pipe or a script, and a policy that is watched."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from rayrlhf.errors import UserError
from rayrlhf.files import printable
from rayrlhf.games.lookup import GameLookup
from rayrlhf.play.decisions import Decision, PolicyMove, Quit, View
from rayrlhf.play.keys import KEYS, Autoplay, Save, Show, read_typed
from rayrlhf.play.screen import BLOCK, PLAIN, move_line, numbered, solution_line, state_screen
from rayrlhf.play.transcripts import PlayedTurn

PROMPT = "> "


class Screen:
    """Prints a game. Over a pipe or a dumb terminal it is plain text."""

    def __init__(self, console: Console, title: str):
        self._console = console
        self._title = title
        blocks = console.is_terminal and not console.is_dumb_terminal and "utf" in console.encoding.lower()
        self._bar = BLOCK if blocks else PLAIN

    def state(self, view: View) -> None:
        self._console.print(state_screen(self._title, view, self._bar))

    def move(self, turn: PlayedTurn) -> None:
        self._console.print(move_line(turn))

    def say(self, message: RenderableType) -> None:
        self._console.print(message, soft_wrap=True)  # paths and maps keep their lines


class Person:
    """Decides as a person types (see `play_keys.KEYS`); the end of the input quits."""

    def __init__(
        self,
        screen: Screen,
        read_line: Callable[[], str],
        lookup: GameLookup,
        save: Callable[[Path | None, Sequence[PlayedTurn]], Path],
    ):
        """`read_line` raises EOFError at the end. `save` writes a transcript, None to the last file, and says where."""
        self._screen = screen
        self._read_line = read_line
        self._lookup = lookup
        self._save = save
        self._autoplay = 0

    def decide(self, view: View) -> Decision:
        self._screen.state(view)
        if view.over:
            self._autoplay = 0
        if self._autoplay:
            self._autoplay -= 1
            return PolicyMove()
        while True:
            try:
                typed = read_typed(
                    self._read_line(), view.now.state.commands, numbered(view), view.over, view.temperature is not None
                )
                if isinstance(typed, Autoplay):
                    self._autoplay = (view.limit if typed.moves is None else typed.moves) - 1
                    return PolicyMove()
                if isinstance(typed, Save):
                    self._screen.say(f"saved to {self._save(typed.file, view.record)}")
                elif isinstance(typed, Show):
                    self._screen.say(self._shown(typed, view))
                else:
                    return typed
            except EOFError:
                return Quit()
            except UserError as error:
                self._screen.say(Text(printable(str(error)), style="red"))

    def played(self, turn: PlayedTurn) -> None:
        self._screen.move(turn)

    def _shown(self, typed: Show, view: View) -> Text:
        if typed.what == "help":
            return Text(KEYS)
        if typed.what == "objective":
            return Text(printable(view.now.state.objective) or "this game does not say what it asks for")
        if typed.what == "map":
            return Text(self._lookup.map(view.seed, view.moves) or "this game has no map", no_wrap=True)
        if view.over:
            return Text("the game is over: there is nothing to hint at")
        commands = view.now.state.solution or self._lookup.solution(view.seed, view.moves)
        return solution_line(commands) if commands else Text("no solution is known from here")


class Watcher:
    """Lets the policy play one game, a move every `delay_s` seconds."""

    def __init__(self, screen: Screen, delay_s: float):
        self._screen = screen
        self._delay_s = delay_s

    def decide(self, view: View) -> Decision:
        self._screen.state(view)
        if view.over:
            return Quit()
        time.sleep(self._delay_s)
        return PolicyMove()

    def played(self, turn: PlayedTurn) -> None:
        self._screen.move(turn)


def keyboard() -> Callable[[], str]:
    """Reads lines of the standard input: edited at a terminal, shown as they are read where it is a pipe."""
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]  # no text: wrong input
    if not sys.stdin.isatty():
        return _read_shown
    if os.environ.get("TERM") != "dumb":
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives `input` its line editing
    return _read_edited


def _read_edited() -> str:
    try:
        return input(PROMPT)
    except (EOFError, KeyboardInterrupt):
        print()  # what follows starts a line of its own
        raise


def _read_shown() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    print(f"{PROMPT}{printable(line.rstrip())}", flush=True)
    return line
