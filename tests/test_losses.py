"""Losses and log-probabilities by hand numbers."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from rayrlhf import losses
from rayrlhf.config import LearnerConfig
from rayrlhf.errors import LearnerError, NotFiniteError
from rayrlhf.losses import (
    ClippedLoss,
    PolicyGradientLoss,
    PolicyLoss,
    ValueObjective,
    constrained_logprobs,
    entropies,
    selected_logprobs,
)
from rayrlhf.update_checks import check_agreement
from rayrlhf.update_statistics import (
    Step,
    StepStatistics,
    TokenStatistics,
    ValueStatistics,
    token_statistics,
    update_metrics,
    value_statistics,
    variance_explained,
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
        tensor(loss or [0.0] * count),
        new,
        torch.zeros(count),
        torch.arange(count).float(),
        new > 0.5,
        torch.arange(count) * 0.5,
        tensor(scored),
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
    assert found.not_finite == 2
    assert found.metrics()["learner/logprob_gap_max"] == pytest.approx(0.2)
    nothing = TokenStatistics.zero(torch.device("cpu")) + statistics([1.0], [False])
    assert set(nothing.metrics().values()) == {0.0}


def test_value_loss_by_hand() -> None:
    """LMHP-23 with clip 0.2 and coef 0.1, V_old = 1. Far above with R = 2: V = 1.5 counts as 1.2, error 0.64. Moved away
    from R = 0: V itself, error 2.25. Within the clip: error 0.81. Below, R = 0: 0.5 counts as 0.8, error 0.64."""
    objective = ValueObjective(clip_range=0.2, coef=0.1)
    values = tensor([1.5, 1.5, 1.1, 0.5], requires_grad=True)
    old, returns = torch.ones(4), tensor([2.0, 0.0, 2.0, 0.0])
    losses = objective(values, old, returns)
    torch.testing.assert_close(losses.detach(), 0.05 * tensor([0.64, 2.25, 0.81, 0.64]))
    losses.sum().backward()
    torch.testing.assert_close(values.grad, 0.1 * tensor([0.0, 1.5, -0.9, 0.0]))  # clipped: nothing pulls it further
    assert objective.clipped(values.detach(), old, returns).tolist() == [True, False, False, True]


def test_value_loss_without_a_clip() -> None:
    """coef * 0.5 * (V - R)^2 wherever V was."""
    objective = ValueObjective(clip_range=None, coef=0.5)
    torch.testing.assert_close(objective(tensor([3.0]), tensor([0.0]), tensor([1.0])), tensor([1.0]))
    assert not objective.clipped(tensor([3.0]), tensor([0.0]), tensor([1.0])).any()


def test_constrained_logprobs_by_hand() -> None:
    """X-5, X-6: of logits log 1, log 2, log 5 the last two allowed are 2/7 and 5/7; at temperature 1/2 4/29 and 25/29.
    One allowed token is no choice: log-probability and entropy 0, exactly."""
    logits = tensor([[log(2), log(5), log(1)], [log(2), log(5), 99.0], [0.3, 99.0, 99.0]])
    allowed = tensor([[True, True, True], [True, True, False], [True, False, False]])
    logprobs, entropy = constrained_logprobs(logits, allowed, tensor([1, 0, 0]), 1.0)
    torch.testing.assert_close(logprobs.exp(), tensor([5 / 8, 2 / 7, 1.0]))
    expected = [-(p * p.log()).sum() for p in (tensor([2, 5, 1.0]) / 8, tensor([2.0, 5]) / 7)]
    torch.testing.assert_close(entropy[:2], torch.stack(expected))
    assert logprobs[2] == entropy[2] == 0
    cold, _ = constrained_logprobs(logits, allowed, tensor([1, 0, 0]), 0.5)
    torch.testing.assert_close(cold.exp(), tensor([25 / 30, 4 / 29, 1.0]))


def test_constrained_logprobs_have_finite_gradients() -> None:
    """Only allowed tokens have any: softmax minus one at the token taken; a forced token has none."""
    logits = tensor([[0.2, -0.4, 1.0], [0.2, 0.1, 1.0]], requires_grad=True)
    allowed = tensor([[True, True, False], [True, False, False]])
    logprobs, entropy = constrained_logprobs(logits, allowed, tensor([1, 0]), 1.0)
    p = torch.softmax(tensor([0.2, -0.4]), 0)
    (gradient,) = torch.autograd.grad(logprobs.sum(), logits, retain_graph=True)
    torch.testing.assert_close(gradient, tensor([[-p[0], 1 - p[1], 0], [0, 0, 0]]))
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    by_hand = -p * (p.log() + entropy[0].detach())
    torch.testing.assert_close(gradient, tensor([[by_hand[0], by_hand[1], 0], [0, 0, 0]]))


def test_entropy_gradients_by_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the whole vocabulary, in pieces of two rows that are computed again for the gradient, and over allowed sets."""
    monkeypatch.setattr(losses, "ELEMENTS_AT_ONCE", 10)
    torch.manual_seed(0)
    logits = torch.randn(3, 5)
    allowed = torch.rand(3, 5) < 0.7
    allowed[:, 0] = True

    def constrained(x: Tensor) -> Tensor:
        return constrained_logprobs(x, allowed, torch.zeros(3, dtype=torch.long), 0.7)[1].sum()

    for entropy in (lambda x: entropies(x, 0.7).sum(), constrained):
        free = logits.clone().requires_grad_()
        entropy(free).backward()
        step = 2e-2
        for i in range(15):
            shift = torch.zeros(15)
            shift[i] = step
            shift = shift.reshape(3, 5)
            difference = (entropy(logits + shift) - entropy(logits - shift)) / (2 * step)
            assert free.grad is not None
            assert free.grad.reshape(-1)[i].item() == pytest.approx(difference.item(), abs=1e-3)


