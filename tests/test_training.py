"""Whole runs through the real joints: Ray actors, the DeepSpeed learner, checkpoints; with parts of them killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from rayrlhf import trainer
from rayrlhf.alarms import read_alarms
from rayrlhf.config import LearnerConfig, RunConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.errors import LearnerError, RunFolderError
from rayrlhf.learner_group import LearnerGroup
from rayrlhf.metrics import comparable, read_metrics, read_samples
from rayrlhf.run_folder import RunFolder
from rayrlhf.run_parts import check_started_from
from rayrlhf.run_state import RunState
from rayrlhf.trainer import Observer, train
from rayrlhf.types import EpisodeSpec, TrainingBatch, UpdateReport
from rayrlhf.worker import PlayedBatch, PublishedWeights, RolloutPool
from rayrlhf.worker_death import Died
from tests.tiny_models import build_tiny_model


def small_config(model: Path, storage: Path, name: str, **changes: Any) -> RunConfig:
    """Six iterations of 4 groups of 3 on the tiny model, with two workers and two ranks."""
    values: dict[str, Any] = {
        "name": name,
        "storage_path": str(storage),
        "iterations": 6,
        "baseline_episodes": 20,
        "model": {"path": str(model)},
        "environment": {"name": "single_turn", "prompts": {"text": "Once upon a time"}},
        "reward": "alliteration",
        "rollout": {"workers": 2, "group_size": 3, "max_new_tokens": 16, "cpus_per_worker": 0.1},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "learner": {"ranks": 2, "tokens_per_micro_batch": 48, "cpus_per_rank": 0.1},
        "checkpoint": {"every": 3},
    }
    for key, value in changes.items():
        values[key] = (
            {**values[key], **value} if isinstance(value, dict) and isinstance(values.get(key), dict) else value
        )
    return RunConfig.model_validate(values)


def weights_hash(storage: Path, name: str, iteration: int) -> str:
    return hashlib.sha256(
        (storage / name / f"checkpoints/{iteration:06d}/model/model.safetensors").read_bytes()
    ).hexdigest()


def records(storage: Path, name: str) -> tuple[list[dict[str, float]], list[str]]:
    """Metrics without times, and all episodes' texts with their scores."""
    samples = read_samples(storage / name)
    return comparable(read_metrics(storage / name)), [
        f"{s.iteration} {s.index} {s.score} {s.kl} {s.text}" for s in samples
    ]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, storage: Path, ray_cluster: None) -> Path:
    train(small_config(tiny_model, storage, "undisturbed"))
    return storage / "undisturbed"


