"""What the two KL channels make of each other: whether reward and loss together have the gradient of the penalty."""

from __future__ import annotations

from typing import Literal

from rayrlhf.algorithm_config import AlgorithmConfig, RejectionSamplingConfig
from rayrlhf.kl_config import KLEstimator, KLLossConfig

OwnStep = Literal["none", "KL(pi || ref)", "KL(ref || pi)", "forward_sampled"]
"""A gradient at each token's own prefix; `forward_sampled` stands for that of KL(ref || pi) + E_ref[k^2 / 2]."""

MISSING: dict[KLEstimator, OwnStep] = {
    "k1": "none",
    "k2": "KL(pi || ref)",
    "k3": "KL(ref || pi)",
    "full": "KL(pi || ref)",
    "forward": "KL(ref || pi)",
    "forward_sampled": "forward_sampled",
}
"""What a reward charged with an estimator lacks for the gradient of the estimator's own sum (`kl_estimators.py`)."""

COMPLETION: dict[OwnStep, str] = {
    "KL(pi || ref)": "estimator: full",
    "KL(ref || pi)": "estimator: forward",
    "forward_sampled": "estimator: forward_sampled, correction: false",
}
"""A `kl_loss` that has it."""


def loss_gradient(loss: KLLossConfig) -> OwnStep:
    """The expected gradient of a KL loss on-policy."""
    if loss.estimator == "forward" or (loss.estimator == "forward_sampled" and loss.correction):
        return "KL(ref || pi)"
    if loss.correction or loss.estimator in ("full", "k2"):
        return "KL(pi || ref)"
    uncorrected: dict[KLEstimator, OwnStep] = {"k1": "none", "k3": "KL(ref || pi)"}
    return uncorrected.get(loss.estimator, "forward_sampled")


def penalty_warning(algorithm: AlgorithmConfig) -> str | None:
    """A warning where the reward's KL penalty alone does not have its own gradient, and no `kl_loss` adds what it lacks.

    Rejection sampling ranks by the penalised reward and takes no gradient of it: any estimator will do there. An
    algorithm that rescales its advantages (GRPO by the group's deviation, PPO by whitening) rescales the reward's part
    and not the loss's; there the two meet only roughly.
    """
    kl, loss = algorithm.kl, algorithm.kl_loss
    missing = MISSING[kl.estimator]
    off = kl.coef == 0 and kl.controller.kind != "schedule"
    if off or missing == "none" or isinstance(algorithm, RejectionSamplingConfig):
        return None
    equal = loss is not None and (loss.coef, loss.controller) == (kl.coef, kl.controller) and kl.reduction == "sum"
    if loss is not None and equal and loss_gradient(loss) == missing:
        return None
    return (
        f"warning: algorithm.kl.estimator {kl.estimator} in the reward alone gives a biased gradient: it misses what the "
        "penalty of a token changes with the policy at that token. Take k1, or add `algorithm.kl_loss` with "
        f"{COMPLETION[missing]}, coef: {kl.coef:g} and the same controller (reduction sum)."
    )
