"""How far two ways to the same numbers in float32 may part: every processor adds up in an order of its own."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

EPSILON = float(np.finfo(np.float32).eps)
FORWARD = 64
"""Roundings in a row of the small models' forwards: layers times sums over some 30 channels, in a tree, and the softmax."""


def rounding(operations: int, largest: float | Iterable[float] = 1.0) -> float:
    """The absolute difference that so many roundings in a row make at most, each half a unit in the last place of numbers
    up to `largest`, on both ways."""
    size = float(np.abs(np.asarray(largest, dtype=np.float64)).max())
    return operations * EPSILON * max(size, 1.0)
