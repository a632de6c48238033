"""TextWorld's adventures as an environment: games made by kind and level, or game files, one for each episode."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np

from rayrlhf.environments.order import epoch_order
from rayrlhf.errors import EpisodeError
from rayrlhf.games import text as game_text
from rayrlhf.games.interpreter import Interpreter, Shown
from rayrlhf.games.kinds import GameKind, game_kind
from rayrlhf.games.making import MOST_GAMES, game_file, make_all, require_textworld
from rayrlhf.games.map import ascii_map, world_map
from rayrlhf.games.progress import check_game
from rayrlhf.reading import expanded
from rayrlhf.text_space import TextSpace
from rayrlhf.types import GameState, Split

Part = Literal["feedback", "description", "inventory", "objective"]


class TextWorld(gymnasium.Env[str, str]):
    """A text adventure (SPEC TW-1): the observation is what the game says, the action is what to do.

    `reset(seed=n)` starts the n-th episode. The train split is an endless sequence of epochs, each with all games in a
    shuffle of its own; the held-out split has other games, and episode n plays game n modulo their number. A step's
    reward is the change of the game's score. `info` has the fields of `types.GameState`.

    What is no single command of a game (SPEC TW-4), or would save, restore or end it, is refused: the game stays as it
    is, the step counts, its reward is 0 and `valid` is false.
    """

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012 - Gymnasium's own attribute

    def __init__(
        self,
        kind: str = "coin_collector",
        *,
        level: int | None = None,
        rewards: str | None = None,
        goal: str | None = None,
        rooms: int | None = None,
        objects: int | None = None,
        quest_length: int | None = None,
        recipe: int | None = None,
        take: int | None = None,
        go: int | None = None,
        open: bool | None = None,
        cook: bool | None = None,
        cut: bool | None = None,
        drop: bool | None = None,
        foods: str | None = None,
        games: int = 230,
        held_out_games: int = 40,
        split: Split = "train",
        run_seed: int = 0,
        files: str | Sequence[str] | None = None,
        parts: Sequence[Part] = ("feedback",),
        prune: Sequence[str] = (),
        max_steps: int | Literal["auto"] | None = None,
        solutions: bool = False,
        render_mode: Literal["ansi"] | None = None,
    ) -> None:
        """Nothing is made or opened before the first reset.

        kind: coin_collector (level), treasure_hunter (level), simple (rewards, goal), custom (rooms, objects,
            quest_length) or cooking (recipe, take, go, open, cook, cut, drop, foods); see `rayrlhf.games.kinds`.
        games, held_out_games: how many different games each split has.
        split: which of them are played, train or held_out.
        run_seed: of the run; what order the train split's games come in follows from it.
        files: game files, or a folder of them, that are played instead in either split: TextWorld's .z8 with their
            .json, or other Z-machine games, whose commands and keys are unknown.
        parts: what an observation shows, in this order, of feedback, description, inventory and objective. The
            objective is in no observation without it. description or inventory make steps take twice as long.
        prune: what the commands begin with that are left out of the list, as in ("examine", "look"); they work still.
        max_steps: an episode is truncated after so many; auto: as many as are usual for the kind. A limit of
            the run itself (`environment.max_turns`) is better: here it makes the step part of a state's key.
        solutions: find commands that win from any state, for twice a step's time; without, they are known on the
            game's own way alone.
        render_mode: ansi makes `render` a map.

        Raises:
            EpisodeError: a parameter is wrong, or a file is missing.
            InstallationError: at the first reset, where TextWorld is missing.
        """
        given = {
            "level": level, "rewards": rewards, "goal": goal, "rooms": rooms, "objects": objects,
            "quest_length": quest_length, "recipe": recipe, "take": take, "go": go, "open": open, "cook": cook,
            "cut": cut, "drop": drop, "foods": foods,
        }  # fmt: skip
        self._kind = game_kind(kind, **{name: value for name, value in given.items() if value is not None})
        _check_count("games", games)
        _check_count("held_out_games", held_out_games)
        _check_choice("split", split, get_args(Split))
        for part in parts:
            _check_choice("parts", part, get_args(Part))
        self._files = None if files is None else _game_files(files)
        self._games = {"train": games, "held_out": held_out_games}
        self._split: Split = split
        self._run_seed = run_seed
        self._parts = tuple(parts)
        self._prune = tuple(prune)
        self._max_steps = _step_limit(max_steps, self._kind)
        self._solutions = solutions
        self.render_mode = render_mode
        self.observation_space = TextSpace()
        self.action_space = TextSpace()
        self._interpreter: Interpreter | None = None
        self._next = 0  # episode that reset() without a seed starts
        self._shown: Shown | None = None  # what the game showed last; None: no episode is under way
        self._game = Path()
        self._steps = 0
        self._found: dict[int, Path] = {}  # number of a game -> its file, once it was looked at

    @classmethod
    def prepare(cls, processes: int, **parameters: Any) -> None:
        """Makes all games that an environment with these parameters plays, so that no episode has to wait for them.

        processes: so many make them side by side, each about one game a second.

        Raises:
            EpisodeError: one of its `files` is no game that can be played.
        """
        environment = cls(**parameters)
        require_textworld()
        for path in environment._files or ():
            check_game(path)
        if environment._files is None:
            make_all(environment._kind, environment._games["train"], environment._games["held_out"], processes)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        episode = self._next if seed is None else seed
        self._next = episode + 1
        if self._interpreter is None:
            self._interpreter = Interpreter({"description", "inventory"} & set(self._parts) != set(), self._solutions)
        self._shown = None  # should the game not start
        self._game = self._file_of(episode)
        self._shown = self._interpreter.start(self._game, episode)
        self._steps = 0
        return self._observation(self._shown), self._info(self._shown.state)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Plays one command.

        Raises:
            EpisodeError: the episode is over or was never started.
        """
        if self._shown is None or self._interpreter is None:
            raise EpisodeError("rayrlhf/TextWorld-v0: step() without a game under way; call reset() first")
        before = self._shown.state
        self._steps += 1
        try:
            shown = self._shown = self._interpreter.play(self._command(action, before))
        except game_text.RefusedCommandError as refusal:
            shown = replace(self._shown, feedback=str(refusal), state=replace(before, valid=False))
        state = shown.state
        terminated = state.won or state.lost
        truncated = not terminated and self._steps == self._max_steps
        if terminated or truncated:
            self._shown = None
        return self._observation(shown), state.score - before.score, terminated, truncated, self._info(state)

    def render(self) -> str | None:
        """The map of the game as text with the player's room marked; None without render_mode ansi."""
        if self.render_mode is None or self._interpreter is None:
            return None
        return ascii_map(world_map(self._game, self._interpreter.facts))

    def close(self) -> None:
        if self._interpreter is not None:
            self._interpreter.close()
        self._interpreter, self._shown = None, None

    def first_seed(self, seed: int) -> int:
        """The smallest seed whose episode is the same, as it is for all episodes of one of our own games."""
        if self._files is not None:
            return seed  # other games may draw random numbers
        count = self._count()
        if self._split == "held_out":
            return seed % count
        return int(np.flatnonzero(epoch_order(self._run_seed, 0, count) == self._number_of(seed))[0])

    def _count(self) -> int:
        return len(self._files) if self._files is not None else self._games[self._split]

    def _number_of(self, episode: int) -> int:
        epoch, place = divmod(episode, self._count())
        return place if self._split == "held_out" else int(epoch_order(self._run_seed, epoch, self._count())[place])

    def _file_of(self, episode: int) -> Path:
        number = self._number_of(episode)
        if self._files is not None:
            return self._files[number]
        if number not in self._found:
            self._found[number] = game_file(self._kind, self._split, number)
        return self._found[number]

    def _command(self, action: str, state: GameState) -> str:
        """The action as the game is given it; whatever its case, one on the game's list is written as it is there."""
        listed = {command.lower(): command for command in state.commands}
        generated = bool(state.key)  # the keys of TextWorld's games allow for no word that means what was said before
        command = action if action in state.commands else game_text.command(action, pronouns=not generated)
        return listed.get(command, command)

    def _observation(self, shown: Shown) -> str:
        state = shown.state
        texts = {
            "feedback": game_text.without(state.objective, shown.feedback),
            "description": shown.description,
            "inventory": shown.inventory,
            "objective": state.objective,
        }
        return game_text.observation([texts[part] for part in self._parts])

    def _info(self, state: GameState) -> dict[str, Any]:
        kept = tuple(command for command in state.commands if not self._is_pruned(command))
        key = f"{state.key}:{self._steps}" if state.key and self._max_steps is not None else state.key
        shown = replace(state, commands=kept or state.commands, key=key)
        return {field.name: getattr(shown, field.name) for field in fields(shown)}

    def _is_pruned(self, command: str) -> bool:
        return any(command == words or command.startswith(f"{words} ") for words in self._prune)


