"""What a run records as it goes: `metrics.jsonl`, `samples.jsonl`, the same curves for TensorBoard; and the readers.

Both files hold one JSON object a line (json_lines.py), rising iterations, and -1 for what was played before the first.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rayrlhf.errors import NotFiniteError, RunFolderError
from rayrlhf.files import replace_file
from rayrlhf.json_lines import line, open_append, rows
from rayrlhf.run_folder import RunFolder
from rayrlhf.types import GameState, Trajectory

BASELINE_ITERATION = -1
"""Iteration of the untrained model's episodes, played before the first."""


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One turn of a game in `samples.jsonl` (SPEC TW-26)."""

    observation: str
    action: str
    probability: float | None  # of the action under the policy that played; None: an example was played (SPEC TW-8)
    value: float | None  # V of the state before the action; None without a value network
    reward: float  # the environment's own
    valid: bool  # the game understood the action
    example: bool
    won: bool  # the game stands won after the turn


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One episode in `samples.jsonl` (SPEC section 11, sample log)."""

    run: str
    iteration: int  # -1: the untrained model
    index: int  # of the episode within the iteration
    group: int  # of the episode within the iteration
    prompt: str
    response: str
    score: float  # raw reward: the weighted sum of the parts, KL not subtracted
    parts: Mapping[str, float]  # name of a reward -> its unweighted value
    kl: float | None  # nats, sum over the response: logprob_sum - reference_logprob_sum; None without a reference
    total: float  # shaped reward: score - coef * KL
    logprob_sum: float  # nats, policy that sampled it
    reference_logprob_sum: float | None  # nats
    length: int  # response tokens, EOS included
    finish: str  # eos or length
    weights_version: int  # optimizer updates behind the policy that sampled it
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
        self._events = _open_events(folder.tensorboard)

    def record(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Appends one iteration's metrics (SPEC X-10 names); NotFiniteError names one that is NaN or infinite."""
        row = {name: _finite(name, value, iteration) for name, value in metrics.items()}
        self._files[0].write(line({"iteration": iteration, **row}))
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in row.items()])
        self._events.add_event(Event(wall_time=time.time(), step=iteration, summary=summary))

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
            os.fsync(file.fileno())
        self._events.flush()

    def truncate(self, iteration: int) -> None:
        """Forgets `iteration` and all later ones, in all records: a resumed run writes them again."""
        for file in self._files:
            file.close()
        for path in self._paths:
            replace_file(path, (text for text, row in rows(path) if row["iteration"] < iteration))
        self._files = [open_append(path) for path in self._paths]
        # TensorBoard's own mark of a restart: its readers drop what earlier files have at this step and later ones
        restart = SessionLog(status=SessionLog.START)
        self._events.add_event(Event(wall_time=time.time(), step=iteration, session_log=restart))
        self._events.flush()

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
    return [row for _, row in rows(RunFolder(folder).metrics)]


def iter_samples(folder: Path) -> Iterator[SampleRecord]:
    """The episodes of the run at `folder` in recording order, one in memory at a time. Else as `read_metrics`."""
    path = RunFolder(folder).samples
    for _, row in rows(path):
        try:
            turns = tuple(TurnRecord(**{name: turn[name] for name in _TURN_FIELDS}) for turn in row.get("turns", ()))
            yield SampleRecord(**{name: row[name] for name in _SAMPLE_FIELDS}, turns=turns)
        except KeyError as error:
            raise RunFolderError(
                f"{path}: an episode of iteration {row['iteration']} lacks {error}: another version of RayRLHF wrote it"
            ) from None


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


_SAMPLE_FIELDS = tuple(field.name for field in fields(SampleRecord) if field.name != "turns")
_TURN_FIELDS = tuple(field.name for field in fields(TurnRecord))
_SAMPLE_NUMBERS = ("score", "kl", "total", "logprob_sum", "reference_logprob_sum")
_TURN_NUMBERS = ("probability", "value", "reward")


def _numbers(record: SampleRecord) -> Iterator[tuple[str, float]]:
    """Every number of an episode that has to be finite, with its name."""
    yield from ((name, value) for name in _SAMPLE_NUMBERS if (value := getattr(record, name)) is not None)
    yield from record.parts.items()
    for number, turn in enumerate(record.turns):
        for name in _TURN_NUMBERS:
            if (value := getattr(turn, name)) is not None:
                yield f"{name} of turn {number}", value


def iteration_name(iteration: int) -> str:
    """An iteration as people call it."""
    return "the untrained model's episodes" if iteration == BASELINE_ITERATION else f"iteration {iteration}"


def _finite(name: str, value: float, iteration: int) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise NotFiniteError(
            f"{iteration_name(iteration)}: {name} is {number}. The run stops here. Lower optimizer.lr or look at the "
            "reward, then continue with --resume, where there is a checkpoint, or start anew"
        )
    return number


def _open_events(folder: Path) -> EventFileWriter:
    """A new event file that sorts after those in the folder: readers take them in the order of their names.

    The names carry whole seconds, so a run resumed within the second it was started in waits for the next.
    """
    now = time.time()
    if any(folder.glob(f"events.out.tfevents.{int(now)}.*")):
        time.sleep(int(now) + 1 - now)
    return EventFileWriter(str(folder), flush_secs=10)
