"""Environments that fail in the ways users' own do; rollout tests load them as `tests.broken_environments:Name`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayrlhf.envs.single_turn import SingleTurn


class Raises(SingleTurn):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        raise RuntimeError("the dragon ate the game")


class NoReward(SingleTurn):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", float("nan"), True, False, {}


class KillsItsWorkerOnce(SingleTurn):
    """Dies in the first episode that anyone plays; the file `mark` says that it happened."""

    def __init__(self, mark: str, prompts: Sequence[str] = ("",)) -> None:
        super().__init__(prompts)
        self.mark = Path(mark)

    def fail(self) -> None:
        os.kill(os.getpid(), 9)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if not self.mark.exists():
            self.mark.write_text("crashed")
            self.fail()
        return super().step(action)


class HangsOnce(KillsItsWorkerOnce):
    def fail(self) -> None:
        time.sleep(3600)


class AlwaysKillsItsWorker(SingleTurn):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        os._exit(1)
