"""Plays game files, one after the other: TextWorld's interpreter behind a small interface that returns plain values.

A state's `key` follows from all that later answers depend on: equal keys and commands give equal answers. Most of it is
the game's logic; what lies before what in a list is read off the interpreter's memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayrlhf.games import text as game_text
from rayrlhf.games.game_data import blamed, read_game
from rayrlhf.games.making import require_textworld
from rayrlhf.games.progress import Progress, Walkthrough, check_beginning, walkthrough
from rayrlhf.types import GameState

_MAX_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Shown:
    """What a game shows after a command, as it comes; `description` and `inventory` are "" unless they are asked for."""

    feedback: str
    description: str
    inventory: str
    state: GameState


@dataclass(frozen=True, slots=True)
class _Game:
    """The game file that is open."""

    path: Path
    identity: str  # of the file's bytes
    generated: bool  # by TextWorld: its logic is known
    walkthrough: Walkthrough
    progress: Progress


class Interpreter:
    """One player's interpreter. It plays TextWorld's games (.z8 with .json beside it) and other Z-machine games."""

    def __init__(self, extra_text: bool = False, solutions: bool = False) -> None:
        """extra_text: have the game print description and inventory at each step, which doubles a step's time.

        solutions: know commands that win from any state, by TextWorld's planner; without, they are known on the way of
        the game's own walkthrough. What the planner says depends on all commands so far, and so do the keys then.
        """
        require_textworld()
        self._extra_text = extra_text
        self._solutions = solutions
        self._environment: Any = None
        self._game: _Game | None = None
        self._state = GameState()
        self._place: int | None = None  # on the walkthrough; None off it
        self._commands: list[str] = []  # all of the episode
        self._asked: list[str] = []  # those that led to a question the game waits to have answered
        self._objects = b""  # where each object is

    def start(self, path: Path, seed: int) -> Shown:
        """The first text of a game. seed: of the random numbers that a game draws; TextWorld's draw none.

        Raises:
            EpisodeError: the file is missing, damaged or no game that can be played, or the game begins with its end.
        """
        with blamed(path):
            if self._game is None or self._game.path != path:
                self._game = self._open(path)
            self._environment.seed(1 if self._game.generated else seed % _MAX_SEED + 1)  # 0 would stand for the clock
            answer = self._environment.reset()
            self._place, self._commands, self._asked = 0, [], []
            if self._game.generated:
                self._game.progress.restart(answer["_facts"])
                check_beginning(path.with_suffix(".json"), self._game.progress)
            self._objects = self._read_objects(self._game)
            return self._shown(self._game, answer, valid=True)

    def play(self, command: str) -> Shown:
        """The game's answer to a command, which must be one that `game_text.command` let through."""
        game = self._game
        if game is None:
            raise RuntimeError("start() comes before play()")
        before = game.progress.digest, self._objects
        with blamed(game.path):
            answer, _, _ = self._environment.step(command)
            if game.generated:
                game.progress.update(answer["_facts"])
            self._objects = self._read_objects(game)
            changed = (game.progress.digest, self._objects) != before
            self._commands.append(command)
            self._asked = [*self._asked, command] if game_text.asks(answer.feedback) else []
            self._place = game.walkthrough.place_after(command, self._place, changed, game.progress.digest)
            return self._shown(game, answer, valid=changed or command in self._state.commands)

    @property
    def facts(self) -> list[Any]:
        """TextWorld's facts that hold now; none of another game, or before the first start."""
        return self._environment.state.get("_facts", []) if self._environment is not None else []

    def close(self) -> None:
        """Frees the game; `start` opens one anew."""
        if self._environment is not None:
            self._environment.close()
        self._environment, self._game = None, None

    def _open(self, path: Path) -> _Game:
        from textworld.envs import TWInform7

        content = read_game(path)
        generated = TWInform7.compatible(str(path))
        way = walkthrough(path.with_suffix(".json")) if generated else Walkthrough((), {})
        known, self._game = self._game, None  # should this one not open
        if known is not None and generated == known.generated:
            self._jericho.close()  # frees the game before: `load` would leave it there,
            self._jericho._cache.clear()  # and the bytes of its file too
            self._environment.load(str(path))
        else:
            self.close()
            self._environment = self._started(path, generated)
        return _Game(
            path=path,
            identity=hashlib.blake2b(content, digest_size=8).hexdigest(),
            generated=generated,
            walkthrough=way,
            progress=Progress(self._environment._game.quests if generated else ()),
        )

    def _started(self, path: Path, generated: bool) -> Any:
        import textworld

        infos = textworld.EnvInfos(
            admissible_commands=generated,  # of other games jericho guesses them, for seconds a step
            description=self._extra_text,
            inventory=self._extra_text,
            policy_commands=generated and self._solutions,
        )
        return textworld.start(str(path), infos)

    @property
    def _jericho(self) -> Any:
        return self._environment._jericho

    def _read_objects(self, game: _Game) -> bytes:
        """Where each object is. Of other games than TextWorld's the attributes too: whether it is open, lit, ..."""
        objects = object_table(self._jericho.get_state()[0])
        return (objects.links if game.generated else objects.entries).tobytes()

    def _shown(self, game: _Game, answer: Any, valid: bool) -> Shown:
        won, lost = bool(answer.won), bool(answer.lost)
        over = won or lost
        self._state = GameState(
            commands=tuple(answer.admissible_commands) if game.generated and not over else (),
            score=float(answer.score or 0),
            max_score=float(answer.max_score or 0),
            won=won,
            lost=lost,
            valid=valid,
            objective=answer.objective or "",
            solution=() if over else self._solution(game, answer),
            key=self._key(game, answer.score) if game.generated else "",
        )
        return Shown(answer.feedback, answer.description or "", answer.inventory or "", self._state)

    def _solution(self, game: _Game, answer: Any) -> tuple[str, ...]:
        if game.generated and self._solutions:
            return tuple(answer.policy_commands)
        return game.walkthrough.from_place(self._place)

    def _key(self, game: _Game, score: int) -> str:
        if self._solutions:
            rest = repr(self._commands).encode()
        else:
            rest = game.progress.digest + self._objects + repr((score, self._place, self._asked)).encode()
        return f"{game.identity}:{hashlib.blake2b(rest, digest_size=16).hexdigest()}"


@dataclass(frozen=True, slots=True)
class ObjectTable:
    """A Z-machine's objects, by the Z-Machine Standards Document 1.1, section 12."""

    entries: NDArray[np.uint8]  # [objects, 9 or 14] attributes, parent, sibling, child, address of the properties
    links: NDArray[np.uint8]  # [objects, 3 or 6] parent, sibling, child


def object_table(memory: NDArray[np.uint8]) -> ObjectTable:
    """Of a game's memory [bytes]. The table has no length: it ends where the properties of the first object begin."""
    entry, links, defaults = (9, 4, 31) if memory[0] <= 3 else (14, 6, 63)
    start = _word(memory, 10) + 2 * defaults
    end = _word(memory, start + entry - 2)
    entries = memory[start : start + (end - start) // entry * entry].reshape(-1, entry)
    return ObjectTable(entries, entries[:, links:-2])


def _word(memory: NDArray[np.uint8], address: int) -> int:
    return int(memory[address]) * 256 + int(memory[address + 1])
