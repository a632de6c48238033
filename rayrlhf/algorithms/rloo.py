"""RLOO: the baseline of an episode is the mean shaped reward of the others of its group (SPEC ALLIT-3, ALLIT-5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayrlhf.advantages import leave_one_out
from rayrlhf.algorithms.policy_gradient import by_group, group_metrics, shaped_rewards, training_sequences
from rayrlhf.config import RLOOConfig
from rayrlhf.losses import PolicyGradientLoss
from rayrlhf.types import EpisodeScore, TrainingSequence, Trajectory


class RLOO:
    def __init__(self, config: RLOOConfig):
        self.config = config
        self.loss = PolicyGradientLoss(importance_cap=config.importance_cap)

    def prepare(
        self, trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]
    ) -> tuple[list[TrainingSequence], Mapping[str, float]]:
        shaped, metrics = shaped_rewards(trajectories, scores, self.config)
        groups = by_group(shaped, trajectories)
        advantages = leave_one_out(groups).reshape(-1)
        return training_sequences(trajectories, advantages, self.config), {**metrics, **group_metrics(groups)}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
