"""What a run is made of: typed, frozen, one model a concern. `load_config` reads a recipe or a YAML file.

Nothing rewrites a value after parsing; a derived number is a property; what is optional is a sub-config or null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values never change; a field's doc is the text under it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class ScratchConfig(Section):
    """A causal language model (Llama) with random weights, and a vocabulary made from the environment's own texts."""

    hidden_size: PositiveInt = 64
    """Width; a multiple of heads."""
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    context: PositiveInt = 512
    """Most tokens, prompt and response together."""
    vocabulary: PositiveInt = 1000
    """Most entries of the byte-level BPE vocabulary; what it lacks is spelled out, so that any text can be written."""


class ModelConfig(Section):
    path: str = "tiny-stories"
    """What the policy starts from and the reference stays: `tiny-stories` (shipped), a local folder, or a hub name."""
    scratch: ScratchConfig | None = None
    """Start from random weights instead of `path`: the model is made in the run's folder, from the run's seed."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off for models of strangers."""


class PromptsConfig(Section):
    text: str | None = None
    """One fixed prompt. At most one of text, file and folder; with none of them the policy starts from nothing."""
    file: str | None = None
    """A text file (one prompt a line) or a JSONL file (one object a line)."""
    folder: str | None = None
    """A dataset folder: all .txt, .jsonl and .parquet files in it, in the order of their names."""
    field: str = "prompt"
    """Which field of a JSONL or parquet row holds the prompt: text, or a list of {role, content} messages."""
    max_tokens: PositiveInt | None = None
    """Longest prompt in tokens; null: what the model's context leaves beside `rollout.max_new_tokens`."""
    too_long: Literal["error", "drop", "cut"] = "error"
    """A prompt over the limit stops the run, is dropped, or loses its beginning; dropped and cut ones are counted."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """Wrap prompts with the tokenizer's chat template: where it has one, always (an error without), or never."""

    @model_validator(mode="after")
    def _one_source(self) -> PromptsConfig:
        given = [name for name in ("text", "file", "folder") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of text, file and folder, not {' and '.join(given)}")
        return self


class EnvironmentConfig(BaseModel):
    """What is played; keys beside those below are the environment's own parameters (`{name: textworld, level: 5}`)."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, validate_default=True)

    name: str = "single_turn"
    """A file of `envs/`, an entry point of the group `rayrlhf.environments`, `module:Name`, or a Gymnasium id."""
    prompts: PromptsConfig = PromptsConfig()
    """Where the first observation of a single-turn episode comes from."""
    max_turns: PositiveInt = 100
    """An episode still running after so many turns is truncated: its value goes on beyond it."""
    step_timeout_s: PositiveFloat = 20.0
    """How long one step or reset of a game may take before its process is replaced and the game replayed."""
    max_retries: NonNegativeInt = 3
    """How often one step is tried again after its process was lost, before the run stops."""

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class ExampleTurnsConfig(Section):
    """Turns that are played for the policy: kept in its memory, never trained on (SPEC TW-8)."""

    probability: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Chance of each turn to be an example."""
    mode: Literal["valid", "correct", "human"] = "valid"
    """`valid`: any admissible command; `correct`: the next of a known solution; `human`: the next of `transcript`."""
    transcript: str | None = None
    """JSONL file of `rayrlhf play`: where mode `human` finds what people did in the same game at the same place."""


class AgentConfig(Section):
    """How the policy sees a game and acts in it."""

    prompt: Literal["observation", "you", "question", "sentence", "actions", "transcript"] = "observation"
    """`observation`: the text as it is. `you`, `question`, `sentence`: the three formats of SPEC TW-7 (a), (b), (c).
    `actions`: the last actions, newest first, then the text. `transcript`: all that happened so far; it only grows, so
    the sampler keeps its key-value cache from turn to turn."""
    memory_turns: NonNegativeInt = 0
    """Turns of the past in the prompt, oldest dropped first (SPEC TW-6); `transcript` keeps all, this is not its limit."""
    max_prompt_tokens: PositiveInt | None = None
    """Longest prompt in tokens; null: what the model's context leaves beside the response. The oldest turns go first."""
    chat_template: Literal["auto", "never"] = "auto"
    """Wrap the turns with the tokenizer's chat template where it has one."""
    actions: Literal["auto", "free", "constrained", "rank"] = "auto"
    """`free`: any text. `constrained`: token by token among the game's commands. `rank`: softmax over the commands' mean
    log-probabilities a token, to evaluate and play with. `auto`: constrained where the environment names its commands."""
    stop_at_sentence: bool = False
    """`free`: stop after a sentence's end or a newline once a letter or digit was written (SPEC TW-4)."""
    examples: ExampleTurnsConfig | None = None
    """Example turns; null: none."""


class RewardPart(BaseModel):
    """One named reward; keys beside `name` and `weight` are its parameters (`{name: letter_count, letter: e}`)."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: str
    """A file of `rewards/`, an entry point of the group `rayrlhf.rewards`, or `module:Name`."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor of this part in the sum; the log keeps the unweighted value."""

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class RolloutConfig(Section):
    workers: PositiveInt = 2
    """Rollout workers (Ray actors). On CPU one for each core: they run one thread each."""
    groups_per_iteration: PositiveInt = 4
    """Prompts an iteration."""
    group_size: PositiveInt = 10
    """Episodes of each prompt."""
    groups_per_batch: PositiveInt = 2
    """Groups decoded as one batch: the unit of work that is dealt to workers and redone whole. Results depend on it
    in their last bits, and never on the number of workers."""
    max_new_tokens: PositiveInt = 64
    """Longest response in tokens, its EOS included."""
    temperature: PositiveFloat = 1.0
    """Of the sampled and of the differentiated distribution, for policy and reference alike (SPEC X-5, X-6)."""
    top_k: PositiveInt | None = None
    """Sample from the k likeliest tokens only. The run warns: what is differentiated stays the full distribution."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample from the smallest set of tokens with this mass. The run warns as for top_k."""
    timeout_s: PositiveFloat = 600.0
    """How long one batch may take before its worker is killed and the batch redone elsewhere."""
    max_retries: NonNegativeInt = 3
    """How often one batch is redone after dead or late workers before the run stops."""
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: NonNegativeFloat = 0.0

    @property
    def episodes_per_iteration(self) -> int:
        return self.groups_per_iteration * self.group_size


class FixedKLConfig(Section):
    """Penalty of the KL divergence to the reference, subtracted from the reward: `score - coef * KL` (SPEC X-4)."""

    coef: NonNegativeFloat = 0.4
    """Per nat; of a whole sequence with reduction `sum`, of the mean token with `mean`."""
    reduction: Literal["sum", "mean"] = "sum"
    """`sum`: nats a sequence. `mean`: nats a token (SPEC ALLIT-6: mean over 99 tokens with 40 is sum with 0.404)."""


LossReduction = Literal["sequence_sum", "sequence_mean", "token_mean", "group_sum"]
"""How token losses add up, by global counts. With N sequences of T_i tokens:
sequence_sum: (1/N) sum_i sum_t (the policy gradient of whole sequences); sequence_mean: (1/N) sum_i (1/T_i) sum_t;
token_mean: sum_i sum_t / sum_i T_i; group_sum: sum_i (1/T_i) sum_t (the source of SPEC ALLIT-3, not averaged)."""


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
    kl: FixedKLConfig = FixedKLConfig()
    loss_reduction: LossReduction = "sequence_sum"
    """How token losses add up: sequence_sum, sequence_mean, token_mean or group_sum."""
    include_prompt: bool = False
    """Count prompt tokens after the first in the loss and in the KL (SPEC Q-5; only the parity presets do)."""
    importance_cap: PositiveFloat | None = 2.0
    """Cap of the importance weight pi_learner / pi_sampler of a token (truncated importance sampling); null: no weight."""
    clip_range: PositiveFloat | None = None
    """PPO's clipped ratio around 1 in place of importance_cap, for more epochs or minibatches than one; null: none."""

    @model_validator(mode="after")
    def _off_policy_is_clipped(self) -> PolicyGradientConfig:
        if self.epochs * self.minibatches > 1 and self.clip_range is None and self.importance_cap is None:
            raise ValueError("epochs and minibatches above 1 need clip_range or importance_cap")
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
    """`linear`: to 0 at the run's last iteration."""
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
    kl: FixedKLConfig = FixedKLConfig()
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
    """How token losses add up: sequence_sum, sequence_mean, token_mean or group_sum."""
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
    kl: FixedKLConfig = FixedKLConfig()
    keep: PositiveInt | None = None
    """How many turns are kept, all where there are fewer; give this or keep_fraction."""
    keep_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Which part of the turns is kept; with neither given, half."""
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


class LearnerConfig(Section):
    ranks: PositiveInt = 2
    """Learner ranks (Ray actors in one placement group), one device each."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage: what is sharded over ranks. 0 nothing, 1 optimizer, 2 + gradients, 3 + parameters."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 mixed precision on a GPU that has it, fp32 elsewhere."""
    tokens_per_micro_batch: PositiveInt = 4096
    """Most tokens, padding included, in one forward and backward pass of one rank."""
    max_logprob_gap: PositiveFloat = 1e-4
    """fp32: the run stops where learner and sampler disagree by more nats than this on any token (SPEC X-5)."""
    max_mean_logprob_gap_bf16: PositiveFloat = 0.02
    """bf16: the run stops where they disagree by more than this on the mean token."""
    timeout_s: PositiveFloat = 600.0
    """How long one update, save or load may take before the ranks are killed and rebuilt."""
    max_rebuilds: NonNegativeInt = 3
    """How often the ranks are rebuilt from the last checkpoint before the run stops."""
    cpus_per_rank: PositiveFloat = 1.0
    gpus_per_rank: NonNegativeFloat = 0.0


class EvaluationConfig(Section):
    """Games that are never trained on, played to see what the policy can do."""

    every: PositiveInt | None = None
    """Iterations between evaluations; null: after the last alone. Only environments with held-out games have any."""
    episodes: PositiveInt = 40
    """Held-out games, one episode each."""


class CheckpointConfig(Section):
    every: PositiveInt = 50
    """Iterations between checkpoints; the last iteration always has one."""
    keep: PositiveInt = 20
    """How many model folders stay (SPEC LMHP-27)."""
    keep_trainer_state: PositiveInt = 2
    """How many of the latest also keep the optimizer and all else that `--resume` needs."""


class RunConfig(Section):
    """One training run."""

    name: str = Field(default="alliteration", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's folder under `storage_path`."""
    storage_path: str = "runs"
    """Folder of all runs; on a cluster one that every node sees (it is checked at the start)."""
    seed: NonNegativeInt = 0
    """Everything random in the run follows from it."""
    iterations: PositiveInt = 120
    """Collect, score, update, publish: so many times."""
    baseline_episodes: NonNegativeInt = 200
    """Episodes of the untrained model, played before the first iteration: what reward and diversity are held against."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where workers and ranks compute; `auto`: on GPUs if the config gives them any."""
    model: ModelConfig = ModelConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    agent: AgentConfig = AgentConfig()
    reward: tuple[RewardPart, ...] = Field(default=(RewardPart(name="alliteration"),), min_length=1)
    """A name, `{name: ..., weight: ..., parameter: ...}`, or a list of them whose weighted sum is the reward."""
    reward_timeout_s: PositiveFloat = 60.0
    """How long one batch may take to be scored before the reward is stopped and the run with it."""
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = RLOOConfig()
    optimizer: OptimizerConfig = AdamWConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="before")
    @classmethod
    def _reward_list(cls, values: Any) -> Any:
        """`alliteration`, `{name: alliteration}` and `[alliteration]` say the same."""
        if not isinstance(values, dict) or "reward" not in values:
            return values
        given = values["reward"]
        parts = list(given) if isinstance(given, list | tuple) else [given]
        return {**values, "reward": tuple({"name": part} if isinstance(part, str) else part for part in parts)}

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.algorithm.name in ("rloo", "grpo") and self.rollout.group_size < 2:
            raise ValueError(
                f"algorithm.name {self.algorithm.name} compares the episodes of a group: "
                f"rollout.group_size must be at least 2, not {self.rollout.group_size}"
            )
        return self
