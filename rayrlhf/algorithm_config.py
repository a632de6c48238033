"""The config sections of algorithms and optimizers; `kl_config.py` has the KL penalty's, `config.py` the others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator

from rayrlhf.config_section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section, is_record
from rayrlhf.kl_config import KLLossConfig, KLPenaltyConfig

LossReduction = Literal["sequence_sum", "sequence_mean", "token_mean", "group_sum"]
"""How token losses add up, by global counts. With N sequences of T_i tokens:
sequence_sum: (1/N) sum_i sum_t (the policy gradient of whole sequences); sequence_mean: (1/N) sum_i (1/T_i) sum_t;
token_mean: sum_i sum_t / sum_i T_i; group_sum: sum_i (1/T_i) sum_t (the source of SPEC ALLIT-3, not averaged).

Of more minibatches than one each stands for the whole batch: the loss of its n of the batch's N' sequences counts N'/n
times, which is without bias. token_mean alone is the mean over the minibatch's own tokens, the policy's loss over those
that carry it and the value loss over its own: a token counts more in a minibatch of few than in one of many."""


class UpdateConfig(Section):
    """How often an iteration's episodes are gone through."""

    epochs: PositiveInt = 1
    """Passes over the iteration's episodes. More than one wants a clipped loss: the policy moves away from them."""
    minibatches: PositiveInt = 1
    """Optimizer steps an epoch, over random parts of the episodes' turns."""
    entropy_coef: NonNegativeFloat = 0.0
    """Bonus a nat of the policy's entropy at each token that is trained, with its gradient."""
    target_kl: PositiveFloat | None = None
    """Stop going through the episodes once a step's `policy/approxkl` is above; null: never."""
    turn_discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of the reward from turn to turn."""


class PolicyGradientConfig(UpdateConfig):
    kl: KLPenaltyConfig = KLPenaltyConfig()
    """The KL penalty in the reward."""
    kl_loss: KLLossConfig | None = None
    """The KL penalty in the loss, beside or in place of that in the reward (`kl.coef: 0`); null: none."""
    loss_reduction: LossReduction = "sequence_sum"
    """How token losses add up: sequence_sum, sequence_mean, token_mean (in each minibatch the mean over its own tokens) or
    group_sum."""
    include_prompt: bool = False
    """Count prompt tokens after the first in the loss and in the KL (SPEC Q-5; only the parity presets do)."""
    importance_cap: PositiveFloat | None = 2.0
    """Cap of the importance weight pi_learner / pi_sampler of a token (truncated importance sampling); null: no weight.
    Nothing where clip_range is set, which takes its place: any other cap than this default is refused there."""
    clip_range: PositiveFloat | None = None
    """PPO's clipped ratio around 1 in place of importance_cap, for more epochs or minibatches than one; null: none."""

    @model_validator(mode="after")
    def _one_limit_of_the_ratio(self, info: ValidationInfo) -> PolicyGradientConfig:
        default = PolicyGradientConfig.model_fields["importance_cap"].default
        if self.clip_range is not None and self.importance_cap not in (None, default) and not is_record(info):
            raise ValueError(
                f"importance_cap {self.importance_cap:g} does nothing beside clip_range {self.clip_range:g}, which takes "
                "its place: leave importance_cap out, or set clip_range to null"
            )
        return self

    @model_validator(mode="after")
    def _off_policy_is_clipped(self) -> PolicyGradientConfig:
        if self.epochs * self.minibatches > 1 and self.clip_range is None and self.importance_cap is None:
            raise ValueError("epochs and minibatches above 1 need clip_range or importance_cap")
        return self

    @model_validator(mode="after")
    def _prompts_are_sampled(self) -> PolicyGradientConfig:
        if self.include_prompt and self.kl.estimator in ("full", "forward"):
            raise ValueError(
                f"algorithm.kl.estimator {self.kl.estimator} is over the tokens of responses alone, and "
                "algorithm.include_prompt counts prompts: take k1, k2, k3 or forward_sampled, or leave include_prompt off"
            )
        return self


class ReinforceConfig(PolicyGradientConfig):
    """REINFORCE (Williams 1992): advantage = shaped reward minus an optional moving average."""

    name: Literal["reinforce"] = "reinforce"
    baseline_decay: Annotated[float, Field(ge=0, lt=1)] | None = 0.9
    """Decay of the moving average of shaped rewards that is subtracted; null: no baseline, raw rewards."""


class RLOOConfig(PolicyGradientConfig):
    """RLOO (Kool et al. 2019; Ahmadian et al. 2024): baseline = mean of the others of the group, on shaped rewards."""

    name: Literal["rloo"] = "rloo"


class GRPOConfig(PolicyGradientConfig):
    """GRPO (Shao et al. 2024): reward minus group mean, by default over the group's standard deviation; clipped ratio."""

    name: Literal["grpo"] = "grpo"
    normalize_by_std: bool = True
    """Divide by the group's standard deviation (off: Liu et al. 2025, Dr. GRPO)."""
    clip_range: PositiveFloat | None = 0.2
    """Clip of the ratio pi / pi_old around 1."""


class OptimizerSettings(Section):
    lr: PositiveFloat = 3e-4
    """Learning rate."""
    warmup_iterations: NonNegativeInt = 0
    """The learning rate rises linearly over so many iterations."""
    decay: Literal["none", "linear"] = "none"
    """`linear`: down to 1/N of it in the last of the N iterations that it is spread over (`schedule_iterations`), where it
    stays."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are clipped to this global norm; null: not clipped."""


