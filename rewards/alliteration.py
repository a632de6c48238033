"""Alliteration: the reward of the default recipe (SPEC ALLIT-1, reward B)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from rayrlhf.errors import RewardError
from rayrlhf.reading import expanded, read_text
from rayrlhf.types import Trajectory


class Alliteration:
    """Number of adjacent word pairs that begin with the same character, case ignored.

    Words are what whitespace separates, so an opening quote is a word's first character; the prompt counts, too.

    letter: count the pairs of this letter alone; one such part a letter, each with weight 0, logs which letters are used.
    corpus: a text file; a pair counts by how rare its first character is there, 1 where all are equally frequent, so that
        a policy gains less from common letters (SPEC ALLIT-12).
    """

    def __init__(self, letter: str | None = None, corpus: str | None = None) -> None:
        if letter is not None and len(letter) != 1:
            raise ValueError(f"letter has to be one character, not {letter!r}")
        self.letter = letter.lower() if letter is not None else None
        self.rarity = rarities(read_text(expanded(corpus), RewardError)) if corpus is not None else None

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[float]:
        return [self._score(trajectory.text) for trajectory in trajectories]

    def _score(self, text: str) -> float:
        pairs = [left for left, right in pairwise(_initials(text)) if left == right and self.letter in (None, left)]
        if self.rarity is None:
            return float(len(pairs))
        unseen = max(self.rarity.values())
        return sum(self.rarity.get(initial, unseen) for initial in pairs)


def rarities(corpus: str) -> Mapping[str, float]:
    """Of each first character of a corpus' words: 1 / (how many there are * its share of the words).

    Raises ValueError for a corpus without words.
    """
    counts = Counter(_initials(corpus))
    if not counts:
        raise ValueError("corpus holds no words: give a text file")
    return {initial: counts.total() / (len(counts) * count) for initial, count in counts.items()}


def _initials(text: str) -> list[str]:
    return [word[0].lower() for word in text.split()]
