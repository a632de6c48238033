"""Losses and log-probabilities by hand numbers."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor, tensor

from rayrlhf import losses
from rayrlhf.losses import (
    ClippedLoss,
    PolicyGradientLoss,
    PolicyLoss,
    TokenStatistics,
    entropies,
    selected_logprobs,
    token_statistics,
)


def value_and_gradient(
    loss: PolicyLoss, logprobs: list[float], behaviour: list[float], advantages: list[float]
) -> tuple[Tensor, Tensor]:
    new = tensor(logprobs, requires_grad=True)
    values = loss(new, tensor(behaviour), tensor(advantages))
    values.sum().backward()
    assert new.grad is not None
    return values.detach(), new.grad


def test_policy_gradient_without_importance() -> None:
    """-A log pi; its gradient by log pi is -A."""
    values, gradient = value_and_gradient(PolicyGradientLoss(None), [-2.0, -0.5], [-9.0, 0.0], [3.0, -1.0])
    assert values.tolist() == [6.0, -0.5]
    assert gradient.tolist() == [-3.0, 1.0]


def test_policy_gradient_with_a_cap() -> None:
    """Ratios 4, 1/2 and 1 at cap 2 weigh 2, 1/2 and 1; the weight has no gradient."""
    loss = PolicyGradientLoss(2.0)
    behaviour = [-1 - log(4), -1 + log(2), -1.0]
    values, gradient = value_and_gradient(loss, [-1.0] * 3, behaviour, [3.0, 3.0, -3.0])
    torch.testing.assert_close(values, tensor([6.0, 1.5, -3.0]))
    torch.testing.assert_close(gradient, tensor([-6.0, -1.5, 3.0]))
    assert loss.clipped(tensor([-1.0] * 3), tensor(behaviour), tensor([1.0] * 3)).tolist() == [True, False, False]
    assert not PolicyGradientLoss(None).clipped(tensor([5.0]), tensor([0.0]), tensor([1.0])).any()


def test_clipped_loss_in_all_four_quarters() -> None:
    """LMHP-23 with clip 0.2: ratios 1.5 and 0.5, advantages 2 and -2. Clipped where the surrogate would gain more."""
    ratios, advantages = [1.5, 0.5, 1.5, 0.5], [2.0, 2.0, -2.0, -2.0]
    loss = ClippedLoss(0.2)
    logprobs = [log(ratio) - 1 for ratio in ratios]
    values, gradient = value_and_gradient(loss, logprobs, [-1.0] * 4, advantages)
    torch.testing.assert_close(values, tensor([-2.4, -1.0, 3.0, 1.6]))
    torch.testing.assert_close(gradient, tensor([0.0, -1.0, 3.0, 0.0]))
    assert loss.clipped(tensor(logprobs), tensor([-1.0] * 4), tensor(advantages)).tolist() == [True, False, False, True]


def test_before_the_first_step_all_losses_have_the_policy_gradient() -> None:
    """X-5: where pi is the behaviour policy, ratio 1, nothing is clipped and every gradient is -A."""
    for loss in (PolicyGradientLoss(None), PolicyGradientLoss(2.0), ClippedLoss(0.2)):
        _, gradient = value_and_gradient(loss, [-1.0, -3.0], [-1.0, -3.0], [2.0, -5.0])
        assert gradient.tolist() == [-2.0, 5.0]


def test_selected_logprobs_by_hand() -> None:
    """X-6: logits log 1, log 2, log 5 are probabilities 1/8, 2/8, 5/8; at temperature 1/2 1, 4, 25 of 30."""
    logits = tensor([[0.0, log(2), log(5)]] * 3)
    targets = tensor([0, 1, 2])
    torch.testing.assert_close(selected_logprobs(logits, targets, 1.0).exp(), tensor([1 / 8, 2 / 8, 5 / 8]))
    torch.testing.assert_close(selected_logprobs(logits, targets, 0.5).exp(), tensor([1 / 30, 4 / 30, 25 / 30]))


def test_selected_logprobs_are_fp32_and_differentiable() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(5, (2, 3))
    logprobs = selected_logprobs(logits, targets, 0.7)
    assert logprobs.dtype == torch.float32
    assert logprobs.shape == (2, 3)
    exact = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    mine = torch.autograd.grad(selected_logprobs(exact, targets.new_tensor([0, 5, 2, 2]), 0.7).sum(), exact)[0]
    theirs = torch.autograd.grad((exact / 0.7).log_softmax(-1).gather(1, tensor([[0], [5], [2], [2]])).sum(), exact)[0]
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_entropies_by_hand_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform over four: log 4. Logits 0, log 2 are 1/3 and 2/3: log 3 - 2/3 log 2; at temperature 1/2 1/5 and 4/5."""
    torch.testing.assert_close(entropies(torch.zeros(2, 3, 4), 1.0), torch.full((2, 3), log(4)))
    two = tensor([0.0, log(2)])
    assert entropies(two, 1.0).item() == pytest.approx(log(3) - 2 / 3 * log(2))
    assert entropies(two, 0.5).item() == pytest.approx(log(5) - 4 / 5 * log(4))
    logits = torch.randn(7, 5, 11)
    whole = entropies(logits, 0.7)
    monkeypatch.setattr(losses, "ELEMENTS_AT_ONCE", 30)
    torch.testing.assert_close(entropies(logits, 0.7), whole)


def statistics(log_ratios: list[float], scored: list[bool], loss: list[float] | None = None) -> TokenStatistics:
    new = tensor(log_ratios)
    count = len(log_ratios)
    return token_statistics(
        tensor(loss or [0.0] * count), new, torch.zeros(count), torch.arange(count).float(), new > 0.5, tensor(scored)
    )


def test_statistics_by_hand() -> None:
    """Log-ratios 0, log 2, log 4 scored, 9 not: LMHP-23's approxkl is half the mean square."""
    metrics = statistics([0.0, log(2), 9.0, log(4)], [True, True, False, True]).metrics()
    assert metrics["policy/ratio_mean"] == pytest.approx(7 / 3)
    assert metrics["policy/ratio_max"] == pytest.approx(4)
    assert metrics["policy/approxkl"] == pytest.approx(0.5 * 5 * log(2) ** 2 / 3)
    assert metrics["policy/clipfrac"] == pytest.approx(2 / 3)
    assert metrics["policy/entropy"] == pytest.approx(4 / 3)
    assert metrics["learner/logprob_gap_mean"] == pytest.approx(log(2))
    assert metrics["learner/logprob_gap_max"] == pytest.approx(log(4))
    assert metrics["learner/tokens"] == 3


def test_statistics_add_up_over_micro_batches_of_uneven_sizes() -> None:
    """X-2: a mean over all tokens, never a mean of means."""
    parts = statistics([0.5], [True]) + statistics([0.1, 0.2, 0.3], [True] * 3) + statistics([7.0], [False])
    metrics = parts.metrics()
    assert metrics["policy/ratio_mean"] == pytest.approx(sum(map(exp, [0.5, 0.1, 0.2, 0.3])) / 4)
    assert metrics["learner/logprob_gap_max"] == pytest.approx(0.5)


def test_tokens_that_are_not_finite_are_counted_where_they_are_scored() -> None:
    found = statistics([float("nan"), 0.1, float("inf"), 0.2], [True, True, False, True], [0, float("inf"), 0, 0])
    assert found.sums[-1] == 2
    assert found.metrics()["learner/logprob_gap_max"] == pytest.approx(0.2)
    nothing = TokenStatistics.zero(torch.device("cpu")) + statistics([1.0], [False])
    assert set(nothing.metrics().values()) == {0.0}
