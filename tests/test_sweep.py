"""Small real sweeps: trials in gangs on Ray Tune, one that crashes, early stopping, population-based training."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import ray
from ray.util import placement_group_table
from rich.console import Console

from rayrlhf.config_loading import load_config
from rayrlhf.errors import LearnerError, RunFolderError
from rayrlhf.metrics import read_metrics
from rayrlhf.tune.folder import read_ending
from rayrlhf.tune.results import read_sweep
from rayrlhf.tune.sweep import run_sweep
from rayrlhf.tune.sweep_config import load_sweep

BASE = """\
name: tiny
iterations: {iterations}
baseline_episodes: 20
model: {{path: {model}}}
environment: {{name: single_turn, prompts: {{text: Once upon a time}}}}
reward: {{name: alliteration}}
rollout: {{workers: 1, groups_per_iteration: 2, group_size: 3, max_new_tokens: 16, cpus_per_worker: 0.5}}
optimizer: {{name: adamw, lr: 3e-3}}
learner: {{ranks: 1, tokens_per_micro_batch: 48, cpus_per_rank: 0.5}}
checkpoint: {{every: 1, keep_trainer_state: 4}}
"""


def base_file(folder: Path, model: Path, iterations: int) -> str:
    """A run of a second or two, of so many iterations with a checkpoint each."""
    path = folder / "tiny.yaml"
    path.write_text(BASE.format(model=model, iterations=iterations))
    return str(path)


def sweep(folder: Path, source: str, *words: str, resume: bool = False) -> tuple[Path, str]:
    """Runs a sweep; returns its folder and what was said."""
    console = Console(record=True, width=300, force_terminal=False, file=open(folder / "said.txt", "a"))  # noqa: SIM115
    words = (*words, f"sweep.storage_path={folder}", "sweep.name=s")
    return run_sweep(load_sweep(source, words), resume, console), console.export_text()


def endings(path: Path) -> dict[str, str | None]:
    names = [json.loads(line)["name"] for line in (path / "trials.jsonl").read_text().splitlines()]
    found = {name: read_ending(path / "trials" / name) for name in names}
    return {name: ending.status if ending else None for name, ending in found.items()}


def nothing_is_left() -> bool:
    """All of the cluster's resources are free again, and every placement group is gone."""
    free, all_of_it = ray.available_resources(), ray.cluster_resources()
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    return free.get("CPU") == all_of_it["CPU"] and not groups


def wait_until_nothing_is_left() -> None:
    deadline = time.monotonic() + 20
    while not nothing_is_left():
        assert time.monotonic() < deadline, (ray.available_resources(), placement_group_table())
        time.sleep(0.2)


def test_a_crashing_trial_is_reported_and_the_sweep_goes_on(
    tiny_model: Path, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ALLIT-8: a record of each run, the table, and a recipe of what is recommended; a crash is one line of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crashing.py").write_text(
        "class Crashing:\n    def __call__(self, trajectories):\n        raise ValueError('no score today')\n"
    )
    words = ["reward.name=choice:crashing:Crashing,alliteration", "sweep.max_concurrent=2"]
    path, said = sweep(tmp_path, base_file(tmp_path, tiny_model, 2), *words)
    assert endings(path) == {"000-seed0": "crashed", "001-seed0": "done"}
    results = read_sweep(path)
    assert "no score today" in (results.trials[0].error or "")
    assert "000-seed0  name=crashing:Crashing seed=0  crashed: " in said
    assert [point.iteration for point in results.trials[1].history.points] == [1, 2]
    assert (path / "report.html").stat().st_size > 1000
    wait_until_nothing_is_left()
    recipe = load_config(str(path / "best.yaml"))
    assert recipe.reward[0].name == "alliteration"
    assert (recipe.name, recipe.storage_path, recipe.seed) == ("s-best", str(tmp_path), 0)
    with pytest.raises(RunFolderError, match="continue that sweep with --resume"):
        sweep(tmp_path, base_file(tmp_path, tiny_model, 2), *words)
    with pytest.raises(RunFolderError, match="seeds: 1 then, 2 now"):
        sweep(tmp_path, base_file(tmp_path, tiny_model, 2), *words, "sweep.seeds=2", resume=True)


def test_a_trial_that_is_stopped_early_leaves_nothing(tiny_model: Path, tmp_path: Path, ray_cluster: None) -> None:
    """ASHA, one trial after the other: the second's rewards are those of the first with the sign changed."""
    path, said = sweep(
        tmp_path,
        base_file(tmp_path, tiny_model, 4),
        "reward.weight=grid:1,-1",
        "sweep.max_concurrent=1",
        "sweep.scheduler.kind=asha",
        "sweep.scheduler.grace_iterations=1",
        "sweep.scheduler.reduction_factor=2",
    )
    assert endings(path) == {"000-seed0": "done", "001-seed0": "stopped"}
    assert len(read_metrics(path / "trials/000-seed0")) == 4
    assert len(read_metrics(path / "trials/001-seed0")) < 4
    assert "001-seed0  weight=-1 seed=0  stopped" in said
    wait_until_nothing_is_left()


@pytest.mark.slow
def test_a_population_goes_on_from_its_best(tiny_model: Path, tmp_path: Path, ray_cluster: None) -> None:
    """PBT: the run that goes on has the donor's records up to the checkpoint, and trains with the new learning rate."""
    path, _ = sweep(
        tmp_path,
        base_file(tmp_path, tiny_model, 2),
        "optimizer.lr=loguniform:1e-4..1e-2",
        "reward.weight=choice:1,-1",
        "sweep.search.kind=random",
        "sweep.search.samples=2",
        "sweep.search.seed=1",
        "sweep.max_concurrent=2",
        "sweep.scheduler.kind=pbt",
        "sweep.scheduler.every=1",
        "sweep.scheduler.synchronous=true",
        "sweep.scheduler.quantile=0.5",
    )
    assert endings(path) == {"000-seed0": "done", "001-seed0": "done"}
    wait_until_nothing_is_left()
    (exploit,) = [json.loads(line) for line in (path / "exploits.jsonl").read_text().splitlines()]
    assert (exploit["trial"], exploit["from"], exploit["iteration"]) == ("001-seed0", "000-seed0", 1)
    run, donor = path / "trials/001-seed0", path / "trials/000-seed0"
    rows, donors = read_metrics(run), read_metrics(donor)
    assert [row["iteration"] for row in rows] == [0, 1]
    assert rows[0]["objective/score"] == donors[0]["objective/score"]
    new = exploit["parameters"]["optimizer.lr"]
    assert rows[0]["learner/lr"] == donors[0]["learner/lr"] != new
    assert rows[1]["learner/lr"] == new
    config = load_config(str(run / "config.yaml"))
    assert (config.name, config.optimizer.lr) == ("001-seed0", new)
    assert config.reward[0].weight == exploit["parameters"]["reward.weight"]


def test_when_all_trials_crash_the_sweep_says_so(tmp_path: Path, ray_cluster: None) -> None:
    """A model that is not there: each trial ends before it has a run folder."""
    source = base_file(tmp_path, tmp_path / "no-model", 2)
    with pytest.raises(LearnerError, match=r"all trials of the sweep crashed, the first with: .*no-model"):
        sweep(tmp_path, source, "optimizer.lr=grid:1e-3")
    assert endings(tmp_path / "s") == {"000-seed0": "crashed"}
