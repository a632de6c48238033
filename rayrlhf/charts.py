"""Line charts as inline SVG for a page that is light or dark: matplotlib draws, the page's style sheet colours.

The page sets the custom properties `--series-1` to `--series-6` and `--grid`; text takes the colour around it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rayrlhf.files import printable
from rayrlhf.report_page import text

SERIES_COLOURS = 6
LABEL_CHARACTERS = 60

# Colours that nothing else has: each is replaced by what the style sheet is to decide.
_TEXT, _GRID = "#010203", "#010204"
_SERIES = [f"#0102{16 + index:02x}" for index in range(SERIES_COLOURS)]
_PAGE_COLOURS = {
    _TEXT: "currentColor",
    _GRID: "var(--grid)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES, start=1)},
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and in the page's font
    "svg.hashsalt": "rayrlhf",  # the same run gives the same file
    "text.parse_math": False,  # a reward's name may hold a dollar sign
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _GRID,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "grid.color": _GRID,
}


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart."""

    label: str
    iterations: Sequence[float]
    values: Sequence[float]
    marked: bool = False  # each point is shown: of what is measured now and then


def page_style() -> AbstractContextManager[None]:
    """Within it figures are drawn as `figure_element` takes them: text and grid in colours that it replaces."""
    return matplotlib.rc_context(_STYLE)  # type: ignore[arg-type]


def figure_element(title: str, figure: Figure, legend: str = "", colours: Mapping[str, str] | None = None) -> str:
    """A `<figure>` of what was drawn in `page_style`. title: text; legend: HTML.

    colours: a colour drawn with -> what the style sheet is to put in its place, such as `var(--scale-1)`.
    """
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", transparent=True)
    svg = _inline(drawing.getvalue(), title, _PAGE_COLOURS | dict(colours or {}))
    return f"<figure><figcaption>{text(title)}{legend}</figcaption>{svg}</figure>"


def line_chart(
    title: str,
    series: Sequence[Series],
    level: tuple[str, float] | None = None,
    from_zero: bool = False,
    size: tuple[float, float] = (5.2, 2.6),
    alarms: Sequence[float] = (),
) -> str:
    """A `<figure>` with the lines, over iterations, and a legend where there are several.

    Above 40 points a moving average is drawn over the faint raw line. level: label and height of a dashed line.
    from_zero: the vertical axis holds 0. size: inches; the figure scales to the width it is given.
    alarms: iterations at which a dotted upright line stands.
    """
    with page_style():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for index, line in enumerate(series):
            _draw(axes, line, _SERIES[index % SERIES_COLOURS])
        if level is not None:
            axes.axhline(level[1], color=_TEXT, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
        for iteration in alarms:
            axes.axvline(iteration, color=_TEXT, linewidth=1, linestyle=":", alpha=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.7)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.margins(x=0.02)
        if from_zero:
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0.0), max(high, 0.0))
        if all(len(line.values) == 1 for line in series):  # no width to scale by
            axes.set_xlim(series[0].iterations[0] - 0.5, series[0].iterations[0] + 0.5)
        axes.set_axisbelow(True)
        return figure_element(title, figure, _legend(series, level))


def drawable(label: str) -> str:
    """A stranger's text as a label of a picture: printable, on one line, and no longer than a picture is wide."""
    line = " ".join(printable(label).split())
    return line if len(line) <= LABEL_CHARACTERS else f"{line[: LABEL_CHARACTERS - 1]}…"


def moving_average(values: Sequence[float], width: int) -> np.ndarray:
    """Mean of up to `width` (odd) values around each, of fewer towards the ends. [n] -> [n]"""
    window = np.ones(width)
    count = np.convolve(np.ones(len(values)), window, mode="same")
    return np.convolve(np.asarray(values, dtype=np.float64), window, mode="same") / count


def _draw(axes, line: Series, colour: str) -> None:  # type: ignore[no-untyped-def]
    few = len(line.values) <= 40
    marker = "o" if line.marked or len(line.values) <= 2 else None
    axes.plot(line.iterations, line.values, color=colour, linewidth=1.8 if few else 0.8, alpha=1 if few else 0.35,
              marker=marker, markersize=4)  # fmt: skip
    if not few:
        width = len(line.values) // 20 | 1  # odd, so that the mean is centred
        axes.plot(line.iterations, moving_average(line.values, width), color=colour, linewidth=1.8)


def _legend(series: Sequence[Series], level: tuple[str, float] | None) -> str:
    entries = []
    if len(series) > 1:
        entries += [
            f'<span><i style="background:var(--series-{index % SERIES_COLOURS + 1})"></i>{text(line.label)}</span>'
            for index, line in enumerate(series)
        ]
    if level is not None:
        entries.append(f'<span><i class="dashed"></i>{text(level[0])}</span>')
    return f'<span class="legend">{"".join(entries)}</span>' if entries else ""


def _inline(svg: str, title: str, colours: Mapping[str, str]) -> str:
    """The `<svg>` element alone, without fixed size and metadata, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href=", "href=")
    for drawn, shown in colours.items():
        svg = svg.replace(drawn, shown)

    def opening(
        found: re.Match[str],
    ) -> str:  # a function: in a template of `re`, a title's backslashes would say things
        return f'<svg viewBox="{found[1]}" role="img" aria-label="{text(title)}">'

    return re.sub(r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>', opening, svg)
