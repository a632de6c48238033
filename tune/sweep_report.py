"""`report.html` of a sweep, with frontier.png, points.csv and table.csv beside it: finished or not, for reading as is.

One page that needs nothing else; all that a model, a config or an error wrote is escaped.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rayrlhf.files import replace_file
from rayrlhf.report_page import page, text
from rayrlhf.tune.colour_scale import ColourScale, colour_scale
from rayrlhf.tune.equal_reward import EqualReward, Price, equal_reward
from rayrlhf.tune.frontier import Recommendation, recommend
from rayrlhf.tune.objectives import RewardUnderKL
from rayrlhf.tune.results import Mean, SweepResults, TrialResult, read_sweep
from rayrlhf.tune.settings import Parameter, parameters_of, shown
from rayrlhf.tune.standings import Guards, Standing, guards_of, standings
from rayrlhf.tune.sweep_charts import curves, frontier_pictures
from rayrlhf.tune.sweep_figures import frontier_png
from rayrlhf.tune.sweep_tables import points_csv, table_csv

TEXT_SHOWN = 1200
"""Characters of a text shown."""
VALUES_SHOWN = 12
"""Values of a parameter that are listed one by one."""

_STYLE = """
.frontier { grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.settings { max-width: none; } .settings th, .settings td { vertical-align: top; padding: .35rem .9rem .35rem 0; }
.settings thead th { color: var(--muted); font-size: .85rem; } .settings td.texts { text-align: left; min-width: 20rem; }
.settings tr.chosen th { font-weight: 700; } .settings tr.seeds td { text-align: left; padding-bottom: .8rem; }
.settings tbody tr:not(.seeds) > * { border-top: 1px solid var(--grid); }
.settings .text { max-height: 5rem; font-size: .85rem; } .settings .text + .text { margin-top: .4rem; }
.settings small { color: var(--muted); white-space: nowrap; } .settings details { margin: 0; }
.settings details summary { font-weight: normal; color: var(--muted); font-size: .85rem; margin: 0; }
.swept p { margin: .2rem 0; } .key { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; }
.glyph { display: inline-block; min-width: 1.2rem; color: var(--text); }
.left th, .left td { text-align: left; vertical-align: top; }
"""


def write_sweep_report(folder: Path) -> Path:
    """Writes report.html, frontier.png, points.csv and table.csv into the sweep's folder; returns the page's path.

    Raises RunFolderError where `folder` is no sweep's, or what the sweep itself wrote is damaged.
    """
    results = read_sweep(folder)
    recommendation = recommend(results)
    all_standings = standings(results)
    scales = [colour_scale(parameter) for parameter in _by_weight(parameters_of(results))]
    replace_file(folder / "points.csv", [points_csv(results)])
    replace_file(folder / "table.csv", [table_csv(results, all_standings)])
    if scales:
        replace_file(folder / "frontier.png", [frontier_png(results, recommendation, scales[0])])
    body = _body(results, recommendation, all_standings, scales)
    replace_file(folder / "report.html", [page(results.name, body).encode()])
    return folder / "report.html"


def _by_weight(parameters: tuple[Parameter, ...]) -> list[Parameter]:
    """The main one first, which colours the pictures: a KL coefficient, or else a number, or else a category."""
    return sorted(parameters, key=lambda p: (not any(key.endswith("kl.coef") for key in p.keys), not p.numeric))


def _body(
    results: SweepResults, recommendation: Recommendation, all_standings: list[Standing], scales: list[ColourScale]
) -> str:
    scale_styles = "".join(scale.style(index) for index, scale in enumerate(scales))
    parts = [
        f"<style>{_STYLE}{scale_styles}</style><h1>{text(results.name)}</h1>",
        f'<p class="verdict">{text(recommendation.reason)}</p>',
        _tiles(results, recommendation),
        _swept(results, recommendation),
    ]
    if scales:
        parts.append(frontier_pictures(results, recommendation, scales))
    parts += [_settings(all_standings, recommendation, parameters_of(results)), _equal_reward(results)]
    if scales:
        parts.append(curves(results, scales[0]))
    parts += [_collapses(results), _failures(results)]
    parts.append(f"<details><summary>Config of the sweep</summary><pre>{text(results.config_yaml)}</pre></details>")
    return "\n".join(parts)


def _tiles(results: SweepResults, recommendation: Recommendation) -> str:
    point, standing = recommendation.point, recommendation.standing
    ended = sum(trial.status != "unfinished" for trial in results.trials)
    tiles = [("trials ended", f"{ended} of {len(results.trials)}")]
    if point is not None and standing is not None:
        base = standing.base_reward
        tiles = [
            (f"recommended{'' if standing.holds else f', for {point.iteration} iterations'}", standing.setting.label),
            ("mean reward of its best checkpoints", "–" if standing.best is None else f"{standing.best.value:.2f}"),
            ("reward, base model", "–" if base is None else f"{base:.2f}"),
            ("best checkpoint: reward", f"{point.reward:.2f}"),
            ("KL, nats a sequence", "–" if point.kl is None else f"{point.kl:.1f}"),
            ("diversity of base", "–" if point.diversity is None else f"{point.diversity:.0%}"),
            *tiles,
        ]
    cells = "".join(f"<div><b>{text(value)}</b>{name}</div>" for name, value in tiles)
    return f'<div class="tiles">{cells}</div>'


def _swept(results: SweepResults, recommendation: Recommendation) -> str:
    """What was tried, what was looked for, how far it has come, and where the recommended checkpoint lies."""
    lines = []
    for parameter in parameters_of(results):
        values = [shown(value) for value in parameter.values]
        listed = ", ".join(values) if len(values) <= VALUES_SHOWN else f"from {values[0]} to {values[-1]}"
        lines.append(f"<b>{text(', '.join(parameter.keys))}</b>: {len(values)} values: {text(listed)}")
    seeds = sorted({trial.seed for trial in results.trials})
    states = Counter(trial.status for trial in results.trials)
    counted = ", ".join(f"{count} {status}" for status, count in states.items())
    lines.append(
        f"{len(results.trials)} trials ({counted or 'none drawn yet'}), seeds {', '.join(map(str, seeds)) or '–'}"
    )
    lines.append(f"Objective: {text(_objective(results))}")
    if recommendation.trial is not None and recommendation.point is not None:
        where = recommendation.checkpoint
        named = f"iteration {recommendation.point.iteration} of {text(recommendation.trial.name)}"
        place = (
            f" (<code>{text(str(where.relative_to(results.folder)))}</code>)"
            if where is not None
            else ", pruned since: raise checkpoint.keep to keep such ones"
        )
        lines.append(f"Recommended checkpoint: {named}{place}")
    return f'<div class="swept">{"".join(f"<p>{line}</p>" for line in lines)}</div>'


def _objective(results: SweepResults) -> str:
    objective = results.objective
    if isinstance(objective, RewardUnderKL):
        return f"the highest reward among checkpoints with a KL of at most {objective.max_kl:g} nats a sequence."
    return (
        f"the highest reward among checkpoints with at least {objective.min_diversity:g} of the base model's diversity."
    )


def _settings(all_standings: list[Standing], recommendation: Recommendation, parameters: tuple[Parameter, ...]) -> str:
    """The source's table (SPEC section 2): coefficient, reward, KL, diversity, last two texts; each seed folded away."""
    name = parameters[0].name if len(parameters) == 1 else "setting"
    rows = "".join(_setting(standing, recommendation) for standing in all_standings)
    heads = (name, "reward", "KL, nats", "diversity", "best admitted reward", "holds", "last two texts of one seed")
    head = "".join(f"<th>{text(heading)}</th>" for heading in heads)
    return (
        "<h2>Every setting</h2>"
        '<p class="notes">Means over seeds of the last checkpoint, plus or minus a standard error. Best admitted: the '
        "mean of each seed's highest reward among the checkpoints within the guards. Holds: every seed's last checkpoint "
        "is within them.</p>"
        f'<div class="wide"><table class="settings"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _setting(standing: Standing, recommendation: Recommendation) -> str:
    chosen = recommendation.standing is not None and recommendation.standing.setting == standing.setting
    cells = [_mean(standing.reward, ".2f"), _mean(standing.kl, ".1f"), _mean(standing.diversity, ".2f"),
             _mean(standing.best, ".2f")]  # fmt: skip
    texts = _texts(standing.trials[0]) if standing.trials else "–"
    seeds = "".join(_seed(trial) for trial in standing.setting.trials)
    count = len(standing.setting.trials)
    row = '<tr class="chosen">' if chosen else "<tr>"
    return (
        f"{row}<th>{text(standing.setting.label)}{'<small> recommended</small>' if chosen else ''}</th>"
        f"{''.join(f'<td>{cell}</td>' for cell in cells)}"
        f'<td>{"yes" if standing.holds else "no"}</td><td class="texts">{texts}</td></tr>'
        f'<tr class="seeds"><td colspan="7"><details><summary>{"its seed" if count == 1 else f"each of {count} seeds"}'
        f"</summary><table>{seeds}</table></details></td></tr>"
    )


def _seed(trial: TrialResult) -> str:
    last = trial.last
    figures = "no checkpoint yet"
    if last is not None:
        error = "" if last.reward_se is None else f" ± {last.reward_se:.2f}"
        figures = f"after {last.iteration} iterations: reward {last.reward:.2f}{error}"
        figures += "" if last.kl is None else f", KL {last.kl:.1f}"
        figures += "" if last.diversity is None else f", diversity {last.diversity:.2f}"
    minutes = "" if trial.seconds is None else f", {trial.seconds / 60:.1f} min"
    return (
        f"<tr><th>seed {trial.seed}<br><small>{text(trial.name)}: {trial.status}{minutes}</small></th>"
        f'<td class="texts">{figures}{_texts(trial)}</td></tr>'
    )


def _texts(trial: TrialResult) -> str:
    return "".join(
        f'<div class="text" dir="auto">{text(shown[:TEXT_SHOWN])}{"<i> …</i>" if len(shown) > TEXT_SHOWN else ""}</div>'
        for shown in trial.history.last_texts
    )


def _mean(mean: Mean | None, form: str) -> str:
    if mean is None:
        return "–"
    error = "" if mean.standard_error is None else f" <small>± {mean.standard_error:{form}}</small>"
    return f"{mean.value:{form}}{error}"


def _equal_reward(results: SweepResults) -> str:
    return "".join(_equal_reward_table(table) for table in equal_reward(results))


def _equal_reward_table(table: EqualReward) -> str:
    title = f"<h2>{text(', '.join(table.parameter.keys))} at equal reward</h2>"
    if not table.levels:
        return f'{title}<p class="notes">No level of reward above the base model\'s has been reached by every value yet.</p>'
    heads = "".join(f"<th>{text(shown(value))}: KL</th><th>diversity</th>" for value in table.parameter.values)
    rows = "".join(
        f"<tr><td>{level:g}</td>{''.join(_price(price) for price in prices)}</tr>"
        for level, prices in zip(table.levels, table.prices, strict=True)
    )
    return (
        f'{title}<p class="notes">What each had paid when its reward first came to a level, interpolated between '
        "checkpoints: means over the trials that came to it, plus or minus a standard error.</p>"
        f'<div class="wide"><table class="evaluation"><tr><th>reward</th>{heads}</tr>{rows}</table></div>'
    )


def _price(price: Price) -> str:
    trials = f"<small>{price.trials} trial{'' if price.trials == 1 else 's'}</small>"
    return f"<td>{_mean(price.kl, '.1f')}{trials}</td><td>{_mean(price.diversity, '.2f')}</td>"


def _collapses(results: SweepResults) -> str:
    """When each trial's diversity broke, and which rule of the detector spoke first (SPEC ALLIT-10, GWERN-12)."""
    guards = guards_of(results)
    rows = [_collapse(trial, guards) for trial in results.trials]
    floor = "" if guards.min_diversity is None else f"<th>diversity under {guards.min_diversity:g}</th>"
    if not any(rows):
        return (
            '<h2>Collapse</h2><p class="notes">No trial has lost its diversity, and the detector raised no alarm.</p>'
        )
    return (
        f'<h2>Collapse</h2><div class="wide"><table class="left"><tr><th>trial</th>{floor}<th>first alarm</th>'
        f"<th>alarms</th></tr>{''.join(rows)}</table></div>"
    )


def _collapse(trial: TrialResult, guards: Guards) -> str:
    broken = None if guards.min_diversity is None else trial.diversity_broken_at(guards.min_diversity)
    if broken is None and not trial.alarms:
        return ""
    cell = "" if guards.min_diversity is None else f"<td>{'–' if broken is None else f'after {broken} iterations'}</td>"
    alarm = "–"
    if trial.alarms:
        first = trial.alarms[0]
        alarm = f"{text(first.rule)} in iteration {first.iteration} ({text(first.action)}): {text(first.message)}"
    return f"<tr><th>{text(trial.name)}</th>{cell}<td>{alarm}</td><td>{len(trial.alarms)}</td></tr>"


def _failures(results: SweepResults) -> str:
    failed = [trial for trial in results.trials if trial.error is not None or trial.status in ("crashed", "diverged")]
    if not failed:
        return ""
    rows = "".join(
        f"<tr><th>{text(trial.name)}</th><td>{trial.status}</td><td>{text(trial.error or 'no message')}</td></tr>"
        for trial in failed
    )
    return f'<h2>Trials that failed</h2><div class="wide"><table class="left">{rows}</table></div>'
