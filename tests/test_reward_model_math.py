"""Losses, order, split and evaluation of reward models: numbers worked out by hand or by brute force."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrlhf.preferences.loop_stages import accuracy as loop_accuracy
from rayrlhf.reward_models.evaluation import calibrate, evaluate_comparisons, pearson, plot_evaluation
from rayrlhf.reward_models.examples import Example, epoch_order, held_out_indices
from rayrlhf.reward_models.losses import (
    TIE,
    best_of_k,
    best_of_k_or_tie,
    binary,
    difference,
    log_tie_of_share,
    regression,
)
from rayrlhf.reward_models.training import correlation_line, held_out_line

NO_ITEM = -math.inf


def test_best_of_k_is_the_cross_entropy_over_all_items() -> None:
    """LMHP-3: for two items -log sigmoid(winner - loser); by hand for three; an example may have fewer items."""
    rewards = torch.tensor([[1.0, 3.0, NO_ITEM], [0.0, math.log(2), math.log(5)]], dtype=torch.float64)
    losses = best_of_k(rewards, torch.tensor([0, 1]))
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(2)), -math.log(2 / 8)], abs=1e-12)


def test_best_of_ks_gradient_is_softmax_minus_the_winner() -> None:
    """LMHP-3, in closed form; an item that is not there gets none."""
    rewards = torch.tensor([[0.0, math.log(2), math.log(5)], [2.0, 2.0, NO_ITEM]], dtype=torch.float64)
    rewards.requires_grad_()
    best_of_k(rewards, torch.tensor([1, 0])).sum().backward()
    expected = [[1 / 8, 2 / 8 - 1, 5 / 8], [0.5 - 1, 0.5, 0.0]]
    assert np.allclose(rewards.grad, expected, atol=1e-12)  # type: ignore[arg-type]


def test_a_half_won_tie_has_the_optimum_of_two_records_at_half_their_evidence() -> None:
    """LMHP-4, Q-2: the mean of the losses of the two records that each side wins."""
    rewards = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    records = [best_of_k(rewards, torch.tensor([winner])) for winner in (0, 1)]
    assert best_of_k(rewards, torch.tensor([TIE])).item() == pytest.approx(sum(records).item() / 2, abs=1e-12)  # type: ignore[union-attr]


def test_ties_by_davidsons_model() -> None:
    """P(tie) / sqrt(P(first) P(second)) = nu for every pair (Davidson 1970), by the formula for one pair."""
    nu, strengths = 0.7, (2.0, 0.5)
    rewards = torch.tensor([[math.log(s) for s in strengths]], dtype=torch.float64)
    log_tie = torch.tensor([math.log(nu)], dtype=torch.float64)
    total = sum(strengths) + nu * math.sqrt(strengths[0] * strengths[1])
    probabilities = [math.exp(-best_of_k_or_tie(rewards, torch.tensor([b]), log_tie).item()) for b in (0, 1, TIE)]
    expected = [2.0 / total, 0.5 / total, nu * 1.0 / total]
    assert probabilities == pytest.approx(expected, abs=1e-12)
    three = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    assert sum(
        math.exp(-best_of_k_or_tie(three, torch.tensor([b]), log_tie).item()) for b in (0, 1, 2, TIE)
    ) == pytest.approx(1.0)


@pytest.mark.parametrize(("share", "items"), [(0.1, 2), (0.5, 3)])
def test_the_tie_parameter_of_a_share(share: float, items: int) -> None:
    log_tie = torch.tensor(log_tie_of_share(share, items))
    loss = best_of_k_or_tie(torch.zeros(1, items), torch.tensor([TIE]), log_tie)
    assert math.exp(-loss.item()) == pytest.approx(share, rel=1e-6)


def test_losses_of_numbers() -> None:
    """LMHP-3: scalar_rating (score - r)^2, scalar_compare (difference - (r1 - r0))^2; Huber's beyond its delta."""
    assert regression(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 4.5]), None).tolist() == [4.0, 0.25]
    assert regression(torch.tensor([1.0]), torch.tensor([4.0]), 1.0).tolist() == [2.5]
    assert difference(torch.tensor([[1.0, 4.0]]), torch.tensor([2.0])).tolist() == [1.0]
    assert binary(torch.tensor([0.0]), torch.tensor([1.0])).item() == pytest.approx(math.log(2))


@given(st.integers(1, 40), st.integers(1, 16), st.integers(1, 4))
def test_every_pass_has_each_example_once(examples: int, batch: int, epochs: int) -> None:
    """LMHP-6: any number of examples, any batch size; the last step of a pass has what is left."""
    order = epoch_order(examples, batch, epochs, seed=3)
    steps = -(-examples // batch)
    assert order.shape == (epochs * steps, batch)
    for epoch in range(epochs):
        own = order[epoch * steps : (epoch + 1) * steps].ravel()
        assert sorted(own[own >= 0]) == list(range(examples))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60), st.floats(0, 0.5))
@settings(deadline=None)
def test_held_out_labels_keep_their_parts_whole(parts: list[str], share: float) -> None:
    """LMHP-5: the split is by prompt; nothing is lost, and something stays to train on."""
    training, held_out = held_out_indices(parts, share, seed=1)
    assert sorted([*training, *held_out]) == list(range(len(parts)))
    assert len(training)
    counts = {part: parts.count(part) for part in parts}
    if len(counts) > 1 and max(counts.values()) <= 0.5 * len(parts):
        assert not {parts[i] for i in training} & {parts[i] for i in held_out}
    assert bool(len(held_out)) == (share > 0)


