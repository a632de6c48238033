"""Why a Ray worker of ours is gone, in a line: which process, and whether for lack of memory."""

from __future__ import annotations

import re
from pathlib import Path

from ray.exceptions import OutOfMemoryError, RayActorError

from rayrlhf.reading import first_line

GONE = (RayActorError, OutOfMemoryError)
"""What Ray raises for an actor that is no more; the second where its memory monitor ended the process."""

ROLLOUT_MEMORY = "lower rollout.workers, rollout.groups_per_batch or rollout.max_new_tokens"
LEARNER_MEMORY = "lower learner.tokens_per_micro_batch or learner.ranks, or raise learner.zero_stage"
REWARD_MEMORY = "lower the reward's `actors`, or rollout.workers beside it"
SUPERVISED_MEMORY = "give it fewer workers, or fewer examples in a forward pass"

_USED = re.compile(r"(?P<used>[\d.]+GB) used / (?P<limit>[\d.]+GB) limit")
_VANISHED = "connection error code 2"  # what Ray sees of a process that is killed from outside
_VMSTAT = Path("/proc/vmstat")


class Died(Exception):
    """An actor died or did not answer in time; what it did is lost, and can be done again by another."""

    def __init__(self, message: str, memory: bool = False) -> None:
        """memory: it ended, or may have ended, because memory ran out."""
        super().__init__(message)
        self.memory = memory

    def advice(self, remedy: str) -> str:
        """`: remedy` where memory was the reason, else nothing: what to put behind the message."""
        return f": {remedy}" if self.memory else ""


class KernelKills:
    """How many processes this machine's kernel has ended for lack of memory, as far as it says so."""

    def __init__(self, vmstat: Path = _VMSTAT) -> None:
        self._vmstat = vmstat
        self._seen = self._count()

    def more(self) -> bool:
        """Whether there are more than when this was asked last."""
        before, self._seen = self._seen, self._count()
        return self._seen > before

    def _count(self) -> int:
        try:
            lines = self._vmstat.read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


_kills = KernelKills()


def death_of(error: Exception, kills: KernelKills = _kills) -> Died:
    """What one of `GONE` means."""
    text = str(error)
    process = _process(text)
    if isinstance(error, OutOfMemoryError):
        used = _USED.search(text)
        of = f" ({used['used']} of {used['limit']} in use)" if used else ""
        return Died(f"Ray's memory monitor ended its process{process}, for the memory of its machine ran out{of}", True)
    if _VANISHED not in text:
        return Died(first_line(error))
    if kills.more():
        return Died(f"its process{process} was killed, and the kernel says that memory ran out", True)
    return Died(f"its process{process} was killed or crashed; where memory ran out the kernel's log says so (dmesg)")


def _process(text: str) -> str:
    """` 4711 on 10.0.0.1`, of what the message knows."""
    pid, node = re.search(r"\bpid[=:] ?(\d+)", text), re.search(r"\b(?:ip|IP): ?([0-9a-fA-F.:]+)", text)
    return (f" {pid[1]}" if pid else "") + (f" on {node[1]}" if node else "")
