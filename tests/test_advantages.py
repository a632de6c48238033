"""Advantages, KL penalties and loss weights, by numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rayrlhf.advantages import group_standardised, leave_one_out, minus_moving_average
from rayrlhf.algorithm_config import GRPOConfig, ReinforceConfig, RLOOConfig
from rayrlhf.algorithms import build_algorithm
from rayrlhf.algorithms.policy_gradient import by_group, training_sequences
from rayrlhf.algorithms.sequences import token_weights
from rayrlhf.kl import penalty, token_kl
from rayrlhf.kl_config import KLPenaltyConfig
from rayrlhf.types import EpisodeScore, Trajectory, Turn


def episode(group: int, index: int, logprobs: list[float], reference: list[float], prompt: int = 3) -> Trajectory:
    """One single-turn episode with the given log-probabilities; its prompt's are -1 and -2 a token."""
    count = len(logprobs)
    turn = Turn(
        observation="p", action="r", prompt_ids=np.arange(prompt), response_ids=np.arange(count),
        logprobs=np.array(logprobs, np.float32), filtered_logprobs=np.array(logprobs, np.float32),
        reference_logprobs=np.array(reference, np.float32),
        prompt_logprobs=np.full(prompt - 1, -1, np.float32), prompt_reference_logprobs=np.full(prompt - 1, -2, np.float32),
        reward=0.0, finish="eos",
    )  # fmt: skip
    return Trajectory(group, index, 0, 0, 0, (turn,), True, False)


def score(value: float) -> EpisodeScore:
    return EpisodeScore(total=np.array([value], np.float32), parts={"r": value})


def test_leave_one_out_by_hand() -> None:
    """ALLIT-3: b_i is the mean of the others; A_i = k / (k - 1) (R_i - mean); the sum is 0."""
    rewards = np.array([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])
    expected = [[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, 0]]
    np.testing.assert_allclose(leave_one_out(rewards), expected)
    np.testing.assert_allclose(leave_one_out(rewards).sum(axis=1), 0, atol=1e-12)


def test_leave_one_out_needs_two() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(np.ones((3, 1)))


def test_group_standardised_by_hand() -> None:
    rewards = np.array([[1.0, 3.0]])
    np.testing.assert_allclose(group_standardised(rewards, by_std=True, epsilon=0), [[-1 / 2**0.5, 1 / 2**0.5]])
    np.testing.assert_allclose(group_standardised(rewards, by_std=False), [[-1, 1]])
    np.testing.assert_allclose(group_standardised(np.full((1, 4), 7.0), by_std=True), 0)


def test_moving_average_by_hand() -> None:
    """Q-4: an optional moving-average baseline for REINFORCE."""
    first, average = minus_moving_average(np.array([1.0, 3.0]), None, 0.9)
    np.testing.assert_allclose(first, [-1, 1])
    second, average = minus_moving_average(np.array([4.0, 6.0]), average, 0.9)
    np.testing.assert_allclose(second, [2, 4])
    assert average == pytest.approx(0.9 * 2 + 0.1 * 5)


def test_kl_sign_flips_when_policy_and_reference_swap() -> None:
    """X-4, ALLIT-7: k = log pi - log ref; the opposite sign was a defect of the source."""
    policy, reference = np.array([-1.0, -0.5], np.float32), np.array([-2.0, -1.0], np.float32)
    np.testing.assert_allclose(token_kl(policy, reference), [1.0, 0.5])
    np.testing.assert_allclose(token_kl(reference, policy), [-1.0, -0.5])


def test_mean_penalty_is_sum_penalty_in_other_units() -> None:
    """ALLIT-6: a coefficient of 40 on the mean over 99 predictions is 0.404 a nat of the sequence."""
    kl = np.linspace(-0.1, 0.3, 99).astype(np.float32)
    assert penalty(kl, 40, "mean") == pytest.approx(penalty(kl, 40 / 99, "sum"))
    assert round(40 / 99, 3) == 0.404


def test_penalty_is_subtracted_inside_the_baseline() -> None:
    """X-4, ALLIT-5, ALLIT-7: shaped = score - coef * KL, and the leave-one-out baseline is taken on the shaped rewards."""
    config = RLOOConfig(kl=KLPenaltyConfig(coef=0.5))
    episodes = [episode(0, 0, [-1, -1], [-2, -2]), episode(0, 1, [-1], [-1])]
    algorithm = build_algorithm(config)
    shaped = algorithm.shaped_rewards(episodes, [score(3), score(5)])
    batch, metrics = algorithm.prepare(episodes, [score(3), score(5)], [], 0)
    np.testing.assert_allclose(shaped, [3 - 0.5 * 2, 5])
    assert metrics["objective/kl"] == pytest.approx(1.0)
    assert metrics["objective/kl_per_token"] == pytest.approx(2 / 3)
    assert metrics["objective/score"] == pytest.approx(4)
    assert metrics["objective/score_total"] == pytest.approx(3.5)
    np.testing.assert_allclose([sequence.advantages[0] for sequence in batch.sequences], [2 - 5, 5 - 2])


