"""Samples a second of the whole loop, RayRLHF against TRL's RLOOTrainer, in alternation on one machine.

    python tests/benchmarks/compare_with_trl.py --trl-python PYTHON_WITH_TRL --rounds 3

Same model, prompt, groups, lengths, one optimizer step a batch of samples, fp32, KL penalty on, two cores each. TRL
runs at one and two threads, with its dynamic and its static cache, in one batch and in micro-batches of 40 samples, and
the best of these counts in each round. `--groups 4` is the shape of the default job; larger batches favour RayRLHF.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
MODEL = PROJECT / "rayrlhf" / "assets" / "tiny-stories"
PARTS = ("sync", "rollout", "worker_sampling", "worker_reference", "worker_waiting", "reward", "update", "record")


@dataclass(frozen=True)
class Result:
    name: str
    samples_per_second: float
    seconds: dict[str, float]  # an iteration, by part


def run_rayrlhf(options: argparse.Namespace, round_number: int, folder: Path) -> Result:
    name = f"round-{round_number}"
    command = [
        sys.executable, "-m", "rayrlhf", "train", "alliteration",
        f"storage_path={folder}", f"name={name}", f"iterations={options.iterations}", "baseline_episodes=0",
        f"rollout.groups_per_iteration={options.groups}", f"rollout.group_size={options.group_size}",
        f"rollout.groups_per_batch={options.groups // 2}", f"rollout.max_new_tokens={options.max_new_tokens}",
        "rollout.workers=2", f"learner.ranks={options.ranks}", f"learner.zero_stage={options.zero_stage}",
        f"learner.cpus_per_rank={2 // options.ranks}", "learner.precision=fp32",
        "algorithm.kl.coef=0.4", "optimizer.lr=3e-4",
    ]  # fmt: skip
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=PROJECT)
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    counted = rows[options.warmup :]
    wall = rows[-1]["time/elapsed"] - rows[options.warmup - 1]["time/elapsed"]
    seconds = {part: statistics.mean(row[f"time/{part}"] for row in counted) for part in PARTS}
    samples = options.groups * options.group_size * len(counted)
    return Result("RayRLHF", samples / wall, {"iteration": wall / len(counted), **seconds})


def run_trl(options: argparse.Namespace, threads: int, cache: str, accumulation: int, folder: Path) -> Result:
    command = [
        options.trl_python, str(Path(__file__).with_name("trl_loop.py")), "--model", str(MODEL),
        "--threads", str(threads), "--cache", cache, "--accumulation", str(accumulation), "--groups", str(options.groups),
        "--group-size", str(options.group_size), "--max-new-tokens", str(options.max_new_tokens),
        "--iterations", str(options.iterations), "--warmup", str(options.warmup), "--output", str(folder / "trl"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    line = json.loads(done.stdout.strip().splitlines()[-1])
    return Result(
        f"TRL, {threads} threads, {cache} cache, {accumulation} micro-batches",
        line["samples_per_second"],
        line["seconds_per_iteration"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=sys.executable, help="a Python that has TRL 1.16.0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=10)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero-stage", type=int, default=2)
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(options.rounds):
            ours = run_rayrlhf(options, number, folder)
            splits = sorted({1, max(1, options.groups * options.group_size // 40)})
            kinds = itertools.product((1, 2), ("dynamic", "static"), splits)
            theirs = [run_trl(options, *kind, folder) for kind in kinds]
            for result in (ours, *theirs):
                parts = "  ".join(f"{part} {seconds:.3f}" for part, seconds in result.seconds.items())
                print(
                    f"{result.name:46s} {result.samples_per_second:7.1f} samples/s   s/iteration: {parts}", flush=True
                )
            best = max(theirs, key=lambda result: result.samples_per_second)
            ratios.append(ours.samples_per_second / best.samples_per_second)
            print(f"round {number}: ratio {ratios[-1]:.2f} against {best.name}", flush=True)
    print(f"ratio of samples a second: median {statistics.median(ratios):.2f}, all {[round(r, 2) for r in ratios]}")


if __name__ == "__main__":
    main()
