"""A bounded memory of what deterministic games answered: the same step of the same state is not played again.

It also knows the ways between states that its steps make up.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TypeVar

from rayrlhf.types import StepResult

Transition = tuple[str, str] | int
"""(`GameState.key` before, action) of a step; the seed of a reset."""
Way = tuple[tuple[str, StepResult], ...]
"""Steps from one state to another: each action, and what it is answered."""
Shared = TypeVar("Shared", str, tuple[str, ...])

_MOST_STATES = 200  # that a search for a way looks at


class TransitionMemo:
    """The `capacity` transitions that were asked for last. Equal texts are kept once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._results: OrderedDict[Transition, StepResult] = OrderedDict()  # the one asked for last comes last
        self._onward: dict[str, dict[str, str]] = {}  # key -> action -> key of the other state that it leads to
        self._texts: dict[str | tuple[str, ...], str | tuple[str, ...]] = {}  # one of each text, as key and value

    def __len__(self) -> int:
        return len(self._results)

    def get(self, transition: Transition) -> StepResult | None:
        result = self._results.get(transition)
        if result is not None:
            self._results.move_to_end(transition)
        return result

    def put(self, transition: Transition, result: StepResult) -> None:
        """Keeps the result of a transition that is not remembered; the one not asked for longest goes where there are
        too many."""
        state = replace(
            result.state,
            commands=self._share(result.state.commands),
            objective=self._share(result.state.objective),
            solution=self._share(result.state.solution),
            key=self._share(result.state.key),
        )
        if isinstance(transition, tuple):
            transition = (self._share(transition[0]), self._share(transition[1]))
            if state.key and state.key != transition[0] and not result.terminated:
                self._onward.setdefault(transition[0], {})[transition[1]] = state.key
        self._results[transition] = replace(result, observation=self._share(result.observation), state=state)
        if len(self._results) > self._capacity:
            self._forget(self._results.popitem(last=False)[0])

    def way(self, start: str, end: str, most_steps: int) -> Way | None:
        """A shortest known way from the state `start` to the state `end`, by keys, of at most so many steps.

        None where there is none among the states nearest to `start`: a search ends after `_MOST_STATES`.
        """
        before: dict[str, tuple[str, str]] = {}  # key of a state -> the step that leads there from `start`
        border = [start]
        for _ in range(most_steps):
            if end == start or end in before:
                break
            border = self._next_border(start, border, before)
        if end != start and end not in before:
            return None
        steps: list[tuple[str, StepResult]] = []
        while end != start:
            step = before[end]
            steps.append((step[1], self._results[step]))
            end = step[0]
        return tuple(reversed(steps))

    def _next_border(self, start: str, border: list[str], before: dict[str, tuple[str, str]]) -> list[str]:
        """The states one step beyond those of the border that are new; adds the steps that lead there to `before`."""
        beyond = []
        for key in border:
            for action, reached in self._onward.get(key, {}).items():
                if len(before) < _MOST_STATES and reached != start and reached not in before:
                    before[reached] = (key, action)
                    beyond.append(reached)
        return beyond

    def _forget(self, transition: Transition) -> None:
        if not isinstance(transition, tuple):
            return
        actions = self._onward.get(transition[0], {})
        actions.pop(transition[1], None)
        if not actions:
            self._onward.pop(transition[0], None)

    def _share(self, text: Shared) -> Shared:
        if len(self._texts) > 8 * self._capacity:  # texts of what was forgotten stay until then
            self._texts.clear()
        return self._texts.setdefault(text, text)  # type: ignore[return-value]
