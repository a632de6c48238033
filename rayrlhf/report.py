"""`report.html` of a run: one file that needs nothing else, for a phone or a wide screen, light or dark.

Everything that a model, a reward or a config wrote is escaped, and the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rayrlhf.charts import Series, line_chart
from rayrlhf.errors import RunFolderError
from rayrlhf.evaluation_results import read_evaluation
from rayrlhf.files import replace_file
from rayrlhf.game_report import evaluation_table, transcript
from rayrlhf.metrics import BASELINE_ITERATION, SampleRecord, read_metrics
from rayrlhf.reading import Damage, json_value, read_bytes, typed_value
from rayrlhf.report_alarms import alarm_table, alarms_of
from rayrlhf.report_page import page, text
from rayrlhf.run_folder import RunFolder
from rayrlhf.summary import DIVERSITY_FLOOR, EpisodeHistory, RunSummary, read_history, summary_of, write_summary
from rayrlhf.text_statistics import word_units

SAMPLES_SHOWN = 4
"""Episodes shown of the first, the middle and the last iteration each."""
TEXT_SHOWN = 2000
"""Characters of an episode shown."""
DIVERSITY_POINTS = 200
"""Points of the diversity curve at most: each costs a pass over 50 texts."""

STAGES = ("sync", "rollout", "reward", "value", "advantage", "update", "record", "evaluate", "checkpoint")
"""The parts of an iteration's wall time, `time/<stage>`; other times lie within one of them."""

Rows = Sequence[Mapping[str, float]]

_SMALL_MULTIPLES = ("objective/entropy", "val/var_explained", "learner/grad_norm", "learner/logprob_gap_max")


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
    evaluation = read_evaluation(folder)
    alarms = alarms_of(run)
    body = [
        f"<h1>{text(run.name)}</h1>",
        f'<p class="verdict">{text(verdict(summary, planned))}</p>',
        _tiles(summary),
        alarm_table(alarms),
        _curves(rows, summary, history, alarms.iterations),
        "" if evaluation is None else evaluation_table(evaluation),
        _samples(history.at),
        _times(rows),
        _all_metrics(rows),
        _facts(run),
    ]
    write_summary(folder, summary)
    replace_file(run.report, [page(run.name, "\n".join(body)).encode()])
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
    if summary.won_last is not None:
        untrained = f", {summary.base_won:.0%} by the base model" if summary.base_won is not None else ""
        clauses.append(f"{summary.won_last:.0%} of them won{untrained}")
    if summary.eval_won is not None:
        games = "the" if summary.eval_episodes is None else str(summary.eval_episodes)
        clauses.append(f"{summary.eval_won:.0%} of {games} held-out games won, greedy")
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
    except RunFolderError as error:
        warnings.warn(f"{error}; the report goes without it", stacklevel=2)
        return None


