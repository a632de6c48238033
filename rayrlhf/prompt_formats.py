"""What a prompt of a game says, as text: observations cleaned, commands listed, the formats of SPEC TW-7.

Pure functions of text; `agent_text.py` makes token ids of them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Literal

from rayrlhf.types import GameState

PromptFormat = Literal["observation", "you", "question", "sentence", "actions", "transcript"]

CUES: dict[PromptFormat, str] = {
    "observation": "",
    "you": "\nYou",
    "question": " What do you do?",
    "sentence": " You choose the action to",
    "actions": "\n>",
    "transcript": "\n>",
}
"""What a prompt ends with; a command follows with a space before it."""

LIST_OPENING = "Your possible actions are"
NOT_TAKEN = "-"
"""Stands for an action of the memory that was not taken yet."""

CACHED_TEXTS = (
    20_000  # texts that are kept once cleaned or tokenised, about a kilobyte each: states come by again and again
)

_BANNER = re.compile(r"^[\s_|$\\/<>-]*(?:\$\$|__)[\s_|$\\/<>-]*$", re.MULTILINE)  # TextWorld's title in letters of $
_STATUS = re.compile(r"\n+>\s*(?:-= .*? =-\s*-?\d+/\d+)?\s*$")  # the game's own prompt, with room, score and moves
_HEADLINE = re.compile(r"^\s*-= .* =-\s*$", re.MULTILINE)
_EMPTY_INVENTORY = re.compile(r"^You are carrying nothing\.?$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\s*\n\s*")
_SURROGATES = re.compile("[\ud800-\udfff]")


def written(text: str) -> str:
    """The text with U+FFFD for lone halves of surrogate pairs, which no tokenizer takes."""
    return _SURROGATES.sub("\ufffd", text)


@functools.lru_cache(CACHED_TEXTS)
def tidied(observation: str) -> str:
    """An observation without TextWorld's banner and status bar, blank lines and blanks at the ends of lines."""
    return _BLANK_LINES.sub("\n", _BANNER.sub("", _STATUS.sub("", observation))).strip()


@functools.lru_cache(CACHED_TEXTS)
def cleaned(observation: str) -> str:
    """A tidied observation without headlines (`-= Kitchen =-`) and, beside other text, without an empty inventory."""
    text = tidied(_HEADLINE.sub("", observation))
    return tidied(_EMPTY_INVENTORY.sub("", text)) or text


def without_objective(observation: str, objective: str) -> str:
    """A tidied observation without the objective's text, where it has it."""
    goal = tidied(objective)
    return tidied(observation.replace(goal, "\n")) if goal else observation


def command_list(commands: Sequence[str]) -> str:
    """`Your possible actions are a, b, or c.`, without commands that only examine; "" where none is left."""
    shown = [command for command in commands if command.split(" ")[0] != "examine"]
    if not shown:
        return ""
    if len(shown) == 1:
        return f"Your possible action is {shown[0]}."
    if len(shown) == 2:
        return f"{LIST_OPENING} {shown[0]} or {shown[1]}."
    return f"{LIST_OPENING} {', '.join(shown[:-1])}, or {shown[-1]}."


def current_text(layout: PromptFormat, observation: str, state: GameState) -> str:
    """What a prompt says of the state that a decision is due in, up to the format's cue.

    `observation`: the observation as it is. `you`, `question`, `sentence` (SPEC TW-7): the objective, the cleaned
    observation, the commands. `actions`: the objective where the observation has it, then the rest of it, cleaned.
    """
    if layout == "observation":
        return observation
    if layout == "transcript":
        return tidied(observation)
    text = cleaned(observation)
    objective = tidied(state.objective)
    lines = [without_objective(text, objective)]
    if layout != "actions" or objective in text:
        lines.insert(0, objective)
    if layout != "actions":
        lines.append(command_list(state.commands))
    return "\n".join(line for line in lines if line)


def past_text(layout: PromptFormat, observation: str, state: GameState) -> str:
    """What the memory says of an earlier state: as `current_text`, without objective and commands."""
    if layout == "observation":
        return observation
    text = tidied(observation) if layout == "transcript" else cleaned(observation)
    return without_objective(text, state.objective)
