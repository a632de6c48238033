"""RLOO: the baseline of an episode is the mean shaped reward of the others of its group (SPEC ALLIT-3, ALLIT-5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayrlhf.advantages import leave_one_out
from rayrlhf.algorithms.policy_gradient import Floats, PolicyGradient, by_group, group_metrics
from rayrlhf.types import Trajectory


class RLOO(PolicyGradient):
    def advantages(
        self, shaped: Floats, scores: Floats, trajectories: Sequence[Trajectory]
    ) -> tuple[Floats, Mapping[str, float]]:
        groups = by_group(shaped, trajectories)
        return leave_one_out(groups).reshape(-1), group_metrics(by_group(scores, trajectories))
