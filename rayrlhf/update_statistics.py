"""What an optimizer step and an update report: sums and maxima over tokens, added over micro-batches, ranks and steps.

Means are taken once, at the end: never a mean of means (SPEC X-2). Nothing here waits for a device before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from rayrlhf.types import FloatArray


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Of the tokens that carry policy loss."""

    sums: Tensor  # [8] float64: tokens, ratio, squared log-ratio, clipped, entropy, |log-ratio|, KL loss, not finite
    maxima: Tensor  # [2] float64: ratio, |log-ratio|; tokens that are not finite are left out here and counted there

    @classmethod
    def zero(cls, device: torch.device) -> TokenStatistics:
        return cls(
            torch.zeros(8, dtype=torch.float64, device=device), torch.zeros(2, dtype=torch.float64, device=device)
        )

    def __add__(self, other: TokenStatistics) -> TokenStatistics:
        return TokenStatistics(self.sums + other.sums, torch.maximum(self.maxima, other.maxima))

    def reduced(self) -> TokenStatistics:
        """Over all ranks, on the CPU, the same numbers at each. Collective."""
        sums, maxima = self.sums.clone(), self.maxima.clone()
        dist.all_reduce(sums, dist.ReduceOp.SUM)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return TokenStatistics(sums.cpu(), maxima.cpu())

    @property
    def count(self) -> int:
        return int(self.sums[0])

    @property
    def approxkl(self) -> float:
        """0.5 mean (log pi - log behaviour)^2 (SPEC LMHP-23), in nats^2 a token."""
        tokens, _, squared, *_ = self.sums.tolist()
        return 0.5 * squared / max(tokens, 1.0)

    @property
    def kl_loss(self) -> float:
        """Mean of the KL loss, its coefficient not counted, in nats a token."""
        tokens, *_, kl, _ = self.sums.tolist()
        return kl / max(tokens, 1.0)

    @property
    def not_finite(self) -> int:
        return int(self.sums[-1])

    def metrics(self) -> dict[str, float]:
        """SPEC X-10 names."""
        tokens, ratio, _, clipped, entropy, gap, _, _ = self.sums.tolist()
        ratio_max, gap_max = self.maxima.tolist()
        count = max(tokens, 1.0)
        return {
            "policy/ratio_mean": ratio / count,
            "policy/ratio_max": ratio_max,
            "policy/approxkl": self.approxkl,
            "policy/clipfrac": clipped / count,
            "policy/entropy": entropy / count,
            "learner/logprob_gap_mean": gap / count,
            "learner/logprob_gap_max": gap_max,
            "learner/tokens": tokens,
        }


@torch.no_grad()
def token_statistics(
    losses: Tensor,
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    token_entropies: Tensor,
    clipped: Tensor,
    kl_losses: Tensor,
    scored: Tensor,
) -> TokenStatistics:
    """Statistics of the tokens where `scored` (bool); all arguments have one shape. A token is not finite where its
    loss or its log-ratio is not: the count says so, and the sums leave it out."""
    log_ratios = (logprobs - behaviour_logprobs).double()
    finite = scored & log_ratios.isfinite() & losses.isfinite()
    log_ratios = torch.where(finite, log_ratios, 0.0)
    ratios = torch.where(finite, log_ratios.exp(), 0.0)
    values = (
        scored, ratios, log_ratios.square(), clipped & scored,
        torch.where(scored, token_entropies, 0.0), log_ratios.abs(),
        torch.where(finite, kl_losses, 0.0), scored & ~finite,
    )  # fmt: skip
    return TokenStatistics(
        sums=torch.stack([value.sum(dtype=torch.float64) for value in values]),
        maxima=torch.stack([ratios.max(), log_ratios.abs().max()]),
    )


@dataclass(frozen=True, slots=True)
class ValueStatistics:
    """Of the tokens that carry value loss."""

    sums: Tensor  # [4] float64: tokens, (V - R)^2, clipped, not finite

    @classmethod
    def zero(cls, device: torch.device) -> ValueStatistics:
        return cls(torch.zeros(4, dtype=torch.float64, device=device))

    def __add__(self, other: ValueStatistics) -> ValueStatistics:
        return ValueStatistics(self.sums + other.sums)

    @property
    def not_finite(self) -> int:
        return int(self.sums[-1])

    def metrics(self) -> dict[str, float]:
        """SPEC X-10 names; val/error is the mean of (V - R)^2."""
        tokens, squared, clipped, _ = self.sums.tolist()
        return {"val/error": squared / max(tokens, 1.0), "val/clipfrac": clipped / max(tokens, 1.0)}


