"""How two models are compared: where their texts are from, and how these were sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from rayrlhf.config_section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class SampledWith(Section):
    """How texts were sampled; null: not known."""

    temperature: PositiveFloat | None = None
    """Divides the logits."""
    top_k: PositiveInt | None = None
    """Drawn from so many likeliest tokens; with a temperature that is known, null means all of them."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Drawn from the smallest set of tokens of this mass."""
    max_new_tokens: PositiveInt | None = None
    """Longest text in tokens."""


class CompareConfig(Section):
    """One blind comparison; it is kept with its verdicts, and one that goes on has to have the same."""

    a: str
    """A run's folder, a model, or a JSONL file of samples."""
    b: str
    """The other one."""
    samples: PositiveInt = 100
    """Texts of each, one pair for each two."""
    prompt: str | None = None
    """One prompt for all texts; null: the prompts that the runs were trained with, or those in the files."""
    max_new_tokens: PositiveInt = 64
    """Longest text in tokens, of both."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of both."""
    seed: NonNegativeInt = 0
    """Of the sampling."""
    allow_unequal: bool = False
    """Compare texts that were sampled with different settings, or that not both have of a prompt."""
    judge: str | None = None
    """A reward that judges by which text scores higher; null: a person."""
    judge_parameters: Mapping[str, Any] = Field(default_factory=dict)
    """Of the reward."""
    margin: NonNegativeFloat = 0.0
    """Scores of the judge that differ by no more than this are a tie."""
