"""Estimators of the KL divergence between policy and reference at a token: their values, and losses with a gradient.

pi is the policy, ref the frozen reference, mu the policy that sampled (pi itself on-policy), y ~ mu the token,
k = log pi(y) - log ref(y), rho = pi(y) / mu(y); log-probabilities in nats, all at one temperature (SPEC X-6).

Value, as an estimate of the divergence at a prefix, y ~ pi (Schulman 2020, "Approximating KL divergence"):

    estimator        formula            target         bias                    variance
    k1               k                  KL(pi || ref)  0                       high; single values are negative
    k2               k^2 / 2            KL(pi || ref)  third order in k        low
    k3               exp(-k) - 1 + k    KL(pi || ref)  0                       low near ref, heavy tail where ref >> pi
    full             sum over tokens    KL(pi || ref)  0                       0
    forward          sum over tokens    KL(ref || pi)  0                       0
    forward_sampled  -k exp(-k)         KL(ref || pi)  0                       heavy tail where ref >> pi

Gradient in the loss channel: target is the sum over tokens of the divergence's gradient at the prefixes that were
sampled, these held (SPEC TW-14, TW-15). Corrected forms, expectation under any mu that covers pi (and ref):

    k1               rho k                             exact    of a sample rho (k + 1) grad log pi; the 1 is noise
    k2               stopgrad(rho) k^2 / 2             exact    of a sample rho k grad log pi (its value stays biased)
    k3               rho (exp(-k) - 1 + k)             exact    the same as k2's at each sample
    full, forward    the sum over tokens               exact    variance 0; nothing to correct
    forward_sampled  stopgrad(ref / mu) (-k)           exact    heavy tail where ref >> mu

Uncorrected forms are what autograd makes of the value itself. On-policy their expected gradients are

    k1               0: noise alone
    k2               exact for KL(pi || ref); off-policy it is not
    k3               that of KL(ref || pi): not of the divergence that its value estimates
    forward_sampled  that of KL(ref || pi) + E_ref[k^2 / 2]

Gradient in the reward channel: target is the gradient of the whole sequence's KL(pi || ref) = E_pi[sum_t k_t] (SPEC X-4).
The penalty is a number; the policy gradient is E_pi[(sum_t penalty_t) sum_t grad log pi_t], which misses what the
penalty at a token changes with pi at that token's own prefix:

    k1               exact; high variance
    k2               biased: misses the gradient of KL(pi || ref) at each prefix, and is that of E_pi[sum k^2 / 2] with it
    k3               biased: misses the gradient of KL(ref || pi) at each prefix; exact with it, in the loss at the same
                     coefficient (forward, or k3 uncorrected)
    full             biased: misses the gradient of KL(pi || ref) at each prefix; exact with it, in the loss at the same
                     coefficient, and then of lower variance than k1 (Rao-Blackwell: Amini, Vieira, Cotterell 2025,
                     "Better Estimation of the Kullback-Leibler Divergence Between Language Models")
    forward          another target, E_pi[sum_t KL(ref || pi) at prefix t]; misses the gradient of KL(ref || pi) at each
                     prefix, and is exact for that target with it
    forward_sampled  forward's target; misses the gradient of KL(ref || pi) + E_ref[k^2 / 2] at each prefix

Rejection sampling keeps the best turns, whose tokens are no sample of mu: there full and forward alone are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rayrlhf.kl_config import KLEstimator
from rayrlhf.losses import ELEMENTS_AT_ONCE, scaled_logits

VocabularyEstimator = Literal["full", "forward"]
"""Estimators that need the logits of both models; the others need the log-probabilities of the sampled token."""


def over_vocabulary(estimator: KLEstimator) -> VocabularyEstimator | None:
    """The estimator where it is one that sums over the vocabulary, else None."""
    return estimator if estimator == "full" or estimator == "forward" else None


def sampled_values(estimator: KLEstimator, k: Tensor) -> Tensor:
    """The estimate at each sampled token from k = log pi - log ref, both in nats: [...] -> [...].

    Raises:
        ValueError: the estimator is not one of sampled tokens.
    """
    if estimator == "k1":
        return k
    if estimator == "k2":
        return k.square() / 2
    if estimator == "k3":
        return torch.expm1(-k) + k
    if estimator == "forward_sampled":
        return -k * torch.exp(-k)
    raise ValueError(f"{estimator} is a sum over the vocabulary, not an estimate from the sampled token")


@dataclass(frozen=True, slots=True)
class KLLoss:
    """The KL penalty of an objective: which number, and whether sampled ones are corrected; a token's loss is its KL."""

    estimator: KLEstimator
    correction: bool = True

    @property
    def vocabulary(self) -> VocabularyEstimator | None:
        """The estimator where it needs the logits of both models; None: it takes the sampled tokens' log-probabilities."""
        return over_vocabulary(self.estimator)

    def sampled(self, logprobs: Tensor, reference_logprobs: Tensor, behaviour_logprobs: Tensor) -> Tensor:
        """KL of each token in nats from log pi (with gradient), log ref and log mu of the sampled token, all [...].

        Corrected, value and gradient are means over samples of mu; uncorrected over samples of pi, and the gradient is
        that of the bare value (see the table above). Raises ValueError for an estimator over the vocabulary.
        """
        k = logprobs - reference_logprobs
        if not self.correction:
            return sampled_values(self.estimator, k)
        if self.estimator == "forward_sampled":
            return (reference_logprobs - behaviour_logprobs).exp() * -k
        ratios = (logprobs - behaviour_logprobs).exp()
        if self.estimator == "k2":
            ratios = ratios.detach()
        return ratios * sampled_values(self.estimator, k)


