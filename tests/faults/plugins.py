"""Environments and rewards that fail on purpose; a config names them `tests.faults.plugins:Name`.

Which fault befalls which call follows from a count in the folder `marks`, so that it happens once and not again when the
work is redone: a process that hangs or exits has counted first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayrlhf.envs.single_turn import SingleTurn
from rayrlhf.types import Trajectory
from tests.faulty_games import count_up


class Faulty(SingleTurn):
    """A prompt and its answer, in a process of its own; the step that is the `at`-th of them all goes wrong, once.

    fault: hang, exit, raise, flood (much output) or nan (a reward that is no number). marks: a folder, for what has
    happened. at: the step, counted over all processes, from 0.
    """

    metadata: dict[str, Any] = {"in_process": False}  # noqa: RUF012  # Gymnasium's own declaration

    def __init__(self, fault: str, marks: str, at: int = 5, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.fault, self.marks, self.at = fault, marks, at

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if count_up(Path(self.marks, "steps")) - 1 == self.at:
            self.fail()
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float("nan") if self.fault == "nan" else reward, terminated, truncated, info

    def fail(self) -> None:
        if self.fault == "hang":
            time.sleep(3600)
        elif self.fault == "exit":
            os._exit(7)
        elif self.fault == "raise":
            raise RuntimeError("the step that was to raise")
        elif self.fault == "flood":
            for stream in (1, 2):
                for _ in range(200):
                    os.write(stream, b"x" * 65_536 + b"\n")


class FaultyReward:
    """Length of the answer; the `at`-th call (from 0, in all processes) goes wrong, once.

    fault: nan (each time from then on), hang, exit or flood.
    """

    def __init__(self, fault: str, marks: str, at: int = 1) -> None:
        self.fault, self.marks, self.at = fault, marks, at

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[float]:
        number = count_up(Path(self.marks, "calls")) - 1
        if number >= self.at and self.fault == "nan":
            return [float("nan")] * len(trajectories)
        if number == self.at:
            Faulty.fail(self)  # type: ignore[arg-type]  # the same faults
        return [float(len(trajectory.turns[-1].action)) for trajectory in trajectories]
