"""The fit of latent scores: likelihood by hand, derivatives by differences, choix and evalica, intervals by simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rayrlhf.preferences.bradley_terry import Fit, fit
from rayrlhf.preferences.bradley_terry_likelihood import (
    Floats,
    Ints,
    Outcomes,
    derivatives,
    log_likelihood,
    probabilities,
)
from rayrlhf.preferences.bradley_terry_model import Model, Prior
from rayrlhf.preferences.bradley_terry_precision import VARIANCE_DRAWS, DensePrecision, SparsePrecision
from rayrlhf.preferences.ranking_outcomes import verdicts
from rayrlhf.preferences.records import Comparison


def random_pairs(n: int, m: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    first = rng.integers(0, n, m)
    return first, (first + rng.integers(1, n, m)) % n


def judged(
    scores: Floats, pairs: tuple[Ints, Ints], nu: float, rng: np.random.Generator, factor: Floats | float = 1.0
) -> Ints:
    """Verdicts drawn from Davidson's model."""
    wins, losses, _ = probabilities(factor * (scores[pairs[0]] - scores[pairs[1]]), nu)
    drawn = rng.random(len(pairs[0]))
    return np.where(drawn < wins, 1, np.where(drawn < wins + losses, -1, 0))


def expected(scores: Floats, nu: float, each: float) -> Outcomes:
    """All pairs with all three outcomes, weighted by what the model expects of `each` comparisons."""
    first, second = np.triu_indices(len(scores), 1)
    weights = [each * share for share in probabilities(scores[first] - scores[second], nu)]
    signs = np.repeat([1, -1, 0], len(first))
    return Outcomes.of(np.tile(first, 3), np.tile(second, 3), signs, np.concatenate(weights))


def by_differences(function: Callable[[Floats], Any], point: Floats, step: float = 1e-5) -> Floats:
    """[len(point), ...] central differences."""
    rows = []
    for index in range(len(point)):
        change = np.zeros(len(point))
        change[index] = step
        rows.append((function(point + change) - function(point - change)) / (2 * step))
    return np.array(rows)


def test_davidsons_likelihood_by_hand() -> None:
    """GWERN-21: three items of strengths 1, 4 and 9 (scores ln 1, ln 4, ln 9), nu = 1/2.

    1 against 4: 1 : 4 : sqrt(4)/2 = 1 : 4 : 1. 4 against 9: 4 : 9 : 3. 1 against 9: 1 : 9 : 3/2.
    """
    scores = np.log([1.0, 4.0, 9.0])
    first, second = np.array([0, 1, 0]), np.array([1, 2, 2])
    wins, losses, ties = probabilities(scores[first] - scores[second], 0.5)
    np.testing.assert_allclose(wins, [1 / 6, 4 / 16, 1 / 11.5], rtol=1e-12)
    np.testing.assert_allclose(losses, [4 / 6, 9 / 16, 9 / 11.5], rtol=1e-12)
    np.testing.assert_allclose(ties, [1 / 6, 3 / 16, 1.5 / 11.5], rtol=1e-12)
    likelihood = log_likelihood(np.array([1, 0, -1]), scores[first] - scores[second], 0.5)
    np.testing.assert_allclose(likelihood, np.log([1 / 6, 3 / 16, 9 / 11.5]), rtol=1e-12)


def test_nothing_overflows() -> None:
    wins, losses, ties = probabilities(np.array([-2000.0, 2000.0]), 0.3)
    np.testing.assert_array_equal(wins, [0, 1])
    np.testing.assert_array_equal(losses, [1, 0])
    np.testing.assert_array_equal(ties, [0, 0])
    np.testing.assert_allclose(log_likelihood(np.array([-1, 0]), np.array([2000.0, 2000.0]), 1.0), [-2000, -1000])


