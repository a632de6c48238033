"""What an optimizer step's gradient stands for: from a config to the losses of minibatches, over all ways to cut a batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, count
from math import comb

import numpy as np
import pytest
import torch
from torch import Tensor

from rayrlhf.algorithm_config import GRPOConfig, PPOConfig, RLOOConfig
from rayrlhf.algorithms import build_algorithm
from rayrlhf.algorithms.ppo import PPO
from rayrlhf.batch_loss import policy_loss, value_loss
from rayrlhf.kl_config import KLPenaltyConfig
from rayrlhf.losses import Objective
from rayrlhf.micro_batches import collate, plan_micro_batches
from rayrlhf.packed_sequences import Limits, pack_sequences
from rayrlhf.types import FloatArray, Minibatch, TrainingBatch, Trajectory
from tests.game_episodes import episode, score_of, turn

VOCABULARY = 12
UNBIASED = ("sequence_sum", "sequence_mean", "group_sum")
SIZES = {1: (6,), 2: (3, 3), 3: (2, 2, 2), 5: (2, 1, 1, 1, 1)}  # minibatches -> sequences of each


def values_of(algorithm: PPO, trajectories: Sequence[Trajectory]) -> list[FloatArray]:
    rng = np.random.default_rng(5)
    queries = algorithm.value_queries(trajectories)
    return [rng.normal(size=len(query.input_ids) - query.start).astype(np.float32) for query in queries]


def free(length: int, reward: float, *prompt: int):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(length + prompt[0])
    return turn(length, prompt, reward=reward, kl=0.1 * length, ids=rng.integers(0, VOCABULARY, length))


def game_episodes() -> list[Trajectory]:
    """Four episodes, six sequences of 1 to 9 tokens: the third makes three of them; two have no policy loss, as nothing
    was left to choose."""
    forced = turn(2, (5, 6), sizes=(1, 1), reward=2.0)
    return [
        episode([free(1, 1.0, 1)], index=0),
        episode([free(9, -2.0, 2, 3)], index=1),
        episode([free(4, 0.5, 4), forced, free(7, 1.5, 7, 8)], index=2),
        episode([turn(3, (9, 9), sizes=(1, 1, 1), reward=-1.0)], index=3),
    ]


def prepared(trajectories: list[Trajectory], config: object, seed: int) -> tuple[TrainingBatch, Objective]:
    algorithm = build_algorithm(config)  # type: ignore[arg-type]
    values = values_of(algorithm, trajectories) if isinstance(algorithm, PPO) else []
    batch, _ = algorithm.prepare(trajectories, [score_of(t) for t in trajectories], values, seed)
    return batch, algorithm.objective


def gradients(batch: TrainingBatch, minibatch: Minibatch, objective: Objective) -> dict[str, Tensor]:
    """Of one step's policy and value loss, by the parameters of the smallest model: a row of logits and a value a token."""
    table = torch.sin(torch.arange(VOCABULARY**2, dtype=torch.float64)).reshape(VOCABULARY, VOCABULARY)
    critic = torch.cos(torch.arange(VOCABULARY, dtype=torch.float64))
    table.requires_grad_()
    critic.requires_grad_()
    packed = pack_sequences(batch.sequences, Limits(VOCABULARY, None), with_values=objective.value is not None)
    indices = np.array(minibatch.indices)
    plan = plan_micro_batches(packed.tokens.lengths[indices].tolist(), 1, tokens_per_micro_batch=12)
    for members in plan.ranks[0]:
        micro = collate(packed, indices[list(members)].tolist(), minibatch)
        loss, _ = policy_loss(table[micro.input_ids[:, micro.columns]], micro, objective, 1.0)
        if objective.value is not None:
            loss = loss + value_loss(critic[micro.input_ids[:, micro.value_columns]], micro, objective.value)[0]
        loss.backward()
    assert table.grad is not None
    return {"policy": table.grad, "value": torch.zeros(1) if critic.grad is None else critic.grad}


def steps_of_all_cuts(
    trajectories: list[Trajectory], config: object, sizes: Sequence[int]
) -> list[dict[tuple[int, ...], tuple[TrainingBatch, Minibatch]]]:
    """Of each step every set of sequences that it can be given, from the seeds that draw them: all are equally likely."""
    steps: list[dict[tuple[int, ...], tuple[TrainingBatch, Minibatch]]] = [{} for _ in sizes]
    wanted = [comb(sum(sizes), size) for size in sizes]
    for seed in count():
        batch, _ = prepared(trajectories, config, seed)
        assert [len(m.indices) for m in batch.minibatches] == list(sizes)
        for step, minibatch in zip(steps, batch.minibatches, strict=True):
            step.setdefault(minibatch.indices, (batch, minibatch))
        if [len(step) for step in steps] == wanted:
            return steps
    raise AssertionError


def mean_gradient(
    step: dict[tuple[int, ...], tuple[TrainingBatch, Minibatch]], objective: Objective
) -> dict[str, Tensor]:
    found = [gradients(batch, minibatch, objective) for batch, minibatch in step.values()]
    return {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}


