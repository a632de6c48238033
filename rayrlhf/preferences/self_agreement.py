"""How far a rater agrees with themselves on pairs that they were asked about twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayrlhf.intervals import Estimate, wilson
from rayrlhf.preferences.records import Comparison


@dataclass(frozen=True, slots=True)
class SelfAgreement:
    """Counts over pairs that were asked again."""

    repeats: int  # asked again, whatever the verdicts
    decisive: int  # of these, both verdicts named a winner
    agreed: int  # of these, the same one

    @property
    def share(self) -> Estimate | None:
        """Share of the decisive repeats on which both verdicts agree, with Wilson's 95 % interval; None without any."""
        if not self.decisive:
            return None
        share = self.agreed / self.decisive
        return Estimate(share, *wilson(share, self.decisive))


def self_agreement(comparisons: Sequence[Comparison], rater: str | None = None) -> SelfAgreement:
    """rater: of this one alone; None: of all together. A repeat whose first verdict is not among them is left out."""
    by_id = {comparison.id: comparison for comparison in comparisons}
    repeats = [
        (by_id[comparison.repeats], comparison)
        for comparison in comparisons
        if comparison.repeats in by_id and (rater is None or comparison.rater == rater)
    ]
    decisive = [(first, again) for first, again in repeats if first.winner is not None and again.winner is not None]
    agreed = sum(first.winner == again.winner for first, again in decisive)
    return SelfAgreement(len(repeats), len(decisive), agreed)
