"""What must hold before an optimizer step is taken. All ranks check the same numbers, and so raise together."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rayrlhf.config import LearnerConfig
from rayrlhf.errors import LearnerError, NotFiniteError
from rayrlhf.update_statistics import StepStatistics, TokenStatistics


def check_finite(statistics: StepStatistics, state: str) -> None:
    """Raises NotFiniteError where a loss is no number; `state` says what the update has changed so far."""
    losses = statistics.losses
    if statistics.not_finite or not losses.isfinite().all():
        policy, value = losses.tolist()
        raise NotFiniteError(
            f"the loss is not finite on {statistics.not_finite} of {statistics.tokens.count} scored tokens (policy "
            f"{policy}, value {value}); {state}. Check the rewards' scale, and that optimizer.lr has not made the policy "
            "diverge in the updates before."
        )


def check_gradients(norms: Mapping[str, float], state: str) -> None:
    """Raises NotFiniteError where a global gradient norm is no number; `norms` are by the optimizers' names in the config.

    The norms are those over all ranks, of all engines: none steps unless all may.
    """
    wrong = [option for option, norm in norms.items() if not math.isfinite(norm)]
    if wrong:
        raise NotFiniteError(
            f"the gradient norm is not finite ({', '.join(wrong)}): the update overflowed; {state}. Lower "
            f"{' and '.join(f'{option}.lr' for option in wrong)}, check the rewards' scale, or use learner.precision: fp32; "
            "go on with --resume, where there is a checkpoint, or start anew."
        )


def check_weights(finite: bool, what: str) -> None:
    """Raises NotFiniteError where the weights are no numbers. finite: those of all ranks and engines."""
    if not finite:
        raise NotFiniteError(
            f"{what}: the weights hold numbers that are not finite. Lower the learning rate and go on with --resume, where "
            "there is a checkpoint, or start anew: a checkpoint's weights are always finite."
        )


def check_agreement(tokens: TokenStatistics, config: LearnerConfig, bf16: bool, temperature: float) -> None:
    """Raises LearnerError where the policy, untouched yet, is not the one that sampled (SPEC X-5). tokens: of all that the
    update is to train on, not of its first step alone. A log-probability that is no number is a NotFiniteError."""
    if tokens.not_finite:
        raise NotFiniteError(
            f"a log-probability is not finite on {tokens.not_finite} of {tokens.count} scored tokens; no weight was "
            "changed. Check the model, and that optimizer.lr has not made the policy diverge in the updates before."
        )
    metrics = tokens.metrics()
    largest, mean = metrics["learner/logprob_gap_max"], metrics["learner/logprob_gap_mean"]
    gap, option = (mean, "max_mean_logprob_gap_bf16") if bf16 else (largest, "max_logprob_gap")
    limit = config.logprob_gap_limit(bf16, temperature)
    if gap > limit:
        at = f" at temperature {temperature:g}" if temperature < 1 else ""
        raise LearnerError(
            f"learner and sampler disagree about the log-probabilities of {tokens.count} scored tokens: by {largest:.3g} "
            f"nats on the worst, by {mean:.3g} on the mean token; learner.{option} allows {limit:g}{at}. No weight was "
            "changed. Check that both have the same model, weights version and temperature, that the behaviour "
            "log-probabilities are those of the full vocabulary, or of the tokens allowed where decoding was constrained, "
            "and that each stands at its own token."
        )
