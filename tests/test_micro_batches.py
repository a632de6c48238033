"""Plans and packing: every sequence once, within the budget, masks from lengths, and on every rank the same number of
forward passes (TW-5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrlhf.errors import LearnerError
from rayrlhf.micro_batches import MicroBatch, collate, collate_queries, plan_micro_batches
from rayrlhf.packed_sequences import Limits, check_minibatches, pack_sequences, pack_tokens
from rayrlhf.types import AllowedTokens, Minibatch, TrainingBatch, TrainingSequence, ValueQuery

WHOLE = Minibatch(())  # no shift, no scale; which sequences it holds is for the learner to look at
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


def sequence(
    length: int, start: int, token: int = 7, weights: list[float] | None = None, allowed: AllowedTokens | None = None
) -> TrainingSequence:
    scored = np.arange(1, length - start + 1, dtype=np.float32)
    of_policy = scored / 10 if weights is None else np.array(weights, np.float32)
    ids = np.full(length, token)
    return TrainingSequence(
        ids, start, scored, -scored, of_policy, allowed, -4 * scored, 2 * scored, 3 * scored, scored / 20
    )


def among(*ranges: list[int]) -> AllowedTokens:
    ids = np.array([token for one in ranges for token in one], np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in ranges])])
    return AllowedTokens(ids, offsets, np.zeros(len(ids), np.float32), np.zeros(len(ids), np.float32))


def batch_of(
    sequences: list[TrainingSequence], indices: list[int] | None = None, minibatch: Minibatch = WHOLE
) -> MicroBatch:
    packed = pack_sequences(sequences, Limits(vocabulary=100, context=None), with_values=True, with_reference=True)
    return collate(packed, range(len(sequences)) if indices is None else indices, minibatch)


def test_collated_columns_speak_of_the_next_token() -> None:
    """X-1: token `start` is predicted in column `start - 1`; nothing is scored past the last token."""
    batch = batch_of([sequence(5, start=2), sequence(3, start=1)])
    assert batch.columns.tolist() == [0, 1, 2, 3]
    assert batch.scored.tolist() == [[False, True, True, True], [True, True, False, False]]
    assert batch.advantages.tolist() == [[0, 1, 2, 3], [1, 2, 0, 0]]
    assert batch.behaviour_logprobs.tolist() == [[0, -1, -2, -3], [-1, -2, 0, 0]]
    assert batch.reference_logprobs.tolist() == [[0, -4, -8, -12], [-4, -8, 0, 0]]
    torch.testing.assert_close(batch.weights, batch.advantages / 10)
    assert batch.targets.shape == (2, 4)
    assert batch.value_columns.tolist() == [0, 1, 2, 3]
    assert torch.equal(batch.valued, batch.scored)
    torch.testing.assert_close(batch.old_values, 2 * batch.advantages)
    torch.testing.assert_close(batch.returns, 3 * batch.advantages)
    torch.testing.assert_close(batch.value_weights, batch.advantages / 20)


def test_only_columns_that_carry_a_loss_are_kept() -> None:
    """Weights of 0 at the ends and in the middle leave columns 1 and 3 to the policy; the values need all four."""
    batch = batch_of([sequence(5, 1, weights=[0, 2, 0, 0]), sequence(5, 1, weights=[0, 0, 0, 3])])
    assert batch.columns.tolist() == [1, 3]
    assert batch.advantages.tolist() == [[2, 0], [0, 4]]
    assert batch.weights.tolist() == [[2, 0], [0, 3]]
    assert batch.scored.tolist() == [[True, False], [False, True]]
    assert batch.value_columns.tolist() == [0, 1, 2, 3]


def test_a_minibatch_shifts_and_scales() -> None:
    """Advantages are (a - shift) * advantage_scale, each loss's weights have a scale of their own; nothing else changes."""
    plain = batch_of([sequence(4, 2), sequence(4, 1)], [1])
    minibatch = Minibatch((1,), scale=10.0, advantage_shift=2.0, advantage_scale=0.5, value_scale=3.0)
    scaled = batch_of([sequence(4, 2), sequence(4, 1)], [1], minibatch)
    assert scaled.advantages.tolist() == [[-0.5, 0, 0.5]]
    torch.testing.assert_close(scaled.weights, 10 * plain.weights)
    torch.testing.assert_close(scaled.value_weights, 3 * plain.value_weights)
    assert torch.equal(scaled.returns, plain.returns)
    assert torch.equal(scaled.behaviour_logprobs, plain.behaviour_logprobs)


def test_choices_are_where_decoding_was_constrained() -> None:
    """Ranges of 3, 0 (the whole vocabulary) and 1; a second sequence that is free; a third without policy loss."""
    batch = batch_of([
        sequence(4, 1, allowed=among([4, 7, 9], [], [7])),
        sequence(3, 2),
        sequence(3, 2, weights=[0], allowed=among([1, 7])),
    ])  # fmt: skip
    choices = batch.choices
    assert choices is not None
    assert choices.rows.tolist() == [0, 0]
    assert batch.columns[choices.places].tolist() == [0, 2]
    assert choices.allowed.tolist() == [[True, True, True], [True, False, False]]
    assert choices.ids[choices.allowed].tolist() == [4, 7, 9, 7]
    assert choices.chosen.tolist() == [1, 0]
    assert choices.free_rows.tolist() == [0, 1]
    assert batch.columns[choices.free_places].tolist() == [1, 1]
    assert batch_of([sequence(3, 2), sequence(3, 1)]).choices is None


