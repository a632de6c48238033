"""What a sweep keeps on the disk, without Ray: its folder and markers, and Optuna's points taken up again."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path

import pytest
from rich.console import Console

from rayrlhf.config_loading import load_config
from rayrlhf.errors import ConfigError, RunFolderError
from rayrlhf.tune.folder import Ending, SweepFolder, is_over, read_ending, write_ending
from rayrlhf.tune.live_table import LiveTable, last_record
from rayrlhf.tune.optuna_search import OptunaPoints
from rayrlhf.tune.pbt import check_checkpoints_last, last_values, scheduler
from rayrlhf.tune.plan import TrialMaker, dimensions, plan
from rayrlhf.tune.sweep_config import OptunaSearchConfig, PBTConfig, SweepRequest, load_sweep
from tests.sweep_folders import TrialPlan, climb, write_run


def request(folder: Path, *words: str) -> SweepRequest:
    return load_sweep(
        "alliteration", ["algorithm.kl.coef=grid:0,1", f"sweep.storage_path={folder}", "sweep.name=s", *words]
    )


def create(asked: SweepRequest) -> SweepFolder:
    return SweepFolder.create(asked.config, plan(asked, Path(asked.config.storage_path) / "s/trials"))


def test_a_sweep_is_read_back_as_it_was_planned(tmp_path: Path) -> None:
    """X-7: the resolved sweep and each trial's whole config are kept; a resumed sweep needs neither recipe nor words."""
    asked = request(tmp_path, "sweep.seeds=2", "sweep.scheduler.kind=asha")
    with create(asked) as folder:
        assert folder.read_config() == asked.config
        assert folder.read_trials() == plan(asked, tmp_path / "s/trials")
    rows = [json.loads(line) for line in (tmp_path / "s/trials.jsonl").read_text().splitlines()]
    assert rows[1] == {"name": "000-seed1", "parameters": {"algorithm.kl.coef": 0}, "seed": 1}
    assert load_config(str(folder.config("001-seed0"))).algorithm.kl.coef == 1


def test_resuming_needs_the_same_sweep(tmp_path: Path) -> None:
    create(request(tmp_path)).close()
    with SweepFolder.resume(request(tmp_path, "sweep.objective.max_kl=5", "sweep.max_concurrent=1").config) as folder:
        assert folder.read_config().max_concurrent == 1
    with pytest.raises(RunFolderError, match=r'overrides: \[\] then, \["iterations=9"\] now'):
        SweepFolder.resume(request(tmp_path, "iterations=9").config)
    with pytest.raises(RunFolderError, match="continue that sweep with --resume"):
        create(request(tmp_path))
    with pytest.raises(RunFolderError, match="there is no sweep 'other'"):
        SweepFolder.resume(request(tmp_path, "sweep.name=other").config)


