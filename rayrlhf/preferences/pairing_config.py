"""Which pairs are asked for next: the section `pairing` of a project's config."""

from __future__ import annotations

from typing import Literal

from rayrlhf.config_section import Section

PairingMethod = Literal["random", "halves", "racing", "uncertain", "misjudged"]


class PairingConfig(Section):
    """How pairs are chosen."""

    method: PairingMethod = "random"
    """random: any two, first those that nobody compared yet. halves: shuffled, each item once (SPEC GWERN-4). racing: the
    leader against whoever may yet overtake it, to find the best item soon. uncertain: the items whose scores are least
    known. misjudged: pairs whose verdicts contradict the scores, asked again."""
    same_prompt: bool = True
    """Only texts that go on from the same prompt are paired (SPEC GWERN-33); any two where no two share a prompt."""
