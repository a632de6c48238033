"""`report.html` of a run: one file that needs nothing else, for a phone or a wide screen, light or dark.

Everything that a model, a reward or a config wrote is escaped, and the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from rayrlhf.charts import Series, line_chart
from rayrlhf.durable import replace_file
from rayrlhf.errors import RunFolderError
from rayrlhf.metrics import BASELINE_ITERATION, SampleRecord, read_metrics
from rayrlhf.run_folder import RunFolder
from rayrlhf.summary import DIVERSITY_FLOOR, RunSummary, read_history, summary_of, write_summary

SAMPLES_SHOWN = 4
"""Episodes shown of the first, the middle and the last iteration each."""
TEXT_SHOWN = 2000
"""Characters of an episode shown."""
DIVERSITY_POINTS = 200
"""Points of the diversity curve at most: each costs a pass over 50 texts."""

STAGES = ("sync", "rollout", "reward", "advantage", "update", "record", "checkpoint")
"""The parts of an iteration's wall time, `time/<stage>`; other times lie within one of them."""

Rows = Sequence[Mapping[str, float]]

_SMALL_MULTIPLES = ("objective/entropy", "learner/grad_norm", "learner/logprob_gap_max")


def write_report(folder: Path) -> Path:
    """Writes `report.html` and `summary.json` of the run at `folder`, finished or not, and returns the report's path.

    Raises RunFolderError where there is no run, or its records are damaged.
    """
    run = RunFolder.open(folder)
    metrics = read_metrics(folder)
    rows = [row for row in metrics if row["iteration"] != BASELINE_ITERATION]
    iterations = [int(row["iteration"]) for row in rows]
    shown = sorted({iterations[0], iterations[len(iterations) // 2], iterations[-1]}) if iterations else []
    step = len(iterations) // DIVERSITY_POINTS + 1
    history = read_history(folder, points=[*iterations[::step], *iterations[-1:]], keep=shown)
    summary = summary_of(run.name, metrics, history)
    planned = _planned_iterations(run)
    body = [
        f"<h1>{_text(run.name)}</h1>",
        f'<p class="verdict">{_text(verdict(summary, planned))}</p>',
        _tiles(summary),
        _curves(rows, summary, history.diversity),
        _samples(history.at),
        _times(rows),
        _all_metrics(rows),
        _facts(run),
    ]
    page = _PAGE.replace("{title}", _text(run.name)).replace("{style}", _STYLE).replace("{body}", "\n".join(body))
    write_summary(folder, summary)
    replace_file(run.report, [page.encode()])
    return run.report


def verdict(summary: RunSummary, planned: int | None = None) -> str:
    """One or two sentences that say how the run went. planned: iterations it was to have, where known."""
    if summary.reward_last_40 is None:
        return "No episode has been recorded yet."
    unfinished = planned is not None and summary.iterations < planned
    clauses = [f"After {summary.iterations} of {planned} iterations: mean" if unfinished else "Mean"]
    clauses[0] += f" reward of the last {min(40, summary.episodes)} episodes {summary.reward_last_40:.2f}"
    if summary.base_reward is not None:
        clauses[0] += f", of the base model {summary.base_reward:.2f}"
    if summary.reward_ratio is not None:
        clauses[0] += f" ({summary.reward_ratio:.2f} times as much)"
    if summary.kl_last is not None:
        clauses.append(f"KL from the base model {summary.kl_last:.1f} nats a sequence")
    if summary.diversity_share is not None:
        clauses.append(f"diversity {summary.diversity_share:.0%} of the base model's")
    sentence = "; ".join(clauses) + "."
    if summary.diversity_share is not None and summary.diversity_share < DIVERSITY_FLOOR:
        sentence += (
            f" The texts repeat each other: diversity first fell under {DIVERSITY_FLOOR:.0%} at iteration "
            f"{summary.diversity_broken_at}. Take an earlier checkpoint, or raise algorithm.kl.coef."
        )
    return sentence


def _planned_iterations(run: RunFolder) -> int | None:
    """From the config; a config of another version costs the report this number alone."""
    try:
        return run.read_config().iterations
    except RunFolderError:
        return None


def _tiles(summary: RunSummary) -> str:
    minutes, seconds = divmod(round(summary.seconds), 60)
    tiles = (
        ("reward, base model", summary.base_reward, "{:.2f}"),
        ("reward, last 40", summary.reward_last_40, "{:.2f}"),
        ("ratio", summary.reward_ratio, "{:.2f}"),
        ("KL, nats a sequence", summary.kl_last, "{:.1f}"),
        ("diversity of base", summary.diversity_share, "{:.0%}"),
        ("iterations", summary.iterations, "{}"),
        ("episodes", summary.episodes, "{:,}"),
        ("minutes:seconds", f"{minutes}:{seconds:02d}", "{}"),
    )
    cells = (f"<div><b>{'–' if value is None else form.format(value)}</b>{name}</div>" for name, value, form in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _curves(rows: Rows, summary: RunSummary, diversity: Sequence[tuple[int, float]]) -> str:
    """Reward with its parts, KL and diversity; under them entropy, gradient norm and the log-probability gap, small."""
    rewards = _series(rows, ["objective/score"])
    parts = _series(rows, sorted({name for row in rows for name in row if name.startswith("reward/")}))
    if len(parts) > 1 or any(part.values != line.values for part in parts for line in rewards):
        rewards += parts  # a single part of weight 1 is the reward itself
    base = None if summary.base_reward is None else ("base model", summary.base_reward)
    charts = []
    if rewards:
        charts.append(line_chart("Reward", rewards, level=base, from_zero=True))
    if kl := _series(rows, ["objective/kl"]):
        charts.append(line_chart("KL from the base model, nats a sequence", kl, from_zero=True))
    if diversity:
        line = Series("diversity", [point[0] for point in diversity], [point[1] for point in diversity])
        title = "Diversity: distinct-2 of the last 50 texts, share of the base model's"
        charts.append(line_chart(title, [line], level=("floor", DIVERSITY_FLOOR), from_zero=True))
    small = [_small_chart(rows, name) for name in _SMALL_MULTIPLES if any(name in row for row in rows)]
    if not charts and not small:
        return ""
    return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div><div class="small">{"".join(small)}</div>'


def _all_metrics(rows: Rows) -> str:
    names = sorted({name for row in rows for name in row} - {"iteration", *_SMALL_MULTIPLES})
    names = [name for name in names if not name.startswith("time/")]
    if not names:
        return ""
    charts = "".join(_small_chart(rows, name) for name in names)
    return f'<details><summary>All metrics</summary><div class="small">{charts}</div></details>'


def _small_chart(rows: Rows, name: str) -> str:
    return line_chart(name, _series(rows, [name]), size=(3.6, 1.8))


def _series(rows: Rows, names: Iterable[str]) -> list[Series]:
    found = []
    for name in names:
        points = [(row["iteration"], row[name]) for row in rows if name in row]
        if points:
            found.append(Series(name, [point[0] for point in points], [point[1] for point in points]))
    return found


def _samples(at: Mapping[int, Sequence[SampleRecord]]) -> str:
    """The first, middle and last iterations side by side; episodes evenly from each, not the best of it."""
    columns = []
    for iteration, episodes in sorted(item for item in at.items() if item[1]):
        step = max(1, len(episodes) // SAMPLES_SHOWN)
        cards = "".join(_card(episode) for episode in episodes[::step][:SAMPLES_SHOWN])
        columns.append(f"<section><h3>Iteration {iteration}</h3>{cards}</section>")
    return f'<h2>Samples</h2><div class="samples">{"".join(columns)}</div>' if columns else ""


def _card(episode: SampleRecord) -> str:
    facts = [f"reward <b>{episode.score:.2f}</b>"]
    if len(episode.parts) > 1:
        facts += [f"{_text(name)} {value:.2f}" for name, value in episode.parts.items()]
    if episode.kl is not None:
        facts.append(f"KL {episode.kl:.1f}")
    facts.append(f"{episode.length} tokens")
    if episode.finish == "length":
        facts.append("cut off")
    prompt, response = episode.prompt[:TEXT_SHOWN], episode.response[:TEXT_SHOWN]
    cut = len(episode.prompt) - len(prompt) + len(episode.response) - len(response)
    more = f"<i> … {cut:,} more characters</i>" if cut else ""
    text = f"<span>{_text(prompt)}</span>{_text(response)}{more}"
    return f'<article><p>{" · ".join(facts)}</p><div class="text" dir="auto">{text}</div></article>'


def _times(rows: Rows) -> str:
    """Seconds of each stage of the mean iteration, and its share; times within a stage below."""
    means = {
        line.label.removeprefix("time/"): sum(line.values) / len(rows) for line in _series(rows, _time_names(rows))
    }
    total = means.pop("iteration", None) or sum(means.get(stage, 0.0) for stage in STAGES)
    if not total:
        return ""
    stages = {stage: means.pop(stage) for stage in STAGES if stage in means}
    stages["other"] = max(0.0, total - sum(stages.values()))
    lines = [
        f"<tr><th>{_text(name)}</th><td>{seconds:.3f} s</td><td>{seconds / total:.1%}</td>"
        f'<td class="bar"><i style="width:{100 * seconds / total:.1f}%"></i></td></tr>'
        for name, seconds in stages.items()
    ]
    lines += [
        f'<tr class="inner"><th>{_text(name)}</th><td>{seconds:.3f} s</td><td></td><td></td></tr>'
        for name, seconds in means.items()
    ]
    return f"<h2>Time of an iteration: {total:.2f} s</h2><table>{''.join(lines)}</table>"


def _time_names(rows: Rows) -> list[str]:
    return sorted({name for row in rows for name in row if name.startswith("time/")})


def _facts(run: RunFolder) -> str:
    """The config and the versions, folded away."""
    sessions = []
    if run.sessions.exists():
        for line in run.sessions.read_text().splitlines():
            try:
                sessions.append(", ".join(f"{name} {value}" for name, value in json.loads(line).items()))
            except (ValueError, AttributeError):
                continue  # torn by a kill
    return (
        f"<details><summary>Config</summary><pre>{_text(run.config.read_text())}</pre></details>"
        f"<details><summary>Versions</summary><pre>{_text(chr(10).join(sessions))}</pre></details>"
    )


def _text(text: str) -> str:
    """Hostile text as HTML text: escaped; controls and halves of surrogate pairs, which HTML cannot hold, made visible."""
    visible = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match[0])), text)
    return escape(re.sub(r"[\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", visible))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --text: #1d1f23; --muted: #63676f; --grid: #dedfe2;
  --series-1: #2563c9; --series-2: #c2570c; --series-3: #0f8a5f; --series-4: #a8328f; --series-5: #8a6d00;
  --series-6: #56606e; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1d2024; --text: #e6e7e9; --muted: #9ba0a8;
  --grid: #363a40; --series-1: #72a5ff; --series-2: #f39455; --series-3: #4cc99a; --series-4: #e07fcb;
  --series-5: #d9b93d; --series-6: #a7b0bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.2rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.5rem; } h2 { margin: 2rem 0 .6rem; font-size: 1.15rem; }
h3 { margin: 0 0 .4rem; font-size: .95rem; color: var(--muted); }
.verdict { margin: .4rem 0 1.2rem; font-size: 1.1rem; max-width: 60rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; }
.tiles div, figure, article { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; }
.tiles div { padding: .5rem .8rem; color: var(--muted); font-size: .8rem; }
.tiles b { display: block; color: var(--text); font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.charts, .small, .samples { display: grid; gap: .8rem; margin-bottom: .8rem; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.samples { grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
figure { margin: 0; padding: .7rem .8rem .4rem; } figcaption { font-size: .85rem; margin-bottom: .2rem; }
svg { display: block; width: 100%; height: auto; } svg text { font-family: inherit !important; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; color: var(--muted); font-size: .8rem; }
.legend i { display: inline-block; width: 1rem; height: .2rem; margin-right: .35rem; vertical-align: middle; }
.legend i.dashed { height: 0; border-top: 2px dashed currentColor; }
article { padding: .6rem .8rem; margin-bottom: .6rem; }
article p { margin: 0 0 .3rem; color: var(--muted); font-size: .8rem; } article p b { color: var(--text); }
.text { white-space: pre-wrap; unicode-bidi: isolate; font-family: Georgia, serif; max-height: 24rem; overflow: auto; }
.text span, .text i { color: var(--muted); }
table { border-collapse: collapse; width: 100%; max-width: 44rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; font-weight: normal; } td { text-align: right; }
.inner { color: var(--muted); font-size: .85rem; } .inner th { padding-left: 1rem; }
td.bar { width: 50%; text-align: left; } td.bar i { display: block; height: .7rem; min-width: 1px;
  border-radius: .2rem; background: var(--series-1); }
details { margin-top: 1rem; } summary { cursor: pointer; font-weight: 600; margin-bottom: .5rem; }
pre { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; padding: .8rem; overflow: auto;
  font-size: .8rem; white-space: pre-wrap; }
"""
