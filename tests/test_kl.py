"""KL estimators against closed forms: a softmax bandit, and a chain whose 125 sequences are all summed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from math import log
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from rayrlhf import kl_estimators
from rayrlhf.algorithm_config import PPOConfig, ReinforceConfig, RejectionSamplingConfig, RLOOConfig
from rayrlhf.algorithms import build_algorithm
from rayrlhf.algorithms.ppo import decision_steps, step_rewards
from rayrlhf.batch_loss import policy_loss
from rayrlhf.kl import penalised_kl, turn_kl
from rayrlhf.kl_channels import penalty_warning
from rayrlhf.kl_config import KLEstimator, KLLossConfig, KLPenaltyConfig, ScheduleControllerConfig
from rayrlhf.kl_estimators import KLLoss, constrained_kl, sampled_values, vocabulary_kl
from rayrlhf.losses import Objective, PolicyGradientLoss, selected_logprobs
from rayrlhf.micro_batches import collate
from rayrlhf.packed_sequences import Limits, pack_sequences
from rayrlhf.types import Minibatch, TrainingSequence
from tests.game_episodes import episode, score_of, turn
from tests.kl_chain import (
    ALL,
    bare,
    draw,
    expected_loss,
    gradient,
    prefixes,
    probabilities,
    random_chain,
    reach,
    reward_gradient,
    row_gradient,
    row_kl,
    token_logprobs,
)
from tests.rounding import rounding

ESTIMATORS: tuple[KLEstimator, ...] = get_args(KLEstimator)
SAMPLED: tuple[KLEstimator, ...] = ("k1", "k2", "k3", "forward_sampled")
EXACT = 1e-10  # float64 sums over all sequences
REFERENCE = random_chain(1)
POLICY = random_chain(2, near=REFERENCE)
BEHAVIOUR = random_chain(3, near=POLICY, spread=0.4)  # what sampled, where it is not the policy


def is_forward(estimator: KLEstimator) -> bool:
    return estimator.startswith("forward")


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((ours - theirs).norm() / theirs.norm())


# The bandit: pi = (1/2, 1/4, 1/4), ref = (1/8, 1/2, 3/8), so k = (log 4, -log 2, -log 1.5), ref / pi = (1/4, 2, 3/2).

ARMS = torch.tensor([1 / 2, 1 / 4, 1 / 4], dtype=torch.float64)
ARMS_REFERENCE = torch.tensor([1 / 8, 1 / 2, 3 / 8], dtype=torch.float64)
REVERSE = log(4) / 2 - log(2) / 4 - log(1.5) / 4
FORWARD = -log(4) / 8 + log(2) / 2 + log(1.5) * 3 / 8
BY_HAND: dict[KLEstimator, list[float]] = {
    "k1": [log(4), -log(2), -log(1.5)],
    "k2": [log(4) ** 2 / 2, log(2) ** 2 / 2, log(1.5) ** 2 / 2],
    "k3": [1 / 4 - 1 + log(4), 2 - 1 - log(2), 3 / 2 - 1 - log(1.5)],
    "forward_sampled": [-log(4) / 4, 2 * log(2), 1.5 * log(1.5)],
}


@pytest.mark.parametrize("estimator", SAMPLED)
def test_values_on_a_bandit_by_hand(estimator: KLEstimator) -> None:
    """X-4, TW-15: each token's estimate; the mean is KL(pi || ref), KL(ref || pi), or of k2 something else."""
    values = sampled_values(estimator, (ARMS / ARMS_REFERENCE).log())
    torch.testing.assert_close(values, torch.tensor(BY_HAND[estimator], dtype=torch.float64))
    mean = float((ARMS * values).sum())
    if estimator == "k2":
        assert abs(mean - REVERSE) > 0.05
    else:
        assert mean == pytest.approx(FORWARD if is_forward(estimator) else REVERSE, abs=1e-12)


