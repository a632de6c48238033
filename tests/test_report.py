"""The report and the summary, of runs written by the real writers (issue part 11; SPEC ALLIT-10, ALLIT-11)."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rayrlhf.charts import Series, line_chart, moving_average
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.errors import RunFolderError
from rayrlhf.metrics import MetricsLog, SampleRecord
from rayrlhf.report import verdict, write_report
from rayrlhf.run_folder import RunFolder
from rayrlhf.summary import BaseDiversity, RunSummary, read_history, summarise

WORDS = (
    "a big bear sat by the soft sea and sang silly songs to seven small seals while tim took the tall tree".split()  # noqa: SIM905
)
HOSTILE = '<script>alert(1)</script> <img src="http://example.invalid/x.png"> \x00\x1b[31m \ud83d \u202e & "'


def make_run(
    storage: Path, iterations: int, *, base_episodes: int = 200, kl: bool = True, planned: int = 120, parts: int = 1
) -> Path:
    """A run that learns to say `s` words: 4 groups of 10 an iteration, as the default job has them."""
    names = ["alliteration", "my_rewards:$pelling<b>"][:parts]
    config = RunConfig.model_validate(
        {"name": "synthetic", "storage_path": str(storage), "iterations": planned, "reward": [*names]}
    )
    random = np.random.default_rng(0)
    with RunFolder.create(config, dump_config(config)) as folder, MetricsLog(folder) as log:
        log.record_samples(episode(random, -1, index, 0.0, kl, names) for index in range(base_episodes))
        for iteration in range(iterations):
            skill = iteration / max(planned, 1)
            episodes = [episode(random, iteration, index, skill, kl, names) for index in range(40)]
            log.record_samples(episodes)
            log.record(iteration, metrics_of(random, episodes, skill, kl, names))
    return folder.path


def episode(
    random: np.random.Generator, iteration: int, index: int, skill: float, kl: bool, names: list[str]
) -> SampleRecord:
    chosen = [
        str(random.choice(["sally", "sang", "silly", "songs"] if random.random() < skill else WORDS)) for _ in range(30)
    ]
    score = float(sum(first[0] == second[0] for first, second in pairwise(chosen)))
    divergence = 25 * skill + float(random.normal()) if kl else None
    response = HOSTILE if (iteration, index) == (0, 0) else " ".join(["", *chosen]) + "."
    return SampleRecord(
        run="synthetic", iteration=iteration, index=index, group=index // 10, prompt="Once upon a time", response=response,
        score=score, parts=dict.fromkeys(names, score / len(names)), kl=divergence,
        total=score - 0.4 * (divergence or 0.0), logprob_sum=-60.0,
        reference_logprob_sum=None if divergence is None else -60.0 - divergence, length=31,
        finish="eos" if index % 5 else "length", weights_version=max(iteration, 0),
    )  # fmt: skip


def metrics_of(
    random: np.random.Generator, episodes: list[SampleRecord], skill: float, kl: bool, names: list[str]
) -> dict[str, float]:
    score = float(np.mean([record.score for record in episodes]))
    metrics = {
        "objective/score": score, "objective/entropy": 2.5 - 1.5 * skill + 0.05 * random.normal(),
        "learner/grad_norm": 1 + random.exponential(), "learner/logprob_gap_max": 1e-6 * random.random(),
        "policy/approxkl": 1e-3 * random.random(), "text/mean_len": 31.0, "rollout/tokens": 1240.0,
        "time/rollout": 0.6, "time/reward": 0.02, "time/update": 0.25, "time/sync": 0.01, "time/checkpoint": 0.03,
        "time/worker_sampling": 0.5, "time/iteration": 0.95,
    }  # fmt: skip
    metrics |= {f"reward/{name}": score / len(names) for name in names}
    if kl:
        metrics["objective/kl"] = float(np.mean([record.kl for record in episodes if record.kl is not None]))
    return metrics


class Page(HTMLParser):
    """Collects the tags and attributes of a page, and checks that every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), 120)


def test_report_of_a_finished_run(finished: Path) -> None:
    """Issue part 11: reward, KL and diversity curves; first, middle and last samples side by side; one file."""
    path = write_report(finished)
    assert path == finished / "report.html"
    text = path.read_text()
    page = Page(text)
    for title in ("Reward", "KL from the base model", "Diversity", "objective/entropy", "learner/grad_norm"):
        assert f"<figcaption>{title}" in text
    assert re.findall(r"<h3>(.*?)</h3>", text) == ["Iteration 0", "Iteration 60", "Iteration 119"]
    assert page.tags.count("article") == 12
    assert "max_new_tokens" in text  # the config
    assert "deepspeed" in text  # the versions
    assert "63.2%" in text  # rollout: 0.6 of 0.95 s
    assert len(text) < 600_000


def test_report_needs_nothing_from_outside_and_runs_nothing(finished: Path) -> None:
    """Self-contained: no address but the SVG's own anchors, no script, not even one that a model wrote."""
    text = write_report(finished).read_text()
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "xlink:href"):
            assert value.startswith("#")
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)


def test_the_same_run_gives_the_same_report(finished: Path) -> None:
    assert write_report(finished).read_bytes() == write_report(finished).read_bytes()


