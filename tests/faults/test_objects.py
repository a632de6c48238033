"""Objects of the real job that are lost on their way, come late, are damaged, or are those of another version."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from rayrlhf import trainer
from rayrlhf.cluster import Lost
from rayrlhf.config import RolloutConfig
from rayrlhf.errors import LearnerError, RolloutError
from rayrlhf.learner_group import LearnerGroup
from rayrlhf.progress import Progress
from rayrlhf.trainer import Observer, Trainer, train
from rayrlhf.types import EpisodeSpec, Weights
from rayrlhf.worker import PlayedBatch, PublishedWeights, RolloutPool
from tests.faults import job


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    storage = tmp_path_factory.mktemp("undisturbed")
    train(job.small_config(tiny_model, storage, "job"))
    return storage / "job"


@ray.remote(num_cpus=0)
class Holder:
    """Puts an object into the store and is killed: then it is lost, whoever still refers to it."""

    def put(self, value: Any) -> list[ray.ObjectRef]:
        return [ray.put(value)]


def lost(value: Any) -> ray.ObjectRef:
    """A reference to a value that was in the object store."""
    holder = Holder.remote()  # type: ignore[attr-defined]
    [reference] = ray.get(holder.put.remote(value))
    ray.kill(holder)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            ray.get(reference, timeout=1)
        except ray.exceptions.ObjectLostError:
            return reference
        except ray.exceptions.GetTimeoutError:
            continue
    raise AssertionError("the object is still there")


class LosesWeights(LearnerGroup):
    """A real learner; what it publishes as the second and third is lost, or all from the second on."""

    until = 3
    published = 0

    def publish(self) -> PublishedWeights:
        weights = super().publish()
        type(self).published += 1
        if 2 <= self.published <= self.until:
            return replace(weights, ref=(lost(ray.get(weights.ref[0])),))
        return weights


class LosesAllWeights(LosesWeights):
    until = 10**9


class LosesFirst:
    """Stands for a pool whose weights are lost at its first plays."""

    def __init__(self, lost: int) -> None:
        self.config = RolloutConfig(max_retries=2)
        self.lost, self.asked = lost, []

    def play(self, specs: Sequence[Sequence[EpisodeSpec]], weights: str) -> list[str]:
        self.asked.append(weights)
        if len(self.asked) <= self.lost:
            raise Lost(f"{weights}: an object was lost")
        return ["played"]


class Publishes:
    """Stands for a learner, and counts."""

    published = 0

    def publish(self) -> str:
        self.published += 1
        return f"weights {self.published}"


@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_lost_weights_are_published_as_often_as_a_batch_is_tried_again(times: int) -> None:
    pool, learner = LosesFirst(times), Publishes()
    with Progress(1) as progress:
        playing = Trainer(None, pool, None, None, learner, None, None, None, progress, 0.0, Observer())  # type: ignore[arg-type]
        if times < 3:
            assert playing.play([], "weights 0") == (["played"], f"weights {times}")  # type: ignore[arg-type]
        else:
            with pytest.raises(RolloutError, match=r"weights 2: an object was lost, 3 times \(rollout.max_retries\)"):
                playing.play([], "weights 0")  # type: ignore[arg-type]
    assert pool.asked == [f"weights {n}" for n in range(min(times, 2) + 1)]


@pytest.mark.faults
def test_lost_weights_are_published_again_and_change_nothing(
    tiny_model: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights lost from the object store, twice in a row: the run goes on, bit for bit."""
    monkeypatch.setattr(LosesWeights, "published", 0)
    monkeypatch.setattr(trainer, "LearnerGroup", LosesWeights)
    train(job.small_config(tiny_model, tmp_path, "job"))
    assert LosesWeights.published > 5
    assert job.results(tmp_path / "job", 4) == job.results(undisturbed, 4)


@pytest.mark.faults
def test_weights_that_are_lost_time_after_time_end_the_run_by_name(
    tiny_model: Path, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LosesAllWeights, "published", 0)
    monkeypatch.setattr(trainer, "LearnerGroup", LosesAllWeights)
    config = job.small_config(tiny_model, tmp_path, "job", baseline_episodes=0, rollout={"max_retries": 1})
    with pytest.raises(
        RolloutError, match=r"weights of version 1: an object was lost .*2 times \(rollout.max_retries\)"
    ):
        train(config)
    assert job.resumable(tmp_path / "job") == 1


class LosesBatch(RolloutPool):
    """A real pool; the answer of the third batch that it fetches is lost after it was played."""

    fetched = 0

    def _result(self, ref: ray.ObjectRef) -> PlayedBatch:
        type(self).fetched += 1
        return super()._result(lost(ray.get(ref)) if self.fetched == 3 else ref)


@pytest.mark.faults
def test_a_lost_batch_is_played_again_and_changes_nothing(
    tiny_model: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LosesBatch, "fetched", 0)
    monkeypatch.setattr(trainer, "RolloutPool", LosesBatch)
    train(job.small_config(tiny_model, tmp_path, "job"))
    assert LosesBatch.fetched > 3
    assert job.results(tmp_path / "job", 4) == job.results(undisturbed, 4)


class LateBatch(RolloutPool):
    """A real pool one of whose workers does not answer in time, in the second iteration."""

    def play(self, batches: Sequence[Sequence[EpisodeSpec]], weights: PublishedWeights) -> list[PlayedBatch]:
        if weights.version == 1 and self.deaths == 0:
            self.actors[0].__ray_call__.remote(lambda _: time.sleep(120))  # stands before the batch
        return super().play(batches, weights)


@pytest.mark.faults
def test_a_late_batch_is_played_by_another_worker_and_changes_nothing(
    tiny_model: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "RolloutPool", LateBatch)
    train(job.small_config(tiny_model, tmp_path, "job", rollout={"timeout_s": 20}))
    assert job.results(tmp_path / "job", 4) == job.results(undisturbed, 4)


class WrongWeights(LearnerGroup):
    """A real learner whose second weights are changed on their way: by `change`."""

    def publish(self) -> PublishedWeights:
        published = super().publish()
        if published.version != 1:
            return published
        return replace(published, ref=(ray.put(self.change(ray.get(published.ref[0]))),))

    def change(self, weights: Weights) -> Weights:
        raise NotImplementedError


class StaleWeights(WrongWeights):
    def change(self, weights: Weights) -> Weights:
        return replace(weights, version=0)


class FlippedBit(WrongWeights):
    def change(self, weights: Weights) -> Weights:
        arrays = {name: np.array(array) for name, array in weights.arrays.items()}
        next(iter(arrays.values())).reshape(-1).view(np.uint8)[5] ^= 4
        return replace(weights, arrays=arrays)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (StaleWeights, "weights of version 1 were due, the rollout worker has version 0"),
        (FlippedBit, "arrived damaged"),
    ],
)
def test_stale_and_damaged_weights_are_never_played_with(
    tiny_model: Path, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, learner: type, message: str
) -> None:
    monkeypatch.setattr(trainer, "LearnerGroup", learner)
    with pytest.raises((RolloutError, LearnerError), match=message):
        train(job.small_config(tiny_model, tmp_path, "job", baseline_episodes=0))
    assert job.resumable(tmp_path / "job") == 1
