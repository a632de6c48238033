"""Config of the divergence detector: a section a rule, with its thresholds and what is done when it fires.

The defaults were chosen on recorded runs of 60 updates of the recipe `alliteration` (tests/fixtures/detector_runs.json):
healthy-0 to -7, and with the learning rate times 100, the sign of the KL coefficient turned round, and no coefficient;
healthy-8 to -19 came later and changed nothing. "Healthy" below is the farthest that any of the twenty went.
`divergence.py` has the rules themselves.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rayrlhf.config_section import NonNegativeInt, PositiveFloat, PositiveInt, Section

DetectorAction = Literal["off", "warn", "snapshot", "rollback", "stop"]
"""What a rule does when it fires, mildest first: nothing; a line and a record; a checkpoint and a pause that `--resume`
ends; back to a checkpoint from before the trouble, with smaller steps and a larger KL coefficient; the end of the run."""

Share = Annotated[float, Field(gt=0, le=1)]


class RuleConfig(Section):
    """What every rule has."""

    action: DetectorAction | None = None
    """off, warn, snapshot, rollback or stop; null: `detector.action`."""
    onset: PositiveInt = 10
    """The trouble may have begun so many iterations before the alarm: `rollback` goes back to a checkpoint from before."""


class EntropyRuleConfig(RuleConfig):
    floor: Share = 0.25
    """Fires where the policy's entropy a token is under this share of the first iteration's (SPEC GWERN-12).
    Healthy: 0.76; the sick end under 0.01."""


class DistinctRuleConfig(RuleConfig):
    floor: Share = 0.5
    """Fires where distinct-2 of the last 50 texts is under this share of the base model's for as many (SPEC ALLIT-10).
    Healthy: 0.69; the sick end at 0."""


class DuplicatesRuleConfig(RuleConfig):
    limit: Share = 0.25
    """Fires where this share of an iteration's texts equal an earlier one, counted from the first iteration's share.
    Healthy: 0."""


class GzipRuleConfig(RuleConfig):
    floor: Share = 0.5
    """Fires where an iteration's texts compress to under this share of what the first iteration's compressed to.
    Healthy: 0.74; the sick end at 0.02."""


class KLSpikeRuleConfig(RuleConfig):
    """A jump of the KL to the reference within a few iterations."""

    factor: Annotated[float, Field(gt=1)] = 3.0
    """Fires where the KL is above so many times the median of the iterations before,"""
    window: PositiveInt = 10
    """of which so many count,"""
    least: PositiveFloat = 0.25
    """and above so many nats a token. Healthy: 0.21 nats, reached slowly. With a flipped sign it triples within ten updates:
    the rule fires at 0.26 to 0.28 nats, 1.3 times the highest KL of a healthy run, on the way to sixty times that."""


class KLGrowthRuleConfig(RuleConfig):
    """A KL that has grown beyond what a policy that still writes the reference's language needs."""

    limit: PositiveFloat = 1.0
    """Fires above so many nats a token, the mean of `window` iterations. Healthy: 0.20; without a coefficient 1.1 to 1.4
    just before the texts collapse."""
    window: PositiveInt = 3


class EmptyAnswersRuleConfig(RuleConfig):
    limit: Share = 0.25
    """Fires where this share of an iteration's answers hold nothing but whitespace, the first iteration's share left
    out (SPEC TW-25). Healthy: 0."""


class ScoreSaturationRuleConfig(RuleConfig):
    floor: Share = 0.05
    """Fires where the scores' standard deviation within an iteration is under this share of the first iteration's,"""
    window: PositiveInt = 3
    """so many iterations in a row; in the first at once where all of its scores are equal. Healthy: 0.63 of it; the sick
    end at 0."""


class ZeroVarianceRuleConfig(RuleConfig):
    limit: Share = 0.9
    """Fires where this share of groups has equal scores, so that they teach nothing, mean of `window` iterations, of texts
    from the first one on. Healthy: 0; in games that are being learnt up to 0.7."""
    window: PositiveInt = 3


class RatioRuleConfig(RuleConfig):
    max_ratio: Annotated[float, Field(gt=1)] = 10_000.0
    """Fires where a token's probability changed by more than this factor within one update. A healthy PPO run
    (`alliteration-ppo`) has single tokens at 580,"""
    max_approxkl: PositiveFloat = 0.5
    """or half the mean squared change of its logarithm is above this, nats^2 a token. Healthy PPO: 0.03."""
    onset: PositiveInt = 2


class LogprobGapRuleConfig(RuleConfig):
    share: Share = 0.5
    """Fires where learner and sampler disagree by more than this share of what stops the run (`learner.max_logprob_gap`,
    in bf16 `learner.max_mean_logprob_gap_bf16`, at the run's temperature). Healthy: 0.30."""


class DetectorConfig(Section):
    """Rules that notice a run that is collapsing, and what is done then (SPEC GWERN-12).

    They look at texts, scores and distances, never at the KL coefficient. What is not finite always stops the run.
    """

    action: DetectorAction = "warn"
    """Of every rule that has none of its own: off, warn, snapshot, rollback or stop."""
    lr_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`rollback` multiplies the learning rates by this,"""
    coef_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """and the KL coefficients by this."""
    max_rollbacks: NonNegativeInt = 3
    """The run stops where one more would be due."""
    keep_batches: NonNegativeInt = 3
    """Warnings keep the batch that raised them, and the weights that sampled it, until the run holds so many; alarms that
    act always do. Each takes the room of a model."""
    entropy: EntropyRuleConfig = EntropyRuleConfig()
    distinct_2: DistinctRuleConfig = DistinctRuleConfig()
    duplicates: DuplicatesRuleConfig = DuplicatesRuleConfig()
    gzip_ratio: GzipRuleConfig = GzipRuleConfig()
    kl_spike: KLSpikeRuleConfig = KLSpikeRuleConfig()
    kl_growth: KLGrowthRuleConfig = KLGrowthRuleConfig()
    empty_answers: EmptyAnswersRuleConfig = EmptyAnswersRuleConfig()
    score_saturation: ScoreSaturationRuleConfig = ScoreSaturationRuleConfig()
    zero_variance_groups: ZeroVarianceRuleConfig = ZeroVarianceRuleConfig()
    ratio: RatioRuleConfig = RatioRuleConfig()
    logprob_gap: LogprobGapRuleConfig = LogprobGapRuleConfig()

    @property
    def rules(self) -> dict[str, RuleConfig]:
        """The rules that are not off, by name."""
        named = ((name, getattr(self, name)) for name in type(self).model_fields)
        rules = {name: section for name, section in named if isinstance(section, RuleConfig)}
        return {name: section for name, section in rules.items() if self.action_of(section) != "off"}

    def action_of(self, rule: RuleConfig) -> DetectorAction:
        return rule.action or self.action

    @property
    def rollback_onset(self) -> int | None:
        """The longest onset of a rule that rolls back; None where none does."""
        return max((rule.onset for rule in self.rules.values() if self.action_of(rule) == "rollback"), default=None)