def test_sums_over_the_vocabulary_on_a_bandit_by_hand() -> None:
    """TW-15: values, and the gradients pi (k - KL) and pi - ref; at a temperature 1 / T of that on logits T times as
    large (X-6)."""
    k = torch.tensor(BY_HAND["k1"], dtype=torch.float64)
    expected = {"full": (REVERSE, ARMS * (k - REVERSE)), "forward": (FORWARD, ARMS - ARMS_REFERENCE)}
    for temperature in (1.0, 0.5):
        reference = ARMS_REFERENCE.log()[None] * temperature
        for estimator, (value, slope) in expected.items():
            logits = (ARMS.log()[None] * temperature).requires_grad_()
            kl = vocabulary_kl(estimator, logits, reference, temperature)  # type: ignore[arg-type]
            (found,) = torch.autograd.grad(3 * kl.sum(), logits)
            assert kl.item() == pytest.approx(value, abs=1e-12)
            torch.testing.assert_close(found[0], 3 * slope / temperature)


# The chain, values and gradients summed over all sequences.


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_expected_values_on_the_chain(estimator: KLEstimator) -> None:
    """X-4, TW-15: target the sum over tokens of KL at the prefixes that pi reaches; for KL(pi || ref) that is the KL of
    the whole sequence. k2 alone is biased."""
    mean = float((probabilities(POLICY) * bare(estimator, POLICY, REFERENCE, ALL).sum(1)).sum())
    target = float((reach(POLICY) * row_kl(POLICY, REFERENCE, is_forward(estimator))).sum())
    if not is_forward(estimator):
        p, q = probabilities(POLICY), probabilities(REFERENCE)
        assert target == pytest.approx(float((p * (p / q).log()).sum()), abs=EXACT)
    if estimator == "k2":
        assert abs(mean - target) > 0.05 * target
    else:
        assert mean == pytest.approx(target, abs=EXACT)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("behaviour", [POLICY, BEHAVIOUR], ids=["on-policy", "off-policy"])
def test_corrected_losses_have_the_exact_gradient(estimator: KLEstimator, behaviour: Tensor) -> None:
    """TW-14, TW-15: target the gradient of the tokens' KL at the prefixes that were sampled, held; the value but k2's
    is exact too."""
    loss = KLLoss(estimator)
    found = gradient(lambda x: expected_loss(loss, x, REFERENCE, behaviour), POLICY)
    weights = reach(behaviour).unsqueeze(-1)
    assert gap(found, weights * row_gradient(POLICY, REFERENCE, is_forward(estimator))) < EXACT
    value = float(expected_loss(loss, POLICY, REFERENCE, behaviour))
    target = float((reach(behaviour) * row_kl(POLICY, REFERENCE, is_forward(estimator))).sum())
    assert (abs(value - target) > 0.05 * target) if estimator == "k2" else (abs(value - target) < EXACT)


def test_k1_k2_and_k3_corrected_differ_by_noise_alone() -> None:
    """TW-14: of each sample, rho (k + 1) grad log pi for k1 and rho k grad log pi for both others."""
    ours, theirs, mu = (token_logprobs(chain, ALL) for chain in (POLICY, REFERENCE, BEHAVIOUR))
    slopes = {}
    for estimator in ("k1", "k2", "k3"):
        logprobs = ours.detach().requires_grad_()
        loss = KLLoss(estimator).sampled(logprobs, theirs, mu).sum()  # type: ignore[arg-type]
        (slopes[estimator],) = torch.autograd.grad(loss, logprobs)
    ratios = (ours - mu).exp()
    torch.testing.assert_close(slopes["k1"], ratios * (ours - theirs + 1))
    torch.testing.assert_close(slopes["k2"], ratios * (ours - theirs))
    torch.testing.assert_close(slopes["k3"], slopes["k2"])


