"""Verdicts that need nobody: pairs in which a check found a broken text (SPEC GWERN-7), and how many of them count."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import get_args

from rayrlhf.preferences.records import Best, Comparison, Source
from rayrlhf.shares import share_of

AUTOMATIC_SHARE = 0.3  # SPEC GWERN-8


def auto_verdict(broken_first: bool, broken_second: bool) -> Best | None:
    """Exactly one broken: the other wins. Both: a tie. None: no verdict, a person has to look."""
    if broken_first and broken_second:
        return "tie"
    if broken_first:
        return 1
    if broken_second:
        return 0
    return None


def auto_comparison(
    items: tuple[str, str], faults_first: Sequence[str], faults_second: Sequence[str]
) -> Comparison | None:
    """The comparison that the checks alone decide; None where both texts are sound. Its id follows from the pair.

    items: ids. faults_first, faults_second: why a text is broken (`Checks.faults`), empty where it is sound.
    """
    best = auto_verdict(bool(faults_first), bool(faults_second))
    if best is None:
        return None
    found = [(index, faults) for index, faults in enumerate((faults_first, faults_second)) if faults]
    return Comparison(
        items=items,
        best=best,
        source="auto",
        broken=tuple(index for index, _ in found),
        reason="; ".join(dict.fromkeys(fault for _, faults in found for fault in faults)),
        id=f"auto-{'-'.join(sorted(items))}",  # decided twice, by two processes, it counts once
    )


def without_sources(comparisons: Sequence[Comparison], off: Collection[Source]) -> list[Comparison]:
    """The comparisons of the other sources (SPEC Q-18: switch `auto` off to see what automatic labels change)."""
    return [comparison for comparison in comparisons if comparison.source not in off]


def cap_automatic(comparisons: Sequence[Comparison], share: float = AUTOMATIC_SHARE, seed: int = 0) -> list[Comparison]:
    """All comparisons that are not automatic, and so many automatic ones that these are at most `share` of what is kept.

    0 keeps no automatic one, 1 all of them. Which ones are kept depends on their ids and the seed alone, so that the
    set of kept ones changes little when comparisons come in. The order stays.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is in [0, 1], not {share}")
    automatic = [comparison.id for comparison in comparisons if comparison.source == "auto"]
    if share < 1:
        others = len(comparisons) - len(automatic)
        automatic = sorted(automatic, key=lambda id: hashlib.sha256(f"{seed}:{id}".encode()).digest())
        automatic = automatic[: _most_automatic(others, share)]
    kept = set(automatic)
    return [comparison for comparison in comparisons if comparison.source != "auto" or comparison.id in kept]


def _most_automatic(others: int, share: float) -> int:
    """Largest n with n / (n + others) <= share, exactly; share < 1."""
    return math.floor(share_of(share, others) / (1 - share_of(share, 1)))


@dataclass(frozen=True, slots=True)
class SourceShare:
    """One line of the report on where comparisons come from."""

    source: Source
    count: int  # in the store
    kept: int  # drawn for training
    share: float  # of all that are kept, in [0, 1]

    def __str__(self) -> str:
        return f"{self.source}: {self.kept} of {self.count} comparisons, {self.share:.1%} of what is kept"


def source_shares(comparisons: Sequence[Comparison], kept: Sequence[Comparison]) -> list[SourceShare]:
    """Where the comparisons come from, before and after the cap; sources without any are left out."""
    before, after = (Counter(comparison.source for comparison in group) for group in (comparisons, kept))
    return [
        SourceShare(source, before[source], after[source], after[source] / len(kept) if kept else 0.0)
        for source in get_args(Source)
        if before[source]
    ]
