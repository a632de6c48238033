"""Everything that flows between the parts of RayRLHF, named once.

Driver -> rollout worker: `EpisodeSpec`, `Weights`. Within the worker: `Situation` -> `Action` -> `StepResult`.
Rollout worker -> driver: `Trajectory` made of `Turn`s. Reward -> driver: `EpisodeScore`.
Driver -> learner: `ValueQuery`, `TrainingBatch` of `TrainingSequence`s. Learner -> driver: `UpdateReport`.
Arrays are numpy: they cross processes through Ray's object store without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

FinishReason = Literal["eos", "length", "stop"]
"""Why a response ended: its EOS token, the limit of tokens, or a stopping rule (SPEC TW-4)."""
Split = Literal["train", "held_out"]


def _no_ids() -> IntArray:
    return np.zeros(0, np.int64)


def _no_values() -> FloatArray:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """Which episode to play; the same spec and weights give the same episode on any worker."""

    group: int  # index of the episode's group within the iteration; the episodes of a group share their start
    index: int  # index of the episode within the iteration
    environment_seed: int  # seed of `Environment.reset`: the same for all episodes of a group
    sampling_seed: int  # seed of this episode's own stream of random numbers
    split: Split = "train"  # which of the environment's games
    greedy: bool = False  # take the likeliest token or command instead of sampling


@dataclass(frozen=True, slots=True)
class GameState:
    """What an environment says of itself beside its text. The defaults are those of one that says nothing."""

    commands: tuple[str, ...] = ()  # commands the game understands now, each once, in a fixed order; () where unknown
    score: float = 0.0  # of the game so far
    max_score: float = 0.0  # 0 where unknown
    won: bool = False
    lost: bool = False
    valid: bool = True  # the game understood the action that led here
    objective: str = ""  # what the game asks for
    solution: tuple[str, ...] = ()  # commands that win from here, as far as the environment knows them
    key: str = ""  # names this state where play is deterministic: equal keys and actions give equal steps; else ""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an environment answers to a reset (reward 0) or a step."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    state: GameState


@dataclass(frozen=True, slots=True)
class AllowedTokens:
    """The tokens that were to choose from at each of T response tokens, where decoding was constrained.

    Token t chose from ids[offsets[t]:offsets[t+1]]; an empty range stands for the whole vocabulary. The distribution
    is softmax(logits[ids] / temperature) over that range. A range of one token is no choice: its log-probability is 0.
    """

    ids: IntArray  # [A]
    offsets: IntArray  # [T+1] rising from 0 to A
    logprobs: FloatArray  # [A] nats, behaviour policy, each range adding to 1
    reference_logprobs: FloatArray  # [A] nats, frozen reference over the same ranges; zeros until it has scored

    @classmethod
    def everything(cls, tokens: int) -> AllowedTokens:
        """The whole vocabulary at each of `tokens` tokens."""
        return cls(_no_ids(), np.zeros(tokens + 1, np.int64), _no_values(), _no_values())

    @property
    def counts(self) -> IntArray:
        """[T] tokens to choose from, 0 where it was the whole vocabulary."""
        return np.diff(self.offsets)

    @property
    def forced(self) -> NDArray[np.bool_]:
        """[T] where there was no choice."""
        return self.counts == 1


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled continuation, as the sampling engine returns it. T = tokens sampled, its EOS included."""

    response_ids: IntArray  # [T]
    logprobs: FloatArray  # [T] nats; log pi(y_t | prefix) at the sampling temperature, full vocabulary
    filtered_logprobs: (
        FloatArray  # [T] nats; of the distribution drawn from: differs from `logprobs` under top-k / top-p
    )
    prompt_logprobs: FloatArray  # [P-1] nats of prompt tokens 1..P-1, or [0] where they are not asked for
    finish: FinishReason
    allowed: AllowedTokens | None = None  # None: the whole vocabulary at every token


@dataclass(frozen=True, slots=True)
class Situation:
    """One decision that is due: what an actor is shown."""

    episode: int  # number of the episode among those that are played together; stays the same from turn to turn
    prompt_ids: IntArray  # [P]
    observation: str
    state: GameState
    seed: int  # of the random numbers of this turn
    greedy: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    """One decision taken."""

    text: str  # what the environment is given
    generation: Generation  # the tokens it is made of
    shown_tokens: int | None = None  # rewards are shown the response's first so many tokens; None: all of them
    missing_stop: bool = False  # the response lacks the stop that the run penalises the absence of


