"""REINFORCE: the shaped reward itself, or minus a moving average of the rewards before (SPEC ALLIT-3, Q-4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayrlhf.advantages import minus_moving_average
from rayrlhf.algorithm_config import ReinforceConfig
from rayrlhf.algorithms.policy_gradient import Floats, PolicyGradient
from rayrlhf.types import Trajectory


class Reinforce(PolicyGradient):
    def __init__(self, config: ReinforceConfig, iterations: int = 1):
        super().__init__(config, iterations)
        self.decay = config.baseline_decay
        self.average: float | None = None  # of shaped rewards, over the batches before this one

    def advantages(
        self, shaped: Floats, scores: Floats, trajectories: Sequence[Trajectory]
    ) -> tuple[Floats, Mapping[str, float]]:
        if self.decay is None:
            return shaped, {}
        advantages, self.average = minus_moving_average(shaped, self.average, self.decay)
        return advantages, {"objective/baseline": self.average}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.average = state["average"]
