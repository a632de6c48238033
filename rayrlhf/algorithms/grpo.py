"""GRPO: rewards standardised within their group, and a clipped probability ratio (Shao et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rayrlhf.advantages import group_standardised
from rayrlhf.algorithm_config import GRPOConfig
from rayrlhf.algorithms.policy_gradient import PolicyGradient, by_group, group_metrics
from rayrlhf.types import Trajectory


class GRPO(PolicyGradient):
    def __init__(self, config: GRPOConfig, iterations: int = 1):
        super().__init__(config, iterations)
        self.by_std = config.normalize_by_std

    def advantages(
        self, shaped: NDArray[np.float64], trajectories: Sequence[Trajectory]
    ) -> tuple[NDArray[np.float64], Mapping[str, float]]:
        groups = by_group(shaped, trajectories)
        return group_standardised(groups, self.by_std).reshape(-1), group_metrics(groups)
