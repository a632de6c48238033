"""The report and the summary, of runs written by the real writers (issue part 11; SPEC ALLIT-10, ALLIT-11)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rayrlhf.charts import Series, line_chart, moving_average
from rayrlhf.config import RunConfig
from rayrlhf.config_loading import dump_config
from rayrlhf.errors import RunFolderError
from rayrlhf.evaluation_results import (
    EVALUATION,
    Evaluation,
    EvaluationSetting,
    PlayerResult,
    ValueFit,
    read_evaluation,
    write_evaluation,
)
from rayrlhf.game_report import transcript
from rayrlhf.intervals import Estimate
from rayrlhf.metrics import MetricsLog, SampleRecord, TurnRecord
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


def test_the_report_says_what_counts_as_a_word(finished: Path, tmp_path: Path) -> None:
    """Where no blanks are written between words their characters are counted; figures of English stay as they are."""
    assert "(words split at blanks)" in write_report(finished).read_text()
    run = make_run(tmp_path, 2)
    samples = run / "samples.jsonl"
    samples.write_text(samples.read_text().replace("Once upon a time", "从前有一个小女孩"))
    assert "(each character a word where no blanks are written)" in write_report(run).read_text()


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


ROOMS = ("Attic", "Scullery", "Vault", "Larder", "Cookery")


def make_game_run(storage: Path, iterations: int, evaluate_every: int = 10) -> Path:
    """A run that learns to find the coin: 64 episodes an iteration, 10 held-out games now and then."""
    config = RunConfig.model_validate(
        {"name": "coins", "storage_path": str(storage), "iterations": iterations, "reward": ["game_score"]}
    )
    random = np.random.default_rng(0)
    with RunFolder.create(config, dump_config(config)) as folder, MetricsLog(folder) as log:
        log.record_samples(game(random, -1, index, 0.2) for index in range(64))
        for iteration in range(iterations):
            skill = min(1.0, 0.2 + iteration / iterations)
            games = [game(random, iteration, index, skill) for index in range(64)]
            log.record_samples(games)
            log.record(iteration, game_metrics(random, games, skill, (iteration + 1) % evaluate_every == 0))
    return folder.path


def game(random: np.random.Generator, iteration: int, index: int, skill: float) -> SampleRecord:
    won = bool(random.random() < skill)
    length = 5 if won else 12
    turns = []
    for number in range(length):
        observation = f"-= {ROOMS[number % 5]} =-\nYou are in the {ROOMS[number % 5].lower()}. An exit leads north."
        if (iteration, index, number) == (0, 0, 1):
            observation += HOSTILE
        last = won and number == length - 1
        action = "take coin" if last else str(random.choice(["go north", "look", "open <door>"]))
        turns.append(
            TurnRecord(
                observation, action, None if number == 2 else float(random.uniform(0.3, 1.0)), float(random.random()),
                reward=float(last), valid=number != 3, example=number == 2, won=last,
            )
        )  # fmt: skip
    text = "".join(f"{turn.observation}\n> {turn.action}\n" for turn in turns) + "*** The End ***"
    score = float(won)
    return SampleRecord(
        run="coins", iteration=iteration, index=index, group=index // 4, prompt=turns[0].observation,
        response=text[len(turns[0].observation) :], score=score, parts={"game_score": score}, kl=3 * skill,
        total=score - 0.1, logprob_sum=-6.0, reference_logprob_sum=-9.0, length=3 * length, finish="eos",
        weights_version=max(iteration, 0), turns=tuple(turns),
    )  # fmt: skip


def game_metrics(
    random: np.random.Generator, games: list[SampleRecord], skill: float, evaluated: bool
) -> dict[str, float]:
    turns = float(np.mean([len(record.turns) for record in games]))
    metrics = {
        "objective/score": float(np.mean([record.score for record in games])), "objective/kl": 3 * skill,
        "objective/entropy": 8 - 6 * skill, "rollout/won": float(np.mean([bool(record.won) for record in games])),
        "rollout/turns": turns, "val/var_explained": skill - 0.1 * random.random(), "env/steps": turns * 64,
        "env/memo_hits": turns * 64 * skill, "env/retries_hang": 0.0, "time/rollout": 3.0, "time/update": 2.0,
        "time/value": 0.2, "time/worker_environment": 0.4, "time/worker_sampling": 2.4, "time/iteration": 5.5,
    }  # fmt: skip
    if evaluated:
        metrics |= {"eval/won": skill, "eval/score": skill, "eval/turns": turns + 1, "eval/episodes": 10}
    return metrics


def evaluation(parameters: dict[str, object] | None = None) -> Evaluation:
    setting = EvaluationSetting(
        environment="textworld", parameters=parameters or {"kind": "coin_collector", "level": 5, "prune": []}, games=40,
        seed=0, max_turns=19, prompt="actions", actions="auto", temperature=1.0, objective_in_prompt=False, checkpoint=60,
    )  # fmt: skip
    policy = PlayerResult(
        "greedy", 1, 40, 39, Estimate(0.975, 0.871, 0.996), Estimate(0.975, 0.925, 1.0), Estimate(5.4, 5.0, 6.1),
        Estimate(5.1, 5.0, 5.2),
    )  # fmt: skip
    hopeless = PlayerResult(
        "random", 1, 40, 0, Estimate(0.0, 0.0, 0.088), None, Estimate(19.0, 19.0, 19.0), turns_won=None
    )
    fit = ValueFit("sampled", Estimate(-0.021, -0.05, 0.01), Estimate(0.08, 0.06, 0.1))
    return Evaluation("coins", setting, (policy, hopeless), {"oracle": "no <solution>"}, fit)


@pytest.fixture(scope="module")
def games_report(games: Path) -> str:
    return write_report(games).read_text()


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_game_run(tmp_path_factory.mktemp("runs"), 20)


def test_report_of_games_has_their_curves(games_report: str) -> None:
    """Issue 3: curves of games won, in training and held out, turns, values, environment counters, time shares."""
    text = games_report
    page = Page(text)
    titles = re.findall(r"<figcaption>(.*?)<", text)
    assert titles[:5] == [
        "Share of games won", "Score of held-out games, share of the most", "Turns an episode", "Reward",
        "KL from the base model, nats a sequence",
    ]  # fmt: skip
    assert titles[5:9] == ["objective/entropy", "val/var_explained", "env/memo_hits", "env/steps"]
    assert titles[9:12] == ["env/retries_hang", "eval/episodes", "eval/score"]  # from here on, all metrics
    assert "eval/won</span>" in text
    assert "<th>worker_environment</th><td>0.400 s</td><td>7.3%</td>" in text  # 0.4 of 5.5 s
    assert "Diversity" not in text
    assert "Evaluation on held-out games" not in text
    assert not {"script", "img"} & set(page.tags)


def test_an_evaluation_without_neighbours_is_a_point_of_its_own() -> None:
    """Iterations without an evaluation have no eval/* metrics: the points there are have marks."""
    between = line_chart("won", [Series("eval/won", [9, 19, 29], [0.1, 0.5, 0.9], marked=True)])
    plain = line_chart("won", [Series("rollout/won", [9, 19, 29], [0.1, 0.5, 0.9])])
    assert between.count("<use") - plain.count("<use") == 3


def test_report_shows_games_as_transcripts(games: Path, games_report: str) -> None:
    """TW-26: observation, command with its probability and value, reward; won marked; the game's text is escaped."""
    text = games_report
    records = [json.loads(line) for line in (games / "samples.jsonl").read_text().splitlines()]
    first = next(record for record in records if record["iteration"] == 0)
    turn = first["turns"][0]
    command = turn["action"].replace("<", "&lt;").replace(">", "&gt;")
    assert f"<b>&gt; {command}</b> <i>(p={turn['probability']:.2f}, V={turn['value']:.2f})</i>" in text
    assert "<i>(example, V=" in text
    assert ", not understood)</i>" in text
    assert ", reward +1)</i>\n<span>*** The End ***</span>" in text
    shown = [record for record in records if record["iteration"] in (0, 10, 19) and record["index"] % 16 == 0]
    assert text.count('<b class="won">won</b>') == sum(record["turns"][-1]["won"] for record in shown)
    assert text.count("<b>not won</b>") == sum(not record["turns"][-1]["won"] for record in shown)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script" not in text
    assert "<door>" not in text


def test_a_long_transcript_is_cut_after_whole_turns() -> None:
    random = np.random.default_rng(0)
    short = game(random, 0, 1, 1.0)
    long = replace(short, turns=tuple(replace(turn, observation="x" * 2990) for turn in short.turns))
    assert transcript(long).count("<b>&gt; ") == 3  # the third begins before 6,000 characters
    assert "<i>… 2 more turns</i>" in transcript(long)
    assert "more turns" not in transcript(short)


def test_summary_of_games(games: Path) -> None:
    """Issue 3: the share won by the untrained model, at the end, and of the held-out games of the last evaluation."""
    records = [json.loads(line) for line in (games / "samples.jsonl").read_text().splitlines()]
    won = [(record["iteration"], record["turns"][-1]["won"]) for record in records]
    summary = summarise(games)
    assert summary.base_won == pytest.approx(np.mean([wins for iteration, wins in won if iteration == -1]))
    assert summary.won_last == pytest.approx(np.mean([wins for _, wins in won][-40:]))
    assert summary.eval_won == 1.0  # 0.2 + 19 / 20, at most 1
    assert summary.eval_episodes == 10
    assert summary.diversity_share is None
    said = verdict(summary, 20)
    assert f"{summary.won_last:.0%} of them won, {summary.base_won:.0%} by the base model" in said
    assert "100% of 10 held-out games won, greedy" in said


def test_a_run_without_games_has_no_wins(finished: Path) -> None:
    summary = summarise(finished)
    assert summary.base_won is summary.won_last is summary.eval_won is summary.eval_episodes is None
    assert "won" not in verdict(summary)


def test_report_holds_the_evaluation_with_its_setting(tmp_path: Path) -> None:
    """Issue 3: wins, score, turns with intervals; kind, prune, objective and temperature stand beside the figures."""
    folder = make_game_run(tmp_path, 2)
    write_evaluation(folder / EVALUATION, evaluation({"kind": "<i>coin</i>", "level": 5, "prune": ["look", "examine"]}))
    assert read_evaluation(folder) == evaluation({"kind": "<i>coin</i>", "level": 5, "prune": ["look", "examine"]})
    text = write_report(folder).read_text()
    Page(text)
    assert "<td>greedy</td><td>39 of 40</td><td>97.5%<small>[87.1%, 99.6%]</small></td>" in text
    assert "<td>random</td><td>0 of 40</td><td>0.0%<small>[0.0%, 8.8%]</small></td><td>–</td><td>–</td>" in text
    assert "coins, checkpoint after 60 iterations: 40 held-out games of textworld" in text
    assert "(kind &lt;i&gt;coin&lt;/i&gt;, level 5, prune look/examine)" in text
    assert "objective in the prompt: no; prompt actions, actions auto, at most 19 turns, temperature 1" in text
    assert "oracle did not play: no &lt;solution&gt;" in text
    assert "mean -0.021 [-0.050, +0.010], without its sign 0.080 [0.060, 0.100]" in text


def test_a_damaged_evaluation_is_named(tmp_path: Path) -> None:
    folder = make_game_run(tmp_path, 1)
    (folder / EVALUATION).write_text('{"name": "coins"}')
    with pytest.raises(RunFolderError, match=r"evaluation.json is damaged .* run `rayrlhf evaluate` again"):
        write_report(folder)
