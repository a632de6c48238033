"""The processes of a long text job grow no further once they have seen their batches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from rayrlhf.trainer import Observer, train
from tests.faults import job

EPISODES, MIDDLE = 20_000, 10_000
GROWTH = 1_000_000  # bytes a process


class Memory(Observer):
    """Bytes of their own that each process of the run holds, an iteration at a time."""

    def __init__(self) -> None:
        self.seen: list[dict[str, int]] = []

    def iteration_done(self, iteration: int, metrics: Mapping[str, float]) -> None:
        driver = psutil.Process()
        self.seen.append({})
        for process in [driver, *driver.children(recursive=True)]:
            try:
                name = "driver" if process.pid == os.getpid() else process.cmdline()[0]
                if name == "driver" or name.startswith(("ray::RolloutActor", "ray::LearnerRank")):
                    self.seen[-1][f"{name} {process.pid}"] = own_bytes(process.pid)
            except (psutil.Error, OSError, IndexError):
                continue


def own_bytes(process: int) -> int:
    """Resident memory that no file and no other process shares."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.timeout(1800)
def test_no_process_grows_from_the_middle_of_a_long_text_job_on(
    tiny_model: Path, tmp_path: Path, ray_cluster: None
) -> None:
    """Of 20,000 episodes, from the 10,000th on: at most 1 MB a process, as the median over 20 iterations at each end."""
    memory = Memory()
    rollout = {"workers": 2, "groups_per_iteration": 4, "group_size": 10, "groups_per_batch": 2, "max_new_tokens": 24}
    train(
        job.small_config(
            tiny_model, tmp_path, "job", iterations=EPISODES // 40, baseline_episodes=0, rollout=rollout,
            checkpoint={"every": EPISODES},
        ),
        observer=memory,
    )  # fmt: skip
    half = MIDDLE // 40
    grown = {}
    for name in memory.seen[-1].keys() & memory.seen[half].keys():
        values = [seen[name] for seen in memory.seen if name in seen]
        grown[name] = sorted(values[-20:])[10] - sorted(values[half - 10 : half + 10])[10]
    assert len(grown) == 4, grown
    assert all(growth <= GROWTH for growth in grown.values()), grown
