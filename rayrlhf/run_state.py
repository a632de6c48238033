"""What a run can be taken up from: checkpoints of the learner and of all that moves beside it, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rayrlhf.checkpoint import Checkpoint, CheckpointStore
from rayrlhf.detector_config import DetectorConfig
from rayrlhf.errors import CheckpointError, StorageError, UserError
from rayrlhf.guard import Guard
from rayrlhf.interfaces import Algorithm
from rayrlhf.learner_group import LearnerGroup
from rayrlhf.metrics import MetricsLog
from rayrlhf.progress import Progress
from rayrlhf.schedule import Attempt
from rayrlhf.worker_death import Died


class RunState:
    """The parts of a run whose state outlives an iteration; they are saved and restored together."""

    def __init__(
        self,
        algorithm: Algorithm,
        learner: LearnerGroup,
        guard: Guard,
        log: MetricsLog,
        checkpoints: CheckpointStore,
        progress: Progress,
        on_saved: Callable[[int], None],
    ) -> None:
        """on_saved: is told of each checkpoint, by the number of iterations behind it."""
        self.algorithm = algorithm
        self.learner = learner
        self.guard = guard
        self.log = log
        self.checkpoints = checkpoints
        self.progress = progress
        self.on_saved = on_saved
        self.attempt = Attempt()
        self.saved: int | None = None  # iterations behind the latest checkpoint
        self._untrained = self._beside_learner()

    def save(self, done: int) -> None:
        """Checkpoint after `done` iterations."""
        self.log.sync()
        partial = self.checkpoints.begin(done)
        try:
            self.learner.save(partial / "model", partial / "trainer", partial / "value")
            self.checkpoints.commit(partial, done, self._beside_learner())
        except StorageError:
            self.checkpoints.abandon(partial)
            raise
        self.saved = done
        self.on_saved(done)

    def save_if_whole(self, done: int) -> None:
        """Checkpoint where the learner stands at the end of an iteration that no checkpoint holds yet."""
        if done > 0 and self.learner.version == done != self.saved:
            try:
                self.save(done)
            except (Died, UserError) as error:  # the run is ending already, for a reason of its own
                self.progress.message(f"no checkpoint after {done} iterations: {error}")

    def goes_on(self, done: int) -> str:
        """Where a run of `done` iterations goes on once it is resumed, in words."""
        if self.saved == done:
            return "goes on from there"
        if self.saved:
            return f"goes on from the checkpoint after {self.saved} of them"
        return "begins anew: there is no checkpoint"

    def restore(self) -> int:
        """Goes back to the latest checkpoint, or to the start where there is none; returns the iterations done."""
        done = self._load(self.checkpoints.latest())
        self.guard.log.truncate(done, self.attempt.number)
        return done

    def roll_back(self, target: int, config: DetectorConfig) -> int:
        """Back to the checkpoint of `target` iterations, with other seeds, smaller steps and a larger KL coefficient.

        The checkpoint is written again with them, and later ones are gone: whatever stops the run from here on, it goes
        on the same way. Returns the iterations done.
        """
        number = self.attempt.number + 1
        self.checkpoints.discard_after(target)
        done = self._load(self.checkpoints.latest())
        rollbacks = number - self.attempt.number  # since that checkpoint was written
        self.attempt = Attempt(number, self.attempt.lr_scale * config.lr_factor**rollbacks)
        self.algorithm.multiply_kl(config.coef_factor**rollbacks)
        self.save(done)
        return done

    def _beside_learner(self) -> dict[str, Any]:
        return {
            "algorithm": self.algorithm.state_dict(),
            "detector": self.guard.detector.state_dict(),
            "attempt": asdict(self.attempt),
        }

    def _load(self, checkpoint: Checkpoint | None) -> int:
        """Takes up a checkpoint, or without one the start, where the learner stands already."""
        state = self._untrained if checkpoint is None else checkpoint.state
        if missing := self._untrained.keys() - state.keys():
            names = ", ".join(sorted(missing))
            raise CheckpointError(
                f"the checkpoint lacks {names}: another version of RayRLHF wrote it; continue the run with that one"
            )
        self.algorithm.load_state_dict(state["algorithm"])
        self.guard.detector.load_state_dict(state["detector"])
        self.attempt = Attempt(**state["attempt"])
        self.saved = None if checkpoint is None else checkpoint.iteration
        if checkpoint is None:
            return 0
        self.learner.load(checkpoint.trainer)
        self.log.truncate(checkpoint.iteration)
        return checkpoint.iteration