def configs(reduction: str, minibatches: int) -> dict[str, tuple[list[Trajectory], object]]:
    common = {"loss_reduction": reduction, "epochs": 1, "minibatches": minibatches, "kl": KLPenaltyConfig(coef=0.3)}
    texts = [episode([free(1 + i * 8 // 5, float(i % 3), 1 + i)], group=i // 3, index=i) for i in range(6)]
    return {
        "ppo": (game_episodes(), PPOConfig(**common, whiten_advantages="batch", value_clip_range=None)),  # type: ignore[arg-type]
        "rloo": (texts, RLOOConfig(**common, clip_range=0.2)),  # type: ignore[arg-type]
        "grpo": (texts, GRPOConfig(**common)),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo"])
@pytest.mark.parametrize("minibatches", SIZES)
@pytest.mark.parametrize("reduction", UNBIASED)
def test_each_steps_mean_gradient_over_all_cuts_is_the_whole_batchs(
    reduction: str, minibatches: int, algorithm: str
) -> None:
    """Sequences of 1 to 9 tokens, some without policy loss, several of one episode, uneven cuts: policy and values."""
    trajectories, config = configs(reduction, minibatches)[algorithm]
    whole, objective = prepared(trajectories, configs(reduction, 1)[algorithm][1], seed=0)
    assert len(whole.sequences) == 6
    expected = gradients(whole, whole.minibatches[0], objective)
    for step in steps_of_all_cuts(trajectories, config, SIZES[minibatches]):
        mean = mean_gradient(step, objective)
        for name, gradient in expected.items():
            assert gradient.abs().max() > 1e-3 or (name, algorithm) in {("value", "rloo"), ("value", "grpo")}
            torch.testing.assert_close(mean[name], gradient, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("minibatches", SIZES)
def test_token_mean_is_the_mean_over_the_minibatchs_own_tokens(minibatches: int) -> None:
    """Policy and values each over theirs. Over all cuts that is the mean of ratios, written out here: no whole batch's."""
    trajectories, config = configs("token_mean", minibatches)["ppo"]
    whole, objective = prepared(trajectories, configs("token_mean", 1)["ppo"][1], seed=0)
    weights = {
        "policy": [sequence.weights for sequence in whole.sequences],
        "value": [sequence.value_weights for sequence in whole.sequences],
    }
    tokens = {name: [np.count_nonzero(w) for w in of_loss] for name, of_loss in weights.items()}
    assert tokens == {"policy": [1, 9, 4, 0, 7, 0], "value": [1, 9, 4, 1, 7, 1]}
    alone = [gradients(whole, Minibatch((i,)), objective) for i in range(6)]
    sums = {name: [one[name] * sum(tokens[name]) for one in alone] for name in tokens}  # a token counts 1 in these
    for step, size in zip(steps_of_all_cuts(trajectories, config, SIZES[minibatches]), SIZES[minibatches], strict=True):
        mean = mean_gradient(step, objective)
        for name in tokens:
            ratios = [
                sum(sums[name][i] for i in cut) / max(sum(tokens[name][i] for i in cut), 1)
                for cut in combinations(range(6), size)
            ]
            expected = torch.stack([torch.as_tensor(ratio) for ratio in ratios]).mean(0)
            torch.testing.assert_close(mean[name], expected, atol=1e-6, rtol=1e-6)
            biased = (mean[name] - gradients(whole, whole.minibatches[0], objective)[name]).abs().max() > 1e-3
            assert biased == (minibatches > 1)


def test_a_token_counts_the_same_in_short_and_long_answers() -> None:
    """Answers of 1, 1, 9, 9 tokens in two minibatches, `sequence_sum`: the scale is 4 / 2 whatever the cut."""
    trajectories = [episode([free(n, float(i), 1 + i)], index=i) for i, n in enumerate((1, 1, 9, 9))]
    config = RLOOConfig(loss_reduction="sequence_sum", minibatches=2, clip_range=0.2)
    for seed in range(20):
        batch, _ = prepared(trajectories, config, seed)
        assert [minibatch.scale for minibatch in batch.minibatches] == [2.0, 2.0]


def test_the_value_loss_of_a_minibatch_is_the_mean_over_its_valued_tokens() -> None:
    """One that has value losses alone, too: its scale is that of its value tokens."""
    trajectories, config = configs("token_mean", 5)["ppo"]
    for seed in range(20):
        batch, _ = prepared(trajectories, config, seed)
        for minibatch in batch.minibatches:
            own = [batch.sequences[i] for i in minibatch.indices]
            of_values = sum(float(sequence.value_weights.sum(dtype=np.float64)) for sequence in own)
            of_policy = sum(float(sequence.weights.sum(dtype=np.float64)) for sequence in own)
            assert of_values * minibatch.value_scale == pytest.approx(1, rel=1e-6)
            assert of_policy * minibatch.scale == pytest.approx(1 if of_policy else 0, rel=1e-6)
