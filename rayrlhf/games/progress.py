"""How far a TextWorld game has come: the facts of its logic, the events that came true, the way that wins from there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rayrlhf.errors import EpisodeError
from rayrlhf.games.game_data import blamed, load_game, read_game

Event = tuple[int, int]
"""Number of a quest of the game, and of an event among those that complete the quest or make it fail."""


@dataclass(frozen=True, slots=True)
class Walkthrough:
    """Commands that win a game from its start, and where on that way a state lies."""

    commands: tuple[str, ...]
    places: Mapping[bytes, int]  # digest of a state on the way -> how many of the commands lead there, at most

    def place_after(self, command: str, place: int | None, changed: bool, digest: bytes) -> int | None:
        """Place of the state that a command led to, None where no way is known.

        place: where it was given. changed: whether it changed the game. digest: of the state it led to.
        """
        if place is not None and place < len(self.commands) and command == self.commands[place]:
            return place + 1
        return self.places.get(digest) if changed else place

    def from_place(self, place: int | None) -> tuple[str, ...]:
        return () if place is None else self.commands[place:]


class Progress:
    """The facts of one game being played, and what came true in it. `digest` tells two states apart.

    Facts alone would not: a quest that was completed stays so when what completed it is undone, and its reward is not
    given twice.
    """

    def __init__(self, quests: Iterable[Any]) -> None:
        """Takes the quests of TextWorld's Game."""
        self._quests = tuple(quests)
        self._conditions: dict[Event, frozenset[Any]] = {
            (number, index): frozenset(event.condition.preconditions)
            for number, quest in enumerate(self._quests)
            for index, event in enumerate((*quest.win_events, *quest.fail_events))
        }
        self._names: dict[Any, str] = {}  # of facts: to write one takes TextWorld longer than all else here
        self._came_true: set[Event] = set()
        self.digest = b""

    def restart(self, facts: Iterable[Any]) -> None:
        """Takes the facts that a new play of the game begins with."""
        self._came_true.clear()
        self.update(facts)

    def update(self, facts: Iterable[Any]) -> None:
        """Takes the facts that hold now."""
        held = set(facts)
        self._came_true.update(event for event, condition in self._conditions.items() if condition <= held)
        text = "\n".join(sorted(self._name(fact) for fact in held)) + f"\n{sorted(self._came_true)}"
        self.digest = hashlib.blake2b(text.encode(), digest_size=16).digest()

    def is_over(self) -> bool:
        """Whether the game has ended: a quest has failed, or all are completed, those that are optional left out."""
        came = [(quest, *self._came(number, quest)) for number, quest in enumerate(self._quests) if not quest.optional]
        completed = [won for quest, won, _ in came if quest.win_events]
        return any(lost for _, _, lost in came) or (bool(completed) and all(completed))

    def _came(self, number: int, quest: Any) -> tuple[bool, bool]:
        """Whether a quest was completed, and whether it failed."""
        wins = len(quest.win_events)
        came_true = [(number, index) in self._came_true for index in range(wins + len(quest.fail_events))]
        return any(came_true[:wins]), any(came_true[wins:])

    def _name(self, fact: Any) -> str:
        if fact not in self._names:
            self._names[fact] = str(fact)
        return self._names[fact]


def check_beginning(game_json: Path, progress: Progress) -> None:
    """Raises EpisodeError for a game that is over before the first command: it would take no command, and never end."""
    if progress.is_over():
        raise EpisodeError(
            f"{game_json} is a game that is over before the first command: its quest is fulfilled, or has failed, where "
            "it begins. Leave it out, or make it with another quest."
        )


def check_game(path: Path) -> None:
    """Raises EpisodeError, naming the file, for a game file that cannot be played; opens no interpreter."""
    read_game(path)
    description = path.with_suffix(".json")
    if path.suffix == ".z8" and description.is_file():
        game = load_game(description)
        with blamed(description):
            progress = Progress(game.quests)
            progress.restart(game.world.facts)
        check_beginning(description, progress)


@lru_cache(maxsize=4096)
def walkthrough(game_json: Path) -> Walkthrough:
    """The way that TextWorld's maker knew, followed through the game's logic; without commands where it knew none."""
    game = load_game(game_json)
    with blamed(game_json):
        return _followed(game)


def _followed(game: Any) -> Walkthrough:
    from textworld.generator.game import GameProgression
    from textworld.generator.inform7 import Inform7Game

    commands = tuple(game.walkthrough or ())
    texts, logic, progress = Inform7Game(game), GameProgression(game, track_quests=False), Progress(game.quests)
    progress.restart(logic.state.facts)
    places = {progress.digest: 0}
    for place, command in enumerate(commands, start=1):
        actions = dict(zip(texts.gen_commands_from_actions(logic.valid_actions), logic.valid_actions, strict=True))
        if command not in actions:  # written by hand, with another name for a thing: the rest is known by following it
            break
        logic.update(actions[command])
        progress.update(logic.state.facts)
        places[progress.digest] = place
    return Walkthrough(commands, places)
