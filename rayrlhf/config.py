"""What a run is made of: typed, frozen, one model a concern. `load_config` reads a recipe or a YAML file.

Nothing rewrites a value after parsing; a derived number is a property; what is optional is a sub-config or null.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rayrlhf.algorithm_config import AdamWConfig, AlgorithmConfig, OptimizerConfig, RLOOConfig
from rayrlhf.config_section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from rayrlhf.detector_config import DetectorConfig
from rayrlhf.response_config import ResponseConfig


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
    context: PositiveInt | None = None
    """Most tokens, prompt and response together; null: what the model's config names, 2048 where it names no limit."""
    scratch: ScratchConfig | None = None
    """Start from random weights instead of `path`: the model is made in the run's folder, from the run's seed."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off for models of strangers."""

    def at(self, path: Path) -> ModelConfig:
        """The same settings with the weights in another folder: of what a run made of this model."""
        return self.model_copy(update={"path": str(path), "scratch": None})


class PromptsConfig(Section):
    text: str | None = None
    """One fixed prompt. At most one of text, file and folder; with none of them the policy starts from nothing."""
    file: str | None = None
    """A text file (one prompt a line) or a JSONL file (one object a line: .jsonl, .ndjson or .jsonlines)."""
    folder: str | None = None
    """A dataset folder: all .txt, JSONL and .parquet files in it, in the order of their names."""
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
    """How often one step is tried again that raised or lost its process, and how often the steps of a batch are on average,
    before the run stops."""

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
    actors: NonNegativeInt | None = None
    """Ray actors that score this part; 0: it runs in a child process of the driver. null: 1 for `reward_model`, else 0."""
    cpus_per_actor: PositiveFloat = 1.0
    gpus_per_actor: NonNegativeFloat = 0.0

    @property
    def learned(self) -> bool:
        """Whether this is the reward of a learned reward model's folder."""
        return self.name.strip().replace("-", "_") == "reward_model"

    @property
    def in_actors(self) -> int:
        """Ray actors of this part."""
        return int(self.learned) if self.actors is None else self.actors

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
    """fp32: the run stops where learner and sampler disagree by more nats than this on any token (SPEC X-5). It holds for
    the logits: at a temperature below 1, which divides them, so many times more is allowed as it multiplies them."""
    max_mean_logprob_gap_bf16: PositiveFloat = 0.02
    """bf16: the run stops where they disagree by more than this on the mean token, at temperature 1 or above."""
    timeout_s: PositiveFloat = 600.0
    """How long one update, save or load may take before the ranks are killed and rebuilt."""
    max_rebuilds: NonNegativeInt = 3
    """How often the ranks are rebuilt from the last checkpoint before the run stops."""
    cpus_per_rank: PositiveFloat = 1.0
    gpus_per_rank: NonNegativeFloat = 0.0

    def logprob_gap_limit(self, bf16: bool, temperature: float) -> float:
        """The disagreement in nats that stops the run, on the worst token in fp32 and on the mean one in bf16.

        Rounding is that of the logits, and a log-probability has logits / temperature. Above 1 the limit stays: what the
        normaliser over the vocabulary adds is not divided.
        """
        limit = self.max_mean_logprob_gap_bf16 if bf16 else self.max_logprob_gap
        return limit / min(temperature, 1.0)


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
    schedule: Literal["keep", "stretch"] | None = None
    """Where `--resume` gives a run other `iterations`: what becomes of learning rates that decay and of KL schedules that
    are spread over it. `keep`: they stay as they were, and where they end; `stretch`: they are spread over the new length,
    and jump; null: such a run is refused."""
    schedule_iterations: PositiveInt | None = None
    """Iterations that they are spread over; null: `iterations`. A resumed run goes on with what it had."""
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
    response: ResponseConfig = ResponseConfig()
    algorithm: AlgorithmConfig = RLOOConfig()
    optimizer: OptimizerConfig = AdamWConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    detector: DetectorConfig = DetectorConfig()

    @property
    def schedule_length(self) -> int:
        """Iterations that learning-rate decay and KL schedules are spread over."""
        return self.schedule_iterations or self.iterations

    @model_validator(mode="before")
    @classmethod
    def _reward_list(cls, values: Any) -> Any:
        """`alliteration`, `{name: alliteration}` and `[alliteration]` say the same."""
        if not isinstance(values, dict) or "reward" not in values:
            return values
        given = values["reward"]
        parts = list(given) if isinstance(given, list | tuple) else [given]
        return {**values, "reward": tuple({"name": part} if isinstance(part, str) else part for part in parts)}

    @property
    def reward_cpus(self) -> float:
        """CPUs of all reward actors."""
        return sum(part.in_actors * part.cpus_per_actor for part in self.reward)

    @property
    def reward_gpus(self) -> float:
        return sum(part.in_actors * part.gpus_per_actor for part in self.reward)

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.algorithm.name in ("rloo", "grpo") and self.rollout.group_size < 2:
            raise ValueError(
                f"algorithm.name {self.algorithm.name} compares the episodes of a group: "
                f"rollout.group_size must be at least 2, not {self.rollout.group_size}"
            )
        if self.agent.stop_at_sentence and self.response.truncation is not None:
            raise ValueError("agent.stop_at_sentence and response.truncation both end responses: leave one out")
        unreachable = self.response.unreachable(self.rollout.max_new_tokens)
        if unreachable:
            raise ValueError(
                f"{unreachable}: no response reaches its stop, for rollout.max_new_tokens is "
                f"{self.rollout.max_new_tokens}; lower the one or raise the other"
            )
        return self
