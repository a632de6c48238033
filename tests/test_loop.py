"""The loop: waits for people, goes on where it was stopped, and says what was made from what (SPEC GWERN-13, GWERN-26)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from rayrlhf.config import RunConfig
from rayrlhf.errors import ConfigError, PreferenceError
from rayrlhf.preferences.loop import run_loop
from rayrlhf.preferences.loop_manifest import MANIFEST, STAGES, Round
from rayrlhf.preferences.loop_stages import SAMPLES, Stages
from rayrlhf.preferences.project import ProjectConfig, load_project_config, open_store, settle_project
from rayrlhf.preferences.records import Comparison
from rayrlhf.reward_models.sidecar import read_sidecar

SMALL = [
    "loop.prompts_per_round=6", "loop.completions=3", "loop.comparisons_per_round=12", "loop.evaluation_samples=16",
    "reward_model.normalisation_samples=24", "reward_model.batch_size=4",
    "task.overrides=[rollout.max_new_tokens=16]",
    "loop.optimise=[iterations=1, baseline_episodes=8, rollout.workers=1, learner.ranks=1, "
    "rollout.groups_per_iteration=2, rollout.group_size=4]",
]  # fmt: skip


def small(*overrides: str) -> ProjectConfig:
    return load_project_config(Path("nowhere"), [*SMALL, *overrides])


@pytest.fixture(scope="module")
def rated(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one round whose comparisons were made by a person; 5 of its 18 samples start with a blacklisted word."""
    project = tmp_path_factory.mktemp("project")
    config = small("loop.rounds=1", "checks.blacklist=[there was]")
    told: list[str] = []
    assert run_loop(project, config, wait=False, show=told.append) is None
    assert "12 comparisons of its samples are missing: `rayrlhf rate" in told[-1]
    with open_store(project) as store:
        items = list(store.items())
        for pair in pairwise(items[:13]):
            store.add(Comparison(pair, best=0, rater="Ann"))
    path = run_loop(project, config, wait=False, show=told.append)
    assert path == project / "report.html"
    return project


def test_a_round_goes_on_once_people_have_rated(rated: Path) -> None:
    """GWERN-13: per-round folders, a manifest with counts, a reward model in PPO's or RLOO's place of a reward."""
    round_ = Round(rated, 0)
    assert round_.finished
    assert (round_.made("sample")["samples"], round_.made("rate")["comparisons"]) == (18, 12)
    assert round_.entries["reward_model"].made_from["comparisons"] == 12 + round_.made("check")["automatic_comparisons"]
    assert read_sidecar(round_.folder / "reward_model").normalisation["samples"] == 24
    run = json.loads((round_.folder / "policy" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "reward/reward_model" in run
    page = (rated / "report.html").read_text()
    assert "What was made from what" in page
    assert "round 0" in page


def test_items_say_where_they_come_from(rated: Path) -> None:
    """GWERN-37: generator, checkpoint, iteration and seed of each sample; the ids' tokenizer stands in the store."""
    with open_store(rated) as store:
        items = list(store.items().values())
        assert {(item.generator, item.iteration) for item in items} == {("reference", 0)}
        assert len({item.seed for item in items}) == len(items)
        assert all(item.text_ids for item in items)
        assert store.meta()["tokenizer"]


def test_what_is_done_is_not_done_again(rated: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (rated / "rounds").rglob("*") if path.is_file()}
    run_loop(rated, small("loop.rounds=1"), wait=False, show=lambda line: None)
    assert {path: path.stat().st_mtime_ns for path in (rated / "rounds").rglob("*") if path.is_file()} == before


def test_a_stage_that_was_stopped_is_done_again_alike(ray_cluster: None, rated: Path) -> None:
    """Each stage but the trainings, as after a kill between its work and its manifest entry: the same comes out."""
    path = Round(rated, 0).folder / MANIFEST
    whole = json.loads(path.read_text())
    for stage in ("sample", "check", "rank", "evaluate"):
        path.write_text(json.dumps({name: entry for name, entry in whole.items() if name != stage}))
        run_loop(rated, small("loop.rounds=1", "checks.blacklist=[there was]"), wait=False, show=lambda line: None)
        again = json.loads(path.read_text())
        skipped = {"new_items", "automatic_comparisons"}  # they are there already
        made, expected = ({k: v for k, v in told[stage]["made"].items() if k not in skipped} for told in (again, whole))
        assert made == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_9_in_any_stage_and_the_loop_goes_on(tmp_path: Path) -> None:
    """Two rounds with a simulated rater, the driver killed as each stage of the first begins."""
    words = [*SMALL, "loop.rounds=2", "loop.rater={}"]
    command = [sys.executable, "-m", "rayrlhf", "loop", str(tmp_path), *words]
    for stage in STAGES[:-1]:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not Round(tmp_path, 0).done(stage):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)
    assert Round(tmp_path, 1).finished
    with open_store(tmp_path) as store:
        rated = [c for c in store.comparisons() if c.source != "auto"]
        assert len(rated) == 24
        assert {item.generator for item in store.items().values()} == {"reference", "round 0"}


@pytest.mark.parametrize(("labels", "expected"), [("static", [24, 0]), ("interleaved", [12, 12])])
@pytest.mark.slow
def test_labels_are_static_or_interleaved(ray_cluster: None, tmp_path: Path, labels: str, expected: list[int]) -> None:
    """TOK-9: all labels on the reference's samples, or each round's policy rated."""
    run_loop(
        tmp_path, small("loop.rounds=2", "loop.rater={}", f"loop.labels={labels}"), wait=False, show=lambda line: None
    )
    assert [Round(tmp_path, n).made("rate")["comparisons"] for n in range(2)] == expected


def test_a_sample_that_the_store_has_lost_is_named(tmp_path: Path) -> None:
    round_ = Round(tmp_path, 0)
    round_.folder.mkdir(parents=True)
    (round_.folder / SAMPLES).write_text('["0123456789abcdef"]')
    with open_store(tmp_path, create=True) as store:
        stages = Stages(tmp_path, small(), RunConfig(), store, wait=False, show=print)
        with pytest.raises(
            PreferenceError, match=r"samples\.json: sample '0123456789abcdef' is not in .*ratings\.sqlite"
        ):
            stages._sampled(round_)


def test_settings_of_a_new_project(tmp_path: Path) -> None:
    file, project = tmp_path / "mine.yaml", tmp_path / "project"
    file.write_text("loop: {rounds: 2}\n")
    settle_project(project, file)
    settle_project(project, file)
    assert load_project_config(project).loop.rounds == 2
    file.write_text("loop: {rouns: 2}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:1: loop\.rouns: unknown key, did you mean loop\.rounds"):
        settle_project(project, file)
    file.write_text("loop: {rounds: 3}\n")
    with pytest.raises(PreferenceError, match="is there already"):
        settle_project(project, file)
