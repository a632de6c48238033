"""Colours of a swept parameter's values: an ordered scale that reads on a light and on a dark page, 0 included.

Colours go by rank, so 0, 0.01 and 100 are as far apart as their order says. Many values share colours by ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from rayrlhf.tune.settings import Parameter, shown

OWN_COLOURS = 8
"""Up to so many values have a colour each."""
RANGES = 6
"""More numbers than that share so many colours."""

_LIGHT, _DARK = (0.0, 0.86), (0.22, 1.0)  # the parts of viridis that stand out from a white and from a black page


@dataclass(frozen=True, slots=True)
class ColourScale:
    """A colour for each value or range of values of one parameter."""

    parameter: Parameter
    labels: tuple[str, ...]  # of the colours
    ranks: tuple[int, ...]  # the colour of each of `parameter.values`

    def rank(self, value: Any) -> int:
        """Which colour a value has."""
        return self.ranks[self.parameter.values.index(value)]

    @property
    def light(self) -> list[str]:
        return _viridis(*_LIGHT, len(self.labels))

    @property
    def dark(self) -> list[str]:
        return _viridis(*_DARK, len(self.labels))

    def drawn(self, number: int) -> dict[str, str]:
        """Colours to draw with -> custom properties of the style sheet that replace them (`charts.figure_element`).

        number: of the scale on its page. Figures on one page share the shapes that look alike, so what two scales draw
        with must differ.
        """
        return {f"#01{3 + number:02x}{rank:02x}": f"var(--scale{number}-{rank})" for rank in range(len(self.labels))}

    def style(self, number: int) -> str:
        """The style sheet's part: these properties on a light and on a dark page."""
        light, dark = (
            " ".join(f"--scale{number}-{rank}: {colour};" for rank, colour in enumerate(colours))
            for colours in (self.light, self.dark)
        )
        return f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def colour_scale(parameter: Parameter) -> ColourScale:
    """Each value its own colour, or, of more than 8 numbers, each of 6 ranges that hold equally many."""
    values = parameter.values
    if not parameter.numeric or len(values) <= OWN_COLOURS:
        return ColourScale(parameter, tuple(shown(value) for value in values), tuple(range(len(values))))
    parts = np.array_split(np.arange(len(values)), RANGES)
    labels = tuple(_range(values[part[0]], values[part[-1]]) for part in parts)
    return ColourScale(parameter, labels, tuple(rank for rank, part in enumerate(parts) for _ in part))


def _range(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _viridis(low: float, high: float, count: int) -> list[str]:
    return [to_hex(colour) for colour in matplotlib.colormaps["viridis"](np.linspace(low, high, count))]
