"""How often a letter occurs in what the policy wrote (SPEC TW-25), one number a turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rayrlhf.types import Trajectory, Turn


class LetterCount:
    """How often a letter, small or capital, occurs in each response; the prompt does not count.

    letter: the letter to count.
    reduction: `sum`, the count; `mean`, the count over the response's tokens, its EOS included, which makes short
        responses cheap.
    empty_penalty: subtracted where a response is empty or blank.
    """

    def __init__(
        self, letter: str = "e", reduction: Literal["sum", "mean"] = "sum", empty_penalty: float = 0.0
    ) -> None:
        if len(letter) != 1:
            raise ValueError(f"letter has to be one character, not {letter!r}")
        self.letter = letter.lower()
        self.reduction = reduction
        self.empty_penalty = empty_penalty

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        return [[self._score(turn) for turn in trajectory.turns] for trajectory in trajectories]

    def _score(self, turn: Turn) -> float:
        if not turn.action.strip():
            return -self.empty_penalty
        count = turn.action.lower().count(self.letter)
        return count / len(turn.response_ids) if self.reduction == "mean" else float(count)
