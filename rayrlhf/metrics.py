"""What a run records as it goes: `metrics.jsonl`, `samples.jsonl`, the same curves for TensorBoard; and the readers.

Both files hold one JSON object a line (json_lines.py), rising iterations, and -1 for what was played before the first.
"""

from __future__ import annotations

import io
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from rayrlhf.errors import NotFiniteError
from rayrlhf.files import storing
from rayrlhf.json_lines import LineWriter, keep_lines, line, open_append, records
from rayrlhf.reading import Count, Number, Whole, is_number
from rayrlhf.run_folder import RunFolder
from rayrlhf.types import GameState, Trajectory

BASELINE_ITERATION = -1
"""Iteration of the untrained model's episodes, played before the first."""

MetricsRow = dict[str, Number]
"""A line of `metrics.jsonl`: its `iteration` is an int."""


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One turn of a game in `samples.jsonl` (SPEC TW-26)."""

    observation: str
    action: str
    probability: Number | None  # of the action under the policy that played; None: an example was played (SPEC TW-8)
    value: Number | None  # V of the state before the action; None without a value network
    reward: Number  # the environment's own
    valid: bool  # the game understood the action
    example: bool
    won: bool  # the game stands won after the turn


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One episode in `samples.jsonl` (SPEC section 11, sample log)."""

    run: str
    iteration: Whole  # -1: the untrained model
    index: Count  # of the episode within the iteration
    group: Count  # of the episode within the iteration
    prompt: str
    response: str
    score: Number  # raw reward: the weighted sum of the parts, KL not subtracted
    parts: Mapping[str, Number]  # name of a reward -> its unweighted value
    kl: Number | None  # nats, sum over the response: logprob_sum - reference_logprob_sum; None without a reference
    total: Number  # shaped reward: score - coef * KL
    logprob_sum: Number  # nats, policy that sampled it
    reference_logprob_sum: Number | None  # nats
    length: Count  # response tokens, EOS included
    finish: str  # eos or length
    weights_version: Count  # optimizer updates behind the policy that sampled it
    turns: tuple[TurnRecord, ...] = ()  # of a game; () of a prompt and its answer

    @property
    def won(self) -> bool | None:
        """Whether the game was won; None where no game was played."""
        return self.turns[-1].won if self.turns else None

    @property
    def text(self) -> str:
        """The whole episode: what its statistics are taken over."""
        return self.prompt + self.response


