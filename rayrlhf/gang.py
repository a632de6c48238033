"""One placement group that holds a whole run: bundle 0 its driver, then one a learner rank, a rollout worker, a
reward actor.

A sweep's trial runs in one: all of it is placed at once or not at all, so that trials side by side never wait for each
other with half of what they need.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayrlhf.config import RunConfig

DRIVER_CPUS = 0.1  # the driver waits for its actors nearly all the time


def gang_bundles(config: RunConfig) -> list[dict[str, float]]:
    """The resources of a run's gang, bundle by bundle."""
    rollout, learner = config.rollout, config.learner
    rank = _bundle(learner.cpus_per_rank, learner.gpus_per_rank)
    worker = _bundle(rollout.cpus_per_worker, rollout.gpus_per_worker)
    rewards = [
        _bundle(part.cpus_per_actor, part.gpus_per_actor) for part in config.reward for _ in range(part.in_actors)
    ]
    return [{"CPU": DRIVER_CPUS}, *[rank] * learner.ranks, *[worker] * rollout.workers, *rewards]


@dataclass(frozen=True, slots=True)
class Gang:
    """Where the actors of a run go."""

    group: PlacementGroup  # of `gang_bundles`
    ranks: int  # learner ranks
    workers: int  # rollout workers

    def rank(self, number: int) -> PlacementGroupSchedulingStrategy:
        """Where learner rank `number` goes."""
        return PlacementGroupSchedulingStrategy(self.group, 1 + number)

    def worker(self, number: int) -> PlacementGroupSchedulingStrategy:
        """Where rollout worker `number` goes."""
        return PlacementGroupSchedulingStrategy(self.group, 1 + self.ranks + number)

    def reward(self, number: int) -> PlacementGroupSchedulingStrategy:
        """Where reward actor `number` goes."""
        return PlacementGroupSchedulingStrategy(self.group, 1 + self.ranks + self.workers + number)


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
