"""Words that start with an a (SPEC ALLIT-1, reward A)."""

from __future__ import annotations

from collections.abc import Sequence

from rayrlhf.types import Trajectory


class StartsWithA:
    """Number of words whose first character is a or A.

    Words are what whitespace separates; the prompt counts, too. The easiest reward to hack: "a a a a" is the best text.
    """

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[float]:
        return [float(sum(word[0] in "aA" for word in trajectory.text.split())) for trajectory in trajectories]
