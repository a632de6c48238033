"""The pictures of a sweep's page: the figures of `sweep_figures.py` as SVG in the page's colours, with their legends."""

from __future__ import annotations

from matplotlib.figure import Figure

from rayrlhf.charts import figure_element, page_style
from rayrlhf.report_page import text
from rayrlhf.tune.colour_scale import ColourScale
from rayrlhf.tune.frontier import Recommendation
from rayrlhf.tune.results import SweepResults
from rayrlhf.tune.standings import guards_of
from rayrlhf.tune.sweep_figures import MARKERS, base_reward, closer_look, curves_figure, draw_frontier, seeds_of

_GLYPHS = dict(zip("os^Dv<>p", "●■▲◆▼◀▶⬟", strict=True))


def frontier_pictures(results: SweepResults, recommendation: Recommendation, scales: list[ColourScale]) -> str:
    """Every checkpoint, in the colours of the main parameter, then in those of each other one; varied texts closer."""
    pictures = [_frontier(results, recommendation, scale, index, False) for index, scale in enumerate(scales)]
    if closer_look(results) is not None:
        pictures.insert(1, _frontier(results, recommendation, scales[0], 0, True))
    return f'<h2>Reward against KL</h2><div class="charts frontier">{"".join(pictures)}</div>'


def curves(results: SweepResults, scale: ColourScale) -> str:
    """Reward and diversity by iteration, a line a trial."""
    drawn = scale.drawn(0)
    legend = f'<span class="legend">{_values(scale, 0)}</span>'
    quantities = [("reward", "Reward by iteration, moving average", base_reward(results))]
    if not results.plays_games:
        title = "Diversity by iteration: distinct-2 of the last 50 texts, share of the base model's"
        quantities.append(("diversity", title, guards_of(results).min_diversity))
    charts = []
    for quantity, title, level in quantities:
        if level is not None:
            title += f"; dotted: {'the base model' if quantity == 'reward' else f'the floor of {level:g}'}"
        with page_style():
            figure = curves_figure(results, scale, list(drawn), quantity, level)
            charts.append(figure_element(title, figure, legend, drawn))
    return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>'


def _frontier(
    results: SweepResults, recommendation: Recommendation, scale: ColourScale, index: int, closer: bool
) -> str:
    drawn = scale.drawn(index)
    title = f"By {scale.parameter.name}" + (", closer: the checkpoints with varied texts" if closer else "")
    with page_style():
        figure = Figure(figsize=(6.6, 4.4), layout="constrained")
        look_at = closer_look(results) if closer else None
        draw_frontier(figure.add_subplot(), results, recommendation, scale, list(drawn), look_at)
        return figure_element(title, figure, _legend(results, recommendation, scale, index), drawn)


def _legend(results: SweepResults, recommendation: Recommendation, scale: ColourScale, index: int) -> str:
    guards, seeds = guards_of(results), seeds_of(results)
    entries = [_values(scale, index)]
    if len(seeds) > 1:
        entries += [_entry(_GLYPHS[MARKERS[n % len(MARKERS)]], f"seed {seed}") for n, seed in enumerate(seeds)]
    if guards.min_diversity is not None:
        entries += [_entry("○", f"hollow: diversity under {guards.min_diversity:g}")]
    entries.append(_entry("╌", "frontier"))
    if guards.min_diversity is not None:
        entries.append(_entry("━", "frontier of varied texts"))
    if guards.max_kl is not None:
        entries.append(_entry("┊", f"KL {guards.max_kl:g}"))
    if base_reward(results) is not None:
        entries.append(_entry("★", "base model"))
    if recommendation.point is not None:
        entries.append(_entry("◯", "recommended"))
    return f'<span class="legend">{"".join(entries)}</span>'


def _values(scale: ColourScale, index: int) -> str:
    return "".join(
        f'<span><i style="background:var(--scale{index}-{rank})"></i>{text(label)}</span>'
        for rank, label in enumerate(scale.labels)
    )


def _entry(glyph: str, label: str) -> str:
    return f'<span><b class="glyph">{glyph}</b>{text(label)}</span>'
