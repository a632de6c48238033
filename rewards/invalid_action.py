"""What an action costs that the game does not understand (SPEC TW-9), one number a turn."""

from __future__ import annotations

from collections.abc import Sequence

from rayrlhf.types import Trajectory


class InvalidAction:
    """A penalty for each action that the game did not understand; doing something legal again is none.

    penalty: what such a turn gets.
    """

    def __init__(self, penalty: float = -1.0) -> None:
        self.penalty = penalty

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        return [[0.0 if turn.after.valid else self.penalty for turn in trajectory.turns] for trajectory in trajectories]
