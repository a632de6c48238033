"""Rejection sampling: which turns are kept, and that they are fitted by cross-entropy."""

from __future__ import annotations

import numpy as np
import pytest

from rayrlhf.algorithm_config import AlgorithmConfig, PPOConfig, ReinforceConfig, RejectionSamplingConfig, RLOOConfig
from rayrlhf.algorithms import build_algorithm
from rayrlhf.algorithms.ppo import decision_steps, step_rewards
from rayrlhf.algorithms.rejection_sampling import RejectionSampling, choose_best
from rayrlhf.errors import LearnerError
from rayrlhf.kl_config import KLPenaltyConfig
from rayrlhf.types import Trajectory
from tests.game_episodes import episode, score_of, turn

NO_KL = KLPenaltyConfig(coef=0)


def three_episodes() -> list[Trajectory]:
    """Rewards (0, 4), (2,), (1, unfinished); each prompt is one token of its own."""
    return [
        episode([turn(1, (1,)), turn(2, (2,), reward=4.0)], index=0),
        episode([turn(1, (3,), reward=2.0)], index=1),
        episode([turn(1, (4,), reward=1.0)], terminated=False, index=2),
    ]


def kept_prompts(config: RejectionSamplingConfig, trajectories: list[Trajectory], seed: int = 0) -> list[int]:
    batch, _ = RejectionSampling(config).prepare(trajectories, [score_of(t) for t in trajectories], [], seed)
    return [int(sequence.input_ids[0]) for sequence in batch.sequences]


def test_the_best_returns_are_kept() -> None:
    """TW-12, TW-20: the score of a turn is its discounted return: 0 + .9 * 4, 4, 2 and 1."""
    config = RejectionSamplingConfig(kl=NO_KL, keep=2, turn_discount=0.9)
    assert kept_prompts(config, three_episodes()) == [1, 2]
    strongly = RejectionSamplingConfig(kl=NO_KL, keep=2, turn_discount=0.4)
    assert kept_prompts(strongly, three_episodes()) == [2, 3]


def test_fraction_and_more_than_there_are() -> None:
    """TW-20: the top int(n p), at least one; N beyond the batch keeps all."""
    assert kept_prompts(RejectionSamplingConfig(kl=NO_KL, keep_fraction=0.25, turn_discount=0.9), three_episodes()) == [
        2
    ]
    assert kept_prompts(RejectionSamplingConfig(kl=NO_KL, keep_fraction=0.01, turn_discount=0.9), three_episodes()) == [
        2
    ]
    assert kept_prompts(RejectionSamplingConfig(kl=NO_KL, keep=99), three_episodes()) == [1, 2, 3, 4]


@pytest.mark.parametrize(("turns", "share", "kept"), [(100, 0.29, 29), (100, 0.57, 57), (7, 0.99, 6), (50, 0.58, 29)])
def test_a_fraction_is_the_decimal_that_was_written(turns: int, share: float, kept: int) -> None:
    """TW-20: the whole turns in n p: 0.29 of 100 is 29, though the product of floats is 28.999999999999996."""
    episodes = [episode([turn(1, (i,), reward=float(i))], index=i) for i in range(turns)]
    assert len(kept_prompts(RejectionSamplingConfig(kl=NO_KL, keep_fraction=share), episodes)) == kept


@pytest.mark.parametrize(
    "config", [RejectionSamplingConfig(), PPOConfig(), RLOOConfig(), ReinforceConfig()], ids=lambda config: config.name
)
def test_a_score_for_every_turn_or_an_error(config: AlgorithmConfig) -> None:
    """Scores of another length than the episode's turns, or of fewer episodes, are no scores of these."""
    episodes, algorithm = three_episodes(), build_algorithm(config)
    scores = [score_of(t) for t in episodes]
    values = [np.zeros(len(query.input_ids), np.float32) for query in algorithm.value_queries(episodes)]
    with pytest.raises(ValueError, match=r"shorter|scores for 2 turns of episode 0"):
        algorithm.prepare(episodes, [score_of(episodes[1]), *scores[1:]], values, 0)
    with pytest.raises(ValueError, match="shorter"):
        algorithm.prepare(episodes, scores[:2], values, 0)


def test_the_rewards_of_steps_and_the_turns_to_choose_from_need_a_score_each() -> None:
    """Neither leaves it to what reads the scores later."""
    episodes = three_episodes()
    one_turn, kl = score_of(episodes[1]), KLPenaltyConfig()
    with pytest.raises(ValueError, match="shorter"):
        step_rewards(episodes[0], one_turn, decision_steps(episodes[0]), kl, 0.0)
    for played, score in ((episodes[:1], one_turn), (episodes, score_of(episodes[0]))):
        with pytest.raises(ValueError, match="shorter"):
            RejectionSampling(RejectionSamplingConfig()).candidates(played, [score])


def test_kl_is_subtracted_from_the_score() -> None:
    """TW-20: score_i = ret_i - beta_rew * sum_t k_t of the turn's own tokens."""
    far = [
        episode([turn(1, (1,), reward=4.0, kl=30.0)], index=0),
        episode([turn(1, (2,), reward=2.0, kl=1.0)], index=1),
    ]
    assert kept_prompts(RejectionSamplingConfig(kl=NO_KL, keep=1), far) == [1]
    assert kept_prompts(RejectionSamplingConfig(kl=KLPenaltyConfig(coef=0.1), keep=1), far) == [2]


def test_unfinished_episodes() -> None:
    """TW-12: tails of unfinished episodes are kept, or left out."""
    assert 4 in kept_prompts(RejectionSamplingConfig(kl=NO_KL, keep=9), three_episodes())
    assert 4 not in kept_prompts(RejectionSamplingConfig(kl=NO_KL, keep=9, unfinished="drop"), three_episodes())


def test_ties_and_duplicates() -> None:
    """TW-20: ties with the last one kept by chance or all; of one prompt and answer only the best counts."""
    turns = [turn(1, (1,)), turn(1, (2,)), turn(1, (3,)), turn(1, (1,))]
    values = np.array([1.0, 1.0, 1.0, 2.0])
    chosen = {tuple(choose_best(turns, values, 2, False, False, seed)) for seed in range(30)}
    assert chosen == {(0, 3), (1, 3), (2, 3)}
    assert choose_best(turns, values, 2, True, False, 0) == [0, 1, 2, 3]
    assert choose_best(turns, values, 9, False, True, 0) == [1, 2, 3]


def test_loss_is_the_mean_cross_entropy_of_what_was_chosen() -> None:
    """TW-20: advantage 1 and equal weights over the chosen tokens of the turns kept; forced tokens and examples have
    none."""
    trajectories = [episode([turn(3, (1,), sizes=(1, 3, 2), reward=1.0), turn(2, (2,), example=True, reward=9.0)])]
    batch, metrics = RejectionSampling(RejectionSamplingConfig(kl=NO_KL, keep=5)).prepare(
        trajectories, [score_of(t) for t in trajectories], [], 0
    )
    [sequence] = batch.sequences
    np.testing.assert_allclose(sequence.weights, [0, 0.5, 0.5])
    np.testing.assert_allclose(sequence.advantages, [0, 1, 1])
    assert metrics["objective/kept"] == 1


def test_nothing_to_learn_from_is_named() -> None:
    with pytest.raises(LearnerError, match="no turn of this iteration"):
        kept_prompts(RejectionSamplingConfig(kl=NO_KL, unfinished="drop"), three_episodes()[2:])
