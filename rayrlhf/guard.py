"""Stands between the detector and the training loop: keeps what set off an alarm, and says what is to be done."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from rayrlhf.alarms import AlarmLog
from rayrlhf.checkpoint import CheckpointStore
from rayrlhf.cluster import get
from rayrlhf.detector import Alarm, Detector
from rayrlhf.detector_config import DetectorAction, DetectorConfig
from rayrlhf.dumps import KeptBatch
from rayrlhf.errors import NotFiniteError
from rayrlhf.metrics import SampleRecord
from rayrlhf.progress import Progress
from rayrlhf.worker import PublishedWeights
from rayrlhf.worker_death import Died

FETCH_TIMEOUT_S = 300.0
SEVERITY: tuple[DetectorAction, ...] = get_args(DetectorAction)  # mildest first
ADVICE = (
    "Look at the texts; raise algorithm.kl.coef or lower optimizer.lr and start anew from an earlier checkpoint, or go on "
    "as it is with --resume: the rule speaks again only once it has recovered."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done after an iteration."""

    action: DetectorAction
    message: str = ""  # for the error that ends the run
    target: int = 0  # rollback: iterations behind the checkpoint to go back to


class Guard:
    """Watches one run."""

    def __init__(self, config: DetectorConfig, detector: Detector, log: AlarmLog, progress: Progress) -> None:
        self.config = config
        self.detector = detector
        self.log = log
        self._progress = progress
        self._batch: KeptBatch | None = None
        self._weights: PublishedWeights | None = None
        self._alarms: list[Alarm] = []

    def take(self, batch: KeptBatch, weights: PublishedWeights) -> None:
        """Holds the episodes under way and the weights that sampled them, until the next ones come."""
        self._batch, self._weights = batch, weights

    def observe(self, iteration: int, metrics: Mapping[str, float], records: Iterable[SampleRecord]) -> None:
        """Shows the rules what an iteration measured."""
        self._alarms = self.detector.observe(iteration, metrics, records)

    def verdict(self, done: int, attempt: int, checkpoints: CheckpointStore) -> Verdict:
        """What the alarms of the iteration just observed ask for, told and recorded; asked once an iteration.

        done: iterations behind the run. attempt: rollbacks behind it.
        """
        verdict = self._act(self._alarms, done, attempt, checkpoints) if self._alarms else Verdict("off")
        self._alarms = []
        self._batch = self._weights = None  # the object store need not hold two versions of the weights
        return verdict

    def _act(self, alarms: Sequence[Alarm], done: int, attempt: int, checkpoints: CheckpointStore) -> Verdict:
        worst = max(alarms, key=lambda alarm: SEVERITY.index(alarm.action))  # the first of the most severe
        target, refusal = 0, ""
        if worst.action == "rollback":
            onset = getattr(self.config, worst.rule).onset
            found = checkpoints.resumable_at_most(max(done - onset, 0))
            if attempt >= self.config.max_rollbacks:
                refusal = f"It was rolled back {attempt} times before (detector.max_rollbacks). "
            elif found is None:
                refusal = f"No checkpoint from before the last {onset} iterations can be resumed from. "
            else:
                target = found
        if refusal:
            worst = replace(worst, action="stop")
        wanted = worst.action != "warn" or self.log.batches_kept() < self.config.keep_batches
        dump = self._keep(worst) if wanted else None
        self.log.record([worst if alarm.rule == worst.rule else alarm for alarm in alarms], attempt, dump)
        for alarm in alarms:
            hint = f". {replay_hint(dump)}".rstrip() if alarm.rule == worst.rule and worst.action == "warn" else ""
            self._progress.message(f"alarm: iteration {alarm.iteration}: {alarm.rule}: {alarm.message}{hint}")
        if worst.action == "rollback":
            self._progress.message(
                f"{replay_hint(dump)}Back to the checkpoint after {target} iterations, with learning rates times "
                f"{self.config.lr_factor:g} and KL coefficients times {self.config.coef_factor:g}"
            )
        ending = "paused" if worst.action == "snapshot" else "stopped"
        reason = f"{ending} at iteration {worst.iteration} by the rule {worst.rule}: {worst.message}. {refusal}"
        return Verdict(worst.action, f"{reason}{replay_hint(dump)}{ADVICE}", target)

    def not_finite(self, error: NotFiniteError, done: int, attempt: int) -> str:
        """Records that a run ended on numbers that are not finite, with the batch under way; returns what to tell."""
        iteration = done - 1 if self._batch is None else self._batch.iteration
        alarm = Alarm(iteration, "not_finite", None, None, "stop", str(error))
        dump = None if self._batch is None else self._keep(alarm)
        self.log.record([alarm], attempt, dump)
        return f"{error} {replay_hint(dump)}".rstrip()

    def _keep(self, alarm: Alarm) -> Path | None:
        """Writes the batch; None where the weights that sampled it are lost, which is said."""
        assert self._batch is not None
        assert self._weights is not None
        try:
            [weights] = get(list(self._weights.ref), FETCH_TIMEOUT_S)
        except Died as reason:
            self._progress.message(f"the batch of iteration {alarm.iteration} cannot be kept: {reason}")
            return None
        return self.log.keep(alarm, self._batch, weights)


def replay_hint(dump: Path | None) -> str:
    """How to look at a batch that was kept."""
    return "" if dump is None else f"`rayrlhf replay {shlex.quote(str(dump))}` plays this batch again. "