@dataclass(frozen=True, slots=True)
class Turn:
    """One observation and the policy's answer to it. P = prompt tokens, T = response tokens, EOS included.

    Where decoding was constrained (`allowed`), all log-probabilities are those of the constrained distribution.
    """

    observation: str  # what the environment showed
    action: str  # what the environment was given: the decoded response without special tokens
    prompt_ids: IntArray  # [P] token ids the policy was given
    response_ids: IntArray  # [T] token ids it sampled
    logprobs: FloatArray  # [T] nats, behaviour policy at the sampling temperature, full vocabulary
    filtered_logprobs: (
        FloatArray  # [T] nats, of the distribution drawn from (equal to `logprobs` without top-k / top-p)
    )
    reference_logprobs: FloatArray  # [T] nats, frozen reference at the same temperature
    prompt_logprobs: FloatArray  # [P-1] nats of prompt tokens 1.. under the behaviour policy, or [0] if not scored
    prompt_reference_logprobs: FloatArray  # [P-1] nats under the reference, or [0] if not scored
    reward: float  # the environment's own reward of this step
    finish: FinishReason
    allowed: AllowedTokens | None = None  # None: the whole vocabulary at every token
    before: GameState = GameState()  # the state the action was chosen in
    after: GameState = GameState()  # the state it led to
    example: bool = False  # an example was played here (SPEC TW-8): in the memory, never in the loss
    vocabulary_kl: FloatArray = field(default_factory=_no_values)  # [T] nats, KL over the whole vocabulary in the
    # direction that the reward's estimator asks for (full, forward); [0] where it asks for none, or `allowed` says it
    shown_tokens: int | None = None  # rewards are shown the response's first so many tokens; None: all T of them
    missing_stop: bool = False  # the response lacks the stop that the run penalises the absence of

    @property
    def choices(self) -> NDArray[np.bool_]:
        """[T] response tokens that the policy chose: not those of an example, nor those that nothing else was allowed
        for."""
        if self.example:
            return np.zeros(len(self.response_ids), np.bool_)
        return np.ones(len(self.response_ids), np.bool_) if self.allowed is None else ~self.allowed.forced


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One whole episode."""

    group: int  # group within the iteration
    index: int  # episode within the iteration
    environment_seed: int
    sampling_seed: int
    weights_version: int  # number of updates behind the weights it was sampled with
    turns: tuple[Turn, ...]
    terminated: bool  # the environment ended it: nothing follows, no bootstrap
    truncated: bool  # a limit ended it: value goes on beyond it
    final_observation: str = ""  # what the environment showed after the last turn
    final_prompt_ids: IntArray = field(default_factory=_no_ids)  # [P] what the next turn would have been given; [0] if
    # terminated
    split: Split = "train"

    @property
    def text(self) -> str:
        """Everything a reader of the episode sees: an observation followed by its answer, or a game's transcript."""
        if len(self.turns) == 1:
            return self.turns[0].observation + self.turns[0].action
        shown = "".join(f"{turn.observation}\n> {turn.action}\n" for turn in self.turns)
        return shown + self.final_observation

    @property
    def response_tokens(self) -> int:
        return sum(len(turn.response_ids) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class EpisodeScore:
    """What the rewards say of one episode."""

    total: FloatArray  # [turns] weighted sum of the parts, per turn; a score of the whole episode lies on its last turn
    parts: Mapping[str, float]  # name -> unweighted sum over the episode, for the log


@dataclass(frozen=True, slots=True)
class ValueQuery:
    """A token sequence whose values are asked for: V of each prefix that ends before one of its last S tokens."""

    input_ids: IntArray  # [L]
    start: int  # values are of the prefixes [:start], [:start+1], ... [:L-1]: S = L - start of them, start >= 1


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One token sequence and what the loss needs of it. L = tokens, S = L - start = scored tokens.

    The global loss is the sum over all sequences and scored tokens of `weights * policy loss(token)` and of
    `value_weights * value loss(token)`: an algorithm's choice of reduction (and every global count) is in the weights,
    so micro-batches and ranks only ever add.
    """

    input_ids: IntArray  # [L]
    start: int  # index of the first scored token, >= 1
    advantages: FloatArray  # [S]
    behaviour_logprobs: FloatArray  # [S] nats, at the sampling temperature; over `allowed` where that is given
    weights: FloatArray  # [S] 0 where a token carries no policy loss
    allowed: AllowedTokens | None = None  # over the S scored tokens; None: the whole vocabulary at each
    reference_logprobs: FloatArray = field(default_factory=_no_values)  # [S] nats; [0] without a KL loss that samples
    values: FloatArray = field(default_factory=_no_values)  # [S] V of the value network at the rollout; [0] without one
    returns: FloatArray = field(default_factory=_no_values)  # [S] what V is fitted to; [0] without a value network
    value_weights: FloatArray = field(default_factory=_no_values)  # [S] 0 where a token carries no value loss; or [0]

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class Minibatch:
    """The sequences of one optimizer step."""

    indices: tuple[int, ...]  # into TrainingBatch.sequences
    scale: float = 1.0  # factor on the policy loss's weights, so that the step stands for the whole batch
    advantage_shift: float = 0.0  # subtracted from the advantages first,
    advantage_scale: float = 1.0  # which are multiplied by this then
    value_scale: float = 1.0  # as `scale`, on the value loss's weights: other tokens carry that loss


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """What the learner makes of one iteration: optimizer steps over its sequences, epoch after epoch."""

    sequences: tuple[TrainingSequence, ...]
    minibatches: tuple[Minibatch, ...]  # in the order of their steps; the first is taken on-policy
    kl_coef: float = 0.0  # of the KL in the loss, per nat, where the objective has one
    lr_scale: float = 1.0  # factor on the learning rates
    target_kl: float | None = None  # no further step once a step's approxkl (nats^2 a token) is above; None: no limit

    @classmethod
    def one_step(cls, sequences: Sequence[TrainingSequence]) -> TrainingBatch:
        return cls(tuple(sequences), (Minibatch(tuple(range(len(sequences)))),))


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one update did, over all ranks and optimizer steps."""

    version: int  # updates behind the weights after this one
    metrics: Mapping[str, float]  # SPEC X-10 names: policy/*, learner/*, val/*
    seconds: float  # wall time of the update at the slowest rank


@dataclass(frozen=True, slots=True)
class Weights:
    """A policy's weights on their way from the learner to the rollout workers."""

    version: int  # updates behind them
    checksum: int  # crc32 over names, shapes, types and bytes
    arrays: Mapping[str, NDArray] = field(repr=False)  # parameter name -> values; tied parameters once