def test_prompt_counts_where_asked() -> None:
    """Q-5, ALLIT-4: with include_prompt the loss and the KL run over all tokens but the first."""
    config = RLOOConfig(include_prompt=True, kl=KLPenaltyConfig(coef=1, reduction="mean"), loss_reduction="group_sum")
    episodes = [episode(0, 0, [-1, -1], [-1, -1]), episode(0, 1, [-1], [-1])]
    shaped = build_algorithm(config).shaped_rewards(episodes, [score(0), score(0)])
    np.testing.assert_allclose(shaped, [-2 / 4, -2 / 3])  # two prompt tokens of 1 nat among 4 and 3
    sequences = training_sequences(episodes, np.array([1.0, -1.0]), config)
    assert [sequence.start for sequence in sequences] == [1, 1]
    np.testing.assert_allclose(sequences[0].behaviour_logprobs, [-1, -1, -1, -1])
    np.testing.assert_allclose(sequences[0].weights, [1 / 4] * 4)
    np.testing.assert_allclose(sequences[1].weights, [1 / 3] * 3)


def test_weights_normalise_by_global_counts() -> None:
    """TW-18, section 10 (6): losses are normalised by global counts, never a mean of means."""
    tokens = [1, 3]
    np.testing.assert_allclose(token_weights(tokens, "sequence_sum"), [1 / 2, 1 / 2])
    np.testing.assert_allclose(token_weights(tokens, "sequence_mean"), [1 / 2, 1 / 6])
    np.testing.assert_allclose(token_weights(tokens, "token_mean"), [1 / 4, 1 / 4])
    np.testing.assert_allclose(token_weights(tokens, "group_sum"), [1, 1 / 3])


def test_groups_must_be_whole() -> None:
    episodes = [episode(0, 0, [-1], [-1]), episode(1, 1, [-1], [-1]), episode(1, 2, [-1], [-1])]
    with pytest.raises(ValueError, match="different sizes"):
        by_group(np.zeros(3), episodes)


def test_reinforce_uses_raw_rewards_without_baseline_and_remembers_its_average() -> None:
    """ALLIT-3: L = R * CE with the raw R; the moving average is state that a resumed run needs."""
    episodes = [episode(0, 0, [-1], [-1]), episode(1, 1, [-1], [-1])]
    raw = build_algorithm(ReinforceConfig(baseline_decay=None))
    batch, _ = raw.prepare(episodes, [score(3), score(5)], [], 0)
    np.testing.assert_allclose([sequence.advantages[0] for sequence in batch.sequences], [3, 5])
    averaged = build_algorithm(ReinforceConfig(baseline_decay=0.5))
    averaged.prepare(episodes, [score(3), score(5)], [], 0)
    copy = build_algorithm(ReinforceConfig(baseline_decay=0.5))
    copy.load_state_dict(averaged.state_dict())
    batch, metrics = copy.prepare(episodes, [score(6), score(8)], [], 0)
    np.testing.assert_allclose([sequence.advantages[0] for sequence in batch.sequences], [2, 4])
    assert metrics["objective/baseline"] == pytest.approx(5.5)


@pytest.mark.parametrize("config", [RLOOConfig(kl=KLPenaltyConfig(coef=0.5)), GRPOConfig(kl=KLPenaltyConfig(coef=0.5))])
def test_groups_of_equal_scores_bear_the_kl_term_alone(config: RLOOConfig | GRPOConfig) -> None:
    """KL of 0.2, 0.1, 0.6 nats at a coefficient of 0.5 in both groups; the scores differ in the second one. In the first
    the KL is no larger than it is (over its own deviation it would be an advantage of 1), and the group is counted."""
    kls = [0.2, 0.1, 0.6] * 2
    episodes = [episode(i // 3, i, [-1.0], [-1.0 - kl]) for i, kl in enumerate(kls)]
    algorithm = build_algorithm(config)
    batch, metrics = algorithm.prepare(episodes, [score(v) for v in (2, 2, 2, 0, 1, 5)], [], 0)
    found = [float(sequence.advantages[0]) for sequence in batch.sequences]
    centred = [-0.5 * (kl - 0.3) for kl in kls[:3]]
    factor = 1.5 if config.name == "rloo" else 1.0  # leave-one-out: K / (K - 1)
    np.testing.assert_allclose(found[:3], [factor * value for value in centred], atol=1e-6)
    shaped = np.array([0, 1, 5]) - 0.5 * np.array(kls[3:])
    expected = shaped - shaped.mean()
    expected = expected * 1.5 if config.name == "rloo" else expected / (shaped.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(found[3:], expected, rtol=1e-5)
    assert metrics["objective/zero_variance_groups"] == 0.5


def test_scores_that_are_all_equal_have_no_deviation() -> None:
    """Of 0.1, ten times, the plain formula leaves a last bit: the first iteration's deviation is what rules go by."""
    episodes = [episode(i // 5, i, [-1.0], [-1.3]) for i in range(10)]
    _, metrics = build_algorithm(RLOOConfig()).prepare(episodes, [score(0.1)] * 10, [], 0)
    assert metrics["objective/score_std"] == 0
    assert metrics["objective/zero_variance_groups"] == 1


def test_equal_rewards_teach_nothing_and_are_counted() -> None:
    episodes = [episode(g, 2 * g + i, [-1], [-1]) for g in range(2) for i in range(2)]
    for config in (RLOOConfig(), GRPOConfig()):
        batch, metrics = build_algorithm(config).prepare(episodes, [score(v) for v in (1, 1, 0, 2)], [], 0)
        assert metrics["objective/zero_variance_groups"] == 0.5
        np.testing.assert_allclose([sequence.advantages[0] for sequence in batch.sequences[:2]], 0)
