"""What every turn costs (SPEC TW-9), one number a turn."""

from __future__ import annotations

from collections.abc import Sequence

from rayrlhf.types import Trajectory


class Living:
    """The same number for every turn: below 0 it makes short games better.

    Beside another reward of weight w it makes the affine reward w * x + per_turn.

    per_turn: what each turn gets.
    """

    def __init__(self, per_turn: float = -0.1) -> None:
        self.per_turn = per_turn

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        return [[self.per_turn] * len(trajectory.turns) for trajectory in trajectories]
