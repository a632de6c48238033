"""What REINFORCE, RLOO and GRPO share: shaped rewards in, training sequences with weights out. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from rayrlhf.config import LossReduction, PolicyGradientConfig
from rayrlhf.kl import penalty, turn_kl
from rayrlhf.types import EpisodeScore, FloatArray, TrainingSequence, Trajectory, Turn


def shaped_rewards(
    trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore], config: PolicyGradientConfig
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Score minus KL penalty of each episode, [N], and the objective/* metrics (SPEC X-4, X-10).

    The penalty is a number, not a tensor: no gradient flows through it (SPEC ALLIT-7), and baselines are taken on
    what this returns (SPEC ALLIT-5).
    """
    kls = [
        np.concatenate([turn_kl(turn, config.include_prompt) for turn in trajectory.turns])
        for trajectory in trajectories
    ]
    raw = np.array([float(score.total.sum(dtype=np.float64)) for score in scores])
    shaped = raw - np.array([penalty(kl, config.kl.coef, config.kl.reduction) for kl in kls])
    nats = [float(kl.sum(dtype=np.float64)) for kl in kls]
    surprise = [-float(sum(turn.logprobs.sum(dtype=np.float64) for turn in t.turns)) for t in trajectories]
    return shaped, {
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