def test_accuracy_by_source_calibration_and_margins() -> None:
    """LMHP-14. Four decisive comparisons and a tie over four texts, judged by hand."""
    scores = np.array([0.0, 1.0, 3.0, 1.0], np.float32)
    examples = [
        Example((0, 1), best=1, source="manual"),  # right by 1
        Example((1, 2), best=0, source="manual"),  # wrong by 2
        Example((1, 3), best=0, source="auto"),  # equal scores: half
        Example((0, 1, 2), best=2, source="auto"),  # right by 2
        Example((0, 3), best=TIE, source="auto"),
    ]
    evaluation = evaluate_comparisons(examples, scores)
    assert (evaluation.accuracy.right, evaluation.accuracy.of, evaluation.ties) == (2.5, 4, 1)
    assert {name: (a.right, a.of) for name, a in evaluation.by_source.items()} == {"manual": (1, 2), "auto": (1.5, 2)}
    assert evaluation.margins.tolist() == [1, -2, 0, 2]


def test_what_held_out_labels_lack_is_said() -> None:
    """No share of no comparison, no calibration without pairs, no correlation of equal labels: nothing prints nan."""
    ties = evaluate_comparisons([Example((0, 1), best=TIE, source="manual")], np.array([0.0, 1.0], np.float32))
    assert held_out_line(ties).startswith("no decisive comparison, 1 ties: how often the model is right is not known")
    assert ties.as_json()["accuracy"] == {"share": None, "of": 0, "low": 0.0, "high": 1.0}
    three = evaluate_comparisons([Example((0, 1, 2), best=1, source="manual")], np.array([0, 1, 0.5], np.float32))
    assert held_out_line(three).endswith("0 ties, no pair to calibrate on")
    one, same = np.array([2.0]), np.array([2.0, 2.0])
    assert correlation_line(None, one, one).startswith("1 label, too few for a correlation")
    assert correlation_line(None, np.array([1.0, 2.0]), same) == (
        "the 2 labels are all the same: there is no correlation of scores and labels"
    )
    assert loop_accuracy(np.array([1.0, 2.0]), np.array([3.0, 3.0])) == (None, 0)


def test_pictures_of_nothing_are_drawn(tmp_path: Path) -> None:
    nothing = evaluate_comparisons([], np.zeros(0, np.float32))
    plot_evaluation(nothing, tmp_path / "nothing.png")
    assert (tmp_path / "nothing.png").stat().st_size > 1000


def test_calibration_of_margins_drawn_from_their_own_probabilities() -> None:
    """A model that says what is true has a small calibration error; one that is twice as sure has not."""
    rng = np.random.default_rng(0)
    difference = rng.normal(0, 2, 20_000)
    margins = np.where(rng.random(20_000) < 1 / (1 + np.exp(-difference)), difference, -difference)
    _, honest = calibrate(margins)
    bins, sure = calibrate(2 * margins)
    assert honest < 0.01
    assert sure > 0.05
    assert sum(b.pairs for b in bins) == 20_000
    assert calibrate(np.zeros(0)) == ((), None)


def test_correlation_with_labels() -> None:
    """LMHP-3: Pearson's r; nothing to tell of one label or of equal ones."""
    assert pearson(np.array([1, 2, 3], np.float32), np.array([2.0, 4.0, 6.0])) == pytest.approx(1.0)
    assert pearson(np.array([1, 1], np.float32), np.array([2.0, 4.0])) is None


def test_a_table_of_labels_goes_through_its_file(tmp_path: object) -> None:
    from pathlib import Path

    from rayrlhf.reward_models.examples import ExampleTable

    sequences = tuple(np.arange(n, dtype=np.int64) for n in (3, 1, 5))
    examples = tuple(
        Example(rows, best, value, weight)
        for rows, best, value, weight in [((0, 1), TIE, 0.0, 0.5), ((0, 1, 2), 2, 0.0, 1.0), ((2,), 0, 1.25, 3.0)]
    )
    path = Path(str(tmp_path)) / "table.npz"
    ExampleTable(sequences, examples).save(path)
    loaded = ExampleTable.load(path)
    assert loaded.examples == examples
    assert all(np.array_equal(a, b) for a, b in zip(loaded.sequences, sequences, strict=True))


@pytest.mark.parametrize(("workers", "forward"), [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)])
def test_a_steps_loss_is_the_weighted_mean_however_it_is_dealt(workers: int, forward: int) -> None:
    """LMHP-6: the shares of all workers and forward passes add up to the mean over the step's own examples."""
    from rayrlhf.reward_models.module import step_shares

    weights = np.array([1.0, 2.0, 0.5, 1.0, 3.0])
    step = np.array([3, 0, 4, -1])
    scale = workers * (4 // workers // forward)
    shares = [step_shares(step, weights, workers, scale, rank) for rank in range(workers)]
    dealt = [pair for share in shares for pair in share]
    losses = {0: 0.7, 1: 9.0, 2: 9.0, 3: 0.2, 4: 1.1, -1: 5.0}
    mean = sum(losses[i] * w for i, w in dealt) / scale
    assert mean == pytest.approx((0.2 * 1 + 0.7 * 1 + 1.1 * 3) / 5)
    assert all(len(share) == 4 // workers for share in shares)
