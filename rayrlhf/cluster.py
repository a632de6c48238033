"""The rim to Ray: joining or starting a cluster, options of our actors, deadlines, and errors without Ray's wrapping."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayrlhf.config import RunConfig
from rayrlhf.errors import LearnerError, RunFolderError, UserError
from rayrlhf.reaper import reaped
from rayrlhf.run_folder import has_probe, remove_probe, write_probe

LOCAL_OBJECT_STORE_BYTES = 2_000_000_000
LOST = "an object was lost from Ray's object store ({}): its node died, or its memory ran out"
START_TIMEOUT_S = 300.0  # of one actor: a process, its imports, its model


class Died(Exception):
    """An actor died or did not answer in time; what it did is lost, and can be done again by another."""


class Lost(Exception):
    """What was put into the object store for actors to fetch is gone; it has to be put there again."""


def ray_session(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """The Ray of one run: `ray_cluster` with as many logical CPUs as the run's actors ask for, and one to spare."""
    rollout, learner = config.rollout, config.learner
    asked = rollout.workers * rollout.cpus_per_worker + learner.ranks * learner.cpus_per_rank + config.reward_cpus
    return ray_cluster(int(asked) + 1)


@contextlib.contextmanager
def ray_cluster(cpus: int) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS or a Ray job names, or starts one on this machine and stops it at the end.

    cpus: logical CPUs that a cluster of our own has at least: workers and learner take turns, so on a small machine
    they share its cores. Nothing of it outlives the driver.
    """
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        cluster: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    else:
        before = set(psutil.Process().children())
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets anything else on the machine go first
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, cpus),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
        )
        daemons = [child for child in psutil.Process().children() if child not in before]
        cluster = reaped([member for daemon in daemons for member in (daemon, *daemon.children(recursive=True))])
    with cluster:
        try:
            yield
        finally:
            ray.shutdown()


MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Keeps freed tensors for the next ones instead of giving their pages back: sampling and updates on CPU take 7-10 % less
time, measured on glibc 2.36; other C libraries ignore it."""


def actor_environment(cpus: float) -> dict[str, Any]:
    """`runtime_env` of our actors. On CPU speed comes from several one-thread processes, not from threads."""
    threads = str(max(1, int(cpus)))
    return {
        "py_executable": shlex.quote(sys.executable),  # Ray 2.60 puts it into a shell's line as it is
        "env_vars": {
            **MALLOC,
            "OMP_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")])),
        },
    }


def get(refs: Sequence[ray.ObjectRef], timeout_s: float) -> list[Any]:
    """The values of all refs. Raises Died for a dead actor, a lost object or a missed deadline, else the actor's own
    error."""
    try:
        return ray.get(list(refs), timeout=timeout_s)
    except GetTimeoutError as error:
        raise Died(f"no answer within {timeout_s:g} s") from error
    except RayActorError as error:
        raise Died(str(error).splitlines()[0]) from error
    except RayTaskError as error:
        raise own_error(error) from None
    except ObjectLostError as error:
        raise Died(LOST.format(type(error).__name__)) from error


def own_error(error: RayTaskError) -> BaseException:
    """The UserError or Lost that an actor raised, Died where what it was to work on was lost; any other error with its
    remote traceback."""
    cause = error.cause
    if isinstance(cause, ObjectLostError):  # the text of this kind of RayTaskError cannot even be asked for
        return Died(LOST.format(type(cause).__name__))
    return cause if isinstance(cause, UserError | Lost) else error


def kill(actors: Sequence[Any]) -> None:
    """Ends the actors' processes at once."""
    for actor in actors:
        ray.kill(actor, no_restart=True)


def check_resources(config: RunConfig) -> None:
    """Raises LearnerError where the cluster can never hold the run's actors, before anything waits for them."""
    rollout, learner = config.rollout, config.learner
    total = ray.cluster_resources()
    for resource, asked, keys in (
        (
            "CPU",
            rollout.workers * rollout.cpus_per_worker + learner.ranks * learner.cpus_per_rank + config.reward_cpus,
            "rollout.workers x rollout.cpus_per_worker + learner.ranks x learner.cpus_per_rank"
            + (" + the rewards' actors" if config.reward_cpus else ""),
        ),
        (
            "GPU",
            rollout.workers * rollout.gpus_per_worker + learner.ranks * learner.gpus_per_rank + config.reward_gpus,
            "rollout.workers x rollout.gpus_per_worker + learner.ranks x learner.gpus_per_rank"
            + (" + the rewards' actors" if config.reward_gpus else ""),
        ),
    ):
        if asked > total.get(resource, 0):
            raise LearnerError(
                f"the run asks for {asked:g} {resource} ({keys}); the cluster has {total.get(resource, 0):g}"
            )


@ray.remote(num_cpus=0)
def _sees(folder: Path, token: str) -> bool:
    """Whether this node sees what the driver left in a folder; shared file systems may show it a little late."""
    deadline = time.monotonic() + 10
    while not has_probe(folder, token):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def check_shared_storage(folder: Path) -> None:
    """Raises RunFolderError naming each node of the cluster that does not see the run's folder."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    token = write_probe(folder)
    try:
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        answers = get([_sees.options(scheduling_strategy=place).remote(folder, token) for place in places], 120)
    finally:
        remove_probe(folder, token)
    blind = [node["NodeManagerAddress"] for node, sees in zip(nodes, answers) if not sees]
    if blind:
        raise RunFolderError(
            f"nodes {', '.join(blind)} do not see {folder}: set storage_path to a folder that every node shares"
        )