def test_derivatives_of_the_likelihood() -> None:
    rng = np.random.default_rng(0)
    sign, difference, nu = rng.integers(-1, 2, 20), rng.normal(0, 2, 20), 0.7
    slopes = derivatives(sign, difference, nu)
    step = 1e-5

    def at(change: float, eta: float) -> Floats:
        return log_likelihood(sign, difference + change, nu * np.exp(eta))

    np.testing.assert_allclose(slopes.by_difference, (at(step, 0) - at(-step, 0)) / (2 * step), atol=1e-8)
    np.testing.assert_allclose(slopes.by_eta, (at(0, step) - at(0, -step)) / (2 * step), atol=1e-8)
    raised, lowered = ((at(step, eta) - at(-step, eta)) / (2 * step) for eta in (1e-3, -1e-3))
    np.testing.assert_allclose(slopes.information_both, -(raised - lowered) / 2e-3, atol=1e-5)


def test_gradient_and_hessian_against_finite_differences() -> None:
    """GWERN-21: the gradient of the posterior density and minus its Hessian, with ties, raters, covariates, an anchor.

    The raters' part of the Hessian is the one expected under the model, so verdicts are weighted as the model expects.
    """
    rng = np.random.default_rng(1)
    scores, theta = rng.normal(0, 1, 5), np.array([0.3, -0.4, -0.5, 0.2, 0.1])
    covariates, prior = rng.normal(0, 1, (6, 2)), Prior(1.5, 0.8, 0.6)
    first, second = random_pairs(6, 40, rng)
    rater = rng.integers(0, 3, 40)
    draft = Model(Outcomes.of(first, second, np.zeros(40), None, rater), 6, prior, covariates, anchors=[2])
    _, nu, logs = draft.parts(theta)
    everything = np.insert(scores, 2, 0.0)
    shares = probabilities(np.exp(logs)[rater] * (everything[first] - everything[second]), nu)
    outcomes = Outcomes.of(
        np.tile(first, 3), np.tile(second, 3), np.repeat([1, -1, 0], 40), np.concatenate(shares), np.tile(rater, 3)
    )
    model = Model(outcomes, 6, prior, covariates, anchors=[2])
    gradient = by_differences(lambda point: model.log_density(point, theta), scores)
    np.testing.assert_allclose(model.score_gradient(scores, theta), gradient, atol=1e-7)
    core = model.core(scores, theta)
    hessian = by_differences(lambda point: model.score_gradient(point, theta), scores)
    np.testing.assert_allclose(np.linalg.inv(core.solve(np.eye(5))), -hessian, atol=1e-7)
    _, information = model.theta_gradient_and_information(scores, theta, core)
    border = by_differences(lambda point: model.score_gradient(scores, point), theta).T
    np.testing.assert_allclose(information.border, -border, atol=1e-7)


def test_gradient_of_what_all_items_share() -> None:
    """GWERN-21: with so much evidence that scores are all but certain, the marginal gradient is the plain one."""
    rng = np.random.default_rng(2)
    first, second = random_pairs(6, 60, rng)
    outcomes = Outcomes.of(first, second, rng.integers(-1, 2, 60), np.full(60, 1e10), rng.integers(0, 3, 60))
    model = Model(outcomes, 6, Prior())
    scores, theta = rng.normal(0, 1, 6), np.array([-0.3, 0.2, 0.4])
    gradient, information = model.theta_gradient_and_information(scores, theta, model.core(scores, theta))
    plain = by_differences(lambda point: model.log_density(scores, point), theta)
    np.testing.assert_allclose(gradient, plain, rtol=1e-5)
    assert np.all(np.linalg.eigvalsh(information.corner) > 0)


