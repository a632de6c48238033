"""Whether the game was won or lost (SPEC TW-9), one number a turn."""

from __future__ import annotations

from collections.abc import Sequence

from rayrlhf.types import Trajectory, Turn


class WinLose:
    """A reward for the turn that wins the game and one for the turn that loses it; 0 for all others.

    win: of the turn that wins.
    lose: of the turn that loses.
    """

    def __init__(self, win: float = 2.0, lose: float = -2.0) -> None:
        self.win = win
        self.lose = lose

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        return [[self._score(turn) for turn in trajectory.turns] for trajectory in trajectories]

    def _score(self, turn: Turn) -> float:
        won = turn.after.won and not turn.before.won  # a game may go on after it was won: it is won once
        lost = turn.after.lost and not turn.before.lost
        return self.win * won + self.lose * lost