class MetricsLog:
    """Appends to a run's records. A number that is not finite never enters: a run stops when its numbers are wrong."""

    def __init__(self, folder: RunFolder) -> None:
        """Opens the records of a run, made or resumed; what a killed process left torn is removed."""
        self._paths = (folder.metrics, folder.samples)
        self._files = [open_append(path) for path in self._paths]
        self._events = EventFile(folder.tensorboard)

    def record(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Appends one iteration's metrics (SPEC X-10 names); NotFiniteError names one that is NaN or infinite."""
        row = {name: _finite(name, value, iteration) for name, value in metrics.items()}
        self._files[0].write(line({"iteration": iteration, **row}))
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in row.items()])
        self._events.add(Event(wall_time=time.time(), step=iteration, summary=summary))

    def record_samples(self, records: Iterable[SampleRecord]) -> None:
        """Appends episodes; NotFiniteError names a number among theirs that is NaN or infinite."""
        lines = []
        for record in records:
            for name, value in _numbers(record):
                _finite(f"{name} of episode {record.index}", value, record.iteration)
            lines.append(line(asdict(record)))
        self._files[1].write(b"".join(lines))

    def sync(self) -> None:
        """Puts everything recorded so far on the disk: called before a checkpoint is committed."""
        for file in self._files:
            file.sync()
        self._events.sync()

    def truncate(self, iteration: int) -> None:
        """Forgets `iteration` and all later ones, in all records: a resumed run writes them again."""
        for file in self._files:
            file.close()
        kinds: tuple[type[Any], ...] = (MetricsRow, SampleRecord)
        for path, kind in zip(self._paths, kinds, strict=True):
            keep_lines(path, kind, lambda row: _iteration(row) < iteration)
        self._files = [open_append(path) for path in self._paths]
        # TensorBoard's own mark of a restart: its readers drop what earlier files have at this step and later ones
        restart = SessionLog(status=SessionLog.START)
        self._events.add(Event(wall_time=time.time(), step=iteration, session_log=restart))

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._events.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The metrics of the run at `folder`, a mapping an iteration with `iteration` (an int) among them.

    Empty where nothing was recorded yet. RunFolderError names a damaged line; a torn last one is passed over.
    """
    return list(records(RunFolder(folder).metrics, MetricsRow))


def iter_samples(folder: Path) -> Iterator[SampleRecord]:
    """The episodes of the run at `folder` in recording order, one in memory at a time. Else as `read_metrics`."""
    return records(RunFolder(folder).samples, SampleRecord)


def read_samples(folder: Path) -> list[SampleRecord]:
    """All of `iter_samples`."""
    return list(iter_samples(folder))


def comparable(metrics: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """Rows of `read_metrics` without wall times and without what befell the environments' processes (retries, what a
    worker remembers): what a resumed run and an uninterrupted one share bit for bit."""
    own = ("time/", "env/")
    return [{name: value for name, value in row.items() if not name.startswith(own)} for row in metrics]


def turn_records(trajectory: Trajectory, values: Sequence[float] | None) -> tuple[TurnRecord, ...]:
    """What `samples.jsonl` keeps of an episode's turns; () where an environment asked once and said nothing else.

    values: V of the state before each turn, [turns]; None without a value network.
    """
    turns = trajectory.turns
    if len(turns) == 1 and turns[0].before == turns[0].after == GameState():
        return ()
    held = [None] * len(turns) if values is None else [float(value) for value in values]
    return tuple(
        TurnRecord(
            observation=turn.observation,
            action=turn.action,
            probability=None if turn.example else math.exp(float(turn.logprobs.sum(dtype=np.float64))),
            value=value,
            reward=float(turn.reward),
            valid=turn.after.valid,
            example=turn.example,
            won=turn.after.won,
        )
        for turn, value in zip(turns, held, strict=True)
    )


_SAMPLE_NUMBERS = ("score", "kl", "total", "logprob_sum", "reference_logprob_sum")
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d+)\.")
_TURN_NUMBERS = ("probability", "value", "reward")


def _numbers(record: SampleRecord) -> Iterator[tuple[str, float]]:
    """Every number of an episode that has to be finite, with its name."""
    yield from ((name, value) for name in _SAMPLE_NUMBERS if (value := getattr(record, name)) is not None)
    yield from record.parts.items()
    for number, turn in enumerate(record.turns):
        for name in _TURN_NUMBERS:
            if (value := getattr(turn, name)) is not None:
                yield f"{name} of turn {number}", value


def _iteration(row: Mapping[str, float] | SampleRecord) -> float:
    return row.iteration if isinstance(row, SampleRecord) else row["iteration"]


def iteration_name(iteration: int) -> str:
    """An iteration as people call it."""
    return "the untrained model's episodes" if iteration == BASELINE_ITERATION else f"iteration {iteration}"


def _finite(name: str, value: float, iteration: int) -> float:
    number = float(value)
    if not is_number(number):
        raise NotFiniteError(
            f"{iteration_name(iteration)}: {name} is {number}. The run stops here. Lower optimizer.lr or look at the "
            "reward, then continue with --resume, where there is a checkpoint, or start anew"
        )
    return number


class EventFile:
    """TensorBoard's events of one session, each written as it comes: a disk that is full says so at once."""

    def __init__(self, folder: Path) -> None:
        """A new file that sorts after those in the folder: readers take them in the order of their names.

        The names carry whole seconds. Where the clock was put back, or stands in the same second still, it is the next
        number after those that are there.
        """
        taken = [int(name[1]) for entry in folder.glob("*") if (name := _EVENT_FILE.match(entry.name))]
        number = max([int(time.time()), *(1 + one for one in taken)])
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())
        self._file = LineWriter(folder / f"events.out.tfevents.{number:010d}.{host}.{os.getpid()}")
        self.add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, event: Event) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.write(record.getvalue())

    def sync(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()
