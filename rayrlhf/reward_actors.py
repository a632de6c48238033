"""The rewards of a run: learned ones in Ray actors of their own, all others in the child process that can be killed.

An actor holds one part. A batch is dealt in chunks of a fixed size, so results do not depend on the number of actors; an
actor that dies is replaced and its chunk scored again.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import ray

from rayrlhf import plugins
from rayrlhf.cluster import START_TIMEOUT_S, actor_environment, get, kill
from rayrlhf.config import RewardPart
from rayrlhf.errors import RewardError
from rayrlhf.gang import Gang
from rayrlhf.reward_contract import remembering
from rayrlhf.reward_mixture import RewardMixture, part_keys
from rayrlhf.reward_process import RewardProcess
from rayrlhf.types import EpisodeScore, Trajectory
from rayrlhf.worker_death import REWARD_MEMORY, Died

CHUNK = 64  # episodes
MAX_RETRIES = 3


@ray.remote
class RewardActor:
    """The Ray actor around one part, which its first call builds: an error of a constructor would lose its type."""

    def __init__(self, part: RewardPart):
        self._build = functools.cache(lambda: RewardMixture([part]))

    def ready(self) -> bool:
        self._build()
        return True

    def score(self, trajectories: Sequence[Trajectory]) -> list[EpisodeScore]:
        return self._build().score(trajectories)


class _Sent(NamedTuple):
    """A chunk of a batch that is being scored."""

    number: int  # of the actor that has it
    actor: Any  # its handle
    reference: Any  # of its answer
    chunk: Sequence[Trajectory]


class ActorReward:
    """One part of the reward, scored by its actors."""

    def __init__(self, part: RewardPart, key: str, timeout_s: float, gang: Gang | None = None, first: int = 0):
        """key: the part's name in the log. gang, first: whose bundles the actors take, from reward bundle `first` on."""
        self.key = key
        self._part, self._timeout_s, self._gang, self._first = part, timeout_s, gang, first
        self.actors = [self._start(number) for number in range(part.in_actors)]
        self._slow = set(range(part.in_actors))  # actors that still load the model: their first answer may be late
        self.deaths = 0  # actors replaced since the start

    def ready(self) -> None:
        """Waits until all actors have loaded the part. Raises RewardError."""
        try:
            get([actor.ready.remote() for actor in self.actors], START_TIMEOUT_S)
        except Died as error:
            raise RewardError(
                f"reward `{self.key}`: an actor did not start: {error}{error.advice(REWARD_MEMORY)}"
            ) from error
        self._slow.clear()

    def submit(self, trajectories: Sequence[Trajectory]) -> list[_Sent]:
        """Sends a batch off, chunk by chunk."""
        chunks = [trajectories[start : start + CHUNK] for start in range(0, len(trajectories), CHUNK)]
        return [self._send(n % len(self.actors), chunk) for n, chunk in enumerate(chunks)]

    def collect(self, sent: Sequence[_Sent]) -> list[EpisodeScore]:
        """The scores of a batch that was sent off, in order. Raises RewardError."""
        deadline = time.monotonic() + self._timeout_s
        scores: list[EpisodeScore] = []
        for one in sent:
            scores += self._answer(one, deadline)
        return [EpisodeScore(score.total, {self.key: next(iter(score.parts.values()))}) for score in scores]

    def close(self) -> None:
        kill(self.actors)

    def _send(self, number: int, chunk: Sequence[Trajectory]) -> _Sent:
        actor = self.actors[number]
        return _Sent(number, actor, actor.score.remote(chunk), chunk)

    def _answer(self, sent: _Sent, deadline: float) -> list[EpisodeScore]:
        for attempt in range(MAX_RETRIES + 1):
            patience = START_TIMEOUT_S if sent.number in self._slow else 0.0
            try:
                [scores] = get([sent.reference], max(0.0, deadline - time.monotonic()) + patience)
            except Died as reason:
                if time.monotonic() >= deadline + patience:
                    raise RewardError(
                        f"reward `{self.key}` took longer than {self._timeout_s:g} s to score a batch and was stopped. "
                        "`reward_timeout_s` sets the limit."
                    ) from reason
                if attempt == MAX_RETRIES:
                    raise RewardError(
                        f"reward `{self.key}`: its actor died {attempt + 1} times: {reason}{reason.advice(REWARD_MEMORY)}"
                    ) from reason
                if self.actors[sent.number] is sent.actor:  # else it was replaced for another chunk
                    self._replace(sent.number)
                sent = self._send(sent.number, sent.chunk)
            else:
                self._slow.discard(sent.number)
                return list(scores)
        raise AssertionError

    def _replace(self, number: int) -> None:
        kill([self.actors[number]])
        self.actors[number] = self._start(number)
        self._slow.add(number)
        self.deaths += 1

    def _start(self, number: int) -> Any:
        part = self._part
        place = "SPREAD" if self._gang is None else self._gang.reward(self._first + number)
        return RewardActor.options(  # type: ignore[attr-defined]
            num_cpus=part.cpus_per_actor,
            num_gpus=part.gpus_per_actor,
            scheduling_strategy=place,
            runtime_env=actor_environment(part.cpus_per_actor),
        ).remote(part)