def test_value_statistics_by_hand() -> None:
    """Errors 4 and 1 scored, one of them clipped; one that is not finite is counted apart; the last is not scored."""
    found = value_statistics(
        tensor([1.0, 0.0, float("nan"), 9.0]), tensor([3.0, 1.0, 0.0, 0.0]), tensor([True, False, False, True]),
        tensor([True, True, True, False]),
    )  # fmt: skip
    assert found.metrics() == pytest.approx({"val/error": 5 / 3, "val/clipfrac": 1 / 3})
    assert found.not_finite == 1


def test_variance_explained_by_hand() -> None:
    """R = 1, 3, 5 vary by 8/3; V = 1, 2, 5 leaves 0, 1, 0, which varies by 2/9: 1 - 1/12. A constant R is no measure."""
    returns, values = np.array([1, 3, 5, 100], np.float32), np.array([1, 2, 5, 0], np.float32)
    valued = np.array([True, True, True, False])
    assert variance_explained(values, returns, valued) == pytest.approx(11 / 12)
    assert variance_explained(values, np.ones(4, np.float32), valued) == 0
    assert variance_explained(values, returns, np.zeros(4, np.bool_)) == 0


def test_update_metrics_are_means_over_all_tokens_of_all_steps() -> None:
    """X-2: one token in the first step, three in the second; the gap is that before the first, ratio_max that of all."""
    tokens = [statistics([0.5], [True]), statistics([1.0, 1.0, -1.0], [True] * 3)]
    values = [ValueStatistics(tensor([2.0, 3.0, 0.0, 0.0])), ValueStatistics(tensor([1.0, 6.0, 1.0, 0.0]))]
    losses = [tensor([1.0, 4.0]), tensor([3.0, 8.0])]
    steps = [Step(StepStatistics(*of), 1.0 + i, None, 0.25, 2 + i) for i, of in enumerate(zip(tokens, values, losses))]
    metrics = update_metrics(steps, with_values=True)
    assert metrics["policy/approxkl"] == pytest.approx(0.5 * (0.25 + 3) / 4)
    assert metrics["policy/ratio_max"] == pytest.approx(exp(1))
    assert metrics["learner/logprob_gap_max"] == metrics["learner/logprob_gap_mean"] == pytest.approx(0.5)
    assert (metrics["learner/tokens"], metrics["policy/steps"], metrics["learner/micro_batches"]) == (4, 2, 5)
    assert (metrics["learner/loss"], metrics["learner/grad_norm"], metrics["val/loss"]) == (2, 1.5, 6)
    assert metrics["val/error"] == pytest.approx(3)
    assert metrics["val/clipfrac"] == pytest.approx(1 / 3)
    assert not any(name.startswith("val/") for name in update_metrics(steps, with_values=False))
    later = update_metrics(steps, with_values=True, later=statistics([0.25, -0.75], [True] * 2))
    assert later["learner/logprob_gap_max"] == pytest.approx(0.75)
    assert later["learner/logprob_gap_mean"] == pytest.approx(0.5)
    assert {name for name in metrics if later[name] != metrics[name]} == {"learner/logprob_gap_max"}


@pytest.mark.parametrize("bf16", [False, True])
def test_the_gap_that_is_allowed_belongs_to_the_logits(bf16: bool) -> None:
    """X-5: 1e-4 nats (bf16: 0.02 on the mean) at temperature 1 and above, that over the temperature below."""
    config = LearnerConfig()
    for temperature, factor in ((0.001, 1000), (0.1, 10), (1.0, 1), (4.0, 1)):
        limit = (0.02 if bf16 else 1e-4) * factor
        check_agreement(statistics([0.99 * limit], [True]), config, bf16, temperature)
        with pytest.raises(LearnerError, match=f"allows {limit:g}"):
            check_agreement(statistics([1.01 * limit], [True]), config, bf16, temperature)


def test_a_logprob_that_is_no_number_is_no_agreement() -> None:
    """X-5: the largest gap leaves out what is not finite; the check before the first step does not."""
    tokens = statistics([0.0, float("nan")], [True] * 2)
    assert tokens.metrics()["learner/logprob_gap_max"] == 0
    with pytest.raises(NotFiniteError, match=r"not finite on 1 of 2 scored tokens; no weight was changed"):
        check_agreement(tokens, LearnerConfig(), bf16=False, temperature=1.0)