def test_uncorrected_losses_on_policy() -> None:
    """TW-14: the expected gradient of k1 is 0, k2's is exact, k3's is that of the forward KL, forward_sampled's that of
    KL(ref || pi) + E_ref[k^2 / 2]: the last three are of what their names do not say."""
    weights = reach(POLICY).unsqueeze(-1)
    reverse, forward = (weights * row_gradient(POLICY, REFERENCE, of) for of in (False, True))

    def squares(logits: Tensor) -> Tensor:
        k = logits.log_softmax(-1) - REFERENCE.log_softmax(-1)
        return (weights * REFERENCE.softmax(-1) * k.square() / 2).sum()

    def uncorrected(estimator: KLEstimator) -> Tensor:
        return gradient(lambda x: expected_loss(KLLoss(estimator, False), x, REFERENCE, POLICY), POLICY)

    found = {estimator: uncorrected(estimator) for estimator in SAMPLED}
    assert float(found["k1"].norm()) < EXACT
    assert gap(found["k2"], reverse) < EXACT
    assert gap(found["k3"], forward) < EXACT
    assert gap(found["forward_sampled"], forward + gradient(squares, POLICY)) < EXACT
    biases = {"k1": reverse, "k3": reverse, "forward_sampled": forward}
    for estimator, target in biases.items():
        assert gap(found[estimator], target) > 0.1, estimator  # type: ignore[index]


@pytest.mark.parametrize("estimator", SAMPLED)
def test_uncorrected_losses_off_policy_are_wrong(estimator: KLEstimator) -> None:
    """TW-14: without its correction no sampled form has the gradient of its divergence where mu is not pi."""
    loss = KLLoss(estimator, correction=False)
    found = gradient(lambda x: expected_loss(loss, x, REFERENCE, BEHAVIOUR), POLICY)
    target = reach(BEHAVIOUR).unsqueeze(-1) * row_gradient(POLICY, REFERENCE, is_forward(estimator))
    assert gap(found, target) > 0.1
    if estimator == "k1":
        assert float(found.norm()) > 0.1 * float(target.norm())  # off-policy not even 0


# The chain, sampled.

COUNT = 20_000


def samples_of_gradients(slopes: Tensor, sequences: Tensor) -> Tensor:
    """[N, 155] the sum over tokens of slope [N, 3] times grad log pi(token)."""
    rows, count = prefixes(sequences), len(sequences)
    found = torch.zeros(count, *POLICY.shape, dtype=torch.float64)
    each = torch.arange(count).unsqueeze(1)
    found[each, rows] = -slopes.unsqueeze(-1) * POLICY.softmax(-1)[rows]
    found[each, rows, sequences] += slopes
    return found.flatten(1)


def assert_within_four_errors(samples: Tensor, target: Tensor) -> None:
    """The mean of samples [N, D] against its target [D], along each axis."""
    errors = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - target).abs() <= 4 * errors + 1e-12).all()


