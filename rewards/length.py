"""How long the policy's answers are, against a target, a maximum, or as such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rayrlhf.text_statistics import words
from rayrlhf.types import Trajectory


class Length:
    """Length of an episode's responses: minus the distance to a target, minus the excess over a maximum, or itself.

    unit: `tokens` (EOS included) or `words` (each character one where no blanks are written, as in Chinese).
    target: minus the distance to it is the score; 0 is best.
    maximum: minus what exceeds it is the score; 0 up to there.
    """

    def __init__(
        self, unit: Literal["tokens", "words"] = "tokens", target: int | None = None, maximum: int | None = None
    ) -> None:
        if target is not None and maximum is not None:
            raise ValueError("give target or maximum, not both")
        for name, value in (("target", target), ("maximum", maximum)):
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, but is {value}")
        self.unit = unit
        self.target = target
        self.maximum = maximum

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[float]:
        return [float(self._score(self._length(trajectory))) for trajectory in trajectories]

    def _length(self, trajectory: Trajectory) -> int:
        if self.unit == "tokens":
            return trajectory.response_tokens
        return sum(len(words(turn.action)) for turn in trajectory.turns)

    def _score(self, length: int) -> int:
        if self.target is not None:
            return -abs(length - self.target)
        if self.maximum is not None:
            return -max(0, length - self.maximum)
        return length