def vocabulary_kl(
    estimator: VocabularyEstimator, logits: Tensor, reference_logits: Tensor, temperature: float
) -> Tensor:
    """Exact KL between softmax(logits / temperature) and the reference's in nats, fp32: two [..., V] -> [...].

    full: sum_v pi (log pi - log ref); forward: sum_v ref (log ref - log pi). The gradient is that of `logits` alone.
    Rows are taken a piece at a time, forward and backward: beside the two logits there are at most five tensors of
    `losses.ELEMENTS_AT_ONCE` elements (or of one row), and in the backward pass the gradient of the logits. Autograd
    keeps nothing but the logits. Exactly 0, with a gradient of exactly 0, where the logits are the same.
    """
    size = logits.shape[-1]
    rows, reference = logits.reshape(-1, size), reference_logits.reshape(-1, size)
    return _VocabularyKL.apply(rows, reference, temperature, estimator).reshape(logits.shape[:-1])


def constrained_kl(
    estimator: VocabularyEstimator, logits: Tensor, reference_logits: Tensor, allowed: Tensor, temperature: float
) -> Tensor:
    """As `vocabulary_kl` over the tokens that were allowed alone: two [N, K] and allowed [N, K] bool -> [N].

    Both distributions are over the allowed tokens, at least one a row; one alone has KL 0.
    """
    lowest = -torch.inf
    logprobs = scaled_logits(logits, temperature).masked_fill(~allowed, lowest).log_softmax(-1)
    reference = scaled_logits(reference_logits.detach(), temperature).masked_fill(~allowed, lowest).log_softmax(-1)
    gaps = logprobs.masked_fill(~allowed, 0.0) - reference.masked_fill(~allowed, 0.0)
    return (logprobs.exp() * gaps if estimator == "full" else -reference.exp() * gaps).sum(-1)


class _VocabularyKL(torch.autograd.Function):
    """Rows [N, V] of both logits -> KL [N]. With z = logits / temperature, of KL(pi || ref): dz = pi (k - KL), and of
    KL(ref || pi): dz = pi - ref."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, reference: Tensor, temperature: float, estimator: VocabularyEstimator
    ) -> Tensor:
        ctx.save_for_backward(logits, reference)
        ctx.temperature, ctx.estimator = temperature, estimator
        values = []
        for piece, of_reference in _pieces(logits, reference):
            logprobs = scaled_logits(piece, temperature).log_softmax(-1)
            others = scaled_logits(of_reference, temperature).log_softmax(-1)
            values.append(_kl_at_once(logprobs, others, estimator))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, reference = ctx.saved_tensors
        full = torch.empty_like(logits)
        for piece, of_reference, scale, out in _pieces(logits, reference, gradients[0].unsqueeze(-1), full):
            logprobs = scaled_logits(piece, ctx.temperature).log_softmax(-1)
            others = scaled_logits(of_reference, ctx.temperature).log_softmax(-1)
            if ctx.estimator == "full":
                kl = _kl_at_once(logprobs, others, ctx.estimator).unsqueeze(-1)
                slope = logprobs.exp().mul_((logprobs - others).sub_(kl))
            else:
                slope = logprobs.exp().sub_(others.exp())
            out.copy_(slope.mul_(scale / ctx.temperature))
        return full, None, None, None


def _kl_at_once(logprobs: Tensor, reference: Tensor, estimator: VocabularyEstimator) -> Tensor:
    gaps = logprobs - reference
    if estimator == "full":
        return gaps.mul_(logprobs.exp()).sum(-1)
    return gaps.mul_(reference.exp()).sum(-1).neg_()


def _pieces(rows: Tensor, *others: Tensor) -> zip[tuple[Tensor, ...]]:
    """All tensors [N, ...] cut alike into pieces of rows that hold at most ELEMENTS_AT_ONCE of `rows`' elements."""
    size = max(1, ELEMENTS_AT_ONCE // rows.shape[-1])
    return zip(*(tensor.split(size) for tensor in (rows, *others)), strict=True)
