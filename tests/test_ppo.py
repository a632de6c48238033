"""PPO's numbers: advantages by brute force, ends of episodes, whitening, minibatches, weights."""

from __future__ import annotations

import numpy as np
import pytest

from rayrlhf.advantages import discounted_returns, gae, turn_links, whitening
from rayrlhf.algorithm_config import GAEConfig, PPOConfig
from rayrlhf.algorithms.ppo import PPO, decision_steps, episode_queries
from rayrlhf.algorithms.sequences import segments, split_into_minibatches
from rayrlhf.kl import turn_entropy, turn_kl
from rayrlhf.kl_config import KLPenaltyConfig
from rayrlhf.types import FloatArray, Trajectory
from tests.game_episodes import episode, score_of, sets, turn

NO_KL = KLPenaltyConfig(coef=0)


def values_of(trajectories: list[Trajectory], seed: int = 0) -> list[FloatArray]:
    """Random answers to `episode_queries`, in their order."""
    rng = np.random.default_rng(seed)
    queries = [query for trajectory in trajectories for query in episode_queries(trajectory)]
    return [rng.normal(size=len(query.input_ids) - query.start).astype(np.float32) for query in queries]


def brute_force(rewards, values, tokens, token, of_turn, last_value):  # type: ignore[no-untyped-def]
    """sum_k (prod of discounts and lambdas) delta_{t+k}, each product written out from the turns' borders."""
    turn_of = np.repeat(np.arange(len(tokens)), tokens)

    def link(t: int) -> tuple[float, float]:
        crosses = t + 1 == len(rewards) or turn_of[t + 1] != turn_of[t]
        return (token[0] * of_turn[0], of_turn[1]) if crosses else token

    following = [*values[1:], last_value]
    deltas = [rewards[t] + link(t)[0] * following[t] - values[t] for t in range(len(rewards))]
    advantages = []
    for t in range(len(rewards)):
        total, weight = 0.0, 1.0
        for k in range(t, len(rewards)):
            total += weight * deltas[k]
            weight *= link(k)[0] * link(k)[1]
        advantages.append(total)
    return np.array(advantages)


def test_gae_equals_brute_force_with_two_discounts() -> None:
    """LMHP-22, TW-11, section 10 (3): 200 random ragged episodes, four numbers, both kinds of end, to 1e-6."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        tokens = rng.integers(1, 5, size=rng.integers(1, 8)).tolist()
        rewards, values = rng.normal(size=(2, sum(tokens)))
        token, of_turn = tuple(rng.uniform(0, 1, 2)), tuple(rng.uniform(0, 1, 2))
        last = float(rng.normal()) if rng.random() < 0.5 else 0.0
        ours = gae(rewards, values, *turn_links(tokens, token, of_turn), last)
        np.testing.assert_allclose(ours, brute_force(rewards, values, tokens, token, of_turn, last), atol=1e-6)


def test_the_discount_is_on_the_next_value_alone() -> None:
    """TW-11: delta = r + gamma V' - V; the form r + gamma (V' - V) of the source's history differs and is not ours."""
    rewards, values = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    ours = gae(rewards, values, np.array([0.5, 0.5]), np.zeros(2), 0.0)
    np.testing.assert_allclose(ours, [1 + 0.5 * 5 - 3, 2 - 5])
    wrong = [1 + 0.5 * (5 - 3), 2 + 0.5 * (0 - 5)]
    assert np.abs(ours - wrong).min() > 1


def test_tw11_restarts_at_each_action() -> None:
    """TW-11: with turn lambda 0 the last token's advantage is R + gamma (gamma_game V_next) - V, whatever comes later."""
    rewards, values = np.array([0.0, 1.0, 9.0, 9.0]), np.array([0.5, 0.25, 2.0, 4.0])
    links = turn_links([2, 2], (0.9, 0.95), (0.6, 0.0))
    advantages = gae(rewards, values, *links, 0.0)
    last = 1 + 0.9 * (0.6 * 2.0) - 0.25
    np.testing.assert_allclose(advantages[:2], [0 + 0.9 * 0.25 - 0.5 + 0.9 * 0.95 * last, last])


def test_terminated_has_no_value_and_truncated_has_the_next_prompts() -> None:
    """LMHP-22 V_{T+1} = 0; an episode that a limit cut off goes on with the value of what the next turn would see."""
    config = PPOConfig(kl=NO_KL, whiten_advantages="none", gae=GAEConfig(turn_discount=0.5, turn_lambda=1.0))
    for terminated, after in ((True, 0.0), (False, 10.0)):
        one = episode([turn(1, reward=2.0)], terminated)
        values = [np.array([3.0], np.float32)] + ([] if terminated else [np.array([10.0], np.float32)])
        assert len(episode_queries(one)) == len(values)
        [sequence] = PPO(config).prepare([one], [score_of(one)], values, 0)[0].sequences
        np.testing.assert_allclose(sequence.advantages, [2 + 0.5 * after - 3])
        np.testing.assert_allclose(sequence.returns, [2 + 0.5 * after])


