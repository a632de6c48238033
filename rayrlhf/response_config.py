"""Where a freely written response ends, and what one without its stop is worth: the section `response` of a run.

Both are off by default, and neither needs the other (SPEC LMHP-16).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rayrlhf.config_section import NonNegativeInt, Section

StopText = Annotated[str, Field(min_length=1)]


class TruncationConfig(Section):
    """The response ends with the first token, `after_tokens` or later, that completes `text`: the response so far ends
    with it. A token that holds more behind it (`."`) completes no `.`."""

    text: StopText = "."
    """The stop: one token or several, matched in the decoded text."""
    after_tokens: NonNegativeInt = 16
    """Response tokens before the first one that may be the stop."""
    train_after_stop: bool = False
    """Sample on after the stop and train on it, with its KL, while the rewards see the response up to the stop, as
    OpenAI's original did. Off: nothing is sampled after the stop, and the score lies on it (SPEC LMHP-18)."""


class MissingStopConfig(Section):
    """What becomes of the score of a response without the stop."""

    mode: Literal["none", "fixed", "add"] = "none"
    """`none`: nothing. `fixed`: `value` takes the place of the whole score. `add`: `value` is added to it."""
    value: float = Field(default=-1.0, allow_inf_nan=False)
    text: StopText | None = None
    """The stop that must be there, matched as in truncation; null: truncation's text, or without truncation the EOS."""
    after_tokens: NonNegativeInt | None = None
    """A stop among so many first tokens does not count; null: as many as for truncation, or without truncation 0."""
    refuse_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The run stops where a larger share of its first episodes (the untrained model's) is penalised."""


class ResponseConfig(Section):
    truncation: TruncationConfig | None = None
    """Cut responses at a stop; null: they end with their EOS or at `rollout.max_new_tokens`."""
    missing_stop: MissingStopConfig = MissingStopConfig()
    """Penalise responses without a stop."""

    def unreachable(self, max_new_tokens: int) -> str | None:
        """The setting that lets a stop come only after the longest response has ended; None where there is none."""
        after = {}
        if self.truncation is not None:
            after["response.truncation.after_tokens"] = self.truncation.after_tokens
        if self.missing_stop.mode != "none" and self.missing_stop.after_tokens is not None:
            after["response.missing_stop.after_tokens"] = self.missing_stop.after_tokens
        return next((f"{name} {tokens}" for name, tokens in after.items() if tokens >= max_new_tokens), None)


NO_RULES = ResponseConfig()
"""The default: responses end with their EOS or at the limit of tokens, and no stop is missed."""
