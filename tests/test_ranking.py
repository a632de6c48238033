"""From records to scores and files: weights, windows, covariates, cycles, agreement, the command line."""

from __future__ import annotations

import csv
import io
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kendalltau
from typer.testing import CliRunner

from rayrlhf.cli import app
from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.project import open_store
from rayrlhf.preferences.ranking import Ranking, fit_project
from rayrlhf.preferences.ranking_config import RankingConfig
from rayrlhf.preferences.ranking_diagnostics import contradictions, disagreement, intransitivity, rater_agreement
from rayrlhf.preferences.ranking_plot import ranking_png
from rayrlhf.preferences.ranking_summary import generators, summarise
from rayrlhf.preferences.records import Best, Comparison, Item

ITEMS = [Item("p", f"text {index}", generator=("base", "tuned")[index % 2], iteration=index) for index in range(6)]
ID = [item.id for item in ITEMS]


def verdict(first: int, second: int, best: Best = 0, rater: str = "ann", created: float = 0.0) -> Comparison:
    return Comparison((ID[first], ID[second]), best, rater=rater, created=created)


def fitted(comparisons: list[Comparison], **settings: object) -> Ranking:
    return fit_project(ITEMS, comparisons, RankingConfig.model_validate(settings))


def test_scores_follow_the_verdicts() -> None:
    ranking = fitted([verdict(0, 1), verdict(0, 1), verdict(2, 1, 1), verdict(3, 4, "tie"), verdict(3, 4, "both_bad")])
    assert ranking.ids == tuple(ID)
    assert ranking.mean[0] > ranking.mean[1] > ranking.mean[2]
    assert ranking.mean[3] == pytest.approx(ranking.mean[4])
    assert (ranking.mean[5], ranking.deviation[5]) == (0, pytest.approx(1))
    np.testing.assert_array_equal(ranking.wins, [2, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(ranking.losses, [0, 2, 1, 0, 0, 0])
    np.testing.assert_array_equal(ranking.ties, [0, 0, 0, 2, 2, 0])


def test_the_order_of_sides_and_of_records_does_not_matter() -> None:
    comparisons = [verdict(0, 1), verdict(1, 2, 1), verdict(2, 0, "tie")]
    turned = [verdict(0, 2, "tie"), verdict(2, 1, 0), verdict(1, 0, 1)]
    np.testing.assert_allclose(fitted(comparisons).mean, fitted(turned).mean, atol=1e-9)


def test_scores_are_standardised_on_request() -> None:
    """GWERN-22: mean 0 and standard deviation 1; with anchors these stay at 0, and the others' deviation is 1."""
    comparisons = [verdict(0, 1), verdict(1, 2), verdict(2, 3), verdict(4, 5)]
    plain, standard = fitted(comparisons), fitted(comparisons, standardise=True)
    assert standard.mean.mean() == pytest.approx(0)
    assert standard.mean.std() == pytest.approx(1)
    np.testing.assert_allclose(standard.deviation * plain.mean.std(), plain.deviation)
    np.testing.assert_allclose(np.argsort(standard.mean), np.argsort(plain.mean))
    draws = standard.draws(4000, np.random.default_rng(0))
    np.testing.assert_allclose(draws.std(0), standard.deviation, rtol=0.06)
    anchored = fitted(comparisons, standardise=True, anchors=["tuned"])
    np.testing.assert_array_equal(anchored.mean[1::2], 0)
    assert anchored.mean[::2].std() == pytest.approx(1)


def test_anchors_keep_fits_comparable() -> None:
    """GWERN-22, Q-19: where all items of a later round beat the anchor, their scores say so; without it they are centred."""
    later = [verdict(winner, 0) for winner in range(1, 6) for _ in range(10)]
    anchored = fitted(later, anchors=[ID[0]], prior_deviation=3.0)
    assert anchored.mean[0] == 0
    assert np.all(anchored.mean[1:] > 1.5)
    assert fitted(later, prior_deviation=3.0).mean.mean() == pytest.approx(0, abs=1e-6)


def test_the_window_keeps_the_newest() -> None:
    """GWERN-14: only the last N comparisons count, by the time they were made, whatever their order in the store."""
    old = [verdict(0, 1, 0, created=float(time)) for time in range(50)]
    new = [verdict(0, 1, 1, created=100.0 + time) for time in range(10)]
    windowed = fitted([*new, *old], window=10)
    assert len(windowed.comparisons) == 10
    np.testing.assert_allclose(windowed.mean, fitted(new).mean)


def test_old_comparisons_count_less() -> None:
    """GWERN-14: with a half-life of one comparison, the newest of three counts 1, those before it 1/2 and 1/4."""
    three = [verdict(0, 1, best, created=float(time)) for time, best in enumerate([0, 0, 1])]
    faded = fitted(three, half_life=1.0)
    weighted = [
        Comparison((ID[0], ID[1]), 0, rater="ann", weight=0.75),
        Comparison((ID[0], ID[1]), 1, rater="ann", weight=1.0),
    ]
    np.testing.assert_allclose(faded.mean, fitted(weighted).mean, atol=1e-9)
    assert faded.mean[1] > faded.mean[0]


def test_tie_weight_is_the_sources_parity() -> None:
    """LMHP-4: half wins of tie weight 2 are the source's two records, one won by each side."""
    tied = fitted([verdict(0, 1), verdict(0, 1, "tie")], ties="half_wins", tie_weight=2.0)
    doubled = fitted([verdict(0, 1), verdict(0, 1, 0), verdict(0, 1, 1)])
    np.testing.assert_allclose(tied.mean, doubled.mean, atol=1e-9)


def test_covariates_are_standardised_and_missing_ones_are_average() -> None:
    """GWERN-21: the iteration moves the prior mean; an item without one stands at the average."""
    items = [*ITEMS, Item("p", "imported")]
    upward = [verdict(later, earlier) for earlier, later in combinations(range(5), 2) for _ in range(5)]
    ranking = fit_project(items, upward, RankingConfig(covariates=("iteration",), prior_deviation=0.5))
    assert ranking.mean[5] > 0.8  # never compared
    assert ranking.mean[6] == pytest.approx(0)
    assert ranking.deviation[6] == pytest.approx(0.5)
    scored = [Item("p", f"scored {k}", extra={"critic": k / 2}) for k in range(3)]
    assert len(fit_project(scored, [], RankingConfig(covariates=("critic",))).fit.coefficients) == 1


@pytest.mark.parametrize(
    ("items", "comparisons", "settings", "message"),
    [
        (ITEMS, [Comparison((ID[0], "missing"), 0)], {}, "missing"),
        ([], [], {}, "no items"),
        ([ITEMS[0], ITEMS[0]], [], {}, "more than once"),
        (ITEMS, [], {"anchors": ["nobody"]}, "nobody; generators: base, tuned"),
        (ITEMS, [], {"anchors": ["base", "tuned"]}, "every item"),
        (ITEMS, [], {"covariates": ["critic"]}, "no item has critic"),
        ([Item("p", "x", extra={"critic": "high"})], [], {"covariates": ["critic"]}, "critic = 'high'"),
        (ITEMS, [Comparison((ID[0], ID[1]), 0, weight=-1.0)], {}, "weight -1"),
    ],
)
def test_bad_input_is_named(
    items: list[Item], comparisons: list[Comparison], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(PreferenceError, match=message):
        fit_project(items, comparisons, RankingConfig.model_validate(settings))


def test_cycles_by_hand() -> None:
    """GWERN-24: 0 > 1 > 2 > 0 is a cycle; 0 > 1 > 3 and 0 > 3 is none; 2 and 3 were never compared."""
    found = intransitivity([verdict(0, 1), verdict(1, 2), verdict(2, 0), verdict(1, 3), verdict(0, 3)])
    assert (found.triples, found.cyclic, found.share, found.consistency) == (2, 1, 0.5, None)


def test_majorities_and_ties_decide_what_is_compared() -> None:
    """GWERN-24: a pair won twice and lost once is won; one won once and lost once is of no triple."""
    pair = [verdict(0, 1, 0), verdict(1, 0, 1), verdict(0, 1, 1)]
    others = [verdict(1, 2), verdict(2, 0)]
    assert intransitivity([*pair, *others]).cyclic == 1
    assert intransitivity([*pair, verdict(0, 1, 1), *others]).triples == 0


@pytest.mark.parametrize("n", [5, 6])
def test_cycles_against_brute_force(n: int) -> None:
    """GWERN-24: Kendall and Babington Smith's count, from the squared numbers of wins, and zeta by their formula."""
    rng = np.random.default_rng(n)
    for _ in range(20):
        wins = np.zeros(n, int)
        comparisons = []
        for first, second in combinations(range(n), 2):
            best = int(rng.integers(2))
            wins[(first, second)[best]] += 1
            comparisons.append(verdict(first, second, best))
        cyclic = n * (n - 1) * (2 * n - 1) / 12 - (wins**2).sum() / 2
        found = intransitivity(comparisons)
        assert (found.triples, found.cyclic) == (n * (n - 1) * (n - 2) // 6, cyclic)
        assert found.consistency == pytest.approx(1 - cyclic / {5: 5, 6: 8}[n])


def test_verdicts_against_the_scores() -> None:
    """GWERN-24, GWERN-25 c: the pair judged twice against the scores comes before the one with the greater margin."""
    scores = dict(zip(ID, [0.0, 1.0, 2.0, 5.0, 6.0, 7.0], strict=True))
    found = contradictions([verdict(0, 1), verdict(0, 1), verdict(2, 3), verdict(4, 3), verdict(5, 4)], scores)
    assert [(pair.preferred, pair.other) for pair in found] == [(ID[0], ID[1]), (ID[2], ID[3])]
    assert [(pair.majority, pair.margin) for pair in found] == [(2, 1), (1, 3)]


def test_disagreement_of_a_reward_model_with_the_scores() -> None:
    """GWERN-24: the share of pairs that two scorings order differently is (1 - Kendall's tau) / 2."""
    rng = np.random.default_rng(0)
    latent, model = rng.standard_normal((2, 40))
    found = disagreement(latent, model)
    assert found.value == pytest.approx((1 - kendalltau(latent, model).statistic) / 2)
    assert disagreement(latent, latent).value == 0
    assert disagreement(latent, -latent).value == 1
    with pytest.raises(ValueError, match="no pair"):
        disagreement(latent, np.zeros(40))


def test_agreement_between_raters() -> None:
    judged = [verdict(0, 1, 0, "ann"), verdict(1, 0, 1, "bob"), verdict(0, 1, 1, "cat"), verdict(0, 1, 0, "ann")]
    pairs, share = rater_agreement([*judged, verdict(2, 3, 0, "ann"), verdict(2, 3, "tie", "bob")])
    assert pairs == 5  # ann-bob, ann-cat, bob-cat, bob-ann, cat-ann; ties and one's own repeats are no such pairs
    assert share is not None
    assert share.value == pytest.approx(2 / 5)


def test_generators_are_compared_by_their_means() -> None:
    comparisons = [verdict(odd, even) for odd in (1, 3, 5) for even in (0, 2, 4) for _ in range(8)]
    found = generators(ITEMS, fitted(comparisons))
    assert list(found) == ["tuned", "base"]
    assert found["tuned"]["items"] == 3
    assert found["tuned"]["low"] > found["base"]["high"]


def test_the_summary_is_json_whatever_there_is() -> None:
    for comparisons in ([], [verdict(0, 1)]):
        json.dumps(summarise(ITEMS, fitted(comparisons)), allow_nan=False)


def project_of(folder: Path, items: list[Item], comparisons: list[Comparison]) -> Path:
    with open_store(folder, create=True) as store:
        store.add_items(items)
        store.add(*comparisons)
    return folder


def test_the_command_prints_and_writes_the_ranking(tmp_path: Path) -> None:
    """GWERN-24, issue part 4: the table, and ranking.csv, ranking.json, ranking.png in the project's folder."""
    first = verdict(0, 1)
    again = Comparison((ID[1], ID[0]), 1, rater="ann", repeats=first.id)
    odd = Item("", 'a \ud800 [red]$x_1$[/red]\x1b[31m,\n"quoted"', generator="[bold]odd[/bold]")
    comparisons = [first, again, verdict(0, 1, 0, "bob"), verdict(1, 2), verdict(2, 0), verdict(3, 4, "tie")]
    project = project_of(tmp_path / "p", [*ITEMS, odd], comparisons)
    result = CliRunner().invoke(app, ["rank", str(project), "--rows", "7"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "intransitive: 1 of 1 compared triples (100.0%" in result.output
    assert "raters agree with themselves on 100%" in result.output
    assert "raters agree with one another on 100%" in result.output
    assert "2 of 7 items were never compared" in result.output
    assert "\x1b[31m" not in result.output
    with open(project / "ranking" / "ranking.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == [str(place) for place in range(1, 8)]
    assert sorted(row["id"] for row in rows) == sorted([*ID, odd.id])
    assert float(rows[0]["low"]) < float(rows[0]["score"]) < float(rows[0]["high"])
    figures = json.loads((project / "ranking" / "ranking.json").read_text())
    assert figures["intransitivity"] == {"triples": 1, "cyclic": 1, "consistency": None, "share": 1.0}
    assert set(figures["raters"]) == {"ann", "bob"}
    with Image.open(project / "ranking" / "ranking.png") as picture:
        assert picture.width == 1200


def test_the_command_without_a_project_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["rank", str(tmp_path / "nothing")])
    assert isinstance(result.exception, PreferenceError)
    assert "no project" in str(result.exception)


@pytest.mark.parametrize("n", [1, 40, 2500])
def test_any_number_of_items_and_generators_can_be_drawn(n: int) -> None:
    items = [Item("p", str(index), generator=f"g{index % 9}" if index % 10 else "") for index in range(n)]
    with Image.open(io.BytesIO(ranking_png(items, fit_project(items, [], RankingConfig())))) as picture:
        assert picture.format == "PNG"
