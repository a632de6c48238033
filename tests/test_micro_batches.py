"""Plans and packing: every sequence once, within the budget, the same number everywhere, masks from lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrlhf.micro_batches import collate, plan_micro_batches
from rayrlhf.types import TrainingSequence

lengths_of = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(lengths_of, st.integers(1, 9), st.integers(1, 2000))
@settings(deadline=None, max_examples=300)
def test_plans(lengths: list[int], ranks: int, budget: int) -> None:
    """Also fewer sequences than ranks, uneven shards, and sequences over the budget."""
    plan = plan_micro_batches(lengths, ranks, budget)
    assert sorted(i for rank in plan.ranks for batch in rank for i in batch) == list(range(len(lengths)))
    assert len(plan.ranks) == ranks
    assert {len(rank) for rank in plan.ranks} == {plan.micro_batches}
    assert any(rank[-1] for rank in plan.ranks)  # no micro-batch that is empty on all ranks
    positions = 0
    for batch in (batch for rank in plan.ranks for batch in rank if batch):
        longest = max(lengths[i] for i in batch)
        positions += len(batch) * longest
        assert len(batch) * longest <= budget or len(batch) == 1
    assert plan.padding == pytest.approx(1 - sum(lengths) / positions)
    tokens = [sum(lengths[i] for batch in rank for i in batch) for rank in plan.ranks]
    assert max(tokens) - min(tokens) <= max(lengths)  # Graham's bound on the imbalance
    assert plan == plan_micro_batches(lengths, ranks, budget)


def test_a_plan_by_hand() -> None:
    """Longest first, each to the rank with fewer tokens, ties by index: 6 | 5, then 4, 3 to the lighter rank."""
    plan = plan_micro_batches([4, 6, 3, 5, 4], ranks=2, tokens_per_micro_batch=10)
    assert plan.ranks == (((1,), (4,)), ((3, 0), (2,)))
    assert plan.padding == pytest.approx(1 - 22 / 23)  # one position: the 4 beside the 5


def test_ranks_without_sequences_have_empty_micro_batches() -> None:
    plan = plan_micro_batches([5], ranks=3, tokens_per_micro_batch=4)
    assert plan.ranks == (((0,),), ((),), ((),))


@pytest.mark.parametrize("arguments", [([], 1, 10), ([0, 3], 1, 10), ([3], 0, 10), ([3], 1, 0)])
def test_senseless_plans_are_refused(arguments: tuple[list[int], int, int]) -> None:
    with pytest.raises(ValueError, match="need at least one sequence"):
        plan_micro_batches(*arguments)


def sequence(length: int, start: int, token: int = 7) -> TrainingSequence:
    scored = np.arange(1, length - start + 1, dtype=np.float32)
    return TrainingSequence(np.full(length, token), start, scored, -scored, scored / 10)


def test_collated_columns_speak_of_the_next_token() -> None:
    """X-1: token `start` is predicted in column `start - 1`; nothing is scored past the last token."""
    batch = collate([sequence(5, start=2), sequence(3, start=1)])
    assert batch.mask.tolist() == [[False, True, True, True], [True, True, False, False]]
    assert batch.advantages.tolist() == [[0, 1, 2, 3], [1, 2, 0, 0]]
    assert batch.behaviour_logprobs.tolist() == [[0, -1, -2, -3], [-1, -2, 0, 0]]
    torch.testing.assert_close(batch.weights, batch.advantages / 10)
    assert batch.targets.shape == (2, 4)
    assert (batch.first, batch.last) == (0, 4)


@given(st.lists(st.tuples(st.integers(2, 20), st.integers(1, 19)), min_size=1, max_size=8), st.integers(0, 1))
@settings(deadline=None)
def test_masks_come_from_lengths(shapes: list[tuple[int, int]], token: int) -> None:
    """X-2: sequences made of nothing but the id that stands in the padding are masked like any others."""
    sequences = [sequence(length, min(start, length - 1), token) for length, start in shapes]
    batch = collate(sequences)
    for row, one in enumerate(sequences):
        expected = [one.start <= t + 1 < len(one) for t in range(batch.mask.shape[1])]
        assert batch.mask[row].tolist() == expected
    assert batch.first == min(one.start for one in sequences) - 1


def test_an_empty_micro_batch_can_run_and_weighs_nothing() -> None:
    batch = collate([])
    assert batch.input_ids.shape == (1, 2)
    assert not batch.mask.any()
    assert not batch.weights.any()
    assert batch.last - batch.first == 1