def test_agrees_with_choix() -> None:
    """GWERN-21: without ties the scores are those of choix: its penalty is alpha |s|^2, so alpha = 1 / (2 sigma^2)."""
    choix = pytest.importorskip("choix", reason="there is no choix; `pip install choix` runs it")
    rng = np.random.default_rng(3)
    first, second = random_pairs(30, 200, rng)
    sign = judged(rng.normal(0, 1, 30), (first, second), 0.0, rng)
    winner, loser = np.where(sign > 0, first, second), np.where(sign > 0, second, first)
    for sigma in (0.5, 1.0, 3.0):
        theirs = choix.opt_pairwise(30, list(zip(winner, loser)), alpha=1 / (2 * sigma**2), tol=1e-10)
        ours = fit(Outcomes.of(first, second, sign), 30, Prior(sigma))
        np.testing.assert_allclose(ours.scores, theirs, atol=1e-3)
        assert ours.nu == 0


def test_agrees_with_evalica() -> None:
    """GWERN-21: with next to no prior, on a connected graph, the scores are those of evalica, each centred."""
    evalica = pytest.importorskip("evalica", reason="there is no evalica; `pip install evalica` runs it")
    rng = np.random.default_rng(4)
    first, second = random_pairs(12, 400, rng)
    sign = judged(rng.normal(0, 0.7, 12), (first, second), 0.0, rng)
    winners = [evalica.Winner.X if won > 0 else evalica.Winner.Y for won in sign]
    names = [f"{index:02d}" for index in range(12)]
    result = evalica.bradley_terry(
        [names[i] for i in first], [names[i] for i in second], winners, tolerance=1e-12, limit=100_000
    )
    theirs = np.log(result.scores.loc[names].to_numpy())
    ours = fit(Outcomes.of(first, second, sign), 12, Prior(100.0)).scores
    np.testing.assert_allclose(ours - ours.mean(), theirs - theirs.mean(), atol=1e-3)


def test_two_items_by_hand() -> None:
    """GWERN-21: three wins to one under a wide prior give the odds 3 : 1, a difference of ln 3."""
    found = fit(Outcomes.of([0, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1]), 2, Prior(1000.0))
    assert found.scores[0] - found.scores[1] == pytest.approx(np.log(3), abs=1e-4)


def coverage(simulations: int, nu: float, seed: int) -> Floats:
    """[simulations] share of 30 items whose 95 % interval covers the truth, which is drawn from the prior."""
    rng = np.random.default_rng(seed)
    shares = []
    for _ in range(simulations):
        truth = rng.standard_normal(30)
        pairs = random_pairs(30, 150, rng)
        found = fit(Outcomes.of(*pairs, judged(truth, pairs, nu, rng)), 30)
        shares.append(np.mean(np.abs(found.scores - truth) < 1.959964 * found.deviations))
    return np.array(shares)


@pytest.mark.parametrize("nu", [0.0, 0.5])
def test_intervals_cover_the_truth(nu: float) -> None:
    """GWERN-21: 95 % intervals cover truths drawn from the prior 93 to 97 % of the time over 500 simulations."""
    assert 0.93 < coverage(500, nu, 6).mean() < 0.97


def test_expected_verdicts_give_back_the_truth() -> None:
    """GWERN-21: verdicts in just the shares that Davidson's model expects give back its scores and nu: ties raise no bias.

    As half wins the same verdicts pull the scores together.
    """
    truth = np.array([-1.5, -0.4, 0.1, 0.6, 1.2])
    outcomes = expected(truth, 0.8, 1e5)
    found = fit(outcomes, 5, Prior(10.0))
    np.testing.assert_allclose(found.scores, truth, atol=1e-3)
    assert found.nu == pytest.approx(0.8, abs=1e-3)
    halved = fit(outcomes, 5, Prior(10.0), davidson=False)
    assert np.ptp(halved.scores) < 0.85 * np.ptp(truth)


