"""The picture of a ranking: each item's score with its 95 % interval, the best on top, in the colour of its generator."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rayrlhf.charts import drawable
from rayrlhf.preferences.bradley_terry_likelihood import Ints
from rayrlhf.preferences.ranking import Ranking
from rayrlhf.preferences.records import Item
from rayrlhf.reading import printable

LABELLED_ITEMS = 40  # with more, texts would not be legible
_COLOURS = ("#2a78d6", "#d95926", "#1baf7a", "#8a5cc7", "#b8860b", "#c2477f")
_OTHER = "#8a8a8a"  # generators beyond these, and items without one
_FAINT = "#d5d5d5"


@dataclass(frozen=True, slots=True)
class _Kind:
    """The items of one generator, or of all those that have no colour of their own."""

    label: str
    colour: str
    own: NDArray[np.bool_]  # [n] whether an item is of it


def ranking_png(items: Sequence[Item], ranking: Ranking) -> bytes:
    """A PNG of 8 inches' width at 150 dots an inch."""
    order = np.argsort(-ranking.mean, kind="stable")
    # Texts are the models' own: a dollar sign in them is no formula.
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        draw = _with_texts if len(order) <= LABELLED_ITEMS else _beside_one_another
        figure = draw([items[index] for index in order], ranking, order, _kinds([items[index] for index in order]))
        unit = "standardised" if ranking.scale != 1 else "log odds"
        figure.supxlabel(f"latent score ({unit}) with 95 % intervals", fontsize=9)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def _with_texts(items: Sequence[Item], ranking: Ranking, order: Ints, kinds: Sequence[_Kind]) -> Figure:
    """One row an item, with the beginning of its text."""
    figure = Figure(figsize=(8, 1.4 + 0.24 * len(order)), layout="constrained")
    axes = _axes(figure, 1, 0)
    place = np.arange(1, len(order) + 1)
    mean, low, high = (values[order] for values in (ranking.mean, *ranking.interval()))
    for kind in kinds:
        own = kind.own
        axes.hlines(place[own], low[own], high[own], colors=kind.colour, linewidth=2, alpha=0.55)
        axes.scatter(mean[own], place[own], s=22, color=kind.colour, label=kind.label, zorder=3, linewidth=0)
    axes.set_ylim(len(order) + 0.7, 0.3)
    axes.set_yticks(place, [shortened(item) for item in items])
    if len(kinds) > 1:
        axes.legend(loc="lower right", frameon=False)
    return figure


def _beside_one_another(items: Sequence[Item], ranking: Ranking, order: Ints, kinds: Sequence[_Kind]) -> Figure:
    """A panel for each generator: its items in colour, by their rank among all, with all others' scores in grey."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    place = np.arange(1, len(order) + 1)
    mean, low, high = (values[order] for values in (ranking.mean, *ranking.interval()))
    first: Axes | None = None
    for number, kind in enumerate(kinds):
        axes = first = _axes(figure, len(kinds), number, first)
        own = kind.own
        axes.plot(mean, place, color=_OTHER, linewidth=1)
        axes.hlines(place[own], low[own], high[own], colors=kind.colour, linewidth=0.5, alpha=0.5)
        axes.scatter(mean[own], place[own], s=max(4.0, 600 / len(order)), color=kind.colour, zorder=3, linewidth=0)
        axes.set_title(kind.label, fontsize=9, color=kind.colour)
        axes.set_ylim(len(order) + 1, 0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        if number == 0:
            axes.set_ylabel(f"rank among {len(order)} items")
        else:
            axes.tick_params(labelleft=False)
    return figure


def _axes(figure: Figure, columns: int, number: int, beside: Axes | None = None) -> Axes:
    axes = figure.add_subplot(1, columns, number + 1, sharex=beside, sharey=beside)
    axes.axvline(0, color=_FAINT, linewidth=1, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return axes


def _kinds(items: Sequence[Item]) -> list[_Kind]:
    """The generators with most items each, then all others together."""
    names = np.array([item.generator for item in items])
    named = [name for name, _ in Counter(names.tolist()).most_common() if name][: len(_COLOURS)]
    kinds = [
        _Kind(f"{drawable(name)} ({(names == name).sum()})", colour, names == name)
        for name, colour in zip(named, _COLOURS, strict=False)
    ]
    rest = ~np.isin(names, named)
    if rest.any():
        label = "others" if named else "items"
        kinds.append(_Kind(f"{label} ({rest.sum()})", _OTHER if named else _COLOURS[0], rest))
    return kinds


def shortened(item: Item) -> str:
    """The beginning of a text on one line, without characters that no font has."""
    return drawable(
        "".join(letter if letter.isprintable() else "?" for letter in " ".join(printable(item.text).split()))
    )
