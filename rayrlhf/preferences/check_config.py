"""The checks that a text can fail without anybody reading it: the section `checks` of a project's config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from rayrlhf.config_section import NonNegativeInt, PositiveFloat, PositiveInt, Section


def _expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


def _some(text: str) -> str:
    if not text:
        raise ValueError("an empty string is in every text")
    return text


Expression = Annotated[str, AfterValidator(_expression)]
Share = Annotated[float, Field(ge=0, le=1)]


class RepetitionConfig(Section):
    """A text fails that says the same again and again."""

    n: PositiveInt = 3
    """Words in an n-gram."""
    most: Share = 0.5
    """Largest share of the n-grams that may be repetitions of an earlier one."""


class CompressibilityConfig(Section):
    """A text fails whose bytes shrink too far in gzip."""

    below: PositiveFloat | None = None
    """Fails where bytes after gzip over bytes before it are below this; short texts have higher ratios than long."""
    corpus: Path | None = None
    """Or: a text file (UTF-8) of good texts, its path from where the command runs; the threshold is a quantile of its
    pieces of the same length."""
    quantile: Share = 0.01
    """Of the pieces of the corpus, so many would fail."""
    header: Expression | None = None
    """Regular expression of what is left out first, in texts and corpus, such as `(?m)^[A-Z]:.*$` for ABC's header."""

    @model_validator(mode="after")
    def _one_threshold(self) -> CompressibilityConfig:
        if (self.below is None) == (self.corpus is None):
            raise ValueError("give either `below` or `corpus`")
        return self


class ChecksConfig(Section):
    """All are off by default."""

    validity: str | None = None
    """A callable of your own, `module:Name`: text -> whether it is valid."""
    pattern: Expression | None = None
    """Regular expression that is found in every valid text."""
    command: tuple[str, ...] = ()
    """Command as a list of arguments; it gets the text on its standard input and exits with 0 where it is valid."""
    command_seconds: PositiveFloat = 10.0
    """A text fails for which the command takes longer."""
    blacklist: tuple[Annotated[str, AfterValidator(_some)], ...] = ()
    """A text fails that holds one of these, upper and lower case alike."""
    min_length: NonNegativeInt = 0
    """Fewest characters of a text, without whitespace around it."""
    repetition: RepetitionConfig | None = None
    compressibility: CompressibilityConfig | None = None
