"""Alliteration: the reward of the default recipe (SPEC ALLIT-1, reward B)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rayrlhf.types import Trajectory


class Alliteration:
    """Number of adjacent word pairs that begin with the same character, case ignored.

    Words are what whitespace separates, so an opening quote is a word's first character; the prompt counts, too.
    """

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[float]:
        return [float(_alliterating_pairs(trajectory.text)) for trajectory in trajectories]


def _alliterating_pairs(text: str) -> int:
    initials = [word[0].lower() for word in text.split()]
    return sum(left == right for left, right in pairwise(initials))