def test_summary_is_what_the_records_say(finished: Path) -> None:
    """Issue: mean reward of the last 40 episodes over the base model's, KL of a sequence, diversity of the last 50 texts."""
    records = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    base = [record["score"] for record in records if record["iteration"] == -1]
    last = [record for record in records if record["iteration"] == 119]
    summary = summarise(finished)
    assert summary.name == "synthetic"
    assert (summary.iterations, summary.episodes) == (120, 4800)
    assert summary.seconds == pytest.approx(120 * 0.95)
    assert summary.base_reward == pytest.approx(np.mean(base))
    assert summary.reward_last_40 == pytest.approx(np.mean([record["score"] for record in last]))
    assert summary.reward_ratio == pytest.approx(np.mean([record["score"] for record in last]) / np.mean(base))
    assert summary.kl_last == pytest.approx(np.mean([record["kl"] for record in last]))
    assert summary.diversity_share is not None
    assert 0 < summary.diversity_share < 0.2
    assert summary.diversity_broken_at is not None
    assert 20 < summary.diversity_broken_at < 100
    write_report(finished)
    stored = json.loads((finished / "summary.json").read_text())
    assert stored["reward_last_40"] == summary.reward_last_40


def test_diversity_by_hand() -> None:
    """Issue: distinct-2 of the texts over the mean of distinct-2 of equally many base texts, chunk by chunk."""
    base = BaseDiversity(["a b", "a b", "c d", "e f", "x y"])  # chunks of 2: 1/2, 1; the odd one is left out
    assert base.share(["s s", "s s"]) == pytest.approx((1 / 2) / (3 / 4))
    assert base.share(["s s"]) == 1.0  # chunks of 1: all 1
    assert base.share(["q r"] * 3 + ["s s", "t t"] * 2 + ["u u"]) == pytest.approx((3 / 5) / (4 / 5))  # the last 5
    assert BaseDiversity([]).share(["s s"]) is None
    assert BaseDiversity(["word"]).share(["s s"]) is None
    assert base.share([]) is None


def test_history_keeps_the_last_50_texts_across_iterations(tmp_path: Path) -> None:
    folder = make_run(tmp_path, 3)
    history = read_history(folder, points=[0, 2], keep=[1])
    assert history.episodes == 120
    assert len(history.base) == 200
    assert [record.iteration for record in history.last] == [1] * 10 + [2] * 40
    assert [iteration for iteration, _ in history.diversity] == [0, 2]
    assert len(history.at[1]) == 40


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_report_of_a_run_just_begun(tmp_path: Path, iterations: int) -> None:
    """Works on an unfinished run, from its first moment on."""
    folder = make_run(tmp_path, iterations)
    text = write_report(folder).read_text()
    assert text.count("<h3>Iteration") == iterations
    expected = f"After {iterations} of 120 iterations" if iterations else "No episode has been recorded yet."
    assert expected in text
    Page(text)


def test_report_of_a_run_without_kl_base_and_times(tmp_path: Path) -> None:
    folder = make_run(tmp_path, 3, base_episodes=0, kl=False, planned=3)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{name: value for name, value in row.items() if "time/" not in name} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timeless))
    text = write_report(folder).read_text()
    assert "<figcaption>KL" not in text
    assert "Time of an iteration" not in text
    summary = summarise(folder)
    assert summary.kl_last is summary.base_reward is summary.reward_ratio is summary.diversity_share is None
    assert "Mean reward of the last 40 episodes" in text


def test_report_of_several_rewards_with_strange_names(tmp_path: Path) -> None:
    """Every part has its curve; a name with a dollar sign or markup is text."""
    text = write_report(make_run(tmp_path, 2, parts=2)).read_text()
    assert "reward/my_rewards:$pelling&lt;b&gt;" in text
    assert "$pelling<b>" not in text
    Page(text)


def test_report_of_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no run's folder"):
        write_report(tmp_path)
    with pytest.raises(RunFolderError, match="is no run's folder"):
        summarise(tmp_path / "absent")


def test_verdict_says_when_the_texts_collapse() -> None:
    """SPEC ALLIT-10: never by the reward alone; the first iteration under the floor is named."""
    summary = RunSummary("x", 120, 4800, 60.0, 5.0, 25.0, 5.0, 80.0, 0.12, 71)
    assert verdict(summary, 120).startswith(
        "Mean reward of the last 40 episodes 25.00, of the base model 5.00 (5.00 times as much); "
        "KL from the base model 80.0 nats a sequence; diversity 12% of the base model's."
    )
    assert "at iteration 71" in verdict(summary)


def test_moving_average_by_hand() -> None:
    assert moving_average([0, 3, 6, 0], 3).tolist() == [1.5, 3.0, 3.0, 3.0]


def test_chart_takes_its_colours_from_the_page() -> None:
    """Dark and light: nothing in the drawing has a colour of its own."""
    chart = line_chart(
        "T & <t>", [Series("a", [0, 1], [1.0, 2.0]), Series("b", [0, 1], [2.0, 1.0])], level=("base", 1.5)
    )
    assert "var(--series-1)" in chart
    assert "var(--series-2)" in chart
    assert not re.search(r"#[0-9a-f]{6}\b", chart)
    assert "T &amp; &lt;t&gt;" in chart
    Page(chart)
