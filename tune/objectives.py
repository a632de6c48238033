"""What a sweep looks for, as config: the reward, under a bound on the KL or with a floor under the diversity.

`results.py` computes an objective from a run's checkpoints, `frontier.py` recommends by it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rayrlhf.config_section import PositiveFloat, Section

MIN_DIVERSITY = 0.6
"""Share of the base model's diversity that varied texts keep (SPEC ALLIT-11 iv)."""


class RewardUnderKL(Section):
    """The highest reward so far among a run's checkpoints whose KL is within a bound."""

    kind: Literal["reward_under_kl"] = "reward_under_kl"
    max_kl: PositiveFloat = 20.0
    """Nats a sequence. The plain reward would favour runs that leave the base model behind."""


class RewardWithDiversity(Section):
    """The highest reward so far among a run's checkpoints whose texts are varied enough."""

    kind: Literal["reward_with_diversity"] = "reward_with_diversity"
    min_diversity: Annotated[float, Field(gt=0, allow_inf_nan=False)] = MIN_DIVERSITY
    """Distinct-2 of the last 50 texts over the base model's for equally many: 1 is as varied as the base model."""


ObjectiveConfig = Annotated[RewardUnderKL | RewardWithDiversity, Field(discriminator="kind")]
