"""Gymnasium's space of texts: what observations and actions of all our environments are."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

SURROGATES = range(0xD800, 0xE000)  # code points that are no characters: no encoding can write them


class TextSpace(gymnasium.Space[str]):
    """Any text: every Unicode string of any length. (`gymnasium.spaces.Text` wants an alphabet and a length.)"""

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(shape=None, dtype=None, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """A random text of 0 to 32 characters from all of Unicode; text takes neither mask nor probability."""
        if mask is not None or probability is not None:
            raise ValueError("a text space is sampled without mask and probability")
        points = self.np_random.integers(0, 0x110000 - len(SURROGATES), size=int(self.np_random.integers(0, 33)))
        return "".join(chr(point if point < SURROGATES.start else point + len(SURROGATES)) for point in points)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextSpace)

    __hash__ = None  # type: ignore[assignment]  # spaces hold a generator: mutable, as Gymnasium's own

    def __repr__(self) -> str:
        return "TextSpace()"
