"""What all sections of the config share: strictness, and the kinds of numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


RECORD = {"record": True}
"""Context of a validation: the config is one that ran, and what today's rules refuse as without effect stays readable."""


def is_record(info: ValidationInfo) -> bool:
    """Whether the config under validation is one that ran, not one that is to run."""
    return bool(info.context and info.context.get("record"))


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values never change; a field's doc is the text under it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)
