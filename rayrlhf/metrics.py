"""What a run records as it goes: `metrics.jsonl`, `samples.jsonl` and the same curves for TensorBoard; and their readers.

Both files hold one JSON object a line in ASCII (a lone surrogate in a text survives as its escape), rising iterations,
and -1 for what was played before the first. A killed process may leave its last line torn: readers pass over it, and
the next writer removes it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rayrlhf.durable import sync_folder
from rayrlhf.errors import LearnerError, RunFolderError
from rayrlhf.run_folder import RunFolder

BASELINE_ITERATION = -1
"""Iteration of the untrained model's episodes, played before the first."""


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

    @property
    def text(self) -> str:
        """The whole episode: what its statistics are taken over."""
        return self.prompt + self.response


class MetricsLog:
    """Appends to a run's records. A number that is not finite never enters: a run stops when its numbers are wrong."""

    def __init__(self, folder: RunFolder) -> None:
        self._paths = (folder.metrics, folder.samples)
        for path in self._paths:
            _rewrite(path, before=None)
        self._metrics, self._samples = (_open_append(path) for path in self._paths)
        self._events = EventFileWriter(str(folder.tensorboard))

    def record(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Appends one iteration's metrics (SPEC X-10 names); LearnerError names one that is NaN or infinite."""
        row = {name: _finite(name, value, iteration) for name, value in metrics.items()}
        self._metrics.write(_line({"iteration": iteration, **row}))
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in row.items()])
        self._events.add_event(Event(wall_time=_now(), step=iteration, summary=summary))

    def record_samples(self, records: Iterable[SampleRecord]) -> None:
        """Appends episodes; LearnerError names a number among theirs that is NaN or infinite."""
        lines = []
        for record in records:
            row = asdict(record)
            numbers = {name: row[name] for name in _NUMBERS if row[name] is not None} | dict(record.parts)
            for name, value in numbers.items():
                _finite(f"{name} of episode {record.index}", value, record.iteration)
            row["parts"] = {name: float(value) for name, value in record.parts.items()}
            lines.append(_line({name: _plain(value) for name, value in row.items()}))
        self._samples.write(b"".join(lines))

    def sync(self) -> None:
        """Puts everything recorded so far on the disk: called before a checkpoint is committed."""
        for file in (self._metrics, self._samples):
            os.fsync(file.fileno())
        self._events.flush()

    def truncate(self, iteration: int) -> None:
        """Forgets `iteration` and all later ones, in all records: a resumed run writes them again."""
        for file in (self._metrics, self._samples):
            file.close()
        for path in self._paths:
            _rewrite(path, before=iteration)
        self._metrics, self._samples = (_open_append(path) for path in self._paths)
        # TensorBoard's own mark of a restart: its readers drop what an earlier file has at this step and later
        restart = SessionLog(status=SessionLog.START)
        self._events.add_event(Event(wall_time=_now(), step=iteration, session_log=restart))
        self._events.flush()

    def close(self) -> None:
        self._metrics.close()
        self._samples.close()
        self._events.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
