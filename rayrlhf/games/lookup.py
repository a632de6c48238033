"""What a game knows and does not show: its map, and commands that win from anywhere.

Asked of a second copy of the game in this process, brought to the same state by the same commands.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rayrlhf.environments import EnvironmentSettings, game_state, load_environment, make_environment


class GameLookup:
    """Looks up things of any state of a game."""

    def __init__(self, settings: EnvironmentSettings):
        self._settings = settings
        self._parameters = inspect.signature(load_environment(settings.name)).parameters

    def map(self, seed: int, moves: Sequence[str]) -> str | None:
        """What the game's `render` draws as text after these moves; None where it draws nothing.

        Raises EpisodeError where this game has no map and others of the environment have.
        """
        if "render_mode" not in self._parameters:
            return None
        with self._played(seed, moves, render_mode="ansi") as (environment, _):
            return environment.render()

    def solution(self, seed: int, moves: Sequence[str]) -> tuple[str, ...]:
        """Commands that win after these moves; () where the game cannot find any."""
        if "solutions" not in self._parameters:
            return ()
        with self._played(seed, moves, solutions=True) as (_, info):
            return game_state(info).solution

    @contextlib.contextmanager
    def _played(self, seed: int, moves: Sequence[str], **parameters: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        settings = replace(self._settings, parameters={**self._settings.parameters, **parameters})
        environment: Any = make_environment(settings)
        with contextlib.closing(environment):
            _, info = environment.reset(seed=seed)
            for move in moves:
                *_, info = environment.step(move)
            yield environment, info
