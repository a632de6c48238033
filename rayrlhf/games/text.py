"""Text to and from an interactive fiction game: what a player may send to it, and what is shown of its answer.

TextWorld runs whatever reaches its interpreter: `go east. take coin` plays two turns as one, `restore` brings back the
state of another game, a backslash hangs the process for ever. `command` lets none of that through.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_COMMAND_CHARACTERS = 100

_ABOUT_THE_PROGRAM = frozenset({
    "quit", "q", "restart", "restore", "load", "save", "script", "transcript", "unscript", "noscript", "recording",
    "replay", "undo", "oops", "again", "g", "verbose", "brief", "superbrief", "normal", "long", "short", "version",
    "verify", "score", "full", "fullscore", "notify", "pronouns", "nouns", "places", "objects", "restrict", "prune",
    "print_state", "enable", "disable",
})  # fmt: skip
_PRONOUNS = frozenset({"it", "them", "him", "her"})
_SPACED = re.compile(r"[ \t]+")
_ALLOWED = re.compile(r"[a-z0-9 '-]+")
_BANNER = re.compile(r"(?m)^(?=.*[$_|])[ $|\\/_>]+\n")
_PROMPT = re.compile(r"\s*(^Would you like to RESTART, .*\s*)?^>\s*(-= .*=-)?\s*(-?\d+/\d+)?\s*\Z", re.MULTILINE)
_QUESTION = re.compile(r"\?\s*^>[^>?]*\Z", re.MULTILINE)
_TURNS = re.compile(r", in \d+ turns?\b")
_BLANK = re.compile(r"[ \t]*\n\s*")
_NOTHING_CARRIED = "You are carrying nothing."


class RefusedCommandError(ValueError):
    """Text that no game is given; the message is what the player is told instead."""


def command(text: str, pronouns: bool = True) -> str:
    """A player's text as one command of a game: lower case, single blanks, without quotes and full stops around it.

    Of several lines the first counts. pronouns: whether `it` and its like may be used, which mean what earlier
    commands made them mean.

    Raises:
        RefusedCommandError: it is empty or too long, several commands in one, about the program rather than the
            game (save, restart, again, ...), or has characters that no command has.
    """
    if "\0" in text or "\\" in text:
        raise RefusedCommandError("That is no command of this game.")
    line = next(iter(text.strip().splitlines()), "")
    line = _SPACED.sub(" ", line.lower()).strip(" .!?\"'`")
    words = line.split()
    if not words:
        raise RefusedCommandError("You have to say what to do.")
    if re.search(r"[.,;]", line) or "then" in words:
        raise RefusedCommandError("One command at a time, please.")
    unknown = not _ALLOWED.fullmatch(line) or len(line) > MAX_COMMAND_CHARACTERS
    if unknown or words[0] in _ABOUT_THE_PROGRAM or words[0].startswith("tw-"):
        raise RefusedCommandError("That is no command of this game.")
    if not pronouns and _PRONOUNS.intersection(words):
        raise RefusedCommandError("Say what you mean by its name.")
    return line


def cleaned(text: str) -> str:
    """A game's text without TextWorld's banner, its prompt and status bar, the count of turns, and empty lines."""
    text = _BANNER.sub("", text)
    text = _PROMPT.sub("", text)
    return _BLANK.sub("\n", _TURNS.sub("", text)).strip()


def without(objective: str, text: str) -> str:
    """A game's text without its objective, in which Inform takes some apostrophes for quotation marks."""
    if not objective:
        return text
    return re.sub(re.sub("['\"]", "['\"]", re.escape(objective)), "", text)


def asks(text: str) -> bool:
    """Whether a game's text ends in a question (`Which do you mean, ...?`): the next command may be an answer to it."""
    return _QUESTION.search(text) is not None


def observation(texts: Sequence[str]) -> str:
    """A game's texts cleaned, one below the other; an empty one, or an inventory of nothing, is left out (SPEC TW-7)."""
    shown = (cleaned(text) for text in texts)
    return "\n".join(text for text in shown if text and text != _NOTHING_CARRIED)