def test_two_processes_never_run_one_sweep(tmp_path: Path) -> None:
    with create(request(tmp_path)):
        holder = f"is run by process {os.getpid()} on "
        child = os.fork()
        if not child:
            try:
                SweepFolder.resume(request(tmp_path).config)
            except RunFolderError as error:
                os._exit(0 if holder in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    SweepFolder.resume(request(tmp_path).config).close()


def test_only_a_crashed_trial_is_tried_again(tmp_path: Path) -> None:
    """The completion marker: done, stopped and diverged are kept for good; a torn file is named, never passed over."""
    assert read_ending(tmp_path / "none") is None
    for status, over in (("done", True), ("stopped", True), ("diverged", True), ("crashed", False)):
        write_ending(tmp_path / status, Ending(status, None, 1.5))  # type: ignore[arg-type]
        assert is_over(tmp_path / status) is over
        assert read_ending(tmp_path / status) == Ending(status, None, 1.5)  # type: ignore[arg-type]
    (tmp_path / "done/trial.json").write_text('{"status": "do')
    with pytest.raises(RunFolderError, match=r"trial.json is damaged"):
        is_over(tmp_path / "done")


def optuna_points(folder: SweepFolder, asked: SweepRequest) -> OptunaPoints:
    search = asked.config.search
    assert isinstance(search, OptunaSearchConfig)
    return OptunaPoints(dimensions(asked), search, TrialMaker(asked, folder.trials), folder)


def test_optuna_is_told_the_mean_over_seeds(tmp_path: Path) -> None:
    """lr in 1e-5..1e-1, best at 1e-3; the second seed scores 1 more. Each trial is planned before it is handed out."""
    words = ["optimizer.lr=loguniform:1e-5..1e-1", "algorithm.kl.coef=0", "sweep.seeds=2", "sweep.search.kind=optuna"]
    asked = request(tmp_path, *words, "sweep.search.samples=5")
    far = []
    with SweepFolder.create(asked.config, []) as folder:
        points = optuna_points(folder, asked)
        for number in range(10):
            choice = points.suggest(str(number))
            assert isinstance(choice, dict)
            assert choice["trial"]["name"] == f"{number // 2:03d}-seed{number % 2}"
            assert folder.config(choice["trial"]["name"]).is_file()
            far.append(abs(math.log10(choice["trial"]["values"]["optimizer.lr"]) + 3))
            points.on_trial_complete(str(number), {"objective": -far[-1] + number % 2})
        assert points.suggest("10") == "FINISHED"
        rates = [trial.config.optimizer.lr for trial in folder.read_trials()]
    assert rates[::2] == rates[1::2]
    assert [abs(math.log10(rate) + 3) for rate in rates] == far
    assert points._study.best_trial.number == far[::2].index(min(far))
    assert [trial.value for trial in points._study.trials] == pytest.approx([0.5 - away for away in far[::2]])


def test_optuna_goes_on_from_the_trials_that_ended(tmp_path: Path) -> None:
    """What was under way comes first, under its own name; what has ended is told again and not handed out."""
    words = ["algorithm.kl.coef=choice:0,0.4", "sweep.search.kind=optuna", "sweep.search.samples=3"]
    asked = request(tmp_path, *words)
    with SweepFolder.create(asked.config, []) as folder:
        before = optuna_points(folder, asked)
        first, second = before.suggest("a"), before.suggest("b")
        assert isinstance(first, dict)
        run = folder.run_folder("000-seed0")
        write_run(run, TrialPlan({}, course=climb(9, 10)), 2, 40, 40, None, False)
        write_ending(run, Ending("done", None, 1))
        again = optuna_points(folder, asked)
        assert again.suggest("c") == second
        third = again.suggest("d")
        assert isinstance(third, dict)
        assert third["trial"]["name"] == "002-seed0"
        assert again.suggest("e") == "FINISHED"
        assert again._study.trials[0].value == pytest.approx(9, abs=0.5)


def test_a_population_needs_checkpoints_that_last() -> None:
    """A donor is at most `every` iterations past the checkpoint that another goes on from."""
    run = load_config("alliteration", ["checkpoint.every=10", "checkpoint.keep_trainer_state=2"])
    check_checkpoints_last(PBTConfig(every=10), [run])
    for every in (5, 20):
        with pytest.raises(ConfigError, match=r"checkpoint.keep_trainer_state \(2\)"):
            check_checkpoints_last(PBTConfig(every=every), [run])


def test_a_population_stays_within_its_space() -> None:
    """Moved by 0.8 or 1.2 or drawn anew, a number stays in its range, and keys of one dimension move together."""
    words = ["optimizer.lr,algorithm.kl_loss.coef=loguniform:1e-4..1e-3", "reward=choice:alliteration,starts_with_a"]
    space = dimensions(load_sweep("alliteration", [*words, "sweep.search.kind=random"]))
    tuned = scheduler(PBTConfig(), space, seed=0)
    values = {"optimizer.lr": 1e-3, "algorithm.kl_loss.coef": 1e-3, "reward": "alliteration"}
    seen = set()
    for _ in range(40):
        choice = {"trial": {"name": "000-seed0", "values": dict(values)}}
        moved = tuned._get_new_config(None, type("Donor", (), {"config": choice}))[0]["trial"]["values"]
        assert 1e-4 <= moved["optimizer.lr"] <= 1e-3
        assert moved["algorithm.kl_loss.coef"] == moved["optimizer.lr"]
        seen |= {moved["reward"], moved["optimizer.lr"]}
    assert {"alliteration", "starts_with_a", 8e-4, 1e-3} <= seen


def test_torn_last_lines_are_passed_over(tmp_path: Path) -> None:
    exploits = tmp_path / "exploits.jsonl"
    assert last_values(exploits) == {}
    exploits.write_text(
        '{"trial": "a", "parameters": {"x": 1}}\n{"trial": "a", "parameters": {"x": 2}}\n{"trial": "a", '
    )
    assert last_values(exploits) == {"a": {"x": 2}}
    metrics = tmp_path / "metrics.jsonl"
    assert last_record(metrics) == {}
    metrics.write_text('{"iteration": 0}\n{"iteration": 1}\n{"itera')
    assert last_record(metrics) == {"iteration": 1}


def test_the_table_says_where_each_trial_is(tmp_path: Path) -> None:
    """One that ended in an earlier session, one under way (iteration and time left from its records), one that waits."""
    asked = request(tmp_path, "sweep.seeds=2", "iterations=6")
    with create(asked) as folder:
        write_ending(folder.run_folder("000-seed0"), Ending("stopped", None, 9))
        console = Console(record=True, width=160, force_terminal=True, file=io.StringIO())
        table = LiveTable(folder, console)
        table.expect(folder.read_trials())
        running = type("TuneTrial", (), {"custom_trial_name": "000-seed1"})()
        run = folder.run_folder("000-seed1")
        run.mkdir()
        (run / "metrics.jsonl").write_text('{"iteration": 1, "time/iteration": 20}\n')
        with table:
            table.on_trial_start(0, [], running)
            table.on_trial_result(0, [], running, {"iterations_done": 2, "reward": 4.0, "kl": 1.25, "diversity": None})
        shown = [line.split() for line in console.export_text().splitlines()]
    assert ["000-seed0", "coef=0", "seed=0", "0/6", "stopped"] in shown
    assert ["000-seed1", "coef=0", "seed=1", "2/6", "4.00", "1.25", "running", "1:20"] in shown
    assert ["001-seed1", "coef=1", "seed=1", "0/6", "waiting"] in shown


def test_the_table_takes_no_value_for_markup(tmp_path: Path) -> None:
    with create(request(tmp_path, "environment.prompts.text=choice:'[INST] x [/INST]'")) as folder:
        console = Console(record=True, width=200, file=io.StringIO())
        table = LiveTable(folder, console)
        table.expect(folder.read_trials())
        console.print(table.table())
    assert "text=[INST] x [/INST]" in console.export_text()
