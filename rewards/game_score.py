"""The points of the game itself (SPEC TW-9), one number a turn."""

from __future__ import annotations

from collections.abc import Sequence

from rayrlhf.types import Trajectory


class GameScore:
    """The environment's own reward of each turn: in TextWorld what the turn added to the game's score."""

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        return [[turn.reward for turn in trajectory.turns] for trajectory in trajectories]