def test_rewards_are_minus_kl_plus_the_score_at_the_turns_end() -> None:
    """LMHP-19: R_t = -beta k_t and R_T += score, in each turn."""
    config = PPOConfig(kl=KLPenaltyConfig(coef=0.5), whiten_advantages="none", gae=GAEConfig(
        token_lambda=0, turn_lambda=0, turn_discount=1))  # fmt: skip
    one = episode([turn(2, reward=3.0, kl=0.2), turn(1, (9,), reward=1.0, kl=-0.4)])
    zeros = [np.zeros(2, np.float32), np.zeros(1, np.float32)]
    batch, _ = PPO(config).prepare([one], [score_of(one)], zeros, 0)
    np.testing.assert_allclose(batch.sequences[0].advantages, [-0.1, 2.9], atol=1e-6)
    np.testing.assert_allclose(batch.sequences[1].advantages, [1.2], atol=1e-6)


def test_tokens_without_a_choice_carry_no_loss() -> None:
    """Loss and credit run over the tokens the policy chose; a turn that left none passes its reward on by its value."""
    config = PPOConfig(kl=NO_KL, whiten_advantages="none", gae=GAEConfig(turn_discount=0.5, turn_lambda=1.0))
    turns = [turn(3, (1,), sizes=(1, 4, 1)), turn(2, (2,), sizes=(1, 1)), turn(2, (3,), sizes=(2, 1), reward=8.0)]
    one = episode(turns)
    assert [list(tokens) for tokens in decision_steps(one)] == [[1], [0], [0]]
    zeros = [np.zeros(3, np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32)]
    batch, _ = PPO(config).prepare([one], [score_of(one)], zeros, 0)
    first, second, third = batch.sequences
    np.testing.assert_allclose(first.advantages, [0, 2, 0])
    np.testing.assert_allclose(first.weights, [0, 1 / 2, 0])
    np.testing.assert_allclose(second.weights, [0, 0])
    np.testing.assert_allclose(second.returns, [4, 0])
    np.testing.assert_allclose([s.value_weights.sum() for s in (first, second, third)], [1 / 3] * 3)
    np.testing.assert_allclose(third.advantages, [8, 0])
    assert first.allowed is not None
    np.testing.assert_array_equal(first.allowed.counts, [1, 4, 1])


def test_example_turns_are_credited_through_and_never_trained() -> None:
    """TW-8: an example is in the episode, its tokens are in no loss."""
    config = PPOConfig(kl=NO_KL, whiten_advantages="none", gae=GAEConfig(turn_discount=1, turn_lambda=1))
    one = episode([turn(1, (1,)), turn(2, (2,), example=True, reward=5.0)])
    batch, _ = PPO(config).prepare([one], [score_of(one)], [np.zeros(1, np.float32), np.zeros(2, np.float32)], 0)
    [sequence] = batch.sequences
    np.testing.assert_allclose(sequence.advantages, [5])


def test_a_growing_transcript_is_one_sequence_with_the_same_targets() -> None:
    """Turns whose prompt goes on from the turn before share a sequence; targets stand at the same tokens."""
    first = turn(2, (1, 2), ids=np.array([3, 4]), reward=1.0)
    grown = turn(1, (1, 2, 3, 4, 5), ids=np.array([6]), reward=2.0)
    apart = turn(1, (9, 9), ids=np.array([6]), reward=2.0)
    config = PPOConfig(kl=NO_KL, whiten_advantages="none")
    merged, split = episode([first, grown]), episode([first, apart])
    assert [segment.turns for segment in segments(merged)] == [(0, 1)]
    values = [np.array([0.1, 0.2, 9.0, 0.3], np.float32)]  # what stands at the observation between them is not used
    [one], _ = PPO(config).prepare([merged], [score_of(merged)], values, 0)[0].sequences, None
    pair = [np.array([0.1, 0.2], np.float32), np.array([0.3], np.float32)]
    two = PPO(config).prepare([split], [score_of(split)], pair, 0)[0].sequences
    np.testing.assert_array_equal(one.input_ids, [1, 2, 3, 4, 5, 6])
    for name in ("advantages", "weights", "returns", "values", "value_weights", "behaviour_logprobs"):
        apart_values = np.concatenate([getattr(two[0], name), [0], getattr(two[1], name)])
        np.testing.assert_allclose(getattr(one, name), apart_values, atol=1e-7, err_msg=name)


