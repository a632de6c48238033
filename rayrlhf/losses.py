"""Policy losses a token, the log-probabilities they are made of, and the statistics a step reports. Pure tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

ELEMENTS_AT_ONCE = 1 << 22  # logits whose softmax is held at once for the entropy: 16 MiB in fp32


class PolicyLoss(Protocol):
    """What the learner minimises; all tensors have one shape, one element a token."""

    def __call__(self, logprobs: Tensor, behaviour_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """Loss of each token from log pi (with gradient) and log of the policy that sampled it, both in nats."""
        ...

    def clipped(self, logprobs: Tensor, behaviour_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """bool: tokens whose ratio the loss has cut off."""
        ...


@dataclass(frozen=True, slots=True)
class PolicyGradientLoss:
    """-w A log pi, w = min(pi / behaviour, cap) without gradient; `importance_cap` None: w = 1.

    REINFORCE (Williams 1992) with truncated importance sampling (Ionides 2008, eq. 5; for the mismatch of sampler and
    learner: Yao et al. 2025). Where both agree, w = 1.
    """

    importance_cap: float | None

    def __call__(self, logprobs: Tensor, behaviour_logprobs: Tensor, advantages: Tensor) -> Tensor:
        if self.importance_cap is None:
            return -advantages * logprobs
        weights = (logprobs.detach() - behaviour_logprobs).exp().clamp(max=self.importance_cap)
        return -weights * advantages * logprobs

    def clipped(self, logprobs: Tensor, behaviour_logprobs: Tensor, advantages: Tensor) -> Tensor:
        if self.importance_cap is None:
            return torch.zeros_like(logprobs, dtype=torch.bool)
        return (logprobs - behaviour_logprobs).exp() > self.importance_cap


@dataclass(frozen=True, slots=True)
class ClippedLoss:
    """max(-A r, -A clip(r, 1 - c, 1 + c)), r = pi / behaviour: PPO (Schulman et al. 2017, eq. 7; SPEC LMHP-23)."""

    clip_range: float

    def __call__(self, logprobs: Tensor, behaviour_logprobs: Tensor, advantages: Tensor) -> Tensor:
        ratios = (logprobs - behaviour_logprobs).exp()
        return torch.maximum(-advantages * ratios, -advantages * self._clip(ratios))

    def clipped(self, logprobs: Tensor, behaviour_logprobs: Tensor, advantages: Tensor) -> Tensor:
        ratios = (logprobs - behaviour_logprobs).exp()
        return -advantages * self._clip(ratios) > -advantages * ratios

    def _clip(self, ratios: Tensor) -> Tensor:
        return ratios.clamp(1 - self.clip_range, 1 + self.clip_range)


def selected_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature)[target] in fp32, nats.

    logits [..., V] of any float type, targets [...] int64 -> [...]. Autograd keeps the scaled logits alone: a
    log_softmax would be a second tensor of that size.
    """
    scaled = scaled_logits(logits, temperature)
    return scaled.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)


def scaled_logits(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature in fp32; no copy where that is what they are."""
    logits = logits.float()
    return logits if temperature == 1.0 else logits / temperature


@torch.no_grad()
def entropies(logits: Tensor, temperature: float) -> Tensor:
    """Exact entropy of softmax(logits / temperature) in fp32, nats: [..., V] -> [...]; no gradient.

    A piece of the rows at a time: the softmax of all of them would be as large as the logits.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    pieces = []
    for piece in rows.split(max(1, ELEMENTS_AT_ONCE // rows.shape[-1])):
        logprobs = scaled_logits(piece, temperature).log_softmax(-1)
        pieces.append(-(logprobs.exp() * logprobs).sum(-1))
    return torch.cat(pieces).reshape(logits.shape[:-1])


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Sums and maxima over scored tokens, added up over micro-batches and ranks; means are taken once, at the end."""

    sums: Tensor  # [7] float64: tokens, ratio, squared log-ratio, clipped, entropy, |log-ratio|, not finite
    maxima: Tensor  # [2] float64: ratio, |log-ratio|; tokens that are not finite are left out here and counted there

    @classmethod
    def zero(cls, device: torch.device) -> TokenStatistics:
        return cls(
            torch.zeros(7, dtype=torch.float64, device=device), torch.zeros(2, dtype=torch.float64, device=device)
        )

    def __add__(self, other: TokenStatistics) -> TokenStatistics:
        return TokenStatistics(self.sums + other.sums, torch.maximum(self.maxima, other.maxima))

    def metrics(self) -> dict[str, float]:
        """SPEC X-10 names. approxkl = 0.5 mean (log pi - log behaviour)^2 (LMHP-23), in nats^2 a token."""
        tokens, ratio, squared, clipped, entropy, gap, _ = self.sums.tolist()
        ratio_max, gap_max = self.maxima.tolist()
        count = max(tokens, 1.0)
        return {
            "policy/ratio_mean": ratio / count,
            "policy/ratio_max": ratio_max,
            "policy/approxkl": 0.5 * squared / count,
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
    scored: Tensor,
) -> TokenStatistics:
    """Statistics of the tokens where `scored` (bool); all arguments have one shape. A token is not finite where its
    loss or its log-ratio is not: the count says so, and the sums leave it out."""
    log_ratios = (logprobs - behaviour_logprobs)[scored].double()
    finite = log_ratios.isfinite() & losses[scored].isfinite()
    log_ratios = torch.where(finite, log_ratios, 0.0)
    ratios = log_ratios.exp()
    values = (
        torch.ones_like(ratios), ratios, log_ratios.square(), clipped[scored].double(),
        token_entropies[scored].double(), log_ratios.abs(), (~finite).double(),
    )  # fmt: skip
    return TokenStatistics(
        sums=torch.stack([value.sum() for value in values]),
        maxima=torch.stack([_max(ratios), _max(log_ratios.abs())]),
    )


def _max(values: Tensor) -> Tensor:
    return values.max() if values.numel() else values.new_zeros(())