@torch.no_grad()
def value_statistics(values: Tensor, returns: Tensor, clipped: Tensor, scored: Tensor) -> ValueStatistics:
    """Statistics of the tokens where `scored` (bool); all arguments have one shape."""
    errors = (values - returns).double().square()
    finite = scored & errors.isfinite()
    counts = (scored, torch.where(finite, errors, 0.0), clipped & scored, scored & ~finite)
    return ValueStatistics(torch.stack([count.sum(dtype=torch.float64) for count in counts]))


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """Of one optimizer step: first of a rank's micro-batches, after `reduced` of all ranks."""

    tokens: TokenStatistics
    values: ValueStatistics
    losses: Tensor  # [2] float64: the policy's loss with its entropy bonus, the value network's

    @classmethod
    def zero(cls, device: torch.device) -> StepStatistics:
        losses = torch.zeros(2, dtype=torch.float64, device=device)
        return cls(TokenStatistics.zero(device), ValueStatistics.zero(device), losses)

    def __add__(self, other: StepStatistics) -> StepStatistics:
        return StepStatistics(self.tokens + other.tokens, self.values + other.values, self.losses + other.losses)

    def reduced(self) -> StepStatistics:
        """Over all ranks, on the CPU, the same numbers at each. Collective."""
        sums = torch.cat([self.tokens.sums, self.values.sums, self.losses])
        maxima = self.tokens.maxima.clone()
        dist.all_reduce(sums, dist.ReduceOp.SUM)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        of_tokens, of_values, losses = sums.cpu().split([len(self.tokens.sums), len(self.values.sums), 2])
        return StepStatistics(TokenStatistics(of_tokens, maxima.cpu()), ValueStatistics(of_values), losses)

    @property
    def not_finite(self) -> int:
        """How many tokens have a loss or a log-ratio that is no number."""
        return self.tokens.not_finite + self.values.not_finite


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step that was taken."""

    statistics: StepStatistics
    grad_norm: float  # before clipping
    value_grad_norm: float | None  # of a value network of its own
    padding: float  # share of padding in its micro-batches, 0 to 1
    micro_batches: int  # on each rank


def update_metrics(
    steps: Sequence[Step], with_values: bool, with_kl: bool = False, later: TokenStatistics | None = None
) -> dict[str, float]:
    """Metrics of an update: means over the tokens of all its steps (a token counts once a step), policy/ratio_max and
    the numbers of tokens and micro-batches over all steps, losses, norms and padding as means of the steps.
    learner/logprob_gap_* is taken before the first step, as then alone is the policy the one that sampled (SPEC X-5): of
    that step's tokens and of `later`, those of the other minibatches. `with_values` and `with_kl` say whether the objective
    has a value network and a KL loss."""
    tokens = sum((step.statistics.tokens for step in steps[1:]), steps[0].statistics.tokens)
    sampled = steps[0].statistics.tokens if later is None else steps[0].statistics.tokens + later
    first = sampled.metrics()
    losses = torch.stack([step.statistics.losses for step in steps]).mean(0).tolist()
    metrics = {
        **tokens.metrics(),
        **{name: first[name] for name in ("learner/logprob_gap_mean", "learner/logprob_gap_max")},
        "policy/steps": float(len(steps)),
        "learner/loss": losses[0],
        "learner/grad_norm": _mean([step.grad_norm for step in steps]),
        "learner/padding": _mean([step.padding for step in steps]),
        "learner/micro_batches": float(sum(step.micro_batches for step in steps)),
    }
    if with_kl:
        metrics["policy/kl_loss"] = tokens.kl_loss
    if with_values:
        values = sum((step.statistics.values for step in steps[1:]), steps[0].statistics.values)
        metrics |= {**values.metrics(), "val/loss": losses[1]}
    norms = [step.value_grad_norm for step in steps if step.value_grad_norm is not None]
    if norms:
        metrics["learner/value_grad_norm"] = _mean(norms)
    return metrics


def variance_explained(values: FloatArray, returns: FloatArray, valued: NDArray[np.bool_]) -> float:
    """1 - Var(R - V) / Var(R) over the tokens that carry value loss, [S] each; 0 where the returns do not vary."""
    returns, errors = returns[valued].astype(np.float64), (returns - values)[valued].astype(np.float64)
    variance = returns.var() if len(returns) else 0.0
    return float(1 - errors.var() / variance) if variance else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
