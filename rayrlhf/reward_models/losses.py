"""Losses of reward models, pure: one loss an example, unweighted. N = examples, K = most items of one of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss

TIE = -1
"""In place of the winner's index: all items are equally good."""


def best_of_k(rewards: Tensor, best: Tensor) -> Tensor:
    """Cross-entropy -log softmax(rewards)[best], [N] nats (SPEC LMHP-3; for two items the Bradley-Terry model).

    rewards: [N, K], -inf where an example has fewer items. best: [N] index of the winner or TIE, which counts as one
    K-th of a win for each item ("half wins", SPEC LMHP-4).
    """
    present = torch.isfinite(rewards)
    logprobs = torch.log_softmax(rewards, dim=1)
    share = present / present.sum(1, keepdim=True)
    won = torch.zeros_like(rewards).scatter(1, best.clamp(min=0)[:, None], 1.0)
    target = torch.where((best == TIE)[:, None], share, won)
    return -(target * torch.where(present, logprobs, 0.0)).sum(1)


def best_of_k_or_tie(rewards: Tensor, best: Tensor, log_tie: Tensor) -> Tensor:
    """Cross-entropy of who wins or that all tie, [N] nats.

    P(i) ~ exp r_i, P(tie) ~ exp(log_tie + mean r): Davidson's model for two (JASA 1970), its extension to more by
    Firth, Kosmidis and Turner (2019). Arguments as of `best_of_k`; log_tie: [1] or [].
    """
    present = torch.isfinite(rewards)
    mean = torch.where(present, rewards, 0.0).sum(1) / present.sum(1)
    logprobs = torch.log_softmax(torch.cat([rewards, (log_tie + mean)[:, None]], dim=1), dim=1)
    chosen = torch.where(best == TIE, rewards.shape[1], best)
    return -logprobs.gather(1, chosen[:, None]).squeeze(1)


def log_tie_of_share(share: float, items: float = 2.0) -> float:
    """The `log_tie` at which items of equal reward tie in this share of cases, 0 < share < 1."""
    return float(torch.log(torch.tensor(items * share / (1 - share))))


def regression(rewards: Tensor, targets: Tensor, delta: float | None) -> Tensor:
    """(target - reward)^2 (SPEC LMHP-3, scalar_rating), or Huber's loss that turns linear at `delta`; [N]."""
    if delta is None:
        return (targets - rewards).square()
    return huber_loss(rewards, targets, reduction="none", delta=delta)


def difference(rewards: Tensor, targets: Tensor) -> Tensor:
    """(target - (r_1 - r_0))^2 of pairs [N, 2] (SPEC LMHP-3, scalar_compare); [N]."""
    return (targets - (rewards[:, 1] - rewards[:, 0])).square()


def binary(rewards: Tensor, targets: Tensor) -> Tensor:
    """-log sigmoid of the class that it is, [N] nats; targets [N] are 0 and 1."""
    return binary_cross_entropy_with_logits(rewards, targets, reduction="none")