def test_a_run_leaves_what_its_readers_need(undisturbed: Path) -> None:
    """X-7, X-10, TW-23: resolved config, metrics by their names, samples, a report, a model without the reference."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = read_metrics(undisturbed)
    assert [row["iteration"] for row in rows] == list(range(6))
    expected = {
        "objective/kl", "objective/kl_per_token", "objective/kl_coef", "objective/entropy", "objective/score",
        "objective/score_total", "policy/clipfrac", "policy/approxkl", "policy/entropy", "policy/ratio_mean",
        "policy/ratio_max", "text/distinct_2", "text/dup_rate", "text/gzip_ratio", "text/mean_len", "text/empty_rate",
        "reward/alliteration", "time/rollout", "time/update", "time/sync",
    }  # fmt: skip
    assert expected <= set(rows[0])
    samples = read_samples(undisturbed)
    assert sum(sample.iteration == -1 for sample in samples) == 20
    assert sum(sample.iteration == 5 for sample in samples) == 12
    assert all(sample.weights_version == max(sample.iteration, 0) for sample in samples)
    assert (undisturbed / "report.html").stat().st_size > 1000
    assert list((undisturbed / "tensorboard").iterdir())
    model_folder = undisturbed / "checkpoints/000006/model"
    AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    assert (model_folder / "model.safetensors").stat().st_size < 1.2 * 4 * model.num_parameters() + 10_000


def test_before_the_first_step_policy_and_reference_are_one(undisturbed: Path) -> None:
    """X-5, section 10 (1): ratio 1 and KL 0 at step 0; and a ratio of 1 before every step."""
    rows = read_metrics(undisturbed)
    assert abs(rows[0]["objective/kl"]) < 1e-3
    assert rows[-1]["objective/kl"] != 0
    for row in rows:
        assert row["learner/logprob_gap_max"] < 1e-4
        assert row["policy/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert all(s.kl is not None and abs(s.kl) < 1e-3 for s in read_samples(undisturbed) if s.iteration == -1)


@pytest.fixture(scope="module")
def cold(ray_cluster: None, storage: Path) -> Path:
    """A run at a low temperature, whose reward is 0 for every text: none has the letter."""
    config = small_config(
        Path("tiny-stories"), storage, "cold", iterations=2, baseline_episodes=8,
        reward={"name": "letter_count", "letter": "ẞ"},
        rollout={"workers": 1, "groups_per_iteration": 2, "temperature": 0.001},
        learner={"ranks": 1, "zero_stage": 0}, optimizer={"name": "sgd", "lr": 1e-6},
    )  # fmt: skip
    train(config)
    return storage / "cold"


def test_a_healthy_run_at_a_low_temperature_runs(cold: Path) -> None:
    """X-5: dividing the logits multiplies their rounding: the limit of temperature 1 would stop it."""
    rows = read_metrics(cold)
    assert [row["iteration"] for row in rows] == [0, 1]
    assert all(row["learner/logprob_gap_max"] < 1e-4 / 0.001 for row in rows)
    assert any(row["learner/logprob_gap_max"] > 1e-4 for row in rows)


def test_a_reward_that_is_the_same_for_every_text_is_told_after_the_first_iteration(cold: Path) -> None:
    """Scores of 0 in every group, whatever the KL, in the metric and in two alarms."""
    first = read_metrics(cold)[0]
    assert (first["objective/score_std"], first["objective/zero_variance_groups"]) == (0.0, 1.0)
    alarms = read_alarms(cold)
    assert {alarm.rule for alarm in alarms if alarm.iteration == 0} >= {"score_saturation", "zero_variance_groups"}


class KillsAWorkerOnce(RolloutPool):
    """A real pool one of whose workers is killed in the middle of the third iteration."""

    def play(self, batches: Sequence[Sequence[EpisodeSpec]], weights: PublishedWeights) -> list[PlayedBatch]:
        if weights.version == 2 and self.deaths == 0:
            pid = ray.get(self.actors[0].__ray_call__.remote(lambda _: os.getpid()))
            threading.Timer(0.02, os.kill, (pid, signal.SIGKILL)).start()
        played = super().play(batches, weights)
        PLAYED.append(self.deaths)
        return played


class KillsARankOnce(LearnerGroup):
    """A real learner whose rank 1 is killed in the middle of the fifth update."""

    def update(self, batch: TrainingBatch, iteration: int) -> UpdateReport:
        if iteration == 4 and self.rebuilds == 0:
            pid = ray.get(self.ranks[1].__ray_call__.remote(lambda _: os.getpid()))
            threading.Timer(0.05, os.kill, (pid, signal.SIGKILL)).start()
        REBUILDS.append(self.rebuilds)
        return super().update(batch, iteration)


PLAYED: list[int] = []
REBUILDS: list[int] = []


@pytest.mark.slow
def test_killed_worker_and_killed_rank_change_nothing(
    tiny_model: Path, storage: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL of a rollout worker in an iteration, then of rank 1 of 2 in an update: same weights, same records."""
    monkeypatch.setattr(trainer, "RolloutPool", KillsAWorkerOnce)
    monkeypatch.setattr(trainer, "LearnerGroup", KillsARankOnce)
    train(small_config(tiny_model, storage, "disturbed"))
    assert PLAYED[-1] == 1, "no worker was replaced"
    assert REBUILDS[-1] == 1, "the learner was not rebuilt"
    assert weights_hash(storage, "disturbed", 6) == weights_hash(storage, "undisturbed", 6)
    assert records(storage, "disturbed") == records(storage, "undisturbed")


class Loop(trainer.Trainer):
    """The loop of a run alone: its iterations do nothing."""

    def begin(self) -> None:
        pass

    def step(self, iteration: int) -> None:
        self.observer.iteration_done(iteration, {})

    def respond(self, done: int) -> int:
        return done


class Saves(RunState):
    """The state of a run that keeps nothing but how many iterations are saved; `deaths` restores are lost."""

    def __init__(self, saved: int | None, deaths: int = 0, full: bool = False) -> None:
        self.saved, self.deaths, self.full = saved, deaths, full

    def restore(self) -> int:
        if self.deaths:
            self.deaths -= 1
            raise Died("its process was killed")
        return self.saved or 0

    def save_if_whole(self, done: int) -> None:
        if not self.full:
            self.saved = done


class Rebuilds(LearnerGroup):
    """A learner without ranks that may be rebuilt so often."""

    def __init__(self, most: int) -> None:
        self.config, self.rebuilds, self.ranks = LearnerConfig(max_rebuilds=most), 0, []

    def start(self) -> list[str]:
        return []


def loop(state: RunState, rebuilds: int = 0, observer: Observer | None = None) -> tuple[Loop, list[str]]:
    """A loop of ten iterations without checkpoints, and what it says."""
    schedule = SimpleNamespace(iterations=10, checkpoint_due=lambda _: False)
    said: list[str] = []
    parts: dict[str, Any] = dict.fromkeys(("rollouts", "rewards", "algorithm", "log", "guard"))
    progress: Any = SimpleNamespace(message=said.append)
    return Loop(
        schedule=schedule, learner=Rebuilds(rebuilds), state=state, progress=progress, max_logprob_gap=1.0,
        observer=observer or Observer(), **parts,
    ), said  # fmt: skip


