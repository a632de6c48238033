"""RLOO: the baseline of an episode is the mean shaped reward of the others of its group (SPEC ALLIT-3, ALLIT-5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rayrlhf.advantages import leave_one_out
from rayrlhf.algorithms.policy_gradient import PolicyGradient, by_group, group_metrics
from rayrlhf.types import Trajectory


class RLOO(PolicyGradient):
    def advantages(
        self, shaped: NDArray[np.float64], trajectories: Sequence[Trajectory]
    ) -> tuple[NDArray[np.float64], Mapping[str, float]]:
        groups = by_group(shaped, trajectories)
        return leave_one_out(groups).reshape(-1), group_metrics(groups)
