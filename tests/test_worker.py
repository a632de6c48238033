"""The pool of rollout workers on a real Ray cluster: the same episodes from any number of workers, dead ones or late."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from rayrlhf.cluster import Lost
from rayrlhf.config import AgentConfig, ModelConfig, PromptsConfig, RolloutConfig
from rayrlhf.environments import EnvironmentSettings
from rayrlhf.errors import EpisodeError, RolloutError
from rayrlhf.policy import load_tokenizer
from rayrlhf.prompts import load_prompts
from rayrlhf.rollout import deal_specs
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.types import Trajectory
from rayrlhf.worker import PublishedWeights, RolloutPool, WorkerSettings, fetch
from tests.broken_environments import HangsOnce, KillsItsWorkerOnce

pytestmark = pytest.mark.usefixtures("ray_cluster")
BATCHES = deal_specs(run_seed=1, iteration=0, groups=6, group_size=3, groups_per_batch=2)


def make_pool(
    model: Path, environment: str = "single_turn", parameters: dict[str, str] | None = None, **rollout: object
) -> RolloutPool:
    config = RolloutConfig.model_validate({"workers": 1, "cpus_per_worker": 0.1, **rollout})
    prompts = load_prompts(
        PromptsConfig(text="Once upon a time"), load_tokenizer(ModelConfig(path=str(model))), 128, 16
    )
    settings = WorkerSettings(
        model=ModelConfig(path=str(model)),
        environments={"train": EnvironmentSettings(environment, parameters or {})},
        prompts=prompts.items,
        agent=AgentConfig(),
        sampling=SamplingSettings(16),
        max_turns=1,
        device="cpu",
        dtype="float32",
        threads=1,
    )
    return RolloutPool(settings, config)


def played(pool: RolloutPool) -> list[Trajectory]:
    unused = PublishedWeights((ray.put(None),), version=0)
    return [trajectory for batch in pool.play(BATCHES, unused) for trajectory in batch.trajectories]


def same(one: list[Trajectory], other: list[Trajectory]) -> bool:
    return len(one) == len(other) and all(
        a.index == b.index
        and np.array_equal(a.turns[0].response_ids, b.turns[0].response_ids)
        and np.array_equal(a.turns[0].logprobs, b.turns[0].logprobs)
        and np.array_equal(a.turns[0].reference_logprobs, b.turns[0].reference_logprobs)
        for a, b in zip(one, other)
    )


@pytest.fixture(scope="module")
def lone_worker(tiny_model: Path, ray_cluster: None) -> Iterator[RolloutPool]:
    pool = make_pool(tiny_model)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def expected(lone_worker: RolloutPool) -> list[Trajectory]:
    """What one undisturbed worker plays."""
    return played(lone_worker)


@pytest.fixture(scope="module")
def three_workers(tiny_model: Path, ray_cluster: None) -> Iterator[RolloutPool]:
    pool = make_pool(tiny_model, workers=3)
    yield pool
    pool.close()


def test_three_workers_play_what_one_plays(three_workers: RolloutPool, expected: list[Trajectory]) -> None:
    assert same(played(three_workers), expected)


def test_closing_ends_the_processes(three_workers: RolloutPool) -> None:
    """The last test of this pool."""
    pids = ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in three_workers.actors])
    three_workers.close()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert not alive


@pytest.mark.parametrize("environment", [KillsItsWorkerOnce, HangsOnce])
def test_a_lost_batch_is_redone(
    tiny_model: Path, expected: list[Trajectory], environment: type[KillsItsWorkerOnce], tmp_path: Path
) -> None:
    """SIGKILL in the middle of a batch, and a batch that never ends, change nothing in the episodes."""
    hangs, mark = environment is HangsOnce, tmp_path / "mark"
    pool = make_pool(
        tiny_model, f"tests.broken_environments:{environment.__name__}", {"mark": str(mark)}, workers=2,
        timeout_s=10 if hangs else 300, max_retries=10,
    )  # fmt: skip
    pool.ready()  # a worker that has not started yet is given longer
    assert same(played(pool), expected)
    assert mark.exists()
    assert (
        pool.deaths >= 1 if hangs else pool.deaths == 1
    )  # a busy machine may need longer for a batch that does not hang
    pool.close()


def test_retries_end(tiny_model: Path) -> None:
    pool = make_pool(tiny_model, "tests.broken_environments:AlwaysKillsItsWorker", max_retries=1)
    with pytest.raises(RolloutError, match="lost 2 times"):
        played(pool)
    pool.close()


def test_an_environment_that_raises_stops_the_run_by_name(tiny_model: Path) -> None:
    pool = make_pool(tiny_model, "tests.broken_environments:Raises")
    with pytest.raises(EpisodeError, match="the dragon ate the game") as caught:
        played(pool)
    assert "Traceback" not in str(caught.value)
    pool.close()


@ray.remote(num_cpus=0)
def _late() -> None:
    time.sleep(600)


def test_weights_that_come_late_are_lost() -> None:
    """So that they are published again; Ray's own error would end the run."""
    ref = _late.remote()
    with pytest.raises(Lost, match=r"weights of version 7 did not come within 0.1 s"):
        fetch(PublishedWeights((ref,), version=7), timeout_s=0.1)
    ray.cancel(ref, force=True)


def test_wrong_weights_stop_the_run_by_name(lone_worker: RolloutPool) -> None:
    """A trajectory carries the version it was sampled with; a worker without that version refuses."""
    with pytest.raises(RolloutError, match="version 7 were due"):
        lone_worker.play(BATCHES[:1], PublishedWeights((ray.put(None),), version=7))