Momentum = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(OptimizerSettings):
    name: Literal["adamw"] = "adamw"
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class SGDConfig(OptimizerSettings):
    name: Literal["sgd"] = "sgd"
    momentum: NonNegativeFloat = 0.0


OptimizerConfig = Annotated[AdamWConfig | SGDConfig, Field(discriminator="name")]


class SeparateValueConfig(Section):
    """A value network of its own: backbone, head and optimizer (SPEC WP-6)."""

    kind: Literal["separate"] = "separate"
    init: str | None = None
    """Where its backbone comes from: a model folder or hub name, a reward model too; null: the policy's own start."""
    optimizer: OptimizerConfig = AdamWConfig(lr=1e-3)
    """Its own optimizer."""
    head: Literal["linear", "mlp"] = "linear"
    """`linear`: one layer. `mlp`: linear, ReLU, linear with twice the width between (SPEC TW-17)."""


class HeadValueConfig(Section):
    """A head on the policy's trunk: one network, one optimizer, one joint loss."""

    kind: Literal["head"] = "head"
    head: Literal["linear", "mlp"] = "linear"
    """`linear`: one layer. `mlp`: linear, ReLU, linear with twice the width between (SPEC TW-17)."""
    detach: bool = False
    """The value loss does not reach the trunk."""


ValueConfig = Annotated[SeparateValueConfig | HeadValueConfig, Field(discriminator="kind")]
Unit = Annotated[float, Field(ge=0, le=1)]


class GAEConfig(Section):
    """Generalised advantage estimation (Schulman et al. 2016) over tokens and turns.

    Within a turn, discount and lambda of tokens; from the last token of a turn to the first of the next the discount is
    token_discount * turn_discount and the lambda turn_lambda. turn_lambda 0 restarts at each action: SPEC TW-11.
    """

    token_discount: Unit = 1.0
    token_lambda: Unit = 0.95
    turn_discount: Unit = 0.97
    turn_lambda: Unit = 0.95


class PPOConfig(Section):
    """PPO (Schulman et al. 2017; SPEC LMHP-19..24): clipped policy and value losses, advantages from a value network."""

    name: Literal["ppo"] = "ppo"
    kl: KLPenaltyConfig = KLPenaltyConfig()
    """The KL penalty in the reward."""
    kl_loss: KLLossConfig | None = None
    """The KL penalty in the loss, beside or in place of that in the reward (`kl.coef: 0`); null: none."""
    gae: GAEConfig = GAEConfig()
    epochs: PositiveInt = 4
    """Passes over the iteration's episodes."""
    minibatches: PositiveInt = 1
    """Optimizer steps an epoch, over random parts of the episodes' turns."""
    clip_range: PositiveFloat = 0.2
    """Clip of the ratio pi / pi_old around 1."""
    value_clip_range: PositiveFloat | None = 0.2
    """The value loss counts at least what it would with V this close to its old value; null: not clipped."""
    value_coef: PositiveFloat = 0.1
    """Factor of the value loss."""
    entropy_coef: NonNegativeFloat = 0.0
    """Bonus a nat of the policy's entropy at each token that is trained, with its gradient."""
    target_kl: PositiveFloat | None = None
    """Stop going through the episodes once a step's `policy/approxkl` is above; null: never."""
    whiten_rewards: Literal["none", "batch"] = "none"
    """Divide rewards by their standard deviation over the iteration's tokens; their mean stays (SPEC LMHP-21)."""
    whiten_advantages: Literal["none", "episode", "minibatch", "batch"] = "batch"
    """Shift and scale advantages to mean 0 and deviation 1 over the tokens of an episode, minibatch or iteration."""
    loss_reduction: LossReduction = "token_mean"
    """How token losses add up: sequence_sum, sequence_mean, token_mean (in each minibatch the mean over its own tokens) or
    group_sum."""
    value: ValueConfig = SeparateValueConfig()
    """The value network."""

    @property
    def include_prompt(self) -> bool:
        return False

    @property
    def turn_discount(self) -> float:
        return self.gae.turn_discount


class RejectionSamplingConfig(UpdateConfig):
    """Rejection sampling (SPEC TW-12, TW-20): cross-entropy on the turns with the highest return less KL penalty."""

    name: Literal["rejection_sampling"] = "rejection_sampling"
    kl: KLPenaltyConfig = KLPenaltyConfig()
    """The KL penalty in the reward."""
    kl_loss: KLLossConfig | None = None
    """The KL penalty in the loss, beside or in place of that in the reward (`kl.coef: 0`); null: none."""
    keep: PositiveInt | None = None
    """How many turns are kept, all where there are fewer; give this or keep_fraction."""
    keep_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Which part of the turns is kept, rounded down to whole ones, at least one; with neither given, half."""
    ties: Literal["random", "all"] = "random"
    """Turns with the score of the last one kept: a random choice of them, or all."""
    dedupe: bool = False
    """Of turns with the same prompt and answer only the best counts."""
    unfinished: Literal["use", "drop"] = "use"
    """Turns of episodes that a limit cut off: their return is what came so far, or they are left out."""
    train_prompt: bool = False
    """Cross-entropy on the prompt's tokens too."""

    @model_validator(mode="after")
    def _one_rule(self) -> RejectionSamplingConfig:
        if self.keep is not None and self.keep_fraction is not None:
            raise ValueError("give one of keep and keep_fraction, not both")
        return self

    @property
    def include_prompt(self) -> bool:
        return False


AlgorithmConfig = Annotated[
    ReinforceConfig | RLOOConfig | GRPOConfig | PPOConfig | RejectionSamplingConfig, Field(discriminator="name")
]
