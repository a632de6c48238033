"""KL divergence between policy and reference on an episode's tokens, and the reward it shapes (SPEC X-4). Pure functions.

k_t = log pi(y_t) - log ref(y_t), the estimator "k1" (Schulman 2020): its mean over samples of pi is KL(pi || ref).
`turn_kl` is what the log says, `penalised_kl` what the reward is charged: `kl_estimators.py` has the reasons.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from rayrlhf.kl_config import KLEstimator
from rayrlhf.kl_estimators import VocabularyEstimator, over_vocabulary, sampled_values
from rayrlhf.types import AllowedTokens, FloatArray, Turn


def token_kl(logprobs: FloatArray, reference_logprobs: FloatArray) -> FloatArray:
    """k_t in nats for each sampled token, [T]; both log-probabilities at the same temperature (SPEC X-6)."""
    if logprobs.shape != reference_logprobs.shape:
        raise ValueError(f"log-probabilities of {logprobs.shape} tokens against {reference_logprobs.shape}")
    return logprobs - reference_logprobs


def turn_kl(turn: Turn, include_prompt: bool) -> FloatArray:
    """KL(pi || ref) in nats at each response token of a turn, [T], for the log; with `include_prompt` that of the prompt
    from its second token on first.

    k_t, or where decoding was constrained the exact KL over the tokens that were allowed: sum_v pi(v) (log pi(v) - log
    ref(v)). 0 for a turn that was an example: the policy did not choose it.
    """
    response = token_kl(turn.logprobs, turn.reference_logprobs)
    if turn.allowed is not None:
        response = np.where(turn.allowed.counts > 0, _constrained_kl(turn.allowed, "full"), response)
    if not include_prompt:
        return response
    return np.concatenate([token_kl(turn.prompt_logprobs, turn.prompt_reference_logprobs), response])


def penalised_kl(turn: Turn, estimator: KLEstimator, include_prompt: bool) -> FloatArray:
    """What the reward is charged for, in nats at each response token of a turn, [T]; the prompt first as in `turn_kl`.

    The estimator's number, where decoding was constrained too: an exact KL there would leave out the gradient at the
    token's own step. `full` and `forward` are over the tokens that were allowed, and `turn.vocabulary_kl` elsewhere.

    Raises:
        ValueError: `full` or `forward` with `include_prompt`, or without the numbers they need.
    """
    exact = over_vocabulary(estimator)
    if exact is not None:
        if include_prompt:
            raise ValueError(f"{estimator} is not scored over prompts")
        return _exact_kl(turn, exact)
    response = _sampled(estimator, turn.logprobs, turn.reference_logprobs)
    if not include_prompt:
        return response
    return np.concatenate([_sampled(estimator, turn.prompt_logprobs, turn.prompt_reference_logprobs), response])


def _sampled(estimator: KLEstimator, logprobs: FloatArray, reference_logprobs: FloatArray) -> FloatArray:
    return sampled_values(estimator, torch.tensor(token_kl(logprobs, reference_logprobs))).numpy()


def _exact_kl(turn: Turn, estimator: VocabularyEstimator) -> FloatArray:
    if turn.example:
        return np.zeros(len(turn.response_ids), np.float32)
    if turn.allowed is not None and turn.allowed.counts.all():
        return _constrained_kl(turn.allowed, estimator)
    if len(turn.vocabulary_kl) != len(turn.response_ids):
        raise ValueError(
            f"{len(turn.vocabulary_kl)} numbers of the vocabulary's KL for {len(turn.response_ids)} tokens"
        )
    if turn.allowed is None:
        return turn.vocabulary_kl
    return np.where(turn.allowed.counts > 0, _constrained_kl(turn.allowed, estimator), turn.vocabulary_kl)


def _constrained_kl(allowed: AllowedTokens, estimator: VocabularyEstimator) -> FloatArray:
    """KL over the tokens that were allowed at each response token, [T]; 0 where that was the whole vocabulary."""
    gaps = token_kl(allowed.logprobs, allowed.reference_logprobs)
    if estimator == "full":
        return _expected(allowed, allowed.logprobs, gaps)
    return _expected(allowed, allowed.reference_logprobs, -gaps)


def turn_entropy(turn: Turn) -> FloatArray:
    """Entropy in nats at each response token, [T]: exact where decoding was constrained, else its sample -log pi(y_t)."""
    if turn.allowed is None:
        return -turn.logprobs
    return np.where(
        turn.allowed.counts > 0, _expected(turn.allowed, turn.allowed.logprobs, -turn.allowed.logprobs), -turn.logprobs
    )


def _expected(allowed: AllowedTokens, logprobs: FloatArray, values: FloatArray) -> FloatArray:
    """sum_v exp(logprobs(v)) values(v) over the tokens allowed at each response token: [A] and [A] -> [T]."""
    sums = np.concatenate([[0.0], np.cumsum(np.exp(logprobs.astype(np.float64)) * values)])
    return np.diff(sums[allowed.offsets]).astype(np.float32)


def penalty(kl: FloatArray, coef: float, reduction: Literal["sum", "mean"]) -> float:
    """What is subtracted from the reward of one episode whose scored tokens have `kl` nats, [T].

    `sum`: coef a nat of the sequence; `mean`: coef a nat of the mean token. Over T tokens a coefficient c under `mean`
    is c / T under `sum` (SPEC ALLIT-6: 40 over 99 predictions is 0.404). No gradient flows through it.
    """
    total = float(np.sum(kl, dtype=np.float64))
    return coef * (total if reduction == "sum" else total / max(len(kl), 1))
