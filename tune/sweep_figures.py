"""A sweep as pictures: every checkpoint in the plane of KL and reward, and curves by iteration. matplotlib alone.

They are drawn in the colours of the style they are drawn in: a file's own, or `charts.page_style` for a page.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, SymmetricalLogLocator

from rayrlhf.charts import drawable, moving_average
from rayrlhf.tune.colour_scale import ColourScale
from rayrlhf.tune.frontier import Recommendation, frontier
from rayrlhf.tune.results import Point, SweepResults, TrialResult
from rayrlhf.tune.standings import Guards, guards_of

MARKERS = "os^Dv<>p"
"""Of the seeds, in their order; beyond eight they repeat."""
LOG_FROM = 30.0
"""Nats: where KL goes beyond, the axis is logarithmic above 1, and linear from 0 to 1."""
CLOSER = 0.5
"""Varied texts whose rewards span less than this share of all rewards are shown once more, closer."""
PATHS = 24
"""Up to so many trials have their checkpoints joined by a line."""

_FILE_STYLE = {
    "text.parse_math": False,  # a category may hold a dollar sign
    "font.size": 10,
    "text.color": "#1d1f23",
    "axes.labelcolor": "#1d1f23",
    "axes.edgecolor": "#dedfe2",
    "xtick.color": "#dedfe2",
    "ytick.color": "#dedfe2",
    "xtick.labelcolor": "#1d1f23",
    "ytick.labelcolor": "#1d1f23",
    "grid.color": "#dedfe2",
}


def frontier_png(results: SweepResults, recommendation: Recommendation, scale: ColourScale) -> bytes:
    """The frontier as a picture of its own, legend included; where `closer_look` says so, in two panels."""
    look = closer_look(results)
    with matplotlib.rc_context(_FILE_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(10.5 if look is None else 14, 5.8), layout="constrained")
        panels = figure.subplots(1, 1 if look is None else 2, squeeze=False)[0]
        for axes, points in zip(panels, (None, look), strict=False):
            draw_frontier(axes, results, recommendation, scale, scale.light, points)
        handles = legend_handles(results, recommendation, scale, scale.light)
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
        figure.suptitle(
            f"{drawable(results.name)}: reward against KL, every checkpoint", x=0.01, ha="left", fontsize=12
        )
        drawing = io.BytesIO()
        figure.savefig(drawing, format="png", dpi=150, facecolor="white")
    return drawing.getvalue()


def closer_look(results: SweepResults) -> Sequence[Point] | None:
    """The checkpoints with varied texts, where the others' rewards or KL would press them into a corner."""
    floor = guards_of(results).min_diversity
    points = [point for point in _points(results) if point.kl is not None]
    varied = [point for point in points if floor is not None and Guards(None, floor).admit(point)]
    if not varied:
        return None
    base = base_reward(results)
    heights = [] if base is None else [base]
    reward, of_all = (_span([*heights, *(point.reward for point in kept)]) for kept in (varied, points))
    return varied if reward < CLOSER * of_all else None