def test_whitening_by_hand() -> None:
    """LMHP-21: (x - mean) / sqrt(var + 1e-8), population variance; rewards keep their mean."""
    shift, factor = whitening(np.array([1.0, 3.0, 8.0]))
    assert shift == 4
    assert factor == pytest.approx(1 / np.sqrt(26 / 3 + 1e-8))
    config = PPOConfig(
        kl=NO_KL, whiten_rewards="batch", whiten_advantages="none", gae=GAEConfig(token_lambda=0, turn_lambda=0)
    )
    trajectories = [episode([turn(1, (i,), reward=r)]) for i, r in enumerate((1.0, 3.0, 8.0))]
    zeros = [np.zeros(1, np.float32)] * 3
    batch, _ = PPO(config).prepare(trajectories, [score_of(t) for t in trajectories], zeros, 0)
    expected = [(r - 4) * factor + 4 for r in (1, 3, 8)]
    np.testing.assert_allclose([s.advantages[0] for s in batch.sequences], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "episode", "minibatch"])
def test_advantages_are_whitened_over_trained_tokens(kind: str) -> None:
    """LMHP-21, TW-17: over the iteration, an episode ("single"), or each minibatch; tokens without loss do not count."""
    config = PPOConfig(kl=NO_KL, whiten_advantages=kind, minibatches=2)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    trajectories = [
        episode([turn(3, (i, k), sizes=(2, 1, 3), reward=float(rng.normal())) for k in range(3)], index=i)
        for i in range(4)
    ]
    batch, _ = PPO(config).prepare(trajectories, [score_of(t) for t in trajectories], values_of(trajectories), 3)
    if kind == "minibatch":
        groups = [
            [(batch.sequences[i].advantages - m.advantage_shift) * m.advantage_scale for i in m.indices]
            for m in batch.minibatches
        ]
        masks = [[batch.sequences[i].weights != 0 for i in m.indices] for m in batch.minibatches]
    else:
        parts = [range(12)] if kind == "batch" else [range(3 * i, 3 * i + 3) for i in range(4)]
        groups = [[batch.sequences[i].advantages for i in part] for part in parts]
        masks = [[batch.sequences[i].weights != 0 for i in part] for part in parts]
    for group, mask in zip(groups, masks):
        trained = np.concatenate(group)[np.concatenate(mask)]
        assert trained.mean() == pytest.approx(0, abs=1e-6)
        assert trained.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "sequence_sum", "group_sum"])
def test_minibatches_cover_an_epoch_and_follow_from_the_seed(reduction: str) -> None:
    """LMHP-24: every epoch goes through all sequences once, in an order of its own."""
    config = PPOConfig(kl=NO_KL, minibatches=3, epochs=2, loss_reduction=reduction)  # type: ignore[arg-type]
    trajectories = [episode([turn(1 + i % 3, (i, k)) for k in range(1 + i)], index=i) for i in range(5)]
    batch, _ = PPO(config).prepare(trajectories, [score_of(t) for t in trajectories], values_of(trajectories), 3)
    assert len(batch.minibatches) == 6
    for epoch in (batch.minibatches[:3], batch.minibatches[3:]):
        assert sorted(i for m in epoch for i in m.indices) == list(range(len(batch.sequences)))
    assert batch.minibatches[0].indices != batch.minibatches[3].indices
    again = split_into_minibatches(batch.sequences, reduction, 2, 3, 3)  # type: ignore[arg-type]
    assert [m.indices for m in batch.minibatches] == [m.indices for epoch in again for m in epoch]


def test_kl_and_entropy_of_constrained_turns_are_exact() -> None:
    """X-4, X-6: over the tokens that were allowed, policy and reference masked alike; 0 where nothing was to choose."""
    rng = np.random.default_rng(3)
    allowed = sets((1, 3, 2), rng)
    one = turn(3, sizes=(1, 3, 2), seed=3)
    p = [np.exp(allowed.logprobs[a:b].astype(np.float64)) for a, b in ((0, 1), (1, 4), (4, 6))]
    q = [np.exp(allowed.reference_logprobs[a:b].astype(np.float64)) for a, b in ((0, 1), (1, 4), (4, 6))]
    np.testing.assert_allclose(turn_kl(one, False), [(x * np.log(x / y)).sum() for x, y in zip(p, q)], atol=1e-6)
    np.testing.assert_allclose(turn_entropy(one), [-(x * np.log(x)).sum() for x in p], atol=1e-6)
    assert turn_kl(one, False)[0] == 0


def test_discounted_returns_by_hand() -> None:
    """TW-12: ret_s = r_s + gamma_game ret_{s+1}, nothing after the end."""
    np.testing.assert_allclose(discounted_returns(np.array([1.0, 0.0, 4.0]), 0.5), [1 + 0.25 * 4, 2, 4])
