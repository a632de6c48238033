"""One report of all rounds of a loop: `report.html` of the project, self-contained, and `rounds.json` with its figures."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rayrlhf.charts import Series, line_chart
from rayrlhf.errors import PreferenceError
from rayrlhf.files import replace_file
from rayrlhf.preferences.auto_rating import cap_automatic, source_shares
from rayrlhf.preferences.loop_manifest import MANIFEST, Round, begun_rounds
from rayrlhf.preferences.project import ProjectConfig
from rayrlhf.preferences.store import RatingStore
from rayrlhf.reading import Count, Number, read_bytes, typed
from rayrlhf.report_page import page, text

REPORT, FIGURES = "report.html", "rounds.json"

Row = dict[str, Any]


def write_loop_report(project: Path, config: ProjectConfig, store: RatingStore) -> Path:
    """Writes both files from the rounds' manifests; returns the page's path."""
    rounds = [round_ for round_ in begun_rounds(project) if round_.finished]
    rows = [round_figures(round_) for round_ in rounds]
    replace_file(project / FIGURES, [json.dumps(rows, indent=1).encode()])
    body = [
        f"<h1>{text(project.resolve().name)}</h1>",
        f'<p class="verdict">{text(verdict(rows))}</p>',
        f'<div class="charts">{"".join(_charts(rows))}</div>',
        "<h2>Rounds</h2>",
        _table(rows),
        "<h2>Labels</h2>",
        _labels(store, config),
        "<h2>The last reward model on labels it was not trained on</h2>",
        _picture(rounds[-1].folder / "reward_model" / "evaluation.png") if rounds else "",
        "<h2>Samples of each round's policy</h2>",
        *(_samples(row) for row in reversed(rows)),
        "<h2>What was made from what</h2>",
        *(_manifest(round_) for round_ in rounds),
    ]
    path = project / REPORT
    replace_file(path, [page(f"{project.resolve().name}: rounds of preferences", "\n".join(body)).encode()])
    return path


def round_figures(round_: Round) -> Row:
    """One round in numbers, None where there is none to tell."""
    sample, rate, model = round_.made("sample"), round_.made("rate"), round_.made("reward_model")
    run, look = round_.made("optimise"), round_.made("evaluate")
    held_out = model.get("accuracy")
    told = {
        "round": round_.number,
        "samples": sample.get("samples"),
        "comparisons": rate.get("comparisons"),
        "ties": rate.get("ties"),
        "agreement": rate.get("agreement"),
        "held_out_accuracy": held_out.get("share") if isinstance(held_out, dict) else None,
        "held_out_correlation": model.get("pearson"),
        "calibration_error": model.get("calibration_error"),
        "run_reward": run.get("reward"),
        "kl": run.get("kl"),
        "reward": look.get("reward_mean"),
        "diversity": look.get("distinct_2"),
        "rule": look.get("rule_policy"),
        "rule_base": look.get("rule_base"),
        "rule_ratio": look.get("rule_ratio"),
        "rule_accuracy": look.get("accuracy_base"),
        "rule_accuracy_policy": look.get("accuracy_policy"),
        "seconds": {stage: entry.seconds for stage, entry in round_.entries.items()},
        "texts": look.get("texts"),
    }
    return asdict(typed(_Figures, told, str(round_.folder / MANIFEST), PreferenceError))


@dataclass(frozen=True, slots=True)
class _Figures:
    """A round in numbers, as its manifest tells them."""

    round: Count
    samples: Count
    comparisons: Count
    ties: Count | None
    agreement: Number | None
    held_out_accuracy: Number | None
    held_out_correlation: Number | None
    calibration_error: Number | None
    run_reward: Number | None
    kl: Number | None
    reward: Number
    diversity: Number | None
    rule: Number | None
    rule_base: Number | None
    rule_ratio: Number | None
    rule_accuracy: Number | None
    rule_accuracy_policy: Number | None
    seconds: dict[str, Number]
    texts: list[str]


def verdict(rows: Sequence[Row]) -> str:
    """What came of all rounds, in a sentence or two."""
    if not rows:
        return "No round is finished."
    last = rows[-1]
    labels = sum(row["comparisons"] for row in rows)
    told = (
        f"{len(rows)} rounds with {labels} comparisons. The last policy scores {last['reward']:.2f} by its reward model"
    )
    told += f" at a KL of {last['kl']:.1f} nats." if last["kl"] is not None else "."
    if last["rule"] is not None:
        times = "" if last["rule_ratio"] is None else f", {last['rule_ratio']:.2f} times the base's"
        told += f" The hidden rule's mean is {last['rule']:.4f}{times}; without noise the reward model "
        if last["rule_accuracy"] is None:
            told += "could not be held against it: it scores all pairs of unseen texts of the base alike."
        else:
            told += f"names the better of two unseen texts of the base in {last['rule_accuracy']:.1%} of untied pairs."
    return told


def _charts(rows: Sequence[Row]) -> list[str]:
    wanted = (
        ("Hidden rule, mean over fresh samples", ("rule", "rule_base"), ("policy", "base"), True),
        ("Reward model's score of fresh samples", ("reward",), ("",), False),
        (
            "Reward model: right without noise",
            ("rule_accuracy", "rule_accuracy_policy"),
            ("base's texts", "policy's"),
            False,
        ),
        ("KL to the start, nats a sequence", ("kl",), ("",), True),
        ("distinct-2 of fresh samples", ("diversity",), ("",), True),
    )
    return [
        line_chart(
            title,
            [
                Series(label, [row["round"] for row in rows], [row[key] for row in rows], marked=True)
                for key, label in zip(keys, labels, strict=True)
            ],
            from_zero=zero,
        )
        for title, keys, labels, zero in wanted
        if rows and all(row[key] is not None for row in rows for key in keys)
    ]


_COLUMNS = (
    ("round", "round", "{:d}"), ("samples", "samples", "{:d}"), ("comparisons", "comparisons", "{:d}"),
    ("ties", "ties", "{:d}"), ("agreement", "rater agrees with itself", "{:.1%}"),
    ("held_out_accuracy", "right on held-out labels", "{:.1%}"),
    ("held_out_correlation", "correlation with held-out scores", "{:.2f}"),
    ("rule_accuracy", "right without noise", "{:.1%}"), ("rule", "hidden rule", "{:.4f}"),
    ("rule_ratio", "times the base", "{:.2f}"), ("reward", "reward", "{:.2f}"), ("kl", "KL", "{:.1f}"),
    ("diversity", "distinct-2", "{:.2f}"),
)  # fmt: skip


def _table(rows: Sequence[Row]) -> str:
    columns = [column for column in _COLUMNS if any(row[column[0]] is not None for row in rows)]
    head = "".join(f"<th>{text(title)}</th>" for _, title, _ in columns)
    lines = []
    for row in rows:
        cells = ("–" if row[key] is None else form.format(row[key]) for key, _, form in columns)
        minutes = sum(row["seconds"].values()) / 60
        lines.append(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}<td>{minutes:.1f}</td></tr>")
    return f'<div class="wide"><table class="evaluation"><tr>{head}<th>minutes</th></tr>{"".join(lines)}</table></div>'


def _labels(store: RatingStore, config: ProjectConfig) -> str:
    comparisons = store.comparisons()
    kept = cap_automatic(comparisons, config.reward_model.automatic_share, config.reward_model.seed)
    lines = "".join(f"<p>{text(str(share))}</p>" for share in source_shares(comparisons, kept))
    return f'<div class="notes">{lines or "<p>none</p>"}</div>'


def _picture(path: Path) -> str:
    if not path.is_file():
        return '<div class="notes"><p>none were held out, or they are no comparisons</p></div>'
    data = base64.b64encode(read_bytes(path, PreferenceError)).decode()
    return (
        f'<figure><img alt="margins and calibration" style="width: 100%" src="data:image/png;base64,{data}"></figure>'
    )


def _samples(row: Row) -> str:
    cards = "".join(f'<article><div class="text">{text(sample)}</div></article>' for sample in row["texts"][:3])
    return f'<h3>round {row["round"]}</h3><div class="samples">{cards}</div>'


def _manifest(round_: Round) -> str:
    told = {
        stage: {"made from": entry.made_from, "made": {k: v for k, v in entry.made.items() if k != "texts"}}
        for stage, entry in round_.entries.items()
    }
    return f"<details><summary>round {round_.number}</summary><pre>{text(json.dumps(told, indent=1))}</pre></details>"
