"""Shares of a count. A share is the decimal that was written: 0.29 of 100 is 29, though the float lies just below."""

from __future__ import annotations

from fractions import Fraction


def share_of(share: float, count: int) -> Fraction:
    """`share` times `count`, exactly: take its floor, round it or compare it, as the rule in hand says."""
    return Fraction(repr(float(share))) * count