def test_a_learner_that_dies_as_it_takes_up_a_checkpoint_is_rebuilt_so_often() -> None:
    state = Saves(7, deaths=2)
    running, said = loop(state, rebuilds=2)
    running.run(resume=True)
    assert said == ["the learner died while it took up a checkpoint (its process was killed); rebuilding it"] * 2
    with pytest.raises(LearnerError, match="the learner died 3 times, last: its process was killed"):
        loop(Saves(7, deaths=3), rebuilds=2)[0].run(resume=True)


class Interrupted(Observer):
    def iteration_done(self, iteration: int, metrics: Mapping[str, float]) -> None:
        if iteration == 6:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("saved", "full", "told"),
    [
        (None, False, "goes on from there"),
        (5, True, "goes on from the checkpoint after 5 of them"),
        (None, True, "begins anew: there is no checkpoint"),
    ],
)
def test_an_interrupted_run_says_what_a_resumed_one_goes_on_from(saved: int | None, full: bool, told: str) -> None:
    running, said = loop(Saves(saved, full=full), observer=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        running.run(resume=saved is not None)
    assert said == [f"stopped after 7 iterations; `--resume` {told}"]


LAUNCHED = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4",
    "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job",
    "RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "10.255.255.1", "MASTER_PORT": "1",
}  # fmt: skip
"""What mpirun, srun and torchrun leave: it is to reach no rank of the learner."""


def driver(config: RunConfig, folder: Path, *options: str) -> subprocess.Popen[str]:
    """`rayrlhf train` in a process of its own, with a Ray cluster of its own, as one of a launcher's tasks."""
    file = folder / f"{config.name}.yaml"
    file.write_text(dump_config(config))
    return subprocess.Popen(
        [sys.executable, "-m", "rayrlhf", "train", str(file), *options],
        stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, **LAUNCHED},
    )  # fmt: skip


def wait_for_iteration(run: Path, iteration: int, process: subprocess.Popen[str], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) > iteration:
            return
        time.sleep(0.02)
    raise AssertionError("the run did not get so far")


def test_kill_the_driver_and_resume_bit_for_bit(tiny_model: Path, storage: Path, undisturbed: Path) -> None:
    """`train 6` equals `train 3, kill -9, resume 3` in weights and metrics; the kill leaves no process after 10 s."""
    config = small_config(tiny_model, storage, "resumed")
    process = driver(config, storage)
    wait_for_iteration(storage / "resumed", 3, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, [p.cmdline() for p in alive]
    assert len(read_metrics(storage / "resumed")) < 6
    with pytest.raises(RunFolderError, match="resumed"):
        train(config)
    train(config, resume=True)
    assert weights_hash(storage, "resumed", 6) == weights_hash(storage, "undisturbed", 6)
    assert records(storage, "resumed") == records(storage, "undisturbed")


def test_a_run_whose_model_has_changed_does_not_go_on(tiny_model: Path, tmp_path: Path) -> None:
    """Said before Ray is asked for anything."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = small_config(model, tmp_path, "changed")
    with RunFolder.create(config, dump_config(config)) as folder:
        check_started_from(folder, config.model)
        folder.metrics.write_text('{"iteration": 0}\n')
    build_tiny_model(model, seed=1)
    with pytest.raises(RunFolderError, match=r"the weights of its model .* changed since it began"):
        train(config, resume=True)


def test_ctrl_c_saves_stops_and_leaves_nothing(tiny_model: Path, storage: Path) -> None:
    """LMHP-27, X-8: SIGINT ends the run after the iteration under way, with a checkpoint that --resume takes up."""
    config = small_config(
        tiny_model, storage, "stopped", iterations=500, baseline_episodes=0, checkpoint={"every": 500},
        rollout={"workers": 1},
    )  # fmt: skip
    process = driver(config, storage)
    wait_for_iteration(storage / "stopped", 1, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, [p.cmdline() for p in alive]
    done = len(read_metrics(storage / "stopped"))
    assert (storage / f"stopped/checkpoints/{done:06d}/manifest.json").exists()


@pytest.mark.slow  # test_wiring.py has it in one process, test_ppo_learner.py on two ranks
def test_learner_and_sampler_must_agree(tiny_model: Path, storage: Path, ray_cluster: None) -> None:
    """X-5: a limit on the gap that no arithmetic can meet stops the run by name, before any weight has changed."""
    config = small_config(
        tiny_model, storage, "disagree", baseline_episodes=0, rollout={"workers": 1},
        learner={"max_logprob_gap": 1e-12, "ranks": 1},
    )  # fmt: skip
    with pytest.raises(LearnerError, match="disagree"):
        train(config)
    assert (storage / "disagree/config.yaml").exists()


@pytest.mark.parametrize(("algorithm", "size"), [("grpo", 3), ("reinforce", 1)])
def test_the_other_algorithms_run(
    tiny_model: Path, storage: Path, ray_cluster: None, algorithm: str, size: int
) -> None:
    config = small_config(
        tiny_model, storage, algorithm, iterations=2, baseline_episodes=0, algorithm={"name": algorithm},
        rollout={"group_size": size, "workers": 1}, learner={"ranks": 1, "zero_stage": 0},
    )  # fmt: skip
    summary = train(config)
    assert summary.iterations == 2
    assert summary.base_reward is None
