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

import ray
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayrlhf import ray_start
from rayrlhf.actor_process import FORGET_LAUNCHERS, SETTLE
from rayrlhf.config import RunConfig
from rayrlhf.errors import LearnerError, RunFolderError, UserError
from rayrlhf.python_path import LAST, child_python_path, last_folders
from rayrlhf.ray_address import given_address
from rayrlhf.reading import first_line, json_value
from rayrlhf.reaper import reaped
from rayrlhf.run_folder import has_probe, remove_probe, write_probe
from rayrlhf.worker_death import GONE, Died, death_of

logger = logging.getLogger(__name__)

LOCAL_OBJECT_STORE_BYTES = 2_000_000_000
LOST = "an object was lost from Ray's object store ({}): its node died, or its memory ran out"
PROBE_TIMEOUT_S = 120.0  # of all nodes to look into the run's folder
START_TIMEOUT_S = 300.0  # of one actor: a process, its imports, its model


class Lost(Exception):
    """What was put into the object store for actors to fetch is gone; it has to be put there again."""


def ray_session(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """The Ray of one run: `ray_cluster` with as many logical CPUs as the run's actors ask for, and one to spare."""
    rollout, learner = config.rollout, config.learner
    asked = rollout.workers * rollout.cpus_per_worker + learner.ranks * learner.cpus_per_rank + config.reward_cpus
    return ray_cluster(int(asked) + 1)


@contextlib.contextmanager
def ray_cluster(cpus: int, object_store_bytes: int = LOCAL_OBJECT_STORE_BYTES) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS or a Ray job names, or starts one on this machine and stops it at the end.

    cpus: logical CPUs that a cluster of our own has at least: workers and learner take turns, so on a small machine
    they share its cores. Nothing of it outlives the driver. Raises InstallationError where there can be no cluster.
    """
    if ray.is_initialized():
        yield
        return
    address = given_address()
    options: dict[str, Any] = {"log_to_driver": False, "runtime_env": {"env_vars": process_environment()}}
    with contextlib.ExitStack() as stack:
        if address is not None:
            del options["runtime_env"]["env_vars"]["PYTHONPATH"]  # a job may have been submitted with one
            stack.callback(ray.shutdown)
            ray_start.join(address, **options)
        else:
            session = stack.enter_context(ray_start.OwnSession())
            stack.enter_context(reaped())
            stack.callback(ray.shutdown)
            os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets anything else on the machine go first
            cores = max(os.cpu_count() or 1, cpus)
            session.folder = ray_start.start(cores, object_store_bytes, logging_level=logging.ERROR, **options)
        yield


MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Keeps freed tensors for the next ones instead of giving their pages back: sampling and updates on CPU take 7-10 % less
time, measured on glibc 2.36; other C libraries ignore it."""


def process_environment() -> dict[str, str]:
    """What every process that Ray starts for us finds in its environment: what it does first, and where modules lie."""
    return {
        WORKER_PROCESS_SETUP_HOOK_ENV_VAR: SETTLE,  # `worker_process_setup_hook` can be given to whole jobs only
        LAST: os.pathsep.join(last_folders()),
        "PYTHONPATH": child_python_path(),
    }


def actor_environment(cpus: float, distributed: bool = False) -> dict[str, Any]:
    """`runtime_env` of our actors. On CPU speed comes from several one-thread processes, not from threads.

    distributed: they meet by `torch.distributed`, so that what a launcher left in the environment is kept from them.
    """
    threads = str(max(1, int(cpus)))
    return {
        "py_executable": shlex.quote(sys.executable),  # Ray 2.60 puts it into a shell's line as it is
        "env_vars": {
            **MALLOC,
            **process_environment(),
            "OMP_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            **({FORGET_LAUNCHERS: "1"} if distributed else {}),
        },
    }


def get(refs: Sequence[ray.ObjectRef], timeout_s: float) -> list[Any]:
    """The values of all refs. Raises Died for a dead actor, a lost object or a missed deadline, else the actor's own
    error."""
    try:
        return ray.get(list(refs), timeout=timeout_s)
    except GetTimeoutError as error:
        raise Died(f"no answer within {timeout_s:g} s") from error
    except GONE as error:
        raise death_of(error) from error
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
    """Raises LearnerError where the cluster can never hold the run's actors, before anything waits for them.

    A cluster that grows by itself is asked all the same: it is said what the run waits for.
    """
    rollout, learner = config.rollout, config.learner
    asks = {
        "CPU": (rollout.cpus_per_worker, learner.cpus_per_rank, config.reward_cpus),
        "GPU": (rollout.gpus_per_worker, learner.gpus_per_rank, config.reward_gpus),
    }
    rewards = {f"reward.{number}": part for number, part in enumerate(config.reward) if part.in_actors}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for resource, (of_worker, of_rank, of_rewards) in asks.items():
        asked = rollout.workers * of_worker + learner.ranks * of_rank + of_rewards
        key = f"{resource.lower()}s_per"
        single = {f"rollout.{key}_worker": of_worker, f"learner.{key}_rank": of_rank}
        single |= {f"{part}.{key}_actor": getattr(rewards[part], f"{key}_actor") for part in rewards}
        setting = max(single, key=lambda name: single[name])
        there = sum(node.get(resource, 0.0) for node in nodes)
        largest = max((node.get(resource, 0.0) for node in nodes), default=0.0)
        fault = ""
        if asked > there:
            more = " + the rewards' actors" if of_rewards else ""
            fault = (
                f"the run asks for {asked:g} {resource} (rollout.workers x rollout.{key}_worker + learner.ranks x "
                f"learner.{key}_rank{more}); the cluster has {there:g}"
                + _fitting(there - learner.ranks * of_rank - of_rewards, of_worker, rollout.workers)
            )
        elif single[setting] > largest:
            fault = f"{setting} {single[setting]:g}: no node of the cluster has more than {largest:g} {resource}"
        if fault and grows():
            logger.warning("%s: waiting for it to grow", fault)
        elif fault:
            raise LearnerError(fault)


def _fitting(left: float, of_worker: float, workers: int) -> str:
    """What to ask for instead, where fewer rollout workers would do."""
    fitting = int(left / of_worker) if of_worker else 0
    return f": rollout.workers={fitting} would fit" if 0 < fitting < workers else ": lower what does not fit"


def grows() -> bool:
    """Whether the cluster starts nodes by itself when there is no room.

    Its autoscaler, which runs without one as well, calls nodes by their types, those of a cluster as it is `node_ID`.
    """
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    try:
        report = json_value(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}").get("autoscaler_report") or {}
        kinds = list(report.get("active_nodes", {}))
    except (ValueError, AttributeError):  # of another version of Ray
        return False
    return any(not kind.startswith(("node_", "local.")) for kind in kinds)


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
    """Raises RunFolderError naming each node of the cluster that does not see the run's folder, or does not answer."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    token = write_probe(folder)
    try:
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        asked = [_sees.options(scheduling_strategy=place).remote(folder, token) for place in places]
        answers = get(asked, PROBE_TIMEOUT_S)
    except (Died, RayError) as error:  # some node does not answer, or has just gone
        raise RunFolderError(
            f"whether every node sees {folder} cannot be found out: {first_line(error)}: look at the cluster's nodes "
            "(`ray status`)"
        ) from error
    finally:
        remove_probe(folder, token)
    blind = [node["NodeManagerAddress"] for node, sees in zip(nodes, answers, strict=True) if not sees]
    if blind:
        raise RunFolderError(
            f"nodes {', '.join(blind)} do not see {folder}: set storage_path to a folder that every node shares"
        )
