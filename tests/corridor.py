"""A small game for tests: a coin lies some rooms east of the player. It names commands, states and its solution."""

from __future__ import annotations

from typing import Any

import gymnasium

OBJECTIVE = "Find the coin of the corridor and take it."


class Corridor(gymnasium.Env[str, str]):
    """Game n has 1 + n % 3 steps east to the coin, behind which there is a pit: who walks on has lost."""

    metadata = {"render_modes": [], "in_process": True}  # noqa: RUF012 - Gymnasium's own attribute

    def __init__(self, commands: bool = True, solutions: bool = True) -> None:
        self.names_commands = commands
        self.knows_solutions = solutions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.length = 1 + (seed or 0) % 3
        self.at, self.taken = 0, False
        return self._room(), self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if action not in self._commands():
            return "That is no command.", 0.0, False, False, self._info(valid=False)
        text = "You carry nothing."
        if action.startswith("go"):
            self.at += 1 if action == "go east" else -1
            text = "You fall." if self.at > self.length else self._room()
        elif action == "take coin":
            self.taken = True
            text = "You take the coin."
        return text, float(self.taken), self.taken or self.at > self.length, False, self._info()

    def _room(self) -> str:
        here = "\nA coin lies here." if self.at == self.length else ""
        return f"-= Room {self.at} =-\nYou are in room {self.at} of the corridor.{here}\n\nThere is an exit."

    def _commands(self) -> list[str]:
        coin = ["examine coin", "take coin"] if self.at == self.length else []
        back = ["go west"] if self.at else []
        return sorted([*coin, *back, "go east", "inventory"])

    def _info(self, valid: bool = True) -> dict[str, Any]:
        left = ["go east"] * (self.length - self.at) + ["take coin"]
        return {
            "commands": tuple(self._commands()) if self.names_commands else (),
            "score": float(self.taken),
            "max_score": 1.0,
            "won": self.taken,
            "lost": self.at > self.length,
            "valid": valid,
            "objective": OBJECTIVE,
            "solution": tuple(left) if self.knows_solutions else (),
            "key": f"{self.length}/{self.at}/{self.taken}",
        }