def along_directions(samples: Tensor) -> Tensor:
    """[N, 155] -> [N, 8]: along fixed random directions."""
    generator = torch.Generator().manual_seed(9)
    return samples @ torch.randn(samples.shape[1], 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("behaviour", [POLICY, BEHAVIOUR], ids=["on-policy", "off-policy"])
def test_sampled_values_and_gradients(estimator: KLEstimator, behaviour: Tensor) -> None:
    """TW-14, TW-15: 20,000 samples of mu, value and gradient within 4 standard errors; the value of k2 is not."""
    sequences = draw(behaviour, COUNT, seed=4)
    theirs, mu = token_logprobs(REFERENCE, sequences), token_logprobs(behaviour, sequences)
    logprobs = token_logprobs(POLICY, sequences).requires_grad_()
    losses = KLLoss(estimator).sampled(logprobs, theirs, mu)
    (slopes,) = torch.autograd.grad(losses.sum(), logprobs)
    weights, forward = reach(behaviour), is_forward(estimator)
    target = (weights.unsqueeze(-1) * row_gradient(POLICY, REFERENCE, forward)).flatten()
    assert_within_four_errors(
        along_directions(samples_of_gradients(slopes, sequences)), along_directions(target[None])[0]
    )
    values = losses.detach().sum(1, keepdim=True)
    expected = (weights * row_kl(POLICY, REFERENCE, forward)).sum()[None]
    if estimator == "k2":
        assert abs(float(values.mean() - expected)) > 4 * float(values.std()) / COUNT**0.5
    else:
        assert_within_four_errors(values, expected)


# The reward channel: the gradient of the whole sequence's KL.


def sequence_kl(logits: Tensor) -> Tensor:
    p, q = probabilities(logits), probabilities(REFERENCE)
    return (p * (p / q).log()).sum()


def test_the_rewards_gradient_of_the_sequences_kl() -> None:
    """X-4: k1 in the reward is exact; every other estimator alone is biased for the KL of the sequence."""
    target = gradient(sequence_kl, POLICY)
    found = {estimator: reward_gradient(estimator, POLICY, REFERENCE) for estimator in ESTIMATORS}
    assert gap(found["k1"], target) < EXACT
    for estimator in ESTIMATORS[1:]:
        assert gap(found[estimator], target) > 0.1, estimator


def test_full_in_both_channels_is_exact_and_of_lower_variance_than_k1() -> None:
    """Amini, Vieira, Cotterell 2025: E[(sum KL_t) grad log P] + E[sum grad KL_t] is the gradient of the sequence's KL."""
    target = gradient(sequence_kl, POLICY)
    held = gradient(lambda x: expected_loss(KLLoss("full"), x, REFERENCE, POLICY), POLICY)
    assert gap(reward_gradient("full", POLICY, REFERENCE) + held, target) < EXACT

    sequences = draw(POLICY, COUNT, seed=5)

    def from_reward(estimator: KLEstimator) -> Tensor:
        charged = bare(estimator, POLICY, REFERENCE, sequences).sum(1, keepdim=True)
        return samples_of_gradients(charged.expand(-1, 3), sequences)

    own = torch.zeros(COUNT, *POLICY.shape, dtype=torch.float64)
    rows = prefixes(sequences)
    own[torch.arange(COUNT).unsqueeze(1), rows] = row_gradient(POLICY, REFERENCE)[rows]
    of_k1, of_full = from_reward("k1"), from_reward("full") + own.flatten(1)
    for samples in (of_k1, of_full):
        assert_within_four_errors(along_directions(samples), along_directions(target.flatten()[None])[0])
    ratio = float(of_full.var(0).sum() / of_k1.var(0).sum())
    print(f"variance of the gradient, full in both channels over k1 in the reward: {ratio:.3f}")
    assert ratio < 0.8


@pytest.mark.parametrize(("estimator", "own", "correction"), list(product(ESTIMATORS, ESTIMATORS, (True, False))))
def test_the_warning_is_right_about_every_pair_of_channels(
    estimator: KLEstimator, own: KLEstimator, correction: bool
) -> None:
    """TW-16: no warning where, and only where, reward and loss together have the gradient of the penalty's expectation."""
    penalty = KLPenaltyConfig(coef=0.3, estimator=estimator)
    loss = KLLossConfig(coef=0.3, estimator=own, correction=correction)
    wanted = gradient(
        lambda x: (probabilities(x) * bare(estimator, x, REFERENCE, ALL).sum(1)).sum(), POLICY
    )  # the estimator's own sum, by autograd through probabilities and estimates
    alone = reward_gradient(estimator, POLICY, REFERENCE)
    of_loss = gradient(lambda x: expected_loss(KLLoss(own, correction), x, REFERENCE, POLICY), POLICY)
    whole = gap(alone + of_loss, wanted) < 1e-8 or gap(alone, wanted) < 1e-8
    assert (penalty_warning(RLOOConfig(kl=penalty, kl_loss=loss)) is None) == whole
    assert (penalty_warning(RLOOConfig(kl=penalty)) is None) == (gap(alone, wanted) < 1e-8)


def test_warnings_name_what_completes_the_penalty() -> None:
    """TW-16: another coefficient, controller or reduction does not complete it; a penalty that is off needs nothing."""
    full = KLPenaltyConfig(coef=0.3, estimator="full")
    warning = penalty_warning(RLOOConfig(kl=full))
    assert warning is not None
    assert "algorithm.kl.estimator full" in warning
    assert "estimator: full, coef: 0.3" in warning
    schedule = ScheduleControllerConfig(final=1)
    for loss in (KLLossConfig(coef=0.2), KLLossConfig(coef=0.3, controller=schedule)):
        assert penalty_warning(RLOOConfig(kl=full, kl_loss=loss)) is not None
    mean = full.model_copy(update={"reduction": "mean"})
    assert penalty_warning(RLOOConfig(kl=mean, kl_loss=KLLossConfig(coef=0.3))) is not None
    assert penalty_warning(PPOConfig(kl=full, kl_loss=KLLossConfig(coef=0.3))) is None
    assert penalty_warning(RLOOConfig(kl=KLPenaltyConfig(coef=0, estimator="full"))) is None
    rising = KLPenaltyConfig(coef=0, estimator="full", controller=schedule)
    assert penalty_warning(RLOOConfig(kl=rising)) is not None
    assert penalty_warning(RejectionSamplingConfig(kl=full)) is None


# What the reward is charged, turn by turn.


def test_constrained_turns_are_charged_by_the_estimator() -> None:
    """X-4: k1 at the token that was taken, not the exact KL, which the log keeps; full and forward over what was
    allowed."""
    one = turn(3, sizes=(1, 3, 2), seed=3)
    assert one.allowed is not None
    gaps = one.allowed.logprobs - one.allowed.reference_logprobs
    np.testing.assert_allclose(penalised_kl(one, "k1", False), gaps[[0, 1, 4]], atol=1e-6)
    np.testing.assert_allclose(penalised_kl(one, "k2", False), gaps[[0, 1, 4]] ** 2 / 2, atol=1e-6)
    np.testing.assert_array_equal(penalised_kl(one, "full", False), turn_kl(one, False))
    q = np.exp(one.allowed.reference_logprobs)
    forward = [0, -(q * gaps)[1:4].sum(), -(q * gaps)[4:6].sum()]
    np.testing.assert_allclose(penalised_kl(one, "forward", False), forward, atol=1e-6)
    assert np.abs(penalised_kl(one, "k1", False) - turn_kl(one, False)).max() > 0.1


def test_sums_over_the_vocabulary_must_be_there() -> None:
    with pytest.raises(ValueError, match="0 numbers of the vocabulary's KL for 2 tokens"):
        penalised_kl(turn(2), "full", False)
    with pytest.raises(ValueError, match="not scored over prompts"):
        penalised_kl(turn(2), "forward", True)
    with pytest.raises(ValueError, match=r"algorithm\.kl\.estimator full .* algorithm\.include_prompt"):
        RLOOConfig(include_prompt=True, kl=KLPenaltyConfig(estimator="full"))
    assert penalised_kl(turn(2, example=True), "full", False).tolist() == [0, 0]


def test_ppo_charges_each_step_with_estimator_and_controller() -> None:
    """LMHP-19, TW-16: R_t = -coef * estimate, the coefficient being the controller's, not the config's."""
    one = episode([turn(2, reward=3.0, kl=0.2)])
    kl = KLPenaltyConfig(coef=0.5, estimator="k2")
    rewards = step_rewards(one, score_of(one), decision_steps(one), kl, 2.0)
    np.testing.assert_allclose(rewards, [-2 * 0.02, 3 - 2 * 0.02], atol=1e-6)
    config = PPOConfig(kl=KLPenaltyConfig(coef=0.5), whiten_advantages="none", gae={"token_lambda": 0})  # type: ignore[arg-type]
    algorithm = build_algorithm(config)
    values = [np.zeros(2, np.float32)]
    before = algorithm.prepare([one], [score_of(one)], values, 0)[0].sequences[0].advantages
    algorithm.multiply_kl(3.0)
    after = algorithm.prepare([one], [score_of(one)], values, 0)[0].sequences[0].advantages
    np.testing.assert_allclose(before[0], -0.1, atol=1e-6)
    np.testing.assert_allclose(after[0], -0.3, atol=1e-6)


def test_rejection_sampling_ranks_with_the_controllers_coefficient() -> None:
    """TW-20: score_i = return - beta * sum k, beta moved by its controller."""
    algorithm = build_algorithm(RejectionSamplingConfig(kl=KLPenaltyConfig(coef=0.5)))
    one = episode([turn(2, reward=3.0, kl=0.2)])
    assert algorithm.candidates([one], [score_of(one)])[1][0] == pytest.approx(3 - 0.5 * 0.4)  # type: ignore[union-attr]
    algorithm.multiply_kl(2.0)
    assert algorithm.candidates([one], [score_of(one)])[1][0] == pytest.approx(3 - 1.0 * 0.4)  # type: ignore[union-attr]


@pytest.mark.parametrize("loss", [None, KLLossConfig(estimator="full"), KLLossConfig(estimator="k3", coef=0.2)])
def test_batches_carry_what_the_kl_loss_needs(loss: KLLossConfig | None) -> None:
    """TW-16: the reference's log-probabilities for a sampled loss alone, and the coefficient that its controller says."""
    one = episode([turn(2, kl=0.25)], index=0)
    for config in (ReinforceConfig(kl_loss=loss), RejectionSamplingConfig(kl_loss=loss), PPOConfig(kl_loss=loss)):
        algorithm = build_algorithm(config)
        algorithm.multiply_kl(2.0)
        values = [np.zeros(2, np.float32)] if config.name == "ppo" else []
        batch, metrics = algorithm.prepare([one], [score_of(one)], values, 0)
        sampled = loss is not None and loss.estimator == "k3"
        assert batch.sequences[0].reference_logprobs.tolist() == ([-1.25, -1.25] if sampled else [])
        assert batch.kl_coef == (0 if loss is None else 2 * loss.coef)
        assert metrics.get("objective/kl_loss_coef", 0) == batch.kl_coef
        assert algorithm.objective.kl == (None if loss is None else KLLoss(loss.estimator, loss.correction))


def test_no_gradient_flows_through_the_rewards_penalty() -> None:
    """ALLIT-7, ALLIT-5: the loss's gradient is -A grad log pi with A = score - coef * k a number, no term more; swapping
    policy and reference flips the sign of k."""
    one = episode([turn(1, reward=2.0, kl=0.3)])
    algorithm = build_algorithm(ReinforceConfig(kl=KLPenaltyConfig(coef=0.5), baseline_decay=None))
    batch, _ = algorithm.prepare([one], [score_of(one)], [], 0)
    advantage = 2 - 0.5 * 0.3
    packed = pack_sequences(batch.sequences, Limits(5, None), with_values=False)
    micro_batch = collate(packed, [0], Minibatch((0,)))
    logits = torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    behaviour = selected_logprobs(logits.detach(), micro_batch.targets, 1.0)
    micro_batch.behaviour_logprobs.copy_(behaviour)
    loss, _ = policy_loss(logits, micro_batch, algorithm.objective, 1.0)
    loss.backward()
    assert logits.grad is not None
    taken = torch.nn.functional.one_hot(micro_batch.targets, 5)
    torch.testing.assert_close(logits.grad, -advantage * (taken - logits.detach().softmax(-1)))
    ours, theirs = np.array([-1.0, -2.0], np.float32), np.array([-1.5, -1.0], np.float32)
    swapped = [sampled_values("k1", torch.tensor(a - b)).tolist() for a, b in ((ours, theirs), (theirs, ours))]
    assert swapped[0] == [0.5, -1.0] == [-value for value in swapped[1]]


def test_places_without_loss_add_nothing_however_unlikely_their_token() -> None:
    """X-2: in the padding exp(-k) would be infinite, and 0 times infinity no number."""
    zeros = np.zeros(3, np.float32)
    long = TrainingSequence(np.array([1, 2, 3, 4]), 1, zeros, zeros - 1, zeros + 1, reference_logprobs=zeros - 1)
    short = TrainingSequence(np.array([1, 2]), 1, zeros[:1], zeros[:1] - 1, zeros[:1] + 1, reference_logprobs=zeros[:1])
    packed = pack_sequences([long, short], Limits(5, None), with_values=False, with_reference=True)
    batch = collate(packed, [0, 1], Minibatch((0, 1)))
    logits = torch.zeros(2, 3, 5)
    logits[:, :, 0] = -1000  # the id that padding has
    logits.requires_grad_()
    objective = Objective(PolicyGradientLoss(None), kl=KLLoss("k3", correction=False))
    loss, statistics = policy_loss(logits, batch, objective, 1.0, kl_coef=2.0)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[1, 1:].any()
    k = torch.tensor([1 - log(4)] * 3 + [-log(4)])
    assert loss.item() == pytest.approx(2 * float((torch.exp(-k) - 1 + k).sum()), rel=1e-5)
    assert statistics.kl_loss == pytest.approx(loss.item() / 8, rel=1e-6)


# Memory and numbers of the sums over the vocabulary.


@contextmanager
def peak_bytes() -> Iterator[Callable[[], int]]:
    """How many bytes were held beside those held at the start, at most."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield lambda: peak
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    sizes = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    peak = int(sizes.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", ["full", "forward"])
def test_memory_is_bounded_by_pieces(
    monkeypatch: pytest.MonkeyPatch, estimator: kl_estimators.VocabularyEstimator, dtype: torch.dtype
) -> None:
    """Beside the two logits: at most five pieces of ELEMENTS_AT_ONCE in fp32, and in the backward pass the logits' own
    gradient; autograd keeps nothing but the logits. The pieces change no number."""
    rows, size, at_once = 200, 2000, 20_000
    torch.manual_seed(0)
    logits = torch.randn(rows, size).to(dtype).requires_grad_()
    reference = torch.randn(rows, size).to(dtype)
    whole = vocabulary_kl(estimator, logits, reference, 0.7)
    (expected,) = torch.autograd.grad(whole.sum(), logits)
    monkeypatch.setattr(kl_estimators, "ELEMENTS_AT_ONCE", at_once)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    small = 8 * rows * 4  # the values themselves
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), peak_bytes() as forward:
        kl = vocabulary_kl(estimator, logits, reference, 0.7)
    assert {tensor.data_ptr() for tensor in saved} <= {logits.data_ptr(), reference.data_ptr()}
    total = kl.sum()
    with peak_bytes() as backward:
        (found,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(kl, whole)
    torch.testing.assert_close(found, expected)
    of_gradient = logits.numel() * logits.element_size()
    pieces = [forward() / (4 * at_once), (backward() - of_gradient) / (4 * at_once)]
    print(f"{estimator} {dtype}: {pieces[0]:.2f} pieces forward, {pieces[1]:.2f} backward")
    assert forward() <= 5 * 4 * at_once + small
    assert backward() <= of_gradient + 5 * 4 * at_once + small
    assert backward() >= of_gradient  # the measure sees what is there


@pytest.mark.parametrize("estimator", ["full", "forward"])
def test_equal_logits_have_no_kl_and_no_gradient(estimator: kl_estimators.VocabularyEstimator) -> None:
    """X-5: exactly 0 where policy and reference are one, over the vocabulary; over allowed tokens to rounding."""
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    kl = vocabulary_kl(estimator, logits, logits.detach().clone(), 0.7)
    (slope,) = torch.autograd.grad(kl.sum(), logits)
    assert not kl.any()
    assert not slope.any()
    allowed = torch.rand(7, 50, generator=torch.Generator().manual_seed(1)) < 0.5
    allowed[:, 0] = True
    among = constrained_kl(estimator, logits, logits.detach(), allowed, 0.7)
    (slope,) = torch.autograd.grad(among.sum(), logits)
    assert not among.any()
    assert float(slope.abs().max()) < rounding(8)


@pytest.mark.parametrize("estimator", ["full", "forward"])
def test_constrained_kl_is_that_of_the_allowed_tokens(estimator: kl_estimators.VocabularyEstimator) -> None:
    """X-5, X-6: both distributions over the allowed tokens, value and gradient; nothing outside them has any."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    allowed = torch.tensor([[True, False, True, True], [False, True, False, False]])
    kl = constrained_kl(estimator, logits, reference, allowed, 1.0)
    (slope,) = torch.autograd.grad(kl.sum(), logits)
    inside = [0, 2, 3]
    chosen = logits.detach()[:1, inside].requires_grad_()
    alone = vocabulary_kl(estimator, chosen, reference[:1, inside], 1.0)
    torch.testing.assert_close(kl, torch.cat([alone, torch.zeros(1)]).double())
    torch.testing.assert_close(slope[0, inside], torch.autograd.grad(alone.sum(), chosen)[0][0])
    assert not slope[0, 1]
    assert not slope[1].any()  # one allowed token is no choice