@pytest.mark.parametrize("nu", [0.0, 0.8])
def test_ties_raise_no_bias(nu: float) -> None:
    """GWERN-21: over simulations the mean error is 0 and the regression of truths on estimates has slope 1."""
    rng = np.random.default_rng(7)
    errors, slopes = [], []
    for _ in range(80):
        truth = rng.standard_normal(20)
        pairs = random_pairs(20, 120, rng)
        found = fit(Outcomes.of(*pairs, judged(truth, pairs, nu, rng)), 20)
        errors.append(np.mean(found.scores - truth))
        slopes.append(found.scores @ truth / (found.scores @ found.scores) - 1)
    for values in (np.array(errors), np.array(slopes)):
        assert abs(values.mean()) < 4 * values.std(ddof=1) / np.sqrt(len(values))


def test_items_without_comparisons_keep_the_prior() -> None:
    """GWERN-21, Q-19: an item never compared has the prior's mean and deviation, and each island is centred at it."""
    found = fit(Outcomes.of([0, 2], [1, 3], [1, 1]), 5, Prior(2.0))
    assert found.scores[4] == 0
    assert found.deviations[4] == pytest.approx(2.0)
    np.testing.assert_allclose(found.scores[[0, 1]], found.scores[[2, 3]])
    assert found.scores[0] == pytest.approx(-found.scores[1])
    nothing = fit(Outcomes.of([], [], []), 3)
    np.testing.assert_array_equal(nothing.scores, 0)
    np.testing.assert_allclose(nothing.deviations, 1)


def test_covariates_move_the_prior_mean() -> None:
    """GWERN-21: items that were never compared are ranked by what the covariate has shown to be worth."""
    rng = np.random.default_rng(8)
    covariate = rng.standard_normal((200, 1))
    truth = 1.2 * covariate[:, 0] + 0.5 * rng.standard_normal(200)
    pairs = random_pairs(150, 3000, rng)
    found = fit(Outcomes.of(*pairs, judged(truth, pairs, 0.0, rng)), 200, Prior(0.5, 2.0), covariate)
    assert abs(found.coefficients[0] - 1.2) < 4 * found.coefficient_deviations[0]
    np.testing.assert_allclose(found.scores[150:], found.coefficients[0] * covariate[150:, 0], atol=1e-9)
    expected_deviation = np.sqrt(0.5**2 + (found.coefficient_deviations[0] * covariate[150:, 0]) ** 2)
    np.testing.assert_allclose(found.deviations[150:], expected_deviation, rtol=1e-6)


def test_anchors_stay_at_zero() -> None:
    """GWERN-22, Q-19: an anchor is at 0 for certain; an item that it beats three to one is at -ln 3."""
    outcomes = Outcomes.of([0, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1])
    found = fit(outcomes, 3, Prior(1000.0), anchors=[0])
    assert found.scores[0] == 0
    assert found.deviations[0] == 0
    assert found.scores[1] == pytest.approx(-np.log(3), abs=1e-4)
    assert found.draws(5, np.random.default_rng(0)).shape == (5, 3)
    np.testing.assert_array_equal(found.draws(5, np.random.default_rng(0))[:, 0], 0)


def test_half_wins_are_doubled_records() -> None:
    """LMHP-4: a tie as half a win each is two records of half the weight, one won by each side."""
    tie = Outcomes.of([0, 0, 1], [1, 1, 2], [1, 0, 1])
    halves = Outcomes.of([0, 0, 0, 1], [1, 1, 1, 2], [1, 1, -1, 1], [1, 0.5, 0.5, 1])
    np.testing.assert_allclose(fit(tie, 3, davidson=False).scores, fit(halves, 3).scores, atol=1e-9)
    ties_alone = Outcomes.of([0] * 5, [1] * 5, [1, 1, -1, 0, 0])
    doubled = Outcomes.of([0] * 5, [1] * 5, [1, 1, -1, 0, 0], [1, 1, 1, 2, 2])
    loose = Prior(1000.0)
    once = fit(ties_alone, 2, loose, davidson=False).scores
    assert once[0] - once[1] == pytest.approx(np.log(3 / 2), abs=1e-4)  # 2 + 2/2 wins to 1 + 2/2
    twice = fit(doubled, 2, loose, davidson=False).scores
    assert twice[0] - twice[1] == pytest.approx(np.log(4 / 3), abs=1e-4)  # 2 + 2 to 1 + 2


