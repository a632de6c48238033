"""What must hold of played episodes before anything is made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayrlhf.errors import LearnerError, NotFiniteError
from rayrlhf.kl import turn_kl
from rayrlhf.types import Trajectory


def check_versions(trajectories: Sequence[Trajectory], version: int) -> None:
    """Raises LearnerError where an episode was sampled with other weights than the ones published."""
    for trajectory in trajectories:
        if trajectory.weights_version != version:
            raise LearnerError(
                f"episode {trajectory.index} was sampled with weights of version {trajectory.weights_version}, "
                f"not with version {version} that was published"
            )


def check_logprobs(trajectories: Sequence[Trajectory]) -> None:
    """Raises NotFiniteError where a log-probability is NaN or infinite: what the policy says is no distribution."""
    for trajectory in trajectories:
        for number, turn in enumerate(trajectory.turns):
            for name, values in (("policy", turn.logprobs), ("reference", turn.reference_logprobs)):
                if not np.isfinite(values).all():
                    raise NotFiniteError(
                        f"a log-probability of the {name} is not finite in episode {trajectory.index}, turn {number}, "
                        f"token {int(np.argmin(np.isfinite(values)))}; no weight was changed. Lower optimizer.lr and go on "
                        "from an earlier checkpoint, or check the model."
                    )


def check_reference(trajectories: Sequence[Trajectory], tolerance: float) -> None:
    """Before the first update policy and reference are one: raises LearnerError where their KL is not 0 (SPEC X-5)."""
    gaps = np.concatenate([np.abs(turn_kl(turn, False)) for t in trajectories for turn in t.turns])
    if len(gaps) and float(gaps.mean()) > tolerance:
        raise LearnerError(
            f"the untrained policy and its reference differ by {gaps.mean():.2g} nats a token (limit {tolerance:g}): "
            "sampler and scorer disagree about this model"
        )
