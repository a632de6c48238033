"""GRPO: rewards standardised within their group, and a clipped probability ratio (Shao et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayrlhf.advantages import group_standardised
from rayrlhf.algorithms.policy_gradient import by_group, group_metrics, shaped_rewards, training_sequences
from rayrlhf.config import GRPOConfig
from rayrlhf.losses import ClippedLoss
from rayrlhf.types import EpisodeScore, TrainingSequence, Trajectory


class GRPO:
    def __init__(self, config: GRPOConfig):
        self.config = config
        self.loss = ClippedLoss(clip_range=config.clip_range)

    def prepare(
        self, trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]
    ) -> tuple[list[TrainingSequence], Mapping[str, float]]:
        shaped, metrics = shaped_rewards(trajectories, scores, self.config)
        groups = by_group(shaped, trajectories)
        advantages = group_standardised(groups, self.config.normalize_by_std).reshape(-1)
        return training_sequences(trajectories, advantages, self.config), {**metrics, **group_metrics(groups)}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
