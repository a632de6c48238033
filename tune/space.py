"""The search space of a sweep: dimensions such as `grid:0,0.1,1`, `choice:a,b`, `loguniform:1e-5..1e-3`.

The same text in a file of `tune/` and on the command line; `plan.py` makes trials of it.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np

from rayrlhf.config_draft import Draft
from rayrlhf.config_faults import suggestion
from rayrlhf.errors import ConfigError

RangeKind = Literal["uniform", "loguniform", "int"]
ListKind = Literal["grid", "choice"]
KINDS: tuple[str, ...] = (*get_args(ListKind), *get_args(RangeKind))
SIGNIFICANT_DIGITS = 4  # of a number that was drawn: what a table shows is what was run
MOST_LISTED = 1000  # whole numbers of an `int` range that a grid goes through

_DIMENSION = re.compile(rf"\s*({'|'.join(KINDS)}):(.*)", re.DOTALL)
_ALMOST = re.compile(r"\s*([A-Za-z_-]+):\s*([^\s,]+\s*(\.\.|,).*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Listed:
    """`grid:` or `choice:`: the values themselves."""

    kind: ListKind
    values: tuple[Any, ...]  # plain YAML values, each once

    def draw(self, random: np.random.Generator) -> Any:
        return self.values[int(random.integers(len(self.values)))]


@dataclass(frozen=True, slots=True)
class Range:
    """`uniform:`, `loguniform:` or `int:`: from low to high, both included."""

    kind: RangeKind
    low: float
    high: float

    def draw(self, random: np.random.Generator) -> float | int:
        """A number of the range, to four significant digits; a whole one of `int`."""
        if self.kind == "int":
            return int(random.integers(int(self.low), int(self.high), endpoint=True))
        if self.kind == "loguniform":
            return self.clip(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return self.clip(random.uniform(self.low, self.high))

    def clip(self, value: float) -> float | int:
        """The nearest number of the range, as `draw` would give it."""
        if self.kind == "int":
            return int(min(max(round(value), self.low), self.high))
        return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), self.low), self.high)


Values = Listed | Range


@dataclass(frozen=True, slots=True)
class Dimension:
    """One degree of freedom of a sweep: config keys that take the same value together, and which values."""

    keys: tuple[str, ...]  # dotted
    values: Values
    place: str  # where it was written: `my_space.yaml:7` or `override optimizer.lr=loguniform:1e-5..1e-3`

    @property
    def name(self) -> str:
        return ",".join(self.keys)

    def listed(self) -> tuple[Any, ...] | None:
        """All values, where they can be gone through one by one."""
        if isinstance(self.values, Listed):
            return self.values.values
        low, high = int(self.values.low), int(self.values.high)
        if self.values.kind == "int" and high - low < MOST_LISTED:
            return tuple(range(low, high + 1))
        return None

    def generator(self, seed: int) -> np.random.Generator:
        """The dimension's own stream of random numbers: another dimension beside it changes nothing of it."""
        return np.random.default_rng([seed, zlib.crc32(self.name.encode())])


def is_dimension(text: str) -> bool:
    """Whether the right side of KEY=... is a dimension's and not a value.

    Raises ConfigError for one that is nearly so: `log-uniform:1..2`.
    """
    if _DIMENSION.fullmatch(text):
        return True
    almost = _ALMOST.fullmatch(text)
    near = suggestion(almost[1], KINDS, cutoff=0.75) if almost else None
    if almost and near:
        raise ConfigError(f"there are no {almost[1]} dimensions, did you mean {near}:{almost[2]}?")
    return False


def split_keys(text: str) -> tuple[str, ...]:
    """`a.b,c.d` -> ("a.b", "c.d"). Raises ConfigError for an empty or repeated key."""
    keys = tuple(key.strip() for key in text.split(","))
    if not all(keys) or len(set(keys)) < len(keys):
        raise ConfigError(f"{text!r} names no key or one twice: write key or key,other.key")
    return keys


def parse_values(text: str) -> Values:
    """Reads `grid:0,0.1,1`, `choice:a,b`, `uniform:0..1`, `loguniform:1e-5..1e-3`, `int:1..8`.

    Raises ConfigError, without the place, which the caller knows.
    """
    found = _DIMENSION.fullmatch(text)
    if found is None:
        raise ConfigError(f"must be one of {', '.join(f'{kind}:...' for kind in KINDS)}, not {text!r}")
    kind, rest = found[1], found[2].strip()
    if kind in get_args(ListKind):
        return _listed(cast(ListKind, kind), rest)
    return _range(cast(RangeKind, kind), rest)


def _listed(kind: ListKind, text: str) -> Listed:
    draft = Draft({}, kind, {})  # values are read as those of an override are
    try:
        draft.override(f"values=[{text}]")
        values = draft.tree["values"]
    except ConfigError:
        values = None
    if not isinstance(values, list) or not values or text.endswith(","):
        raise ConfigError(f"{kind}: takes values between commas, as in {kind}:0,0.1,1, not {text!r}")
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{kind}: {value} is no finite number")
    shown = [json.dumps(value, sort_keys=True) for value in values]
    twice = sorted({value for value in shown if shown.count(value) > 1})
    if twice:
        raise ConfigError(f"{kind}: {', '.join(twice)} stands here twice; several seeds are sweep.seeds")
    return Listed(kind, tuple(values))


def _range(kind: RangeKind, text: str) -> Range:
    low_text, _, high_text = text.partition("..")
    example = "int:1..8" if kind == "int" else f"{kind}:1e-5..1e-3"
    try:
        low, high = (float(int(end)) if kind == "int" else float(end) for end in (low_text, high_text))
    except ValueError:
        number = "whole numbers" if kind == "int" else "numbers"
        raise ConfigError(f"{kind}: takes two {number} with two dots between, as in {example}, not {text!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{kind}: must rise from a finite number to a higher one, not {text}")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"loguniform: must be above 0, not {low:g}; for 0 itself use grid: or choice:")
    return Range(kind, low, high)


def override(key: str, value: Any) -> str:
    """`key=value` for `load_config`; JSON is YAML."""
    return f"{key}={json.dumps(value)}"


def shown_values(parameters: Sequence[tuple[str, Any]]) -> str:
    """Parameters in a few words, for tables: the last part of each key where that is unambiguous."""
    lasts = [key.rsplit(".", 1)[-1] for key, _ in parameters]
    names = [last if lasts.count(last) == 1 else key for (key, _), last in zip(parameters, lasts, strict=True)]
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, (_, value) in zip(names, parameters, strict=True)
    )
