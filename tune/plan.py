"""From a sweep's config to its trials: the points of the space, each with every seed, each checked as a run's config.

All of it happens before anything starts, and every fault is reported at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrlhf.config import RunConfig
from rayrlhf.config_loading import load_config
from rayrlhf.errors import ConfigError
from rayrlhf.tune.space import Dimension, Listed, Range, Values, override, parse_values, split_keys
from rayrlhf.tune.sweep_config import OptunaSearchConfig, RandomSearchConfig, SearchConfig, SweepRequest

Parameters = Mapping[str, Any]
"""A point of the space: dotted key -> value; keys of one dimension all have its value."""

_OF_THE_SWEEP = {
    "name": "sweep.name",
    "storage_path": "sweep.storage_path",
    "seed": "sweep.seeds and sweep.first_seed",
}
"""Keys of a run that the sweep sets itself -> what to set in their place."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep."""

    name: str  # of its run folder: the point's number and the seed, `003-seed1`
    parameters: Parameters
    seed: int
    config: RunConfig

    @property
    def point(self) -> int:
        return int(self.name.partition("-")[0])


class TrialMaker:
    """Makes the configs of a sweep's trials: base, then the overrides, then the point, then what the sweep sets."""

    def __init__(self, request: SweepRequest, trials_folder: Path) -> None:
        self.sweep = request.config
        self._request = request
        self._folder = trials_folder

    def trial(self, number: int, parameters: Parameters, seed: int) -> Trial:
        """The trial of one point and seed. Raises ConfigError with a line for each fault of its config."""
        name = f"{number:03d}-seed{seed}"
        point = [override(key, value) for key, value in parameters.items()]
        own = [override("name", name), override("storage_path", str(self._folder)), override("seed", seed)]
        try:
            config = load_config(self.sweep.base, [*self.sweep.overrides, *point, *own])
        except ConfigError as error:
            raise ConfigError("\n".join(self._placed(str(error), parameters))) from None
        return Trial(name, parameters, seed, config)

    def trials(self, points: Sequence[Parameters]) -> list[Trial]:
        """All points with all seeds, a point's seeds one after the other. Raises ConfigError with every fault, once."""
        made: list[Trial] = []
        faults: dict[str, None] = {}
        for number, point in enumerate(points):
            for seed in self.sweep.trial_seeds:
                try:
                    made.append(self.trial(number, point, seed))
                except ConfigError as error:
                    faults |= dict.fromkeys(str(error).split("\n"))
        if faults:
            raise ConfigError("\n".join(faults))
        return made

    def _placed(self, faults: str, parameters: Parameters) -> Iterator[str]:
        """The faults, each with the place where the user wrote what it is about."""
        written = self._request.places
        labels: dict[str, str] = {}
        for index, text in enumerate(self.sweep.overrides):
            labels[text] = written.get(("overrides", index), f"override {text}")
        keys = {key: name for name in self.sweep.space for key in split_keys(name)}
        for key, value in parameters.items():
            labels[override(key, value)] = written.get(("space", keys[key]), f"dimension {keys[key]}")
        for line in faults.split("\n"):
            setting = next((text for text in labels if line.startswith(f"override {text}:")), None)
            if setting is None or labels[setting] == f"override {setting}":
                yield line
            else:
                message = line.removeprefix(f"override {setting}:").strip()
                yield f"{labels[setting]}: {setting.partition('=')[0]}: {message}"


def plan(request: SweepRequest, trials_folder: Path) -> list[Trial]:
    """All trials of a sweep, checked. Of Optuna, which proposes them later, those that try each value and end once.

    Raises ConfigError with all faults at once.
    """
    space, faults = _dimensions(request)
    maker = TrialMaker(request, trials_folder)
    search = request.config.search
    tried = probes(space)
    trials: list[Trial] = []
    try:
        if not isinstance(search, OptunaSearchConfig):
            tried = points(space, search)
    except ConfigError as error:
        faults.append(str(error))
    try:
        trials = maker.trials(tried)
    except ConfigError as error:
        faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return trials