class RunRewards:
    """The weighted sum of all parts of a run's reward."""

    def __init__(self, parts: Sequence[RewardPart], timeout_s: float):
        """Starts the child process of those that run in it; raises RewardError where one cannot be built.

        `start` starts the actors of the others, once there is a Ray.
        """
        self._parts, self._timeout_s = tuple(parts), timeout_s
        self.keys = part_keys(parts)
        own = [part for part in parts if not part.in_actors]
        self._own_keys = [key for key, part in zip(self.keys, parts, strict=True) if not part.in_actors]
        self.actors: list[ActorReward] = []
        self._process = RewardProcess(own, timeout_s) if own else None

    def warnings(self) -> list[str]:
        """What the user should know of rewards of their own before a run, a line each; asks those for a few scores."""
        own = any(plugins.origin("reward", part.name) != "built-in" for part in self._parts if not part.in_actors)
        if self._process is None or not own:
            return []
        return [
            f"warning: reward `{key}` scores the same texts otherwise the second time: its scores depend on chance or on "
            "what it was given before, so the policy learns noise, and a resumed run goes another way. "
            "`rayrlhf rewards test` shows it"
            for key in remembering(self._process)
        ]

    def start(self, gang: Gang | None = None) -> None:
        """Starts the actors and waits until they have loaded their parts. Raises RewardError."""
        first = 0
        for part, key in zip(self._parts, self.keys, strict=True):
            if part.in_actors:
                self.actors.append(ActorReward(part, key, self._timeout_s, gang, first))
                first += part.in_actors
        for reward in self.actors:
            reward.ready()

    def score(self, trajectories: Sequence[Trajectory]) -> list[EpisodeScore]:
        """One score a trajectory, in order. Raises RewardError as `RewardProcess.score` does."""
        if not trajectories:
            return []
        sent = [(reward, reward.submit(trajectories)) for reward in self.actors]
        shares: list[list[EpisodeScore]] = []
        if self._process is not None:
            scores = self._process.score(trajectories)
            shares.append(
                [EpisodeScore(s.total, dict(zip(self._own_keys, s.parts.values(), strict=True))) for s in scores]
            )
        shares += [reward.collect(references) for reward, references in sent]
        return [self._sum(of_episode) for of_episode in zip(*shares, strict=True)]

    def _sum(self, shares: Sequence[EpisodeScore]) -> EpisodeScore:
        if len(shares) == 1:
            return shares[0]
        parts = {key: value for share in shares for key, value in share.parts.items()}
        total = np.stack([share.total for share in shares]).sum(axis=0, dtype=np.float32)
        return EpisodeScore(total, {key: parts[key] for key in self.keys})

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for reward in self.actors:
                stack.callback(reward.close)
            if self._process is not None:
                stack.callback(self._process.close)

    def __enter__(self) -> RunRewards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
