"""The search space of a sweep: dimensions, points, faults with their places, what is planned; nothing is run."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from rayrlhf.config_loading import load_config
from rayrlhf.errors import ConfigError
from rayrlhf.tune.capacity import fits, logical_cpus, side_by_side
from rayrlhf.tune.listing import print_trials
from rayrlhf.tune.plan import dimensions, plan, points
from rayrlhf.tune.space import Listed, Range, is_dimension, parse_values, shown_values
from rayrlhf.tune.sweep_config import RandomSearchConfig, load_sweep, spaces

FILE = """\
name: mine
base: alliteration
overrides:
  - rollout.workers=1
  - iterations=60
space:
  algorithm.kl.coef: grid:0,0.1
  optimizer.lr,algorithm.kl_loss.coef: loguniform:1e-4..1e-2
seeds: 2
search:
  kind: random
  samples: 3
"""


@pytest.fixture
def space_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("grid:0,0.01,0.1,1", Listed("grid", (0, 0.01, 0.1, 1))),
        ("grid: 1e-5, 3", Listed("grid", (1e-5, 3))),
        ("choice:alliteration,starts_with_a", Listed("choice", ("alliteration", "starts_with_a"))),
        ("choice:null,true,'1'", Listed("choice", (None, True, "1"))),
        ("choice:[a, b],{name: c, weight: 2}", Listed("choice", (["a", "b"], {"name": "c", "weight": 2}))),
        ("uniform:-1..2.5", Range("uniform", -1, 2.5)),
        ("loguniform:1e-5..1e-3", Range("loguniform", 1e-5, 1e-3)),
        ("int:1..8", Range("int", 1, 8)),
    ],
)
def test_dimensions_are_read(text: str, values: Listed | Range) -> None:
    assert parse_values(text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid:", "takes values between commas"),
        ("grid:0,1,", "takes values between commas"),
        ("grid:0,[1", "takes values between commas"),
        ("grid:0.1,0.10", "0.1 stands here twice"),
        ("grid:1,.inf", "no finite number"),
        ("uniform:1", "two numbers with two dots between"),
        ("uniform:2..1", "must rise"),
        ("uniform:0..inf", "finite"),
        ("loguniform:0..1", "must be above 0"),
        ("int:0.5..2", "two whole numbers"),
        ("lognormal:1..2", "must be one of grid:"),
    ],
)
def test_what_is_no_dimension_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        parse_values(text)


def test_a_reward_of_the_users_own_is_no_dimension() -> None:
    """`module:Name` has a colon, too; a near miss of a dimension is a fault and not a strange value."""
    assert not is_dimension("my_rewards:MyReward")
    assert not is_dimension("Once upon a time: a tale, told twice")
    assert is_dimension("loguniform:1e-5..1e-3")
    with pytest.raises(ConfigError, match=r"did you mean loguniform:1..2\?"):
        is_dimension("log_uniform:1..2")


def test_draws_stay_in_their_range_and_are_spread_over_it() -> None:
    """A log range has as many draws in each decade: 1000 of each, give or take 4 standard deviations of 25.8."""
    random = load_dimension("optimizer.lr=loguniform:1e-5..1e-2").generator(0)
    drawn = [Range("loguniform", 1e-5, 1e-2).draw(random) for _ in range(3000)]
    decades = Counter(math.floor(math.log10(value)) for value in drawn if value < 1e-2)
    assert min(drawn) >= 1e-5
    assert max(drawn) <= 1e-2
    assert all(abs(count - 1000) < 4 * math.sqrt(3000 * 1 / 3 * 2 / 3) for count in decades.values())
    assert all(float(f"{value:.4g}") == value for value in drawn)  # four digits: what is shown is what is run
    whole = Counter(Range("int", 1, 3).draw(random) for _ in range(300))
    assert set(whole) == {1, 2, 3}


def load_dimension(word: str):  # type: ignore[no-untyped-def]
    return dimensions(load_sweep("alliteration", [word, "sweep.search.kind=random"]))[0]


def test_a_draw_depends_on_the_seed_and_on_no_other_dimension() -> None:
    words = ["optimizer.lr=loguniform:1e-5..1e-3", "sweep.search.kind=random"]
    alone = dimensions(load_sweep("alliteration", words))
    beside = dimensions(load_sweep("alliteration", ["algorithm.kl.coef=uniform:0..1", *words]))
    rates = [point["optimizer.lr"] for point in points(alone, RandomSearchConfig(samples=4))]
    assert [point["optimizer.lr"] for point in points(beside, RandomSearchConfig(samples=4))] == rates
    assert [point["optimizer.lr"] for point in points(alone, RandomSearchConfig(samples=4, seed=1))] != rates


def test_a_file_and_the_command_line_say_the_same(space_file: Path) -> None:
    words = ["rollout.workers=1", "iterations=60", "algorithm.kl.coef=grid:0,0.1", "sweep.search.kind=random"]
    words += ["optimizer.lr,algorithm.kl_loss.coef=loguniform:1e-4..1e-2", "sweep.seeds=2", "sweep.search.samples=3"]
    from_words = load_sweep("alliteration", [*words, "sweep.name=mine"])
    assert load_sweep(str(space_file)).config == from_words.config


def test_points_with_all_seeds(space_file: Path, tmp_path: Path) -> None:
    """Two grid values times three draws times two seeds; keys of one dimension take the same value."""
    trials = plan(load_sweep(str(space_file)), tmp_path / "trials")
    assert [trial.name for trial in trials[:4]] == ["000-seed0", "000-seed1", "001-seed0", "001-seed1"]
    assert len(trials) == 2 * 3 * 2
    assert Counter(trial.parameters["algorithm.kl.coef"] for trial in trials) == {0: 6, 0.1: 6}
    for trial in trials:
        assert trial.parameters["optimizer.lr"] == trial.parameters["algorithm.kl_loss.coef"]
        assert trial.config.optimizer.lr == trial.parameters["optimizer.lr"]
        assert trial.config.algorithm.kl_loss is not None
        assert trial.config.algorithm.kl_loss.coef == trial.parameters["optimizer.lr"]
        assert (trial.config.rollout.workers, trial.config.iterations, trial.config.seed) == (1, 60, trial.seed)
        assert trial.config.name == trial.name
    assert trials[0].parameters == trials[1].parameters  # paired seeds


def test_a_word_takes_the_place_of_the_files_dimension(space_file: Path, tmp_path: Path) -> None:
    request = load_sweep(str(space_file), ["algorithm.kl.coef=0.4", "sweep.seeds=1", "sweep.search.samples=1"])
    assert list(request.config.space) == ["optimizer.lr,algorithm.kl_loss.coef"]
    assert plan(request, tmp_path)[0].config.algorithm.kl.coef == 0.4
    with pytest.raises(ConfigError, match="is one dimension of the sweep: give all of its keys"):
        load_sweep(str(space_file), ["optimizer.lr=1e-3"])


def test_all_faults_of_the_trials_come_at_once_with_their_places(space_file: Path, tmp_path: Path) -> None:
    """X-7: file:line for what the file says, the word for what the command line says; each fault once."""
    space_file.write_text(FILE.replace("grid:0,0.1", "grid:0,-1,-2").replace("iterations=60", "iteratoins=60"))
    words = ["rollout.wrokers=3", "reward=choice:alliteration,7", "seed=3", "rollout.group_size=int:1..0"]
    with pytest.raises(ConfigError) as caught:
        plan(load_sweep("mine.yaml", words), tmp_path)
    assert sorted(str(caught.value).splitlines()) == sorted(
        [
            "mine.yaml:5: iteratoins: unknown key, did you mean iterations?",
            "mine.yaml:7: algorithm.kl.coef: must be at least 0, not -1",
            "mine.yaml:7: algorithm.kl.coef: must be at least 0, not -2",
            "override rollout.wrokers=3: unknown key, did you mean rollout.workers?",
            "override reward=choice:alliteration,7: reward: must be a reward's name or {name: ..., weight: ...}, not 7",
            "override seed=3: seed is the sweep's to set; use sweep.seeds and sweep.first_seed",
            "override rollout.group_size=int:1..0: int: must rise from a finite number to a higher one, not 1..0",
        ]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep.sedes=3"], r"override sweep.sedes=3: unknown key, did you mean seeds\?"),
        (["sweep.seeds=0"], "override sweep.seeds=0: must be greater than 0, not 0"),
        (["sweep.search.kind=gird"], r"override sweep.search.kind=gird: must be one of grid, random, optuna.*grid\?"),
        (["sweep.objective.max_kl=-1"], "must be greater than 0"),
        (["algorithm.kl.coef"], "write KEY=VALUE or KEY=DIMENSION"),
        ([], "there is nothing to sweep over"),
        (["optimizer.lr=loguniform:1e-5..1e-3"], "draw from it with sweep.search.kind=random"),
        (["optimizer.lr=grid:1,2", "algorithm.kl.coef,optimizer.lr=grid:1,2", "optimizer.lr=3"], "give all of its"),
    ],
)
def test_faults_of_the_sweep_itself(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(load_sweep("alliteration", words), tmp_path)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean alliteration_kl\?"):
        load_sweep("aliteration_kl")
    with pytest.raises(ConfigError, match="there is no such file"):
        load_sweep(str(tmp_path / "nothing.yaml"))


def test_what_optuna_may_propose_is_checked_before(tmp_path: Path) -> None:
    """Every listed value and both ends of every range, though no point is drawn yet."""
    words = ["sweep.search.kind=optuna", "algorithm.kl.coef=uniform:-1..1", "reward=choice:alliteration,7"]
    with pytest.raises(ConfigError) as caught:
        plan(load_sweep("alliteration", words), tmp_path)
    assert "must be at least 0, not -1" in str(caught.value)
    assert "not 7" in str(caught.value)


def test_the_shipped_search_spaces_are_those_of_the_spec() -> None:
    """ALLIT-8: 0, .01, .1, 1, 10, 100, then 20 to 90, of the mean KL; the other two at the scale of the default job."""
    assert {"alliteration_kl", "alliteration_kl_parity", "reinforce_or_rloo"} <= set(spaces())
    parity = plan(load_sweep("alliteration_kl_parity"), Path("trials"))
    asked = [0, 0.01, 0.1, 1, 10, 100, *range(20, 100, 10)]
    assert [trial.parameters["algorithm.kl.coef"] for trial in parity] == asked
    assert {trial.config.algorithm.kl.reduction for trial in parity} == {"mean"}
    assert {trial.config.rollout.episodes_per_iteration * trial.config.iterations for trial in parity} == {3600}
    kl = plan(load_sweep("alliteration_kl"), Path("trials"))
    assert Counter(trial.parameters["algorithm.kl.coef"] for trial in kl) == dict.fromkeys(
        [0, 0.01, 0.1, 0.4, 1, 10], 2
    )
    assert side_by_side([trial.config for trial in kl], cores=2) == 2
    either = plan(load_sweep("reinforce_or_rloo"), Path("trials"))
    assert Counter(trial.config.algorithm.name for trial in either) == {"reinforce": 5, "rloo": 5}
    assert len({trial.config.optimizer for trial in either}) == 1


def test_dry_run_lists_the_trials(space_file: Path) -> None:
    console = Console(record=True, width=200)
    print_trials(load_sweep(str(space_file)), console)
    shown = console.export_text()
    assert "12 trials" in shown
    assert "005-seed1" in shown
    assert not (space_file.parent / "runs").exists()


def test_a_value_that_looks_like_markup_is_listed_as_it_is(space_file: Path) -> None:
    console = Console(record=True, width=300)
    word = "environment.prompts.text=choice:'[INST] x [/INST]','[link=file:///etc]y'"
    print_trials(load_sweep(str(space_file), [word]), console)
    shown = console.export_text()
    assert "[INST] x [/INST]" in shown
    assert "[link=file:///etc]y" in shown


def test_parameters_in_few_words() -> None:
    assert shown_values([("algorithm.kl.coef", 0.10), ("reward", "a")]) == "coef=0.1 reward=a"
    assert shown_values([("a.coef", 1), ("b.coef", 2)]) == "a.coef=1 b.coef=2"


def test_how_many_trials_run_side_by_side() -> None:
    """Workers and ranks take turns: a trial computes on the larger of both. Logical CPUs hold all gangs at once."""
    small = load_config("alliteration", ["rollout.workers=1", "learner.ranks=1"])
    large = load_config("alliteration", ["rollout.workers=2", "learner.ranks=3"])
    assert [side_by_side([small], cores) for cores in (1, 2, 5)] == [1, 2, 5]
    assert [side_by_side([small, large], cores) for cores in (2, 3, 7)] == [1, 1, 2]
    assert logical_cpus([small], 2) == math.ceil(2 * (0.1 + 1 + 1)) + 1
    assert logical_cpus([small, large], 1) == math.ceil(0.1 + 3 + 2) + 1


@pytest.mark.parametrize(
    ("bundles", "nodes", "room"),
    [
        ([{"CPU": 0.1}, {"CPU": 1}, {"CPU": 1}], [{"CPU": 2}], False),
        ([{"CPU": 0.1}, {"CPU": 1}, {"CPU": 1}], [{"CPU": 2}, {"CPU": 1}], True),
        ([{"CPU": 2}, {"CPU": 2}], [{"CPU": 3}, {"CPU": 3}], True),
        ([{"CPU": 2}, {"CPU": 2}, {"CPU": 2}], [{"CPU": 3}, {"CPU": 3}], False),  # 6 CPUs in all, and yet no room
        ([{"CPU": 1, "GPU": 1}], [{"CPU": 8}], False),
        ([{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}], [{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], True),
    ],
)
def test_a_gang_fits_bundle_by_bundle(
    bundles: list[dict[str, float]], nodes: list[dict[str, float]], room: bool
) -> None:
    assert fits(bundles, nodes) is room


def test_planned_values_are_json(space_file: Path, tmp_path: Path) -> None:
    """trials.jsonl holds every parameter; a YAML date stays the text that it was."""
    request = load_sweep("alliteration", ["environment.prompts.text=choice:2020-01-01,x"])
    trials = plan(request, tmp_path)
    assert [json.loads(json.dumps(trial.parameters)) for trial in trials] == [trial.parameters for trial in trials]
    assert trials[0].config.environment.prompts.text == "2020-01-01"