@given(st.lists(st.tuples(st.integers(2, 20), st.integers(1, 19)), min_size=1, max_size=8), st.integers(0, 1))
@settings(deadline=None)
def test_masks_come_from_lengths(shapes: list[tuple[int, int]], token: int) -> None:
    """X-2: sequences made of nothing but the id that stands in the padding are masked like any others."""
    sequences = [sequence(length, min(start, length - 1), token) for length, start in shapes]
    batch = batch_of(sequences)
    assert batch.input_ids.shape == (len(sequences), max(len(one) for one in sequences))
    for row, one in enumerate(sequences):
        expected = [one.start <= column + 1 < len(one) for column in batch.columns.tolist()]
        assert batch.scored[row].tolist() == expected
        assert batch.scored[row].sum() == len(one) - one.start
    assert batch.columns[0] == min(one.start for one in sequences) - 1


def test_an_empty_micro_batch_can_run_and_weighs_nothing() -> None:
    batch = batch_of([sequence(5, 2)], [])
    assert batch.input_ids.shape == (1, 2)
    assert batch.columns.tolist() == batch.value_columns.tolist() == [0]
    assert not batch.scored.any()
    assert not batch.valued.any()
    assert not batch.weights.any()
    assert not batch.value_weights.any()


def test_queries_by_hand() -> None:
    """Values of [:start] .. [:L-1] stand after tokens start-1 .. L-2 (X-1), numbered over all queries in order."""
    queries = [
        ValueQuery(np.array([5, 6, 7, 8]), 2),
        ValueQuery(np.array([1, 2]), 1),
        ValueQuery(np.array([3, 4, 5]), 1),
    ]
    tokens = pack_tokens(queries, "value query", Limits(10, 4))
    batch = collate_queries(tokens, [2, 0])
    assert batch.input_ids.tolist() == [[3, 4, 5, 0], [5, 6, 7, 8]]
    assert batch.rows.tolist() == [0, 0, 1, 1]
    assert batch.columns[batch.places].tolist() == [0, 1, 1, 2]
    assert batch.numbers.tolist() == [3, 4, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": 0}, "start 0 must lie in 1 .. 3"),
        ({"start": 4}, "start 4 must lie in 1 .. 3"),
        ({"start": 5}, "start 5 must lie in 1 .. 3"),
        ({"input_ids": np.array([1, 7, -1, 7])}, "token id -1 lies outside the model's vocabulary of 100"),
        ({"input_ids": np.zeros(9, np.int64)}, "its 9 tokens are more than the 8"),
        ({"advantages": np.ones((2, 1), np.float32)}, r"advantages has shape \(2, 1\) for 2 scored tokens"),
        ({"returns": np.zeros(0, np.float32)}, r"returns has shape \(0,\) for 2 scored tokens"),
        ({"reference_logprobs": np.zeros(0, np.float32)}, r"reference_logprobs has shape \(0,\) for 2 scored tokens"),
        ({"values": np.array([0, np.nan], np.float32)}, "values is not finite at scored token 1"),
        ({"allowed": among([7], [6])}, "token id 7 must stand among its allowed tokens, once, at scored token 1"),
        ({"allowed": among([7, 7], [7])}, "token id 7 must stand among its allowed tokens, once, at scored token 0"),
        ({"allowed": among([7], [7, 3, 3])}, "token id 3 is allowed twice at scored token 1"),
        ({"allowed": among([7], [7, 100])}, "allowed token id 100 lies outside the model's vocabulary of 100"),
        ({"allowed": among([7])}, "offsets must rise from 0 to its 1 ids in 2 ranges, one a scored token, not 1"),
    ],
)
def test_a_malformed_sequence_is_named(change: dict[str, Any], message: str) -> None:
    good = sequence(4, 2)
    with pytest.raises(LearnerError, match=rf"training sequence 1 of 3: .*{message}.*; no weight was changed"):
        pack_sequences([good, replace(good, **change), good], Limits(100, 8), with_values=True, with_reference=True)


def test_what_is_missing_without_a_value_network_does_not_matter() -> None:
    bare = replace(sequence(4, 2), values=np.zeros(0, np.float32), value_weights=np.zeros(0, np.float32))
    packed = pack_sequences([bare], Limits(100, None), with_values=False)
    assert packed.values.tolist() == packed.value_weights.tolist() == packed.reference_logprobs.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("minibatches", "message"),
    [
        ((), "no minibatches"),
        ((Minibatch((0,)), Minibatch(())), "minibatch 1 of 2: its indices must be one or more of 0 .. 1"),
        ((Minibatch((0, 2)),), "minibatch 0 of 1: its indices"),
        ((Minibatch((-1,)),), "minibatch 0 of 1: its indices"),
        ((Minibatch((0,), scale=float("nan")),), "advantage_scale, value_scale must be finite, not .*'scale': nan"),
        ((Minibatch((0,), value_scale=float("inf")),), "must be finite, not .*'value_scale': inf"),
    ],
)
def test_a_senseless_minibatch_is_named(minibatches: tuple[Minibatch, ...], message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        check_minibatches(TrainingBatch((sequence(3, 1), sequence(3, 1)), minibatches))
