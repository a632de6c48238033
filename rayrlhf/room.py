"""Whether a run's Ray and its processes will have a place, said before any of them is started.

On this machine logical CPUs are given out as asked for: workers and learner take turns, so a laptop may run more
processes than it has cores. What bounds them there is memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import ray

from rayrlhf.config import RunConfig
from rayrlhf.errors import LearnerError
from rayrlhf.ray_address import check_address, given_address

SMALLEST_PROCESS_BYTES = 250_000_000
"""What a process with PyTorch and the smallest model takes for itself (measured: 270 to 420 MB resident)."""
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def processes_of(config: RunConfig) -> dict[str, int]:
    """How many processes each setting of a run asks Ray for."""
    asked = {"rollout.workers": config.rollout.workers, "learner.ranks": config.learner.ranks}
    for number, part in enumerate(config.reward):
        if part.in_actors:
            asked[f"reward.{number}.actors"] = part.in_actors
    return asked


def own_machine() -> bool:
    """Whether Ray is still to be started, and on this machine."""
    return not ray.is_initialized() and given_address() is None


def check_start(asked: Mapping[str, int]) -> None:
    """Everything that can be known of a Ray that is still to be started or joined, in no time: call it first.

    Raises InstallationError where RAY_ADDRESS leads nowhere, LearnerError where this machine has no room.
    """
    if own_machine():
        check_machine(asked)
    elif not ray.is_initialized():
        check_address(given_address())


def check_machine(asked: Mapping[str, int], memory: int | None = None) -> None:
    """Raises LearnerError where a cluster of our own on this machine cannot hold so many processes at once.

    memory: bytes; None: this machine's.
    """
    memory = machine_memory() if memory is None else memory
    most, total = room(memory), sum(asked.values())
    if total <= most:
        return
    largest = max(asked, key=lambda setting: asked[setting])
    rest = total - asked[largest]
    fitting = f"{largest} up to {most - rest}" if most > rest else f"{most} in all"
    settings = ", ".join(f"{setting} {count}" for setting, count in asked.items())
    raise LearnerError(
        f"{settings}: {total} processes of at least {SMALLEST_PROCESS_BYTES / 1e9:g} GB each do not fit into the "
        f"{memory / 1e9:.0f} GB of this machine; {fitting} would, or join a larger cluster with RAY_ADDRESS"
    )


def room(memory: int) -> int:
    """How many of the smallest processes fit into so many bytes."""
    return memory // SMALLEST_PROCESS_BYTES


def machine_memory(limits: Sequence[Path] = _LIMITS) -> int:
    """Bytes of this machine, or of the container around us where that has fewer."""
    found = [psutil.virtual_memory().total]
    for limit in limits:
        try:
            found.append(int(limit.read_text(encoding="ascii")))
        except (OSError, ValueError):  # not here, or `max`
            continue
    return min(found)
