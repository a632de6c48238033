"""Policy and value losses a token, and the log-probabilities and entropies they are made of. Pure tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from rayrlhf.kl_estimators import KLLoss

ELEMENTS_AT_ONCE = 1 << 22  # logits whose softmax is held at once for entropies and divergences: 16 MiB in fp32


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


@dataclass(frozen=True, slots=True)
class ValueObjective:
    """coef * 0.5 * max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) with c = clip_range (SPEC LMHP-23).

    Nothing pulls V further than c from what it was at the rollout; `clip_range` None: coef * 0.5 * (V - R)^2.
    """

    clip_range: float | None
    coef: float

    def __call__(self, values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
        """Loss of each token from V (with gradient), V at the rollout and the return; all tensors have one shape."""
        errors = (values - returns).square()
        if self.clip_range is not None:
            errors = torch.maximum(errors, (_near(values, old_values, self.clip_range) - returns).square())
        return self.coef * 0.5 * errors

    def clipped(self, values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
        """bool: tokens whose loss is that of the clipped V."""
        if self.clip_range is None:
            return torch.zeros_like(values, dtype=torch.bool)
        near = _near(values, old_values, self.clip_range)
        return (near - returns).square() > (values - returns).square()


def _near(values: Tensor, old_values: Tensor, clip_range: float) -> Tensor:
    return values.clamp(old_values - clip_range, old_values + clip_range)


@dataclass(frozen=True, slots=True)
class Objective:
    """What an update minimises: weights * (policy loss - entropy_coef * entropy + kl_coef * KL loss) + value_weights *
    value loss, summed over the tokens (`types.TrainingSequence` has the weights, `types.TrainingBatch` kl_coef)."""

    policy: PolicyLoss
    entropy_coef: float = 0.0  # per nat
    value: ValueObjective | None = None  # None: no value network
    kl: KLLoss | None = None  # None: no KL penalty in the loss


def selected_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature)[target] in fp32, nats.

    logits [..., V] of any float type, targets [...] int64 -> [...]. Autograd keeps the scaled logits alone: a
    log_softmax would be a second tensor of that size.
    """
    scaled = scaled_logits(logits, temperature)
    return scaled.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)


def scaled_logits(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature in fp32, or fp64 where that is what they are; no copy where nothing changes."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits / temperature


def entropies(logits: Tensor, temperature: float) -> Tensor:
    """Exact entropy of softmax(logits / temperature) in fp32, nats: [..., V] -> [...].

    A piece of the rows at a time, computed again for the gradient: the softmax of all rows would be as large as the
    logits, and be held until then.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    pieces = rows.split(max(1, ELEMENTS_AT_ONCE // rows.shape[-1]))
    values = [checkpoint(_entropies_at_once, piece, temperature, use_reentrant=False) for piece in pieces]
    return torch.cat(values).reshape(logits.shape[:-1])


def _entropies_at_once(logits: Tensor, temperature: float) -> Tensor:
    logprobs = scaled_logits(logits, temperature).log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def constrained_logprobs(logits: Tensor, allowed: Tensor, chosen: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of what was chosen and exact entropy of softmax(logits / temperature) over the allowed tokens.

    logits [N, K] of the K tokens that each of N choices was among, allowed [N, K] bool: which of them are real, at least
    one a row, and chosen [N] the place of the token taken among them -> [N] and [N] in fp32, nats. A row of one allowed
    token has log-probability 0 and entropy 0, exactly.
    """
    scaled = scaled_logits(logits, temperature).masked_fill(~allowed, -torch.inf)
    logprobs = scaled.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs.masked_fill(~allowed, 0.0)).sum(-1)
    return logprobs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1), entropy