def draw_frontier(
    axes: Axes,
    results: SweepResults,
    recommendation: Recommendation,
    scale: ColourScale,
    colours: Sequence[str],
    look_at: Sequence[Point] | None = None,
) -> None:
    """Reward against KL: colours by the scale's parameter, markers by seed, hollow where the diversity is gone.

    colours: one for each of the scale's labels. look_at: the axes hold these points and the base model alone.
    """
    ink, guards = matplotlib.rcParams["text.color"], guards_of(results)
    seeds = seeds_of(results)
    for trial in results.trials:
        marker = MARKERS[seeds.index(trial.seed) % len(MARKERS)]
        _checkpoints(axes, trial, guards, colours[scale.rank(scale.parameter.value_of(trial))], marker,
                     joined=len(results.trials) <= PATHS)  # fmt: skip
    _frontiers(axes, results, guards, ink)
    base = base_reward(results)
    if base is not None:
        axes.plot([0], [base], marker="*", markersize=13, color=ink, linestyle="none", zorder=6)
    if recommendation.point is not None and recommendation.point.kl is not None:
        axes.plot([recommendation.point.kl], [recommendation.point.reward], marker="o", markersize=17,
                  markerfacecolor="none", markeredgecolor=ink, markeredgewidth=2, linestyle="none", zorder=7)  # fmt: skip
    if guards.max_kl is not None:
        axes.axvline(guards.max_kl, color=ink, linewidth=1, linestyle=(0, (1, 2)), alpha=0.7)
    _frame(axes)
    points = _points(results) if look_at is None else look_at
    _kl_axis(axes, [point.kl for point in points if point.kl is not None])
    if look_at is not None:
        _hold(axes, [point.reward for point in look_at] + ([] if base is None else [base]))
    axes.set_ylabel("reward" if look_at is None else "reward, varied texts alone")


def curves_figure(
    results: SweepResults,
    scale: ColourScale,
    colours: Sequence[str],
    quantity: str,
    level: float | None,
    size: tuple[float, float] = (5.2, 2.9),
) -> Figure:
    """A line a trial over iterations, seeds by dashes. quantity: `reward`, a moving average, or `diversity`.

    level: height of a dashed line.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    dashes = ("-", (0, (4, 1.5)), (0, (1.5, 1)), (0, (6, 1, 1, 1)))
    seeds = seeds_of(results)
    for trial in results.trials:
        curve = trial.history.reward if quantity == "reward" else trial.history.diversity
        if not curve:
            continue
        iterations, values = zip(*curve, strict=True)
        shown = moving_average(values, len(values) // 20 | 1) if quantity == "reward" else values
        colour = colours[scale.rank(scale.parameter.value_of(trial))]
        axes.plot(iterations, shown, color=colour, linestyle=dashes[seeds.index(trial.seed) % len(dashes)],
                  linewidth=1.4 if len(results.trials) <= PATHS else 0.9,
                  marker="o" if len(values) == 1 else None, markersize=4)  # fmt: skip
    if level is not None:
        axes.axhline(level, color=matplotlib.rcParams["text.color"], linewidth=1, linestyle=(0, (1, 2)), alpha=0.7)
    _frame(axes)
    axes.set_xlabel("iterations")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.0), max(high, 0.0))
    return figure


def legend_handles(
    results: SweepResults, recommendation: Recommendation, scale: ColourScale, colours: Sequence[str]
) -> list[Line2D]:
    """What colours, markers and lines of the frontier's picture stand for."""
    ink, guards = matplotlib.rcParams["text.color"], guards_of(results)
    used = _ranks_used(results, scale)
    handles = [_heading(scale.parameter.name)]
    handles += [_dot("s", colours[rank], label) for rank, label in enumerate(scale.labels) if rank in used]
    seeds = seeds_of(results)
    if len(seeds) > 1:
        handles.append(_heading("seed"))
        handles += [_dot(MARKERS[index % len(MARKERS)], ink, str(seed)) for index, seed in enumerate(seeds)]
    handles.append(_heading(""))
    if guards.min_diversity is not None:
        handles.append(_dot("o", ink, f"diversity under {guards.min_diversity:g}", hollow=True))
    handles.append(Line2D([], [], color=ink, linewidth=1, linestyle=(0, (4, 3)), label="frontier"))
    if guards.min_diversity is not None:
        handles.append(Line2D([], [], color=ink, linewidth=1.6, label="frontier of varied texts"))
    if guards.max_kl is not None:
        handles.append(Line2D([], [], color=ink, linewidth=1, linestyle=(0, (1, 2)), label=f"KL {guards.max_kl:g}"))
    if base_reward(results) is not None:
        handles.append(_dot("*", ink, "base model", size=11))
    if recommendation.point is not None:
        handles.append(_dot("o", ink, "recommended", hollow=True, size=12))
    return handles


