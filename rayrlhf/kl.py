"""KL divergence between policy and reference on sampled tokens, and the reward it shapes (SPEC X-4). Pure numpy.

k_t = log pi(y_t) - log ref(y_t), the estimator "k1" (Schulman 2020): its mean over samples of pi is KL(pi || ref).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rayrlhf.types import AllowedTokens, FloatArray, Turn


def token_kl(logprobs: FloatArray, reference_logprobs: FloatArray) -> FloatArray:
    """k_t in nats for each sampled token, [T]; both log-probabilities at the same temperature (SPEC X-6)."""
    if logprobs.shape != reference_logprobs.shape:
        raise ValueError(f"log-probabilities of {logprobs.shape} tokens against {reference_logprobs.shape}")
    return logprobs - reference_logprobs


def turn_kl(turn: Turn, include_prompt: bool) -> FloatArray:
    """KL in nats at each response token of a turn, [T]; with `include_prompt` that of the prompt from its second token on
    first.

    k_t, or where decoding was constrained the exact KL over the tokens that were allowed: sum_v pi(v) (log pi(v) - log
    ref(v)). 0 for a turn that was an example: the policy did not choose it.
    """
    response = token_kl(turn.logprobs, turn.reference_logprobs)
    if turn.allowed is not None:
        gaps = token_kl(turn.allowed.logprobs, turn.allowed.reference_logprobs)
        response = np.where(turn.allowed.counts > 0, _expected(turn.allowed, gaps), response)
    if not include_prompt:
        return response
    return np.concatenate([token_kl(turn.prompt_logprobs, turn.prompt_reference_logprobs), response])


def turn_entropy(turn: Turn) -> FloatArray:
    """Entropy in nats at each response token, [T]: exact where decoding was constrained, else its sample -log pi(y_t)."""
    if turn.allowed is None:
        return -turn.logprobs
    return np.where(turn.allowed.counts > 0, _expected(turn.allowed, -turn.allowed.logprobs), -turn.logprobs)


def _expected(allowed: AllowedTokens, values: FloatArray) -> FloatArray:
    """sum_v pi(v) values(v) over the tokens allowed at each response token: values [A] -> [T]."""
    sums = np.concatenate([[0.0], np.cumsum(np.exp(allowed.logprobs.astype(np.float64)) * values)])
    return np.diff(sums[allowed.offsets]).astype(np.float32)


def penalty(kl: FloatArray, coef: float, reduction: Literal["sum", "mean"]) -> float:
    """What is subtracted from the reward of one episode whose scored tokens have `kl` nats, [T].

    `sum`: coef a nat of the sequence; `mean`: coef a nat of the mean token. Over T tokens a coefficient c under `mean`
    is c / T under `sum` (SPEC ALLIT-6: 40 over 99 predictions is 0.404). No gradient flows through it.
    """
    total = float(np.sum(kl, dtype=np.float64))
    return coef * (total if reduction == "sum" else total / max(len(kl), 1))