def test_best_of_k_is_consistent_and_has_the_right_information() -> None:
    """GWERN-21: best-of-four verdicts in the shares that Luce's choice axiom expects give back the scores; among equals
    their information is that of the exact choice likelihood, (I - 11'/k) / k."""
    truth = np.array([0.9, 0.2, -0.3, -0.8])
    shares = np.exp(truth) / np.exp(truth).sum()
    names = ("0", "1", "2", "3")
    rows = [(*row, share) for best, share in enumerate(shares) for row in verdicts(Comparison(names, best))]
    outcomes = Outcomes.of(
        [int(row[0]) for row in rows],
        [int(row[1]) for row in rows],
        [row[2] for row in rows],
        [1e5 * row[3] * row[4] for row in rows],
    )
    np.testing.assert_allclose(fit(outcomes, 4, Prior(10.0)).scores, truth, atol=1e-3)
    equal = [(int(i), int(j), sign, w / 4) for best in range(4) for i, j, sign, w in verdicts(Comparison(names, best))]
    model = Model(Outcomes.of(*zip(*equal)), 4, Prior(1000.0))
    information = np.linalg.inv(model.core(np.zeros(4), np.zeros(0)).solve(np.eye(4)))
    np.testing.assert_allclose(information, (np.eye(4) - 1 / 4) / 4, atol=1e-5)


def test_the_weight_of_a_verdict_does_not_depend_on_how_it_is_said() -> None:
    """GWERN-21: ties of k items and full rankings carry the weights that the documentation says."""
    assert list(verdicts(Comparison(("a", "b"), "both_bad"))) == [("a", "b", 0, 1.0)]
    tie = list(verdicts(Comparison(("a", "b", "c"), "tie")))
    assert sum(row[3] for row in tie) == pytest.approx(sum(row[3] for row in verdicts(Comparison(("a", "b", "c"), 0))))
    ranked = list(verdicts(Comparison(("a", "b", "c"), 2, ranking=(2, 0, 1))))
    assert ranked == [("c", "a", 1, 2 / 3), ("c", "b", 1, 2 / 3), ("a", "b", 1, 1.0)]


def many_raters() -> tuple[Floats, Fit]:
    rng = np.random.default_rng(9)
    reliability = np.exp([-1.0, 0.0, 0.4, 0.6])
    truth, pairs, rater = rng.standard_normal(150), random_pairs(150, 3000, rng), rng.integers(0, 4, 3000)
    sign = judged(truth, pairs, 0.3, rng, reliability[rater])
    return reliability, fit(Outcomes.of(*pairs, sign, None, rater), 150)


def test_raters_reliability_is_found() -> None:
    """GWERN-21: discriminations of geometric mean 1, each within four standard errors of the truth.

    The joint maximum of scores and discriminations would run away: the least reliable rater to 0, the others up.
    """
    reliability, found = many_raters()
    assert np.log(found.discriminations).sum() == pytest.approx(0, abs=1e-9)
    errors = np.log(found.discriminations) - np.log(reliability)
    assert np.all(np.abs(errors) < 4 * found.log_discrimination_deviations)
    assert abs(np.log(found.nu / 0.3)) < 0.3


def test_a_single_rater_has_reliability_one() -> None:
    found = fit(Outcomes.of([0, 1, 0], [1, 2, 2], [1, 1, 0]), 3)
    np.testing.assert_array_equal(found.discriminations, [1])


