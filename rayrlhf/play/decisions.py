"""What a player of `rayrlhf play` is shown, and what a player can decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rayrlhf.play.policy import Advice
from rayrlhf.play.transcripts import PlayedTurn
from rayrlhf.types import StepResult


@dataclass(frozen=True, slots=True)
class PolicyMove:
    """Let the policy choose."""


@dataclass(frozen=True, slots=True)
class OwnMove:
    """Play this command."""

    command: str


@dataclass(frozen=True, slots=True)
class Undo:
    """Take back so many moves, at most all of the game."""

    moves: int


@dataclass(frozen=True, slots=True)
class Restart:
    """Begin anew; seed None: the same game."""

    seed: int | None


@dataclass(frozen=True, slots=True)
class SetTemperature:
    """Of the policy, from now on."""

    temperature: float


@dataclass(frozen=True, slots=True)
class SwitchGreedy:
    """From now on the policy takes its likeliest command, or draws again."""


@dataclass(frozen=True, slots=True)
class Quit:
    """End the session."""


Decision = PolicyMove | OwnMove | Undo | Restart | SetTemperature | SwitchGreedy | Quit


@dataclass(frozen=True, slots=True)
class View:
    """What a player knows when a decision is due."""

    seed: int  # of the game
    moves: tuple[str, ...]  # those of this game that stand
    now: StepResult  # what the environment answered last
    limit: int  # moves after which the game is cut off
    advice: Advice | None  # of the policy; None without one, and once the game is over
    temperature: float | None  # of the policy; None without one
    greedy: bool
    record: tuple[PlayedTurn, ...]  # the whole session so far

    @property
    def over(self) -> bool:
        """Nothing but Undo, Restart and Quit is left to decide."""
        return self.now.terminated or self.now.truncated or len(self.moves) == self.limit


class Decider(Protocol):
    """Who decides: a person at the keyboard, or a policy that is watched."""

    def decide(self, view: View) -> Decision:
        """Called whenever a decision is due, again after one that does not move. Any error ends the session."""
        ...

    def played(self, turn: PlayedTurn) -> None:
        """A move was made."""
        ...
