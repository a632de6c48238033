"""The settings a sweep tried: its trials gathered over their seeds, and what its parameters are called in a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayrlhf.tune.results import SweepResults, TrialResult

MEANING_OF_REWARD = ("reward", "model", "environment")
"""Sections of the config that say what a reward is a reward of."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A swept field of the config, or several that always had the same value."""

    keys: tuple[str, ...]  # dotted
    name: str  # the end of the first key, as long as it has to be to mean one field
    values: tuple[Any, ...]  # each once: numbers rising, categories as they came
    numeric: bool

    @property
    def changes_reward(self) -> bool:
        """Whether rewards under its different values are different quantities."""
        return any(key.split(".")[0] in MEANING_OF_REWARD for key in self.keys)

    def value_of(self, trial: TrialResult) -> Any:
        return trial.parameters[self.keys[0]]


@dataclass(frozen=True, slots=True)
class Setting:
    """The trials that differ in their seed alone."""

    label: str  # the values that tell it from the others: `0.4`, or `kl.coef 0.4, optimizer.lr 0.001`
    parameters: Mapping[str, Any]  # dotted key -> value
    trials: tuple[TrialResult, ...]


def parameters_of(results: SweepResults) -> tuple[Parameter, ...]:
    """What the trials differ in; where they do not, all that was set. A key that a trial lacks is no parameter."""
    first, *others = [trial.parameters for trial in results.trials] or [{}]
    shared = [key for key in first if all(key in parameters for parameters in others)]
    columns: dict[str, list[str]] = {}
    for key in shared:
        column = json.dumps([trial.parameters[key] for trial in results.trials])
        columns.setdefault(column, []).append(key)
    names = {key: _short(key, shared) for key in shared}
    found = [
        _parameter(keys, names, [trial.parameters[keys[0]] for trial in results.trials]) for keys in columns.values()
    ]
    return tuple(parameter for parameter in found if len(parameter.values) > 1) or tuple(found)


def settings_of(results: SweepResults) -> list[Setting]:
    """The settings in the order of their values."""
    parameters = parameters_of(results)
    groups: dict[str, list[TrialResult]] = {}
    for trial in results.trials:
        groups.setdefault(json.dumps(dict(trial.parameters), sort_keys=True), []).append(trial)
    ranked = sorted(groups.values(), key=lambda trials: _rank(trials[0], parameters))
    return [Setting(_label(trials[0], parameters), trials[0].parameters, tuple(trials)) for trials in ranked]


def shown(value: Any) -> str:
    """A parameter's value as a reader writes it: `0.4`, `1e-05`, `forward`, `[alliteration]`."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _parameter(keys: Sequence[str], names: Mapping[str, str], column: Sequence[Any]) -> Parameter:
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in column)
    values = [value for index, value in enumerate(column) if value not in column[:index]]
    return Parameter(tuple(keys), names[keys[0]], tuple(sorted(values) if numeric else values), numeric)


def _short(key: str, keys: Sequence[str]) -> str:
    """The last two names of a key, or more where another key ends so too."""
    path = key.split(".")
    for length in range(2, len(path)):
        end = path[-length:]
        if sum(other.split(".")[-length:] == end for other in keys) == 1:
            return ".".join(end)
    return key


def _rank(trial: TrialResult, parameters: Sequence[Parameter]) -> list[int]:
    return [parameter.values.index(parameter.value_of(trial)) for parameter in parameters]


def _label(trial: TrialResult, parameters: Sequence[Parameter]) -> str:
    if len(parameters) == 1:
        return shown(parameters[0].value_of(trial))
    return ", ".join(f"{parameter.name} {shown(parameter.value_of(trial))}" for parameter in parameters) or trial.name