def dimensions(request: SweepRequest) -> list[Dimension]:
    """The space's dimensions in the order written. Raises ConfigError with a line for each that is none."""
    found, faults = _dimensions(request)
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def points(space: Sequence[Dimension], search: SearchConfig) -> list[Parameters]:
    """The points of a grid or random search, fixed by the search's seed.

    Raises ConfigError where a grid cannot go through a dimension. Optuna's points are not known before.
    """
    if isinstance(search, RandomSearchConfig):
        return _random_points(space, search)
    faults = [
        f"{dimension.place}: {dimension.name}: a grid cannot go through all of it: draw from it with "
        "sweep.search.kind=random sweep.search.samples=8, or list values with grid:"
        for dimension in space
        if dimension.listed() is None
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    return [point_of(space, values) for values in _combinations(space)]


def probes(space: Sequence[Dimension]) -> list[Parameters]:
    """Points that try every listed value and both ends of every range, for values that are drawn later."""
    tried = [_probed(dimension) for dimension in space]
    first = [values[0] for values in tried]
    others = [
        [*first[:index], value, *first[index + 1 :]] for index, values in enumerate(tried) for value in values[1:]
    ]
    return [point_of(space, values) for values in [first, *others]]


def point_of(space: Sequence[Dimension], values: Sequence[Any]) -> Parameters:
    """The point with these values, one a dimension."""
    return {key: value for dimension, value in zip(space, values, strict=True) for key in dimension.keys}


def _dimensions(request: SweepRequest) -> tuple[list[Dimension], list[str]]:
    """The sound dimensions, and a line for each fault of the others and of the settings beside them."""
    found: list[Dimension] = []
    faults: list[str] = []
    taken: dict[str, str] = {}  # key -> the dimension that sets it
    for name, text in request.config.space.items():
        place = request.places.get(("space", name), "space")
        try:
            dimension = Dimension(split_keys(name), parse_values(text), place)
            for key in dimension.keys:
                if taken.setdefault(key, name) != name:
                    raise ConfigError(f"{key} is set by the dimension {taken[key]} already")
            _refuse_own_keys(dimension.keys)
            found.append(dimension)
        except ConfigError as error:
            faults.append(f"{place}: {error}" if place.startswith("override ") else f"{place}: {name}: {error}")
    for index, setting in enumerate(request.config.overrides):
        try:
            _refuse_own_keys([setting.partition("=")[0].strip()])
        except ConfigError as error:
            faults.append(f"{request.places.get(('overrides', index), 'overrides')}: {error}")
    if not request.config.space and request.config.seeds == 1:
        faults.append(
            "there is nothing to sweep over: give a dimension, such as algorithm.kl.coef=grid:0,0.1,1, or several seeds "
            "with sweep.seeds=3"
        )
    return found, faults


def _random_points(space: Sequence[Dimension], search: RandomSearchConfig) -> list[Parameters]:
    """Each combination of the grids `samples` times, with the other dimensions drawn anew each time."""
    grids = [dimension for dimension in space if _is_grid(dimension.values)]
    streams = {d.name: d.generator(search.seed) for d in space if not _is_grid(d.values)}
    found = []
    for combination in _combinations(grids):
        crossed = {dimension.name: value for dimension, value in zip(grids, combination, strict=True)}
        for _ in range(search.samples if streams else 1):
            values = [crossed[d.name] if d.name in crossed else d.values.draw(streams[d.name]) for d in space]
            found.append(point_of(space, values))
    return found


def _probed(dimension: Dimension) -> tuple[Any, ...]:
    values = dimension.values
    return (values.clip(values.low), values.clip(values.high)) if isinstance(values, Range) else values.values


def _is_grid(values: Values) -> bool:
    return isinstance(values, Listed) and values.kind == "grid"


def _combinations(space: Sequence[Dimension]) -> list[tuple[Any, ...]]:
    """Every combination of listed values, the last dimension moving fastest."""
    return list(itertools.product(*(dimension.listed() or () for dimension in space)))


def _refuse_own_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if key in _OF_THE_SWEEP:
            raise ConfigError(f"{key} is the sweep's to set; use {_OF_THE_SWEEP[key]}")
