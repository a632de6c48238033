"""Config of the KL penalty: two channels, in the reward and in the loss, each with a controller (SPEC TW-16)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayrlhf.config_section import NonNegativeFloat, PositiveFloat, PositiveInt, Section

KLEstimator = Literal["k1", "k2", "k3", "full", "forward", "forward_sampled"]
"""Which number stands for the KL divergence at a token; `kl.py` says what each is, its bias and its gradient's.

Of KL(pi || ref), with k = log pi(y) - log ref(y): k1 = k, k2 = k^2 / 2, k3 = exp(-k) - 1 + k, full = the sum over the
vocabulary. Of KL(ref || pi): forward = the sum over the vocabulary, forward_sampled = -k exp(-k)."""


class FixedControllerConfig(Section):
    """The coefficient stays what it is."""

    kind: Literal["fixed"] = "fixed"


class AdaptiveControllerConfig(Section):
    """The coefficient follows the KL (Ziegler et al. 2019, section 2.2; SPEC LMHP-20).

    After each update coef <- coef * (1 + e * episodes / horizon), e = KL / target - 1 held within +-max_error, with the
    KL that the iteration's rollouts measured.
    """

    kind: Literal["adaptive"] = "adaptive"
    target: PositiveFloat = 6.0
    """Nats that the KL is held at."""
    unit: Literal["sequence", "token"] = "sequence"
    """What the target counts: nats a sequence, or a token (SPEC GWERN-20)."""
    horizon: PositiveFloat = 10_000
    """Episodes; the coefficient moves at most by a factor e in horizon / max_error of them (SPEC GWERN-19)."""
    max_error: PositiveFloat = 0.2
    """The relative error counts at most so much."""


class ScheduleControllerConfig(Section):
    """The coefficient goes from `coef` to `final`."""

    kind: Literal["schedule"] = "schedule"
    final: NonNegativeFloat
    """The coefficient at the end of the schedule and from there on."""
    shape: Literal["linear", "cosine", "exponential"] = "linear"
    """The way there: even steps, half a cosine wave, or even factors."""
    iterations: PositiveInt | None = None
    """Length of the schedule; null: the whole run."""


ControllerConfig = Annotated[
    FixedControllerConfig | AdaptiveControllerConfig | ScheduleControllerConfig, Field(discriminator="kind")
]


class KLChannelConfig(Section):
    """What both channels have."""

    coef: NonNegativeFloat = 0.4
    """Per nat."""
    controller: ControllerConfig = FixedControllerConfig()
    """How the coefficient moves: fixed, adaptive or schedule."""

    @model_validator(mode="after")
    def _can_move(self) -> KLChannelConfig:
        if self.coef == 0 and self.controller.kind == "adaptive":
            raise ValueError("an adaptive controller multiplies the coefficient: coef must be above 0")
        schedule = self.controller if isinstance(self.controller, ScheduleControllerConfig) else None
        if schedule and schedule.shape == "exponential" and not (self.coef and schedule.final):
            raise ValueError("an exponential schedule goes by factors: coef and controller.final must be above 0")
        return self


class KLPenaltyConfig(KLChannelConfig):
    """The reward channel: `score - coef * KL` (SPEC X-4), a number without gradient that the advantages are made of."""

    coef: NonNegativeFloat = 0.4
    """Per nat; of a whole sequence with reduction `sum`, of the mean token with `mean`."""
    reduction: Literal["sum", "mean"] = "sum"
    """`sum`: nats a sequence. `mean`: nats a token (SPEC ALLIT-6: mean over 99 tokens with 40 is sum with 0.404)."""
    estimator: KLEstimator = "k1"
    """k1, k2, k3, full, forward or forward_sampled. Alone only k1 gives the gradient of the sequence's KL without bias;
    full does together with the same coefficient and estimator in `kl_loss`, at a lower variance."""


class KLLossConfig(KLChannelConfig):
    """The loss channel: `policy loss + coef * KL` at each token, with its gradient, the prefixes held (SPEC TW-14)."""

    coef: NonNegativeFloat = 0.1
    """Per nat; tokens add up as `loss_reduction` says."""
    estimator: KLEstimator = "full"
    """k1, k2, k3, full, forward or forward_sampled; full and forward have the learner hold the reference."""
    correction: bool = True
    """Sampled estimators carry the importance weight pi / pi_old, and k1, k3 and forward_sampled the gradient of the
    sampling. Off: the bare estimator as other libraries have it, whose gradient is that of another divergence or 0."""
