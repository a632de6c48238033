"""How many trials run side by side, and whether a trial fits the cluster at all."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import ray

from rayrlhf.config import RunConfig
from rayrlhf.errors import LearnerError
from rayrlhf.gang import gang_bundles
from rayrlhf.room import check_machine, machine_memory, own_machine, processes_of, room

Resources = Mapping[str, float]


def side_by_side(configs: Sequence[RunConfig], cores: int) -> int:
    """Trials that keep so many cores busy, at least 1.

    A trial's workers and ranks take turns, so it computes on the larger of both at once.
    """
    most = max(
        max(c.rollout.workers * max(1, c.rollout.cpus_per_worker), c.learner.ranks * max(1, c.learner.cpus_per_rank))
        for c in configs
    )
    return max(1, int(cores / most))


def at_once(asked: int | None, configs: Sequence[RunConfig]) -> int | None:
    """Trials side by side: as many as asked for, else as keep this machine busy; None: as the given cluster has room for.

    Raises LearnerError where this machine cannot hold the processes of so many.
    """
    if not own_machine():
        return asked
    processes = max((processes_of(config) for config in configs), key=lambda counts: sum(counts.values()))
    check_machine({"a trial's driver": 1, **processes})
    fitting = room(machine_memory()) // (1 + sum(processes.values()))
    if asked is None:
        return min(side_by_side(configs, own_cores()), fitting)
    if asked > fitting:
        each = ", ".join(f"{setting} {count}" for setting, count in processes.items())
        raise LearnerError(
            f"sweep.max_concurrent {asked}: the memory of this machine holds the processes of {fitting} trials at once "
            f"({each} and a driver each): lower it to {fitting}, or join a larger cluster with RAY_ADDRESS"
        )
    return asked


def logical_cpus(configs: Sequence[RunConfig], trials: int) -> int:
    """CPUs that a cluster of our own must claim to have for so many gangs side by side, and one to spare."""
    return math.ceil(trials * max(sum(bundle["CPU"] for bundle in gang_bundles(config)) for config in configs)) + 1


def own_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_gangs_fit(configs: Sequence[RunConfig]) -> None:
    """Raises LearnerError where the cluster can never place one of the trials' gangs, however long it waits."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for config in configs:
        if not fits(gang_bundles(config), nodes):
            asked = ", ".join(f"{bundle}" for bundle in gang_bundles(config))
            largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
            raise LearnerError(
                f"a trial asks for {asked} at once; the cluster's {len(nodes)} nodes (the largest with {largest:g} CPU) "
                "can never hold that: lower rollout.workers, learner.ranks, or what each of them takes"
            )


def fits(bundles: Sequence[Resources], nodes: Sequence[Resources]) -> bool:
    """Whether all bundles have room at once on nodes that are empty, each bundle on one node.

    Tries first the largest bundles on the fullest node that holds them: not every packing, but bundles here are of
    three kinds at most.
    """
    free = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda each: sorted(each.items()), reverse=True):
        roomy = [node for node in free if all(node.get(name, 0.0) >= need - 1e-9 for name, need in bundle.items())]
        if not roomy:
            return False
        chosen = min(roomy, key=lambda node: node.get("CPU", 0.0))
        for name, need in bundle.items():
            chosen[name] -= need
    return True
