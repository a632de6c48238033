"""The report of a sweep: page, picture and tables, over made-up sweeps of every size (issue 4 part 4; SPEC ALLIT-8)."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from PIL import Image

from rayrlhf.tune.colour_scale import colour_scale
from rayrlhf.tune.results import read_sweep
from rayrlhf.tune.settings import Parameter, parameters_of
from rayrlhf.tune.sweep_figures import closer_look
from rayrlhf.tune.sweep_report import write_sweep_report
from tests.sweep_folders import TrialPlan, alarm, climb, write_sweep
from tests.test_report import HOSTILE, Page

COEF = "algorithm.kl.coef"
ESTIMATOR = "algorithm.kl_loss.estimator"


def reported(folder: Path) -> str:
    path = write_sweep_report(folder)
    assert path == folder / "report.html"
    return path.read_text()


@pytest.fixture(scope="module")
def alliteration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SPEC ALLIT-8 in little: six coefficients, two seeds, a collapse at 0, a crash, one trial under way."""
    ends = {
        0.0: (62, 800, 2),
        0.01: (40, 200, 4),
        0.1: (14, 30, 200),
        0.4: (9, 12, 200),
        1.0: (5, 4, 200),
        10.0: (3, 0.1, 200),
    }
    plans = [TrialPlan({COEF: coef}, seed, climb(*end)) for coef, end in ends.items() for seed in (0, 1)]
    plans[0] = TrialPlan({COEF: 0.0}, 0, climb(62, 800, 2), alarms=[alarm(2, "distinct_2"), alarm(3, "kl_spike")])
    plans[9] = TrialPlan({COEF: 1.0}, 1, climb(5, 4), status="crashed", error=f"RewardError: {HOSTILE}")
    plans[11] = TrialPlan({COEF: 10.0}, 1, None, status=None)
    folder = write_sweep(tmp_path_factory.mktemp("sweeps"), plans, text=f" {HOSTILE}" + " tall" * 2000)
    write_sweep_report(folder)
    return folder


def test_the_recommendation_comes_first_and_every_part_is_there(alliteration: Path) -> None:
    """Issue 4 part 4: recommendation and why, frontier, the source's table, curves, collapse, crashes."""
    html = (alliteration / "report.html").read_text()
    verdict = re.search(r'<p class="verdict">(.*?)</p>', html)
    assert verdict is not None
    assert "to the end of training" in verdict[1] or "highest mean reward" in verdict[1]
    assert html.index('class="verdict"') < html.index("6 values: 0, 0.01, 0.1, 0.4, 1, 10") < html.index("<figure>")
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == ["Reward against KL", "Every setting", "Curves", "Collapse", "Trials that failed"]
    assert "12 trials (10 done, 1 crashed, 1 unfinished), seeds 0, 1" in html
    rows = re.findall(r"<tr(?: class=\"chosen\")?><th>([\d.]+)<", html)
    assert rows == ["0", "0.01", "0.1", "0.4", "1", "10"]
    assert "<td>after 3 iterations</td>" in html  # diversity of the trials at 0
    assert "distinct_2 in iteration 2 (warn)" in html
    assert html.count("<details>") == 6 + 1  # each setting's seeds, and the config


def test_page_needs_nothing_from_outside_and_runs_nothing(alliteration: Path) -> None:
    """Texts of the model and errors of plugins are escaped; the only addresses are the pictures' own anchors."""
    html = (alliteration / "report.html").read_text()
    page = Page(html)
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "src", "xlink:href"))
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert html.count("&lt;script&gt;") >= 12
    assert len(html) < 400_000  # the long texts are cut


def test_figures_do_not_take_shapes_of_each_other(tmp_path: Path) -> None:
    """Figures on a page share shapes by id, the first of which a browser draws: equal ids must mean equal shapes."""
    plans = [TrialPlan({COEF: c, "optimizer.lr": lr}, 0, climb(9, 12)) for c in (0.0, 1.0) for lr in (1e-4, 1e-3)]
    html = reported(write_sweep(tmp_path, plans))
    shapes = {(found[1], found[2]) for found in re.finditer(r'<path id="(\w+)" d="[^"]*" style="([^"]*)"', html)}
    assert {"var(--scale0-1)", "var(--scale1-1)"} <= set(re.findall(r"var\(--scale\d-\d\)", str(shapes)))
    assert len({name for name, _ in shapes}) == len(shapes)
    for scale, rank in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert html.count(f"--scale{scale}-{rank}: #") == 2  # on a light and on a dark page
    assert "#010" not in html  # every colour that was drawn with has been replaced


