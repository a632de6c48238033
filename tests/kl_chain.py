"""A chain of three steps over five tokens, a free distribution at each of its 31 prefixes: all 125 sequences fit in a sum.

Everything is float64. A chain is its logits [31, 5]: row 0 is the empty prefix, rows 1-5 those of one token, 6-30 of two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rayrlhf.kl_config import KLEstimator
from rayrlhf.kl_estimators import KLLoss, vocabulary_kl

STEPS, TOKENS, ROWS = 3, 5, 31
ALL = torch.cartesian_prod(*[torch.arange(TOKENS)] * STEPS)  # [125, 3]


def random_chain(seed: int, near: Tensor | None = None, spread: float = 0.7) -> Tensor:
    """Random logits, about those of `near`."""
    noise = torch.randn(ROWS, TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return spread * noise + (0 if near is None else near)


def prefixes(sequences: Tensor) -> Tensor:
    """[N, 3] tokens -> [N, 3] row of the prefix that each was chosen at."""
    first, second = sequences[:, 0], sequences[:, 1]
    return torch.stack([torch.zeros_like(first), 1 + first, 6 + TOKENS * first + second], 1)


def token_logprobs(logits: Tensor, sequences: Tensor) -> Tensor:
    """[N, 3] log-probabilities of the tokens."""
    return logits.log_softmax(-1)[prefixes(sequences), sequences]


def probabilities(logits: Tensor) -> Tensor:
    """[125] of all sequences."""
    return token_logprobs(logits, ALL).sum(1).exp()


def reach(logits: Tensor) -> Tensor:
    """[31] the probability that a sequence passes through each prefix."""
    return torch.zeros(ROWS, dtype=torch.float64).index_add(
        0, prefixes(ALL).flatten(), probabilities(logits).repeat_interleave(STEPS)
    )


def draw(logits: Tensor, count: int, seed: int) -> Tensor:
    """[count, 3] sampled sequences."""
    generator = torch.Generator().manual_seed(seed)
    return ALL[torch.multinomial(probabilities(logits), count, replacement=True, generator=generator)]


def row_kl(policy: Tensor, reference: Tensor, forward: bool = False) -> Tensor:
    """[31] KL(pi || ref), or KL(ref || pi), at each prefix, written out."""
    p, q = policy.softmax(-1), reference.softmax(-1)
    return (q * (q.log() - p.log())).sum(-1) if forward else (p * (p.log() - q.log())).sum(-1)


def row_gradient(policy: Tensor, reference: Tensor, forward: bool = False) -> Tensor:
    """[31, 5] the gradient of `row_kl` by the logits, in closed form: pi (k - KL), or pi - ref."""
    p, q = policy.softmax(-1), reference.softmax(-1)
    return p - q if forward else p * ((p / q).log() - row_kl(policy, reference).unsqueeze(-1))


def gradient(loss: Callable[[Tensor], Tensor], policy: Tensor) -> Tensor:
    """[31, 5] of a scalar function of the policy's logits."""
    logits = policy.detach().requires_grad_()
    (found,) = torch.autograd.grad(loss(logits), logits, allow_unused=True, materialize_grads=True)
    return found


def token_losses(loss: KLLoss, policy: Tensor, reference: Tensor, behaviour: Tensor, sequences: Tensor) -> Tensor:
    """[N, 3] the KL loss of each token, as the learner computes it."""
    if loss.vocabulary is not None:
        return vocabulary_kl(loss.vocabulary, policy, reference, 1.0)[prefixes(sequences)]
    ours, theirs = token_logprobs(policy, sequences), token_logprobs(reference, sequences)
    return loss.sampled(ours, theirs, token_logprobs(behaviour, sequences))


def expected_loss(loss: KLLoss, policy: Tensor, reference: Tensor, behaviour: Tensor) -> Tensor:
    """The loss summed over the tokens, its mean over the behaviour policy's sequences."""
    losses = token_losses(loss, policy, reference, behaviour.detach(), ALL)
    return (probabilities(behaviour.detach()) * losses.sum(1)).sum()


def bare(estimator: KLEstimator, policy: Tensor, reference: Tensor, sequences: Tensor) -> Tensor:
    """[N, 3] the estimate at each token on-policy, without any correction."""
    return token_losses(KLLoss(estimator, correction=False), policy, reference, policy, sequences)


def reward_gradient(estimator: KLEstimator, policy: Tensor, reference: Tensor) -> Tensor:
    """[31, 5] E[(sum_t estimate_t) sum_t grad log pi_t]: what the policy gradient makes of a penalised reward."""
    charged = bare(estimator, policy, reference, ALL).sum(1).detach()
    return gradient(lambda x: (probabilities(x).detach() * charged * token_logprobs(x, ALL).sum(1)).sum(), policy)