def seeds_of(results: SweepResults) -> list[int]:
    return sorted({trial.seed for trial in results.trials})


def base_reward(results: SweepResults) -> float | None:
    """Mean over the trials of the base model's reward, at KL 0; None where its episodes were not played."""
    known = [trial.history.base_reward.value for trial in results.trials if trial.history.base_reward is not None]
    return sum(known) / len(known) if known else None


def _points(results: SweepResults) -> list[Point]:
    return [point for trial in results.trials for point in trial.history.points]


def _ranks_used(results: SweepResults, scale: ColourScale) -> set[int]:
    return {scale.rank(scale.parameter.value_of(trial)) for trial in results.trials}


def _span(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _hold(axes: Axes, rewards: Sequence[float]) -> None:
    margin = 0.06 * _span(rewards) or 0.5
    axes.set_ylim(min(rewards) - margin, max(rewards) + margin)


def _checkpoints(axes: Axes, trial: TrialResult, guards: Guards, colour: str, marker: str, joined: bool) -> None:
    """A trial's checkpoints, the last one larger."""
    known = [(point, point.kl) for point in trial.history.points if point.kl is not None]
    if joined:
        axes.plot(
            [kl for _, kl in known], [point.reward for point, _ in known], color=colour, linewidth=0.9, alpha=0.45
        )
    for point, kl in known:
        varied = guards.min_diversity is None or (point.diversity or 0.0) >= guards.min_diversity
        last = point is trial.last
        axes.plot([kl], [point.reward], marker=marker, markersize=7.5 if last else 4.5, linestyle="none", zorder=4,
                  markerfacecolor=colour if varied else "none", markeredgecolor=colour, markeredgewidth=1.1,
                  alpha=1 if last else 0.75)  # fmt: skip


def _frontiers(axes: Axes, results: SweepResults, guards: Guards, ink: str) -> None:
    """Over all checkpoints, dashed, and over those whose texts are varied."""
    points = _points(results)
    _stairs(axes, frontier(points), color=ink, linewidth=1, linestyle=(0, (4, 3)), alpha=0.7, zorder=3)
    if guards.min_diversity is not None:
        varied = Guards(None, guards.min_diversity)
        _stairs(axes, frontier([point for point in points if varied.admit(point)]), color=ink, linewidth=1.6, zorder=3)


def _stairs(axes: Axes, line: Iterable[Point], **style: object) -> None:
    """Steps: between two checkpoints nothing is known to have more reward than the one on the left."""
    known = [(point.kl, point.reward) for point in line if point.kl is not None]
    axes.plot([kl for kl, _ in known], [reward for _, reward in known], drawstyle="steps-post", **style)  # type: ignore[arg-type]


def _kl_axis(axes: Axes, kl: Sequence[float]) -> None:
    axes.set_xlabel("KL from the base model, nats a sequence")
    low, high = min([0.0, *kl]), max([0.0, *kl])
    if high <= LOG_FROM:
        margin = 0.04 * (high - low) or 0.5
        axes.set_xlim(low - margin, high + margin)
        return
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.6)
    axes.set_xlim(low - 0.2, high * 1.4)
    axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1.0))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if high < 200:
        axes.xaxis.set_minor_locator(SymmetricalLogLocator(base=10, linthresh=1.0, subs=[2, 5]))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(axis="x", which="minor", length=0, labelsize=8)


def _frame(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.7)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)


def _heading(label: str) -> Line2D:
    return Line2D([], [], linestyle="none", label=drawable(label))


def _dot(marker: str, colour: str, label: str, hollow: bool = False, size: float = 7) -> Line2D:
    return Line2D([], [], linestyle="none", marker=marker, markersize=size, label=drawable(label),
                  markerfacecolor="none" if hollow else colour, markeredgecolor=colour)  # fmt: skip
