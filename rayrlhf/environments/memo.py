"""A bounded memory of what deterministic games answered: the same step of the same state is not played again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TypeVar

from rayrlhf.types import StepResult

Transition = tuple[str, str] | int
"""(`GameState.key` before, action) of a step; the seed of a reset."""
Shared = TypeVar("Shared", str, tuple[str, ...])


class TransitionMemo:
    """The `capacity` transitions that were asked for last. Equal texts are kept once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._results: OrderedDict[Transition, StepResult] = OrderedDict()  # the one asked for last comes last
        self._texts: dict[str | tuple[str, ...], str | tuple[str, ...]] = {}  # one of each text, as key and value

    def __len__(self) -> int:
        return len(self._results)

    def get(self, transition: Transition) -> StepResult | None:
        result = self._results.get(transition)
        if result is not None:
            self._results.move_to_end(transition)
        return result

    def put(self, transition: Transition, result: StepResult) -> None:
        """Keeps the result; the transition that was not asked for longest goes where there are too many."""
        state = replace(
            result.state,
            commands=self._share(result.state.commands),
            objective=self._share(result.state.objective),
            solution=self._share(result.state.solution),
            key=self._share(result.state.key),
        )
        if isinstance(transition, tuple):
            transition = (self._share(transition[0]), self._share(transition[1]))
        self._results[transition] = replace(result, observation=self._share(result.observation), state=state)
        if len(self._results) > self._capacity:
            self._results.popitem(last=False)

    def _share(self, text: Shared) -> Shared:
        if len(self._texts) > 8 * self._capacity:  # texts of what was forgotten stay until then
            self._texts.clear()
        return self._texts.setdefault(text, text)  # type: ignore[return-value]