def test_sparse_and_dense_agree() -> None:
    """GWERN-21: what large problems are solved with, conjugate gradients and an estimator of variances, against Cholesky."""
    rng = np.random.default_rng(10)
    n = 300
    first, second = random_pairs(n + 1, 1500, rng)  # the last one is an anchor
    weight, diagonal = rng.random(1500) / 4, np.full(n, 1.0)
    dense, sparse = (kind(first, second, weight, diagonal) for kind in (DensePrecision, SparsePrecision))
    right = rng.standard_normal((n, 3))
    np.testing.assert_allclose(sparse.solve(right), dense.solve(right), atol=1e-8)
    ratio = np.sqrt(sparse.variances() / dense.variances())
    assert np.sqrt(np.mean((ratio - 1) ** 2)) < 0.005
    assert np.abs(ratio - 1).max() < 0.03
    differences = sparse.difference_variances(first, second) / dense.difference_variances(first, second)
    assert abs(differences.mean() - 1) < 0.02
    matrix = np.linalg.inv(dense.solve(np.eye(n)))
    whitened = np.linalg.cholesky(matrix).T @ sparse.draws(VARIANCE_DRAWS, rng).T
    assert abs(whitened.var() - 1) < 4 * np.sqrt(2 / whitened.size)


def test_posterior_draws_have_the_posterior_moments() -> None:
    """GWERN-25: draws have the fitted means and deviations, the shared parameters' uncertainty included."""
    rng = np.random.default_rng(11)
    covariate = rng.standard_normal((25, 1))
    pairs = random_pairs(25, 150, rng)
    found = fit(Outcomes.of(*pairs, judged(covariate[:, 0], pairs, 0.5, rng)), 25, Prior(), covariate)
    draws = found.draws(20_000, rng)
    np.testing.assert_allclose(draws.mean(0), found.scores, atol=5 * found.deviations.max() / np.sqrt(20_000))
    np.testing.assert_allclose(draws.std(0), found.deviations, rtol=0.03)


def test_starting_elsewhere_changes_nothing() -> None:
    rng = np.random.default_rng(12)
    pairs = random_pairs(20, 100, rng)
    outcomes = Outcomes.of(*pairs, judged(np.zeros(20), pairs, 0.5, rng))
    found = fit(outcomes, 20)
    np.testing.assert_allclose(fit(outcomes, 20, start=rng.normal(0, 5, 20)).scores, found.scores, atol=1e-5)


def test_extreme_data_converge() -> None:
    """All ties; one item that always wins; weights from 0 to a million; a thousand raters' worth of one verdict each."""
    assert np.all(np.isfinite(fit(Outcomes.of([0] * 50, [1] * 50, [0] * 50), 2).scores))
    assert fit(Outcomes.of([0] * 5000, [1] * 5000, [1] * 5000), 2).scores[0] > 2
    heavy = fit(Outcomes.of([0, 1, 2], [1, 2, 0], [1, 1, 0], [0, 1e6, 1e-3]), 3)
    assert np.all(np.isfinite(heavy.deviations))
    rng = np.random.default_rng(13)
    pairs = random_pairs(10, 60, rng)
    each_once = fit(Outcomes.of(*pairs, rng.integers(-1, 2, 60), None, np.arange(60)), 10)
    assert np.all(np.isfinite(each_once.log_discrimination_deviations))


def test_contradictory_verdicts_converge() -> None:
    """GWERN-21: verdicts without any sense, of weights from 0.1 to 100, by many raters, under narrow and wide priors."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n, m, raters = int(rng.integers(2, 15)), int(rng.integers(1, 80)), int(rng.integers(1, 12))
        outcomes = Outcomes.of(
            *random_pairs(n, m, rng), rng.integers(-1, 2, m), 10 ** rng.uniform(-1, 2, m), rng.integers(0, raters, m)
        )
        prior = Prior(float(rng.choice([0.3, 1, 5])), 1.0, float(rng.choice([0.2, 0.5, 1])))
        found = fit(outcomes, n, prior, rng.standard_normal((n, 2)) if seed % 2 else None)
        assert np.all(np.isfinite(found.deviations))
