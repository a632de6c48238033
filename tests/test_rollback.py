"""Whole runs that the detector stops, pauses and rolls back, with parts of them killed; and batches played again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from rayrlhf import trainer
from rayrlhf.alarms import AlarmRecord, read_alarms
from rayrlhf.checkpoint import whole_checkpoints
from rayrlhf.config import RunConfig
from rayrlhf.detector import Alarm, Detector
from rayrlhf.errors import DivergenceError, NotFiniteError, RunPaused
from rayrlhf.learner_group import LearnerGroup
from rayrlhf.metrics import SampleRecord, read_metrics
from rayrlhf.replay import replay
from rayrlhf.trainer import Observer, train
from rayrlhf.types import TrainingBatch, UpdateReport
from tests.test_training import records, small_config, weights_hash

LR = 3e-3
EARLY, LATE = 1, 4  # iterations of two alarms


class FindsTrouble(Detector):
    """The real detector, which finds duplicates in iteration 1, and in iteration 4 at the full rate a grown KL."""

    def observe(self, iteration: int, metrics: Mapping[str, float], records: Iterable[SampleRecord]) -> list[Alarm]:
        alarms = super().observe(iteration, metrics, records)
        for rule, at in (("duplicates", EARLY), ("kl_growth", LATE)):
            section = getattr(self._config, rule)
            action = self._config.action_of(section)
            if iteration == at and action != "off" and (at == EARLY or metrics["learner/lr"] == LR):
                alarms.append(Alarm(iteration, rule, 1.0, 0.5, action, f"{rule} was found"))
        return alarms


class KillsTheRankOnce(LearnerGroup):
    """A real learner whose rank is killed in the middle of the last update."""

    def update(self, batch: TrainingBatch, iteration: int) -> UpdateReport:
        if iteration == 5 and self.rebuilds == 0:
            pid = ray.get(self.ranks[0].__ray_call__.remote(lambda _: os.getpid()))
            threading.Timer(0.02, os.kill, (pid, signal.SIGKILL)).start()
        return super().update(batch, iteration)

    def close(self) -> None:
        REBUILDS.append(self.rebuilds)
        super().close()


REBUILDS: list[int] = []


class PowerCut(Exception):
    pass


class CutsPower(Observer):
    """Ends the run, without a word, in the iteration after the one that it was rolled back to."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def iteration_done(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.seen.append(iteration)
        if LATE in self.seen and iteration == 3:
            raise PowerCut


def config(
    model: Path, storage: Path, name: str, rules: Mapping[str, str], lr: float = LR, onset: int = 2, **detector: Any
) -> RunConfig:
    """Six iterations, a checkpoint after each; rule -> action, all others are off."""
    sections = {rule: {"action": action, "onset": onset} for rule, action in rules.items()}
    settings = {"action": "off", "lr_factor": 0.25, "coef_factor": 3.0, **detector, **sections}
    return small_config(
        model, storage, name, checkpoint={"every": 1}, rollout={"workers": 1}, detector=settings,
        learner={"ranks": 1, "zero_stage": 0}, optimizer={"name": "adamw", "lr": lr},
    )  # fmt: skip


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def _trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "Detector", FindsTrouble)


@pytest.fixture(scope="module")
def rolled_back(tiny_model: Path, storage: Path, ray_cluster: None) -> Path:
    """Warned in iteration 1; in iteration 4 taken back to the checkpoint of 3 iterations, two before the alarm's end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Detector", FindsTrouble)
        train(config(tiny_model, storage, "straight", rules={"duplicates": "warn", "kl_growth": "rollback"}))
    return storage / "straight"


def test_a_rollback_takes_smaller_steps_a_larger_coefficient_and_other_seeds(rolled_back: Path) -> None:
    """GWERN-12: the restored optimizer and controller take the new values; what came before stays as it was."""
    rows = read_metrics(rolled_back)
    assert [row["iteration"] for row in rows] == list(range(6))
    assert [row["learner/lr"] for row in rows] == pytest.approx([LR] * 3 + [LR / 4] * 3)
    assert [row["objective/kl_coef"] for row in rows] == pytest.approx([0.4] * 3 + [1.2] * 3)
    dump = json.loads((rolled_back / "alarms/000004-kl_growth/batch.json").read_text())
    _, samples = records(rolled_back.parent, "straight")
    again = [sample for sample in samples if sample.startswith("4 ")]
    assert len(again) == len(dump["texts"]) == 12
    assert not any(text in sample for text in dump["texts"] for sample in again)
    assert dump["attempt"] == 0


def test_alarms_are_recorded_with_what_was_done(rolled_back: Path) -> None:
    """GWERN-12: a line an alarm; the one that the rollback took back stays."""
    assert read_alarms(rolled_back) == [
        AlarmRecord(1, "duplicates", 1.0, 0.5, "warn", 0, "duplicates was found", "alarms/000001-duplicates"),
        AlarmRecord(4, "kl_growth", 1.0, 0.5, "rollback", 0, "kl_growth was found", "alarms/000004-kl_growth"),
    ]
    report = (rolled_back / "report.html").read_text()
    assert "<h2>Alarms</h2>" in report
    assert "kl_growth was found" in report


@pytest.mark.slow
def test_a_pause_and_a_killed_rank_change_nothing(
    tiny_model: Path, storage: Path, rolled_back: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GWERN-12: paused in iteration 1, resumed, rolled back in 4, its rank killed in 5: same weights, same records; the
    rule that paused the run does not speak again."""
    paused = config(tiny_model, storage, "paused", rules={"duplicates": "snapshot", "kl_growth": "rollback"})
    with pytest.raises(RunPaused, match=r"--resume"):
        train(paused)
    assert whole_checkpoints(storage / "paused/checkpoints") == [0, 1, 2]
    monkeypatch.setattr(trainer, "LearnerGroup", KillsTheRankOnce)
    train(paused, resume=True)
    assert REBUILDS == [1]
    assert weights_hash(storage, "paused", 6) == weights_hash(storage, "straight", 6)
    assert records(storage, "paused") == records(storage, "straight")
    straight = read_alarms(rolled_back)
    pause = replace(straight[0], action="snapshot")
    assert read_alarms(storage / "paused") == [pause, straight[1]]


