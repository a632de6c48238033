"""REINFORCE: the shaped reward itself, or minus a moving average of the rewards before (SPEC ALLIT-3, Q-4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayrlhf.advantages import minus_moving_average
from rayrlhf.algorithms.policy_gradient import shaped_rewards, training_sequences
from rayrlhf.config import ReinforceConfig
from rayrlhf.losses import PolicyGradientLoss
from rayrlhf.types import EpisodeScore, TrainingSequence, Trajectory


class Reinforce:
    def __init__(self, config: ReinforceConfig):
        self.config = config
        self.loss = PolicyGradientLoss(importance_cap=config.importance_cap)
        self.average: float | None = None  # of shaped rewards, over the batches before this one

    def prepare(
        self, trajectories: Sequence[Trajectory], scores: Sequence[EpisodeScore]
    ) -> tuple[list[TrainingSequence], Mapping[str, float]]:
        shaped, metrics = shaped_rewards(trajectories, scores, self.config)
        advantages = shaped
        if self.config.baseline_decay is not None:
            advantages, self.average = minus_moving_average(shaped, self.average, self.config.baseline_decay)
            metrics["objective/baseline"] = self.average
        return training_sequences(trajectories, advantages, self.config), metrics

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average = state["average"]