def _game_files(files: str | Sequence[str]) -> list[Path]:
    """All game files of the paths, those of a folder in the order of their names."""
    found: list[Path] = []
    for given in [files] if isinstance(files, str) else files:
        path = expanded(given, EpisodeError).resolve()  # games are played in a folder of their own
        if not path.exists():
            raise EpisodeError(f"textworld: files names {given}, which is not there")
        inside = sorted(path.rglob("*.z[1-8]")) if path.is_dir() else [path]
        if not inside or re.fullmatch(r"\.z[1-8]", inside[0].suffix) is None:
            raise EpisodeError(
                f"textworld: files names {given}, where there is no game file of the Z-machine (.z1 to .z8)"
            )
        found += inside
    if not found:
        raise EpisodeError("textworld: files is empty; name a game file or a folder of them")
    return found


def _step_limit(max_steps: int | Literal["auto"] | None, kind: GameKind) -> int | None:
    if max_steps == "auto":
        return kind.step_limit
    if max_steps is not None:
        _check_count("max_steps", max_steps)
    return max_steps


def _check_count(name: str, value: object) -> None:
    if type(value) is not int or not 1 <= value <= MOST_GAMES:
        raise EpisodeError(f"textworld: {name} is {value!r}; it wants a whole number of at least 1")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise EpisodeError(f"textworld: {name} has {value!r}; it wants {' or '.join(choices)}")