@pytest.mark.slow
def test_a_power_cut_after_the_rollback_changes_nothing(tiny_model: Path, storage: Path, rolled_back: Path) -> None:
    """GWERN-12: without a checkpoint since the rollback, --resume takes up the new rates, coefficient and seeds."""
    cut = config(tiny_model, storage, "cut", rules={"duplicates": "warn", "kl_growth": "rollback"})
    with pytest.raises(PowerCut):
        train(cut, observer=CutsPower())
    assert whole_checkpoints(storage / "cut/checkpoints") == [0, 1, 2, 3]
    train(cut, resume=True)
    assert weights_hash(storage, "cut", 6) == weights_hash(storage, "straight", 6)
    assert records(storage, "cut") == records(storage, "straight")
    assert read_alarms(storage / "cut") == read_alarms(rolled_back)


@pytest.mark.slow
def test_a_rollback_to_the_start_and_one_too_many(tiny_model: Path, storage: Path, ray_cluster: None) -> None:
    """GWERN-12: trouble in iteration 1 may have begun 10 before: back to the untrained model. It comes again, and at most
    `max_rollbacks`, here one: the error says so and how to look, and the run keeps what it has."""
    stopping = config(tiny_model, storage, "stopped", rules={"duplicates": "rollback"}, onset=10, max_rollbacks=1)
    with pytest.raises(DivergenceError, match="max_rollbacks") as stopped:
        train(stopping)
    assert "rayrlhf replay" in str(stopped.value)
    assert not isinstance(stopped.value, RunPaused)
    alarms = read_alarms(storage / "stopped")
    assert [(alarm.iteration, alarm.action, alarm.attempt) for alarm in alarms] == [(1, "rollback", 0), (1, "stop", 1)]
    assert [row["learner/lr"] for row in read_metrics(storage / "stopped")] == pytest.approx([LR / 4] * 2)
    assert whole_checkpoints(storage / "stopped/checkpoints") == [0, 1, 2]


def test_the_kept_batch_plays_again_bit_for_bit(
    rolled_back: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GWERN-12: tokens, log-probabilities and scores from the weights and seeds; with one seed changed they differ."""
    assert replay(rolled_back / "alarms/000004-kl_growth")
    printed = capsys.readouterr().out
    assert "log-probabilities of 12 episodes: the same" in printed
    assert "scores of 12 episodes: the same" in printed
    other = tmp_path / "other"
    shutil.copytree(rolled_back / "alarms/000004-kl_growth", other)
    batch = json.loads((other / "batch.json").read_text())
    batch["specs"][0][0]["sampling_seed"] += 1
    (other / "batch.json").write_text(json.dumps(batch))
    assert not replay(other)
    assert "tokens of 12 episodes: differ in" in capsys.readouterr().out


def test_a_policy_that_says_nan_stops_the_run_and_leaves_its_batch(
    tiny_model: Path, storage: Path, ray_cluster: None
) -> None:
    """GWERN-12: a step of 1e18 leaves weights that are finite still, and logits that are not. No rule was asked."""
    broken = config(tiny_model, storage, "broken", rules={}, lr=1e18)
    with pytest.raises(NotFiniteError, match="rayrlhf replay"):
        train(broken)
    [alarm] = read_alarms(storage / "broken")
    assert (alarm.iteration, alarm.rule, alarm.action, alarm.value) == (1, "not_finite", "stop", None)
    assert alarm.dump == "alarms/000001-not_finite"
    assert replay(storage / "broken" / alarm.dump)
