"""Steps a second of TextWorld's coin collector side by side, where the time goes, and memory over many episodes.

A random player chooses among the game's commands. A CPU second is one of the games' process; on a busy machine it tells
more than one of the clock. Run: python tests/benchmarks/environment_throughput.py [--games 40] [--episodes 2000]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
from rich.console import Console
from rich.table import Table

from rayrlhf.environments import EnvironmentSettings, load_environment
from rayrlhf.environments.pool import ProcessEnvironments

BATCHES = (8, 32, 128)
ROUNDS = 4  # of which the first warms up
NEVER = 10**9


@dataclass
class Timing:
    """Seconds of some rounds: of the clock, and of the processors."""

    steps: int = 0
    reset_s: float = 0.0
    step_s: float = 0.0
    games_cpu_s: float = 0.0
    own_cpu_s: float = 0.0

    @property
    def seconds(self) -> float:
        return self.reset_s + self.step_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--games", type=int, default=40)
    parser.add_argument("--level", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=2_000)
    parser.add_argument("--turns", type=int, default=25)
    arguments = parser.parse_args()
    parameters = {"kind": "coin_collector", "level": arguments.level, "games": arguments.games, "held_out_games": 1}
    load_environment("textworld").prepare(1, **parameters)  # type: ignore[attr-defined]
    settings = EnvironmentSettings("textworld", parameters)
    throughput(settings, arguments.turns)
    for entries in (0, 50_000):
        memory(settings, arguments.episodes, arguments.turns, entries)


def throughput(settings: EnvironmentSettings, turns: int) -> None:
    """Prints steps a second; of the time, the shares of resets and steps, of the games, of this process (messages and
    memory), and of waiting for a processor."""
    columns = ("side by side", "memory", "steps/s", "steps/CPU s", "hits", "resets", "steps", "games", "own", "waiting")
    table = Table(*columns, box=None)
    for batch in BATCHES:
        for entries in (0, 50_000):
            with ProcessEnvironments(settings, memo_entries=entries, recycle_after=NEVER) as environments:
                timing = timed(environments, batch, turns)
                hits = environments.counts()["env/memo_hits"] / timing.steps
            own, games = timing.own_cpu_s, timing.games_cpu_s
            phases = (timing.reset_s, timing.step_s, games, own, max(0.0, timing.seconds - games - own))
            table.add_row(
                str(batch), "yes" if entries else "no", f"{timing.steps / timing.seconds:,.0f}",
                f"{timing.steps / (games + own):,.0f}", f"{hits:.0%}",
                *(f"{phase / timing.seconds:.0%}" for phase in phases),
            )  # fmt: skip
    Console(width=120).print(table)


def timed(environments: ProcessEnvironments, batch: int, turns: int) -> Timing:
    """Plays the rounds after the first, which have other actions on the same games."""
    play(environments, range(batch), turns, 0, Timing())
    environments.counts()
    timing = Timing()
    for number in range(1, ROUNDS):
        play(environments, range(batch), turns, number, timing)
    return timing


def play(environments: ProcessEnvironments, seeds: Sequence[int], turns: int, stream: int, timing: Timing) -> None:
    """One episode for each seed, of at most so many turns."""
    player = random.Random(stream)
    games = psutil.Process(environments.pids[0])
    games_cpu_s, start, own_cpu_s = cpu_seconds(games), time.perf_counter(), time.process_time()
    now = dict(enumerate(environments.reset(seeds)))
    timing.reset_s += time.perf_counter() - start
    for _ in range(turns):
        actions = {slot: player.choice(at.state.commands) for slot, at in now.items() if not at.terminated}
        if not actions:
            break
        start = time.perf_counter()
        now = environments.step(actions)
        timing.step_s += time.perf_counter() - start
        timing.steps += len(actions)
    timing.own_cpu_s += time.process_time() - own_cpu_s
    timing.games_cpu_s += cpu_seconds(games) - games_cpu_s


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def memory(settings: EnvironmentSettings, episodes: int, turns: int, entries: int) -> None:
    """Prints resident megabytes and open files of this process and of the games', which is never recycled here."""
    print(f"\n{episodes:,} episodes, memory of {entries:,} transitions")
    table = Table("episodes", "games MB", "games files", "own MB", "own files", box=None)
    batch = 40
    rows: list[tuple[int, float]] = []
    with ProcessEnvironments(settings, memo_entries=entries, recycle_after=NEVER) as environments:
        timing = Timing()
        for first in range(0, episodes, batch):
            play(environments, range(first, first + batch), turns, first, timing)
            played = first + batch
            if played % 200 == 0:
                child, own = psutil.Process(environments.pids[0]), psutil.Process()
                rows.append((played, megabytes(child) + megabytes(own)))
                table.add_row(
                    f"{played:,}", f"{megabytes(child):.1f}", str(child.num_fds()),
                    f"{megabytes(own):.1f}", str(own.num_fds()),
                )  # fmt: skip
    Console(width=120).print(table)
    warm = rows[len(rows) // 4 :]
    growth = (warm[-1][1] - warm[0][1]) / (warm[-1][0] - warm[0][0]) * 100
    print(f"{growth:.2f} MB per 100 episodes after the first quarter; {timing.steps / timing.seconds:,.0f} steps/s")


def megabytes(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / (1 << 20)


if __name__ == "__main__":
    main()
