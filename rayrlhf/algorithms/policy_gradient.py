"""What REINFORCE, RLOO and GRPO share: shaped rewards in, training sequences with weights out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from rayrlhf.config import LossReduction, PolicyGradientConfig
from rayrlhf.kl import penalty, turn_kl
from rayrlhf.types import EpisodeScore, FloatArray, TrainingSequence, Trajectory, Turn


class PolicyGradient:
    """One advantage an episode, from its shaped reward: an algorithm is its `advantages` and its loss."""

    def __init__(self, config: PolicyGradientConfig):
        self.config = config

    def advantages(
        self, shaped: NDArray[np.float64], trajectories: Sequence[Trajectory]
    ) -> tuple[NDArray[np.float64], Mapping[str, float]]:
        """Advantages [N] from the shaped rewards [N] of the episodes, and metrics."""
        raise NotImplementedError

    def prepare(
        self, trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]
    ) -> tuple[list[TrainingSequence], Mapping[str, float]]:
        shaped = self.shaped_rewards(trajectories, scores)
        advantages, metrics = self.advantages(shaped, trajectories)
        sequences = training_sequences(trajectories, advantages, self.config)
        return sequences, {**objective_metrics(trajectories, scores, shaped, self.config), **metrics}

    def shaped_rewards(self, trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]) -> NDArray[np.float64]:
        """Score minus KL penalty of each episode, [N] (SPEC X-4).

        The penalty is a number, not a tensor: no gradient flows through it (SPEC ALLIT-7), and baselines are taken on
        what this returns (SPEC ALLIT-5).
        """
        kl = self.config.kl
        penalties = [penalty(episode_kl(t, self.config.include_prompt), kl.coef, kl.reduction) for t in trajectories]
        return raw_scores(scores) - np.array(penalties)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is no state."""


def episode_kl(trajectory: Trajectory, include_prompt: bool) -> FloatArray:
    """k_t in nats of all scored tokens of an episode."""
    return np.concatenate([turn_kl(turn, include_prompt) for turn in trajectory.turns])


def raw_scores(scores: Sequence[EpisodeScore]) -> NDArray[np.float64]:
    """The reward of each episode, [N], its turns summed."""
    return np.array([float(score.total.sum(dtype=np.float64)) for score in scores])


def objective_metrics(
    trajectories: Sequence[Trajectory],
    scores: Sequence[EpisodeScore],
    shaped: NDArray[np.float64],
    config: PolicyGradientConfig,
) -> dict[str, float]:
    """objective/* (SPEC X-10): score, score_total and entropy an episode; kl in nats a sequence and a token (X-4)."""
    kls = [episode_kl(trajectory, config.include_prompt) for trajectory in trajectories]
    nats = [float(kl.sum(dtype=np.float64)) for kl in kls]
    surprise = [-float(sum(turn.logprobs.sum(dtype=np.float64) for turn in t.turns)) for t in trajectories]
    raw = raw_scores(scores)
    return {
        "objective/score": float(raw.mean()),
        "objective/score_std": float(raw.std()),
        "objective/score_total": float(shaped.mean()),
        "objective/kl": float(np.mean(nats)),
        "objective/kl_per_token": float(sum(nats) / max(sum(len(kl) for kl in kls), 1)),
        "objective/kl_coef": config.kl.coef,
        "objective/entropy": float(np.mean(surprise)),
    }


def by_group(values: NDArray[np.float64], trajectories: Sequence[Trajectory]) -> NDArray[np.float64]:
    """Values [N] of the episodes as [G, K]: a row a group, in the order the episodes come in."""
    groups: dict[int, list[int]] = {}
    for position, trajectory in enumerate(trajectories):
        groups.setdefault(trajectory.group, []).append(position)
    sizes = {len(positions) for positions in groups.values()}
    if len(sizes) != 1:
        raise ValueError(f"groups of different sizes: {sorted(sizes)}")
    if [position for positions in groups.values() for position in positions] != list(range(len(trajectories))):
        raise ValueError("the episodes of a group must follow each other")
    return values[np.array(list(groups.values()))]


def training_sequences(
    trajectories: Sequence[Trajectory], advantages: NDArray[np.float64], config: PolicyGradientConfig
) -> list[TrainingSequence]:
    """One sequence a turn; every scored token of an episode bears the episode's advantage. advantages: [N]."""
    scored = [_scored_tokens(trajectory, config.include_prompt) for trajectory in trajectories]
    weights = token_weights(scored, config.loss_reduction)
    return [
        _sequence(turn, float(advantage), weight, config.include_prompt)
        for trajectory, advantage, weight in zip(trajectories, advantages, weights)
        for turn in trajectory.turns
    ]


def token_weights(tokens: Sequence[int], reduction: LossReduction) -> list[float]:
    """The weight of each token's loss in each of N episodes of `tokens` scored tokens, so that losses only add."""
    if reduction == "sequence_sum":
        return [1.0 / len(tokens)] * len(tokens)
    if reduction == "token_mean":
        return [1.0 / max(sum(tokens), 1)] * len(tokens)
    if reduction == "sequence_mean":
        return [1.0 / (len(tokens) * max(count, 1)) for count in tokens]
    if reduction == "group_sum":
        return [1.0 / max(count, 1) for count in tokens]
    raise ValueError(f"loss_reduction {reduction!r} is none of {get_args(LossReduction)}")


def group_metrics(rewards: NDArray[np.float64]) -> Mapping[str, float]:
    """Share of groups [G, K] whose rewards are all equal: they teach nothing."""
    return {"objective/zero_variance_groups": float((np.ptp(rewards, axis=1) == 0).mean())}


def _scored_tokens(trajectory: Trajectory, include_prompt: bool) -> int:
    prompts = sum(max(len(turn.prompt_ids) - 1, 0) for turn in trajectory.turns) if include_prompt else 0
    return trajectory.response_tokens + prompts


def _sequence(turn: Turn, advantage: float, weight: float, include_prompt: bool) -> TrainingSequence:
    prompt = len(turn.prompt_ids)
    behaviour: FloatArray = turn.logprobs
    if include_prompt:
        behaviour = np.concatenate([turn.prompt_logprobs, turn.logprobs])
    scored = len(behaviour)
    return TrainingSequence(
        input_ids=np.concatenate([turn.prompt_ids, turn.response_ids]),
        start=1 if include_prompt else prompt,
        advantages=np.full(scored, advantage, np.float32),
        behaviour_logprobs=behaviour,
        weights=np.full(scored, weight, np.float32),
    )
