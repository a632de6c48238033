"""The divergence detector: keeps what the rules need of a run's past, and says when one begins to fire.

The same class follows a run as it goes and reads a recorded one (`detect`), so thresholds can be tried on old runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rayrlhf.detector_config import DetectorAction, DetectorConfig
from rayrlhf.divergence import RULES, History, Signals, signals_of
from rayrlhf.metrics import BASELINE_ITERATION, SampleRecord, iter_samples, read_metrics
from rayrlhf.summary import DIVERSITY_TEXTS, mean_distinct_2
from rayrlhf.text_statistics import distinct_n

RECOVERY = 5
"""A rule that has fired fires again only after so many quiet iterations in a row."""
KEPT = 50
"""Iterations whose signals are kept; no rule looks further back."""

LogprobGap = tuple[str, float]
"""The metric that says how far learner and sampler disagree, and the limit that stops the run."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """The onset of a rule."""

    iteration: int
    rule: str
    value: float | None  # None: not a finite number
    threshold: float | None  # None: of the rule `not_finite`
    action: DetectorAction
    message: str


class Detector:
    """Follows the iterations of one run. Equal runs give equal alarms, whatever was resumed in between."""

    def __init__(self, config: DetectorConfig, gap: LogprobGap) -> None:
        self._config = config
        self._gap = gap
        self._base: tuple[int, float] | None = None  # texts, and the base model's distinct-2 over so many
        self._start: Signals | None = None
        self._recent: deque[Signals] = deque(maxlen=KEPT)
        self._texts: deque[str] = deque(maxlen=DIVERSITY_TEXTS)
        self._quiet: dict[str, int] = {}  # rule that has fired -> quiet iterations since

    def base(self, records: Iterable[SampleRecord]) -> None:
        """Takes the untrained model's episodes: what diversity is held against."""
        texts = [record.text for record in records if not record.turns]
        size = min(len(texts), DIVERSITY_TEXTS)
        self._base = (size, mean_distinct_2(texts, size)) if size else None

    def observe(self, iteration: int, metrics: Mapping[str, float], records: Iterable[SampleRecord]) -> list[Alarm]:
        """Takes an iteration's metrics and episodes; returns the rules that begin to fire with it."""
        self._texts.extend(record.text for record in records if not record.turns)
        return self.judge(iteration, signals_of(metrics, self._diversity(), self._gap))

    def judge(self, iteration: int, signals: Signals) -> list[Alarm]:
        """The same from the signals alone, which is all that the rules see."""
        self._start = self._start or signals
        self._recent.append(signals)
        history = History(self._start, tuple(self._recent))
        alarms = []
        for name, rule in self._config.rules.items():
            reading = RULES[name](rule, history)
            fires = reading is not None and reading.fires
            if reading is not None and fires and name not in self._quiet:
                action = self._config.action_of(rule)
                alarms.append(Alarm(iteration, name, reading.value, reading.threshold, action, reading.message))
            self._latch(name, fires)
        return alarms

    def _latch(self, name: str, fires: bool) -> None:
        """A rule that fires stays latched until it was quiet for a while, so that one onset is one alarm."""
        if fires:
            self._quiet[name] = 0
        elif name in self._quiet:
            self._quiet[name] += 1
            if self._quiet[name] == RECOVERY:
                del self._quiet[name]

    def _diversity(self) -> float | None:
        """None until there are as many texts as it is taken over; of a base model without bigrams there is none."""
        if self._base is None or len(self._texts) < self._base[0] or not self._base[1]:
            return None
        size, base = self._base
        return distinct_n(list(self._texts)[-size:], 2) / base

    def state_dict(self) -> dict[str, Any]:
        """JSON values; `load_state_dict` takes up from them bit for bit."""
        return {
            "base": self._base,
            "start": self._start,
            "recent": list(self._recent),
            "texts": list(self._texts),
            "quiet": dict(self._quiet),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._base = None if state["base"] is None else (int(state["base"][0]), float(state["base"][1]))
        self._start = state["start"]
        self._recent = deque(state["recent"], maxlen=KEPT)
        self._texts = deque(state["texts"], maxlen=DIVERSITY_TEXTS)
        self._quiet = dict(state["quiet"])


def detect(folder: Path, config: DetectorConfig, gap: LogprobGap) -> list[Alarm]:
    """What the rules say of the recorded run at `folder`, whatever they were when it ran.

    Raises RunFolderError for a damaged record.
    """
    detector = Detector(config, gap)
    metrics = {int(row["iteration"]): row for row in read_metrics(folder)}
    alarms: list[Alarm] = []
    for iteration, records in groupby(iter_samples(folder), key=lambda record: record.iteration):
        if iteration == BASELINE_ITERATION:
            detector.base(records)
        elif iteration in metrics:  # not the samples of an iteration that was cut short
            alarms += detector.observe(iteration, metrics[iteration], records)
    return alarms
