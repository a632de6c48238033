"""What was played in `rayrlhf play`, as JSONL: a header, then a line a turn; and the training data it gives.

Moves that were taken back stay in the record, marked as undone. Lines are ASCII; all texts are valid Unicode.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from rayrlhf.errors import UserError
from rayrlhf.files import replace_file
from rayrlhf.reading import Damage, json_value, read_text, typed_value
from rayrlhf.types import Split

SCHEMA = 1  # of the lines; raised when an older reader could not read a newer transcript
Who = Literal["policy", "human"]


class Record(BaseModel):
    """Base of the lines: a missing field, an unknown one or one of another type is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Header(Record):
    """The first line: what is the same for all turns."""

    schema_version: int = SCHEMA
    model: str | None
    """Folder or name of the policy's model; null: a person played alone."""
    tokenizer: str
    """Fingerprint of the vocabulary that ids are of; `code points` where there was no model."""
    environment: str
    """Name, as in a config."""
    parameters: dict[str, Any]
    """Of the environment."""
    split: Split
    max_turns: int
    """Moves after which a game is cut off."""
    seed: int
    """Of the first game."""
    agent: dict[str, Any]
    """How the policy sees the game, as in a config; `prompt` is the prompt format."""


class PlayedTurn(Record):
    """One move: the state it was chosen in, who chose it, what came of it (SPEC section 11, transition; TW-26)."""

    game: int
    """Number of the game within the session, from 0; a restart begins the next."""
    seed: int
    """Of the environment: which game it is."""
    turn: int
    """Number of the move within the game, from 0."""
    undone: bool = False
    """It was taken back; a later line has the same game and turn if another move took its place."""
    who: Who
    observation: str
    commands: tuple[str, ...]
    """What there was to choose from; empty where the environment does not say."""
    probabilities: tuple[float, ...]
    """Of the commands, in their order, under the policy at the temperature; empty without a policy."""
    temperature: float | None
    value: float | None
    """The value network's V of the state; null without one."""
    action: str
    probability: float | None
    """Of the action under the policy; null where it is not known."""
    prompt: str
    """What the policy was given, as text; `prompt_ids` are its exact tokens."""
    completion: str
    """What follows the prompt, without the closing token."""
    likeliest_completion: str | None
    """The same of the policy's likeliest command; null without a policy or commands."""
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of the response's tokens, in nats, as in training; empty where a person moved."""
    valid: bool
    """The game understood the action."""
    reward: float
    score: float
    max_score: float
    won: bool
    lost: bool
    terminated: bool
    truncated: bool
    game_key: str
    """Name of the state that the action was chosen in (`GameState.key`); "" where states have none."""
    next_observation: str
    next_key: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """One session."""

    header: Header
    turns: tuple[PlayedTurn, ...]  # in the order of play, those undone among them


class TranscriptError(UserError):
    """A transcript cannot be read, or a file be written beside it."""


def standing(turns: Iterable[PlayedTurn]) -> list[PlayedTurn]:
    """The turns that were not taken back."""
    return [turn for turn in turns if not turn.undone]


def write_transcript(path: Path, transcript: Transcript) -> None:
    """Writes the file whole or not at all; one that is there is replaced. Raises as `replace_file`."""
    _write_lines(path, [transcript.header.model_dump(), *(turn.model_dump() for turn in transcript.turns)])


def read_transcript(path: Path) -> Transcript:
    """Raises TranscriptError that names the line at fault."""
    lines = read_text(path, TranscriptError).split("\n")  # a line may hold any other break
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise TranscriptError(f"transcript {path} is empty")
    header = _parsed(Header, lines[0], f"{path}:1")
    if header.schema_version != SCHEMA:
        raise TranscriptError(
            f"transcript {path} has schema version {header.schema_version}; this RayRLHF reads version {SCHEMA}"
        )
    turns = (_parsed(PlayedTurn, line, f"{path}:{number}") for number, line in enumerate(lines[1:], start=2))
    return Transcript(header, tuple(turns))


def human_actions(transcript: Transcript) -> dict[str, list[str]]:
    """What people did in each state that has a key: their moves that stand and that the game understood, in order."""
    actions: dict[str, list[str]] = {}
    for turn in standing(transcript.turns):
        if turn.who == "human" and turn.valid and turn.game_key:
            actions.setdefault(turn.game_key, []).append(turn.action)
    return actions


def sft_rows(turns: Sequence[PlayedTurn]) -> list[dict[str, str]]:
    """Prompt and completion of each move that stands, the policy's too, and that the game understood."""
    return [{"prompt": turn.prompt, "completion": turn.completion} for turn in standing(turns) if turn.valid]


def preference_rows(turns: Sequence[PlayedTurn]) -> list[dict[str, str]]:
    """Prompt, chosen and rejected (TRL's preference format) of each move of a person's that stands and was understood.

    Rejected is the policy's likeliest command where the person took another, and each other move that was undone in the
    same place. Equal pairs of different moves are kept.
    """
    rows = []
    for turn in standing(turns):
        if turn.who != "human" or not turn.valid:
            continue
        undone = [other for other in turns if other.undone and _same_place(other, turn)]
        rejected = [turn.likeliest_completion, *(other.completion for other in undone)]
        for completion in dict.fromkeys(rejected):
            if completion is not None and completion != turn.completion:
                rows.append({"prompt": turn.prompt, "chosen": turn.completion, "rejected": completion})
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Writes JSONL, whole or not at all. Raises as `replace_file`."""
    _write_lines(path, rows)


def _same_place(one: PlayedTurn, other: PlayedTurn) -> bool:
    return (one.game, one.turn, one.prompt_ids) == (other.game, other.turn, other.prompt_ids)


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    replace_file(path, (json.dumps(row, allow_nan=False).encode("ascii") + b"\n" for row in rows))


_Line = TypeVar("_Line", bound=Record)


def _parsed(kind: type[_Line], line: str, place: str) -> _Line:
    try:
        return typed_value(kind, json_value(line))
    except Damage as error:
        raise TranscriptError(f"{place}: {error}: it is no transcript of `rayrlhf play`") from error
