"""Rollout workers: `RolloutWorker` plays batches of episodes in one process; `RolloutPool` runs many as Ray actors.

A call to a worker is self-contained (weights, their version, episode specs), so a batch lost with a dead or late
worker is redone whole by any other and gives the same episodes.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
import torch
from ray.exceptions import GetTimeoutError, ObjectLostError, RayTaskError

from rayrlhf.cluster import LOST, START_TIMEOUT_S, Lost, actor_environment, get, kill, own_error
from rayrlhf.config import AgentConfig, ModelConfig, RolloutConfig
from rayrlhf.environments import EnvironmentSettings, open_environments
from rayrlhf.errors import RolloutError
from rayrlhf.gang import Gang
from rayrlhf.interfaces import Environments
from rayrlhf.kl_estimators import VocabularyEstimator
from rayrlhf.player import Player
from rayrlhf.policy import check_policy, context_length, load_policy, load_tokenizer
from rayrlhf.prompts import Prompt
from rayrlhf.response_config import NO_RULES, ResponseConfig
from rayrlhf.rollout import with_prompt_logprobs, with_reference, with_vocabulary_kl
from rayrlhf.sampling.transformers_engine import SamplingSettings
from rayrlhf.types import EpisodeSpec, Split, Trajectory, Weights
from rayrlhf.weights import load_into, verify
from rayrlhf.worker_death import GONE, ROLLOUT_MEMORY, Died, death_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every rollout worker of a run is built from."""

    model: ModelConfig
    environments: Mapping[Split, EnvironmentSettings]
    prompts: tuple[Prompt, ...]  # of a single-turn environment, with their token ids: no prompt is tokenised twice
    agent: AgentConfig
    sampling: SamplingSettings
    max_turns: int
    device: str  # cpu or cuda
    dtype: str  # float32 or bfloat16
    threads: int
    vocabulary_kl: VocabularyEstimator | None = None  # what `Turn.vocabulary_kl` is to hold; None: nothing
    response: ResponseConfig = NO_RULES


@dataclass(frozen=True, slots=True)
class PlayedBatch:
    """What a worker gives back for one batch, and where its time went."""

    trajectories: list[Trajectory]
    load_seconds: float  # fetching, checking and copying weights; 0 where the worker had them
    sampling_seconds: float  # playing, the environments' time not counted
    environment_seconds: float  # waiting for environments
    reference_seconds: float
    environment_counts: Mapping[str, float]  # env/* counters of this batch


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """Weights in the object store. The reference stays inside a tuple so that Ray does not fetch it for the callee."""

    ref: tuple[ray.ObjectRef]
    version: int


class RolloutWorker:
    """A policy replica, the frozen reference, and environments, in one process; knows nothing of Ray."""

    def __init__(self, settings: WorkerSettings):
        torch.set_num_threads(settings.threads)
        self.settings = settings
        dtype = getattr(torch, settings.dtype)
        tokenizer = load_tokenizer(settings.model)
        self.policy = load_policy(settings.model, dtype, settings.device)
        check_policy(settings.model, self.policy, tokenizer)
        self.reference = load_policy(settings.model, dtype, settings.device)
        self.version = 0  # the policy as loaded is what the learner starts from
        self.player = Player(
            policy=self.policy,
            tokenizer=tokenizer,
            context=context_length(settings.model),
            agent=settings.agent,
            prompts=settings.prompts,
            sampling=settings.sampling,
            max_turns=settings.max_turns,
            response=settings.response,
        )
        self.environments = EnvironmentsBySplit(settings.environments, settings.prompts)

    def play(self, specs: Sequence[EpisodeSpec], weights: Weights | None, version: int) -> PlayedBatch:
        """Plays one batch with the weights of `version`; None means the worker holds that version already."""
        start = time.perf_counter()
        if weights is not None:
            verify(weights)
            load_into(self.policy, weights)
            self.version = weights.version
        if self.version != version:
            raise RolloutError(f"weights of version {version} were due, the rollout worker has version {self.version}")
        loaded = time.perf_counter()
        environments = self.environments.of(specs[0].split)
        trajectories = self.player.play(specs, environments, version)
        sampled = time.perf_counter()
        temperature = self.settings.sampling.temperature
        if self.settings.sampling.score_prompt:
            trajectories = with_prompt_logprobs(trajectories, self.policy, temperature)
        trajectories = with_reference(trajectories, self.reference, temperature)
        if self.settings.vocabulary_kl is not None:
            trajectories = with_vocabulary_kl(
                trajectories, self.policy, self.reference, temperature, self.settings.vocabulary_kl
            )
        counts = {**environments.counts(), "env/observations_cut": float(self.player.observations_cut())}
        waited = counts.get("env/wait_seconds", 0.0)
        return PlayedBatch(
            trajectories=trajectories,
            load_seconds=loaded - start,
            sampling_seconds=sampled - loaded - waited,
            environment_seconds=waited,
            reference_seconds=time.perf_counter() - sampled,
            environment_counts=counts,
        )


class EnvironmentsBySplit:
    """The environments of each split, opened when they are first played in."""

    def __init__(self, settings: Mapping[Split, EnvironmentSettings], prompts: Sequence[Prompt]):
        self._settings = settings
        self._texts = [prompt.text for prompt in prompts]
        self._open: dict[Split, Environments] = {}

    def of(self, split: Split) -> Environments:
        if split not in self._open:
            self._open[split] = open_environments(self._settings[split], self._texts)
        return self._open[split]

    def close(self) -> None:
        for environments in self._open.values():
            environments.close()


