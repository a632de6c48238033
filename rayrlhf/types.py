"""Everything that flows between the parts of RayRLHF, named once.

Driver -> rollout worker: `EpisodeSpec`, `Weights`. Rollout worker -> driver: `Trajectory` made of `Turn`s.
Reward -> driver: `EpisodeScore`. Driver -> learner: `TrainingSequence`. Learner -> driver: `UpdateReport`.
Arrays are numpy: they cross processes through Ray's object store without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

FinishReason = Literal["eos", "length"]


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """Which episode to play; the same spec and weights give the same episode on any worker."""

    group: int  # index of the episode's group within the iteration; the episodes of a group share their start
    index: int  # index of the episode within the iteration
    environment_seed: int  # seed of `Environment.reset`: the same for all episodes of a group
    sampling_seed: int  # seed of this episode's own stream of random numbers


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


@dataclass(frozen=True, slots=True)
class Turn:
    """One observation and the policy's answer to it. P = prompt tokens, T = response tokens, EOS included."""

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


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One whole episode."""

    group: int  # group within the iteration
    index: int  # episode within the iteration
    environment_seed: int
    sampling_seed: int
    weights_version: int  # number of optimizer updates behind the weights it was sampled with
    turns: tuple[Turn, ...]
    terminated: bool  # the environment ended it: nothing follows, no bootstrap
    truncated: bool  # a limit ended it: value goes on beyond it

    @property
    def text(self) -> str:
        """Everything a reader of the episode sees: each observation followed by its answer."""
        return "".join(turn.observation + turn.action for turn in self.turns)

    @property
    def response_tokens(self) -> int:
        return sum(len(turn.response_ids) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class EpisodeScore:
    """What the rewards say of one episode."""

    total: FloatArray  # [turns] weighted sum of the parts, per turn; a score of the whole episode lies on its last turn
    parts: Mapping[str, float]  # name -> unweighted sum over the episode, for the log


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One token sequence and what the loss needs of it. L = tokens, S = L - start = scored tokens.

    The global loss is sum over all sequences and scored tokens of `weights * loss(token)`: an algorithm's choice of
    reduction (and every global count) is in `weights`, so micro-batches and ranks only ever add.
    """

    input_ids: IntArray  # [L]
    start: int  # index of the first scored token, >= 1
    advantages: FloatArray  # [S]
    behaviour_logprobs: FloatArray  # [S] nats, full vocabulary at the sampling temperature
    weights: FloatArray  # [S] 0 where a token carries no loss

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one optimizer step did, over all ranks."""

    version: int  # optimizer updates behind the weights after this step
    metrics: Mapping[str, float]  # SPEC X-10 names: policy/*, learner/*
    seconds: float  # wall time of the step at the slowest rank


@dataclass(frozen=True, slots=True)
class Weights:
    """A policy's weights on their way from the learner to the rollout workers."""

    version: int  # optimizer updates behind them
    checksum: int  # crc32 over names, shapes, types and bytes
    arrays: Mapping[str, NDArray] = field(repr=False)  # parameter name -> values; tied parameters once
