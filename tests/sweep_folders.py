"""Sweeps' folders written by the real writers of runs, with episodes made up to go where a test wants them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rayrlhf.alarms import AlarmRecord
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.metrics import MetricsLog, SampleRecord, TurnRecord
from rayrlhf.run_folder import RunFolder

BASE_REWARD = 3.0
VOCABULARY = [f"w{number}" for number in range(200)]


@dataclass(frozen=True, slots=True)
class State:
    """Where a made-up policy is: what its episodes score, how far it is, and how many words it still knows."""

    reward: float
    kl: float  # nats a sequence
    words: int = 200  # of the vocabulary: 200 as the base model, 2 a collapse


Course = Callable[[int], State]


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """One trial to write."""

    parameters: Mapping[str, Any]
    seed: int = 0
    course: Course | None = None  # iteration -> where it is; None: not begun
    status: str | None = "done"  # None: unfinished
    error: str | None = None
    iterations: int = 6
    alarms: Sequence[AlarmRecord] = ()


def write_sweep(
    storage: Path,
    trials: Sequence[TrialPlan],
    *,
    objective: Mapping[str, Any] | None = None,
    name: str = "sweep",
    every: int = 2,
    episodes: int = 40,
    base_episodes: int = 100,
    text: str | None = None,
    games: bool = False,
) -> Path:
    """Writes a sweep's folder. text: what the last episode of each trial says; every: iterations between checkpoints."""
    folder = storage / name
    (folder / "trials").mkdir(parents=True)
    config = {"name": name, "base": "alliteration", "objective": objective or {"kind": "reward_under_kl", "max_kl": 20}}
    (folder / "sweep.yaml").write_text(json.dumps(config))  # JSON is YAML
    rows = []
    for number, trial in enumerate(trials):
        rows.append({"name": f"trial-{number:03d}", "parameters": dict(trial.parameters), "seed": trial.seed})
        place = folder / "trials" / f"trial-{number:03d}"
        if trial.course is not None:
            write_run(place, trial, every, episodes, base_episodes, text, games)
        if trial.status is not None:
            place.mkdir(exist_ok=True)
            marker = {"status": trial.status, "error": trial.error, "seconds": 90.0}
            (place / "trial.json").write_text(json.dumps(marker))
    (folder / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@functools.cache
def config_yaml(every: int) -> str:
    return dump_config(RunConfig.model_validate({"checkpoint": {"every": every}}))


def write_run(
    place: Path, trial: TrialPlan, every: int, episodes: int, base_episodes: int, text: str | None, games: bool
) -> None:
    assert trial.course is not None
    random = np.random.default_rng([trial.seed, len(trial.parameters)])
    place.mkdir()
    folder = RunFolder(place)
    folder.config.write_text(config_yaml(every))
    with MetricsLog(folder) as log:
        base = State(BASE_REWARD, 0.0)
        log.record_samples(episode(random, -1, index, base, games) for index in range(base_episodes))
        for iteration in range(trial.iterations):
            state = trial.course(iteration)
            records = [episode(random, iteration, index, state, games) for index in range(episodes)]
            if text is not None and iteration == trial.iterations - 1:
                records[-1] = replace(records[-1], response=text)
            log.record_samples(records)
            if (iteration + 1) % every == 0:
                (folder.checkpoints / f"{iteration + 1:06d}").mkdir(parents=True)
        folder.alarms.write_text("".join(json.dumps(asdict(alarm)) + "\n" for alarm in trial.alarms))


def episode(random: np.random.Generator, iteration: int, index: int, state: State, games: bool = False) -> SampleRecord:
    """Scores alternate around the reward by 1, KL around its own by half a nat: means over even numbers are exact."""
    sign = 1 if index % 2 else -1
    words = random.choice(VOCABULARY[: state.words], size=30)
    turn = TurnRecord("You win." if games else "", "take lamp", 0.5, None, 1.0, True, False, True)
    return SampleRecord(
        run="made-up", iteration=iteration, index=index, group=index // 10, prompt="Once", response=" " + " ".join(words),
        score=state.reward + sign, parts={"alliteration": state.reward + sign}, kl=state.kl + 0.5 * sign,
        total=state.reward + sign, logprob_sum=-60.0, reference_logprob_sum=-60.0 - state.kl, length=32, finish="eos",
        weights_version=max(iteration, 0), turns=(turn,) if games else (),
    )  # fmt: skip


def alarm(iteration: int, rule: str) -> AlarmRecord:
    return AlarmRecord(iteration, rule, 1.0, 0.5, "warn", 0, f"{rule} is 1, over 0.5", None)


def climb(reward: float, kl: float, words: int = 200, iterations: int = 6) -> Course:
    """From the base model evenly to this state in the last iteration."""

    def state(iteration: int) -> State:
        share = (iteration + 1) / iterations
        return State(BASE_REWARD + share * (reward - BASE_REWARD), share * kl, words if iteration >= 2 else 200)

    return state