def _tiles(summary: RunSummary) -> str:
    minutes, seconds = divmod(round(summary.seconds), 60)
    text_tiles = (
        ("reward, base model", summary.base_reward, "{:.2f}"),
        ("reward, last 40", summary.reward_last_40, "{:.2f}"),
        ("ratio", summary.reward_ratio, "{:.2f}"),
        ("KL, nats a sequence", summary.kl_last, "{:.1f}"),
        ("diversity of base", summary.diversity_share, "{:.0%}"),
    )
    game_tiles = (
        ("won, base model", summary.base_won, "{:.0%}"),
        ("won, last 40", summary.won_last, "{:.0%}"),
        ("held-out games won", summary.eval_won, "{:.0%}"),
        ("reward, last 40", summary.reward_last_40, "{:.2f}"),
        ("KL, nats a sequence", summary.kl_last, "{:.1f}"),
    )
    tiles = (
        *(text_tiles if summary.won_last is None else game_tiles),
        ("iterations", summary.iterations, "{}"),
        ("episodes", summary.episodes, "{:,}"),
        ("minutes:seconds", f"{minutes}:{seconds:02d}", "{}"),
    )
    cells = (f"<div><b>{'–' if value is None else form.format(value)}</b>{name}</div>" for name, value, form in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _curves(rows: Rows, summary: RunSummary, history: EpisodeHistory, alarms: Sequence[float]) -> str:
    """Games won, reward with its parts, KL and diversity, with the detector's alarms in them; under them what is looked
    at when something is wrong, small."""
    rewards = _series(rows, ["objective/score"])
    parts = _series(rows, sorted({name for row in rows for name in row if name.startswith("reward/")}))
    if len(parts) > 1 or any(part.values != line.values for part in parts for line in rewards):
        rewards += parts  # a single part of weight 1 is the reward itself
    base = None if summary.base_reward is None else ("base model", summary.base_reward)
    charts = _game_charts(rows, summary)
    if rewards:
        charts.append(line_chart("Reward", rewards, level=base, from_zero=True, alarms=alarms))
    if kl := _series(rows, ["objective/kl"]):
        charts.append(line_chart("KL from the base model, nats a sequence", kl, from_zero=True, alarms=alarms))
    if history.diversity:
        line = Series("diversity", [at for at, _ in history.diversity], [share for _, share in history.diversity])
        units = word_units(record.text for record in (*history.base, *history.last))
        title = f"Diversity: distinct-2 of the last 50 texts, share of the base model's ({units})"
        charts.append(line_chart(title, [line], level=("floor", DIVERSITY_FLOOR), from_zero=True, alarms=alarms))
    small = [_small_chart(rows, name) for name in _small_multiples(rows)]
    if not charts and not small:
        return ""
    return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div><div class="small">{"".join(small)}</div>'


def _game_charts(rows: Rows, summary: RunSummary) -> list[str]:
    """Share won, score and turns, of the episodes played in training and of held-out games."""
    base = None if summary.base_won is None else ("base model", summary.base_won)
    wanted = (
        ("Share of games won", ["rollout/won", "eval/won"], base),
        ("Score of held-out games, share of the most", ["eval/score"], None),
        ("Turns an episode", ["rollout/turns", "eval/turns"], None),
    )
    lines = [(title, _series(rows, names), level) for title, names, level in wanted]
    return [line_chart(title, series, level=level, from_zero=True) for title, series, level in lines if series]


def _small_multiples(rows: Rows) -> list[str]:
    """Those of `_SMALL_MULTIPLES` that the run has, and of games what the environments counted, if anything."""
    names = [name for name in _SMALL_MULTIPLES if any(name in row for row in rows)]
    if any("rollout/won" in row for row in rows):
        names += sorted({name for row in rows for name, count in row.items() if name.startswith("env/") and count})
    return names


def _all_metrics(rows: Rows) -> str:
    names = sorted({name for row in rows for name in row} - {"iteration", *_small_multiples(rows)})
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
            iterations, values = zip(*points, strict=True)
            found.append(Series(name, iterations, values, marked=name.startswith("eval/")))
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
    if episode.won is not None:
        facts.insert(0, '<b class="won">won</b>' if episode.won else "<b>not won</b>")
    if len(episode.parts) > 1:
        facts += [f"{text(name)} {value:.2f}" for name, value in episode.parts.items()]
    if episode.kl is not None:
        facts.append(f"KL {episode.kl:.1f}")
    facts.append(f"{len(episode.turns)} turns" if episode.turns else f"{episode.length} tokens")
    if episode.finish == "length":
        facts.append("cut off")
    shown = transcript(episode) if episode.turns else _answer(episode)
    return f"<article><p>{' · '.join(facts)}</p>{shown}</article>"


def _answer(episode: SampleRecord) -> str:
    """A prompt and the answer to it."""
    prompt, response = episode.prompt[:TEXT_SHOWN], episode.response[:TEXT_SHOWN]
    cut = len(episode.prompt) - len(prompt) + len(episode.response) - len(response)
    more = f"<i> … {cut:,} more characters</i>" if cut else ""
    return f'<div class="text" dir="auto"><span>{text(prompt)}</span>{text(response)}{more}</div>'


def _times(rows: Rows) -> str:
    """Seconds of each stage of the mean iteration, and its share; times within a stage below, workers' with a share."""
    means = {
        line.label.removeprefix("time/"): sum(line.values) / len(rows) for line in _series(rows, _time_names(rows))
    }
    total = means.pop("iteration", None) or sum(means.get(stage, 0.0) for stage in STAGES)
    if not total:
        return ""
    stages = {stage: means.pop(stage) for stage in STAGES if stage in means}
    stages["other"] = max(0.0, total - sum(stages.values()))
    lines = [
        f"<tr><th>{text(name)}</th><td>{seconds:.3f} s</td><td>{seconds / total:.1%}</td>"
        f'<td class="bar"><i style="width:{100 * seconds / total:.1f}%"></i></td></tr>'
        for name, seconds in stages.items()
    ]
    lines += [
        f'<tr class="inner"><th>{text(name)}</th><td>{seconds:.3f} s</td>'
        f"<td>{f'{seconds / total:.1%}' if name.startswith('worker_') else ''}</td><td></td></tr>"
        for name, seconds in means.items()
    ]
    return f"<h2>Time of an iteration: {total:.2f} s</h2><table>{''.join(lines)}</table>"


def _time_names(rows: Rows) -> list[str]:
    return sorted({name for row in rows for name in row if name.startswith("time/")})


def _facts(run: RunFolder) -> str:
    """The config and the versions, folded away."""
    sessions = []
    if run.sessions.exists():
        for number, line in enumerate(read_bytes(run.sessions, RunFolderError).splitlines(), start=1):
            try:
                said = typed_value(dict[str, str], json_value(line))
                sessions.append(", ".join(f"{name} {value}" for name, value in said.items()))
            except Damage as error:  # torn by a kill, most often: no reason to have no report
                sessions.append(f"line {number} is damaged: {error}")
    config = read_bytes(run.config, RunFolderError).decode(errors="replace")
    return (
        f"<details><summary>Config</summary><pre>{text(config)}</pre></details>"
        f"<details><summary>Versions</summary><pre>{text(chr(10).join(sessions))}</pre></details>"
    )
