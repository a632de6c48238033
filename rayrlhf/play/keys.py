"""What a player types in `rayrlhf play`, read: a key, a number, or a command of the game. Pure functions.

Single letters are keys. One that is also among the game's commands of the moment is the command; `> u` sends `u` to the
game whatever it is.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rayrlhf.errors import UserError
from rayrlhf.play.decisions import Decision, OwnMove, PolicyMove, Quit, Restart, SetTemperature, SwitchGreedy, Undo

KEYS = """\
Enter         the policy moves
NUMBER, TEXT  my move: a command by its number or in words; > TEXT sends any text
a [N]         the policy makes N moves, or all until the end
u [N]         undo the last move, or N of them
r [SEED]      restart this game, or start the one with that seed
m             map
h             hint: the next command of a solution
o             objective: what the game asks for
t T           temperature of the policy, above 0
g             greedy: the policy takes its likeliest command, or draws again
s [FILE]      save the transcript
?             this help
q             quit (as Ctrl-D)
A single letter is a key, unless the game lists it as a command just now."""


@dataclass(frozen=True, slots=True)
class Autoplay:
    """Let the policy make so many moves; None: until the end of the game."""

    moves: int | None


@dataclass(frozen=True, slots=True)
class Show:
    """Show something, and ask again."""

    what: Literal["map", "hint", "objective", "help"]


@dataclass(frozen=True, slots=True)
class Save:
    """Write the transcript; None: to the file it was written to last."""

    file: Path | None


Typed = Decision | Autoplay | Show | Save


class InputError(UserError):
    """What was typed means nothing here; the message is the answer, a line."""


def read_typed(line: str, commands: Sequence[str], listed: Sequence[str], over: bool, has_policy: bool) -> Typed:
    """What the line means.

    Args:
        commands: those of the game's state; empty where the game does not list them.
        listed: the same in the order of their numbers, 1 the first.
        over: the game is over, so that no move is left.
        has_policy: there is a policy to move.

    Raises:
        InputError: nothing.
    """
    text = " ".join(line.split())
    typed = _typed(text, commands, listed)
    if over and not isinstance(typed, Undo | Restart | Show | Save | Quit):
        raise InputError("the game is over: u takes the last move back, r plays it again, r SEED another, q quits")
    if not has_policy and isinstance(typed, PolicyMove | Autoplay | SetTemperature | SwitchGreedy):
        raise InputError("there is no policy here: type a command or its number; ? lists the keys")
    return typed


def _typed(text: str, commands: Sequence[str], listed: Sequence[str]) -> Typed:
    if text in commands:
        return OwnMove(text)
    if not text:
        return PolicyMove()
    if text.startswith(">"):
        if not text[1:].strip():
            raise InputError("> wants a text for the game behind it")
        return OwnMove(text[1:].strip())
    if text.isdecimal():
        return OwnMove(_numbered(int(text), listed))
    key, _, argument = text.partition(" ")
    if len(key) == 1:
        return _key(key, argument)
    return OwnMove(_in_words(text, commands))


def _numbered(number: int, listed: Sequence[str]) -> str:
    if not 1 <= number <= len(listed):
        limit = f"the commands are numbered 1 to {len(listed)}" if listed else "this game lists no commands"
        raise InputError(f"there is no command {number}: {limit}")
    return listed[number - 1]


def _in_words(text: str, commands: Sequence[str]) -> str:
    """The command that differs in case alone; other words are for the game to answer, unless they look mistyped."""
    lower = text.lower()
    if not commands or lower in commands:
        return lower if lower in commands else text
    [*near] = difflib.get_close_matches(lower, commands, n=1, cutoff=0.8)
    if near:
        raise InputError(
            f"{text!r} is not among the commands; did you mean {near[0]!r}? > {text} sends it all the same"
        )
    return text


def _key(key: str, argument: str) -> Typed:
    if key in "mho?gq" and argument:
        raise InputError(f"{key} stands alone; ? lists the keys")
    match key:
        case "a":
            return Autoplay(_whole(key, argument, 1) if argument else None)
        case "u":
            return Undo(_whole(key, argument, 1) if argument else 1)
        case "r":
            return Restart(_whole(key, argument, 0) if argument else None)
        case "t":
            return SetTemperature(_temperature(argument))
        case "s":
            return Save(Path(argument) if argument else None)
        case "m":
            return Show("map")
        case "h":
            return Show("hint")
        case "o":
            return Show("objective")
        case "?":
            return Show("help")
        case "g":
            return SwitchGreedy()
        case "q":
            return Quit()
    raise InputError(f"there is no key {key!r}; ? lists them, > {key} sends it to the game")


def _whole(key: str, argument: str, least: int) -> int:
    if not (argument.isdecimal() and argument.isascii()) or int(argument) < least or len(argument) > 18:
        raise InputError(f"{key} wants a whole number of at least {least}, not {argument!r}")
    return int(argument)


def _temperature(argument: str) -> float:
    try:
        value = float(argument)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"t wants a temperature above 0, as in t 0.5, not {argument!r}")
    return value