@ray.remote
class RolloutActor:
    """The Ray actor around a `RolloutWorker`, which its first call builds: an error of a constructor would lose its type."""

    def __init__(self, settings: WorkerSettings):
        self._build = functools.cache(functools.partial(RolloutWorker, settings))

    def ready(self) -> str:
        """Answers once the models are loaded, with the node's id."""
        self._build()
        return ray.get_runtime_context().get_node_id()

    def play(self, specs: Sequence[EpisodeSpec], weights: PublishedWeights) -> PlayedBatch:
        worker = self._build()
        fetched = None
        if weights.version != worker.version:
            fetched = fetch(weights)
        return worker.play(specs, fetched, weights.version)


def fetch(weights: PublishedWeights, timeout_s: float = START_TIMEOUT_S) -> Weights:
    """The weights out of the object store. Raises Lost where they are gone from it, or do not come in time."""
    try:
        return ray.get(weights.ref[0], timeout=timeout_s)
    except GetTimeoutError:
        raise Lost(f"weights of version {weights.version} did not come within {timeout_s:g} s") from None
    except ObjectLostError as error:
        raise Lost(f"weights of version {weights.version}: {LOST.format(type(error).__name__)}") from None


@dataclass(slots=True)
class Task:
    """One batch under way on one worker."""

    batch: int
    worker: int
    deadline: float  # of time.monotonic()


class RolloutPool:
    """Rollout actors that share out the batches of an iteration."""

    def __init__(self, settings: WorkerSettings, config: RolloutConfig, gang: Gang | None = None):
        """gang: whose bundles the actors take; None: they go wherever there is room."""
        self.config = config
        self._gang = gang
        self._settings = ray.put(settings)
        self.actors = [self._start(number) for number in range(config.workers)]
        self._starting = set(
            range(config.workers)
        )  # workers that have not answered yet: their first answer may be late
        self.deaths = 0  # workers replaced since the start

    def ready(self) -> list[str]:
        """Waits until all workers have loaded their models; returns the ids of their nodes."""
        try:
            nodes = get([actor.ready.remote() for actor in self.actors], START_TIMEOUT_S)
        except Died as error:
            raise RolloutError(f"a rollout worker did not start: {error}{error.advice(ROLLOUT_MEMORY)}") from error
        self._starting.clear()
        return nodes

    def play(self, batches: Sequence[Sequence[EpisodeSpec]], weights: PublishedWeights) -> list[PlayedBatch]:
        """Plays all batches, in order of their position, whichever worker plays which and however often.

        Raises RolloutError when one batch was lost `max_retries` + 1 times; Lost where the weights have to be published
        again; an error of an environment as it is.
        """
        results: list[PlayedBatch | None] = [None] * len(batches)
        waiting, idle = deque(range(len(batches))), deque(range(len(self.actors)))
        lost = [0] * len(batches)
        running: dict[ray.ObjectRef, Task] = {}
        while waiting or running:
            while waiting and idle:
                worker = idle.popleft()
                patience = self.config.timeout_s + (START_TIMEOUT_S if worker in self._starting else 0)
                task = Task(waiting.popleft(), worker, time.monotonic() + patience)
                running[self.actors[task.worker].play.remote(batches[task.batch], weights)] = task
            next_deadline = min(task.deadline for task in running.values())
            done, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, next_deadline - time.monotonic()))
            late = [ref for ref, task in running.items() if task.deadline <= time.monotonic() and ref not in done]
            for ref in [*done, *late]:
                task = running.pop(ref)
                try:
                    results[task.batch] = self._result(ref) if ref in done else self._give_up()
                    self._starting.discard(task.worker)
                except Died as reason:
                    lost[task.batch] += 1
                    self._replace(task.worker)
                    if lost[task.batch] > self.config.max_retries:
                        raise RolloutError(
                            f"batch {task.batch} was lost {lost[task.batch]} times with its rollout worker, last: {reason}"
                            f"{reason.advice(ROLLOUT_MEMORY)}"
                        ) from reason
                    if reason.memory:
                        logger.warning(
                            "rollout worker %d: %s; its batch is played again%s",
                            task.worker,
                            reason,
                            reason.advice(ROLLOUT_MEMORY),
                        )
                    waiting.appendleft(task.batch)
                except Lost:
                    if running:  # what is played in vain yet is not to stand before the next call
                        ray.wait(list(running), num_returns=len(running), timeout=self.config.timeout_s)
                    raise
                idle.append(task.worker)
        return [result for result in results if result is not None]

    def close(self) -> None:
        kill(self.actors)

    def _start(self, worker: int) -> ray.actor.ActorHandle:
        return RolloutActor.options(  # type: ignore[attr-defined]
            num_cpus=self.config.cpus_per_worker,
            num_gpus=self.config.gpus_per_worker,
            scheduling_strategy="SPREAD" if self._gang is None else self._gang.worker(worker),
            runtime_env=actor_environment(self.config.cpus_per_worker),
        ).remote(self._settings)

    def _replace(self, worker: int) -> None:
        kill([self.actors[worker]])
        self.actors[worker] = self._start(worker)
        self._starting.add(worker)
        self.deaths += 1

    def _result(self, ref: ray.ObjectRef) -> PlayedBatch:
        try:
            return ray.get(ref)
        except GONE as error:
            raise death_of(error) from error
        except RayTaskError as error:
            raise own_error(error) from None
        except ObjectLostError as error:
            raise Died(LOST.format(type(error).__name__)) from error

    def _give_up(self) -> PlayedBatch:
        raise Died(f"no answer within rollout.timeout_s = {self.config.timeout_s:g} s")
