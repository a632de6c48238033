"""What REINFORCE, RLOO and GRPO share: shaped rewards in, training sequences with weights out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rayrlhf.algorithm_config import PolicyGradientConfig
from rayrlhf.algorithms.base import EpisodeAlgorithm, discounted_scores
from rayrlhf.algorithms.sequences import (
    Segment,
    TurnTarget,
    constant,
    counted_tokens,
    segments,
    token_weights,
    training_batch,
    training_sequence,
)
from rayrlhf.losses import ClippedLoss, Objective, PolicyGradientLoss
from rayrlhf.types import EpisodeScore, FloatArray, TrainingBatch, TrainingSequence, Trajectory

Floats = NDArray[np.float64]


class PolicyGradient(EpisodeAlgorithm):
    """One advantage an episode, from its shaped reward: an algorithm is its `advantages`."""

    def __init__(self, config: PolicyGradientConfig, iterations: int = 1):
        super().__init__(config, iterations)
        self.config = config
        clipped, weighted = config.clip_range, PolicyGradientLoss(config.importance_cap)
        policy = weighted if clipped is None else ClippedLoss(clipped)
        self.objective = Objective(policy, config.entropy_coef, kl=self.kl_objective)

    def advantages(
        self, shaped: Floats, scores: Floats, trajectories: Sequence[Trajectory]
    ) -> tuple[Floats, Mapping[str, float]]:
        """Advantages [N] from the shaped rewards [N] of the episodes, and metrics. scores: [N] without the KL penalty."""
        raise NotImplementedError

    def prepare(
        self,
        trajectories: Sequence[Trajectory],
        scores: Sequence[EpisodeScore],
        values: Sequence[FloatArray],
        seed: int,
    ) -> tuple[TrainingBatch, Mapping[str, float]]:
        """See `interfaces.Algorithm`."""
        config = self.config
        shaped = self.shaped_rewards(trajectories, scores)
        unshaped = discounted_scores(scores, config.turn_discount)
        advantages, metrics = self.advantages(shaped, unshaped, trajectories)
        sequences = training_sequences(trajectories, advantages, config, self.with_reference)
        batch = training_batch(
            sequences,
            config.loss_reduction,
            config.epochs,
            config.minibatches,
            config.target_kl,
            seed,
            kl_coef=self.kl_loss_coef,
        )
        return batch, {**self.objective_metrics(trajectories, scores), **metrics}


def by_group(values: Floats, trajectories: Sequence[Trajectory]) -> Floats:
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
    trajectories: Sequence[Trajectory],
    advantages: Floats,
    config: PolicyGradientConfig,
    with_reference: bool = False,
) -> list[TrainingSequence]:
    """The sequences of all episodes; every token that an episode's policy chose bears its advantage. advantages: [N].

    `with_reference`: they hold the reference's log-probabilities.
    """
    prompt = config.include_prompt
    counts = [sum(int(counted_tokens(turn, prompt).sum()) for turn in t.turns) for t in trajectories]
    weights = token_weights(counts, config.loss_reduction)
    sequences = []
    for trajectory, advantage, weight in zip(trajectories, advantages, weights, strict=True):
        targets = [constant(turn, float(advantage), weight, prompt) for turn in trajectory.turns]
        sequences += [
            training_sequence(segment, trajectory.turns, targets, with_reference)
            for segment in _segments(trajectory, targets, prompt)
        ]
    return sequences


def _segments(trajectory: Trajectory, targets: Sequence[TurnTarget], include_prompt: bool) -> list[Segment]:
    """Segments that bear loss; where prompts do, each turn is one of its own."""
    if not include_prompt:
        found = segments(trajectory)
    else:
        found = [
            Segment(np.concatenate([turn.prompt_ids, turn.response_ids]), (position,), (len(turn.prompt_ids),))
            for position, turn in enumerate(trajectory.turns)
        ]
    return [segment for segment in found if any(targets[i].weights.any() for i in segment.turns)]


def all_equal(scores: Floats) -> NDArray[np.bool_]:
    """[G] the groups [G, K] whose scores are all equal: they teach nothing of the reward, whatever their KL is."""
    return np.ptp(scores, axis=1) == 0


def group_metrics(scores: Floats) -> Mapping[str, float]:
    """Share of groups [G, K] whose scores are all equal."""
    return {"objective/zero_variance_groups": float(all_equal(scores).mean())}
