"""GRPO: rewards standardised within their group, and a clipped probability ratio (Shao et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayrlhf.advantages import group_standardised
from rayrlhf.algorithm_config import GRPOConfig
from rayrlhf.algorithms.policy_gradient import Floats, PolicyGradient, all_equal, by_group, group_metrics
from rayrlhf.types import Trajectory


class GRPO(PolicyGradient):
    def __init__(self, config: GRPOConfig, iterations: int = 1):
        super().__init__(config, iterations)
        self.by_std = config.normalize_by_std

    def advantages(
        self, shaped: Floats, scores: Floats, trajectories: Sequence[Trajectory]
    ) -> tuple[Floats, Mapping[str, float]]:
        """Groups whose scores are all equal bear their KL term as it is: over its own deviation, that noise would be as
        large as a reward."""
        rewards, of_scores = by_group(shaped, trajectories), by_group(scores, trajectories)
        advantages = group_standardised(rewards, self.by_std)
        equal = all_equal(of_scores)
        advantages[equal] = group_standardised(rewards[equal], by_std=False)
        return advantages.reshape(-1), group_metrics(of_scores)