def test_tables_hold_every_checkpoint_and_every_setting(alliteration: Path) -> None:
    with open(alliteration / "points.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11 * 3
    first = rows[0]
    assert (first["trial"], first[COEF], first["seed"], first["iteration"]) == ("trial-000", "0.0", "0", "2")
    assert float(first["reward"]) == pytest.approx(3 + 59 / 3)
    assert float(first["kl"]) == pytest.approx(800 / 3)
    assert {row["on_frontier"] for row in rows} == {"0", "1"}
    with open(alliteration / "table.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row[COEF] for row in table] == ["0.0", "0.01", "0.1", "0.4", "1.0", "10.0"]
    assert [row["seeds_counted"] for row in table] == ["2", "2", "2", "2", "1", "1"]
    assert float(table[3]["reward"]) == pytest.approx(9)
    assert float(table[3]["kl"]) == pytest.approx(12)
    assert "<script>" in table[3]["text_2"]  # as it was written: this is no HTML


def test_picture_is_closer_where_a_collapse_presses_the_rest_into_a_corner(alliteration: Path, tmp_path: Path) -> None:
    assert closer_look(read_sweep(alliteration)) is not None
    with Image.open(alliteration / "frontier.png") as picture:
        assert picture.size == (2100, 870)
    calm = write_sweep(tmp_path, [TrialPlan({COEF: 0.4}, 0, climb(9, 12))])
    write_sweep_report(calm)
    assert closer_look(read_sweep(calm)) is None
    with Image.open(calm / "frontier.png") as picture:
        assert picture.size == (1575, 870)


def test_sweeps_without_anything_yet(tmp_path: Path) -> None:
    """No trial drawn, trials drawn but not begun, a single one without parameters: a page each."""
    html = reported(write_sweep(tmp_path, [], name="empty"))
    assert "Nothing to recommend yet" in html
    assert "none drawn yet" in html
    html = reported(write_sweep(tmp_path, [TrialPlan({COEF: c}, status=None) for c in (0.0, 1.0)], name="drawn"))
    assert "2 trials (2 unfinished)" in html
    html = reported(write_sweep(tmp_path, [TrialPlan({}, 0, climb(9, 12))], name="bare"))
    assert "trial-000: the only one that keeps" in html


def test_games_have_no_diversity_to_show(tmp_path: Path) -> None:
    html = reported(write_sweep(tmp_path, [TrialPlan({COEF: 0.4}, 0, climb(9, 12))], games=True))
    assert "Diversity by iteration" not in html
    assert "hollow" not in html


def test_a_category_is_compared_at_equal_reward(tmp_path: Path) -> None:
    """Issue 4: forward and reverse KL at equal reward, in the report; each parameter has its picture."""
    ends = {"full": (9, 12), "forward": (15, 48)}
    plans = [TrialPlan({ESTIMATOR: e, COEF: c}, 0, climb(*end)) for e, end in ends.items() for c in (0.1, 1.0)]
    html = reported(write_sweep(tmp_path, plans))
    assert f"<h2>{ESTIMATOR} at equal reward</h2>" in html
    assert "<th>full: KL</th><th>diversity</th><th>forward: KL</th><th>diversity</th>" in html
    assert re.search(r"<tr><td>6</td><td>6\.0 <small>± 0\.0</small><small>2 trials</small></td><td>1\.0\d", html)
    assert html.count("<figcaption>By ") == 2


def test_many_values_share_colours_by_ranges() -> None:
    """Up to eight values have their own colour; twenty numbers fall into six ranges, 0 in the first."""
    few = colour_scale(Parameter((COEF,), COEF, (0.0, 0.01, 0.1, 0.4, 1.0, 10.0), True))
    assert few.labels == ("0", "0.01", "0.1", "0.4", "1", "10")
    assert len(set(few.light)) == len(set(few.dark)) == 6
    many = colour_scale(Parameter((COEF,), COEF, (0.0, *(10.0**power for power in range(-9, 10))), True))
    assert len(many.labels) == 6
    assert many.labels[0].startswith("0 to ")
    assert [many.rank(value) for value in many.parameter.values] == sorted(many.ranks)


def test_sixty_trials_of_two_parameters(tmp_path: Path) -> None:
    plans = [
        TrialPlan({COEF: 1.3**n, "optimizer.lr": 1e-5 * (n % 5 + 1)}, s, climb(9 + n % 7, 12 + n), iterations=2)
        for n in range(12)
        for s in range(5)
    ]
    folder = write_sweep(tmp_path, plans, episodes=4, base_episodes=8, every=1)
    html = reported(folder)
    assert html.count("<figcaption>By ") == 2
    assert html.count('class="seeds"') == 12
    assert [parameter.name for parameter in parameters_of(read_sweep(folder))] == ["kl.coef", "optimizer.lr"]
    assert len(html) < 1_000_000
