"""Blind comparison: equal conditions, hidden sides, verdicts by a person and by a judge, going on after a stop."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from rayrlhf.cli import app
from rayrlhf.errors import PreferenceError, RewardError, UserError
from rayrlhf.preferences.compare import STORE, BlindComparison, judge_equal_texts
from rayrlhf.preferences.compare_config import CompareConfig
from rayrlhf.preferences.compare_judge import trajectory_of, verdict
from rayrlhf.preferences.compare_samples import check_settings, collect, paired, read_samples
from rayrlhf.preferences.compare_terminal import judge_at_terminal
from rayrlhf.preferences.comparison_statistics import Tally
from rayrlhf.preferences.records import Item
from rayrlhf.preferences.terminal_keys import LineKeys

ALIKE = {"temperature": 0.95, "top_p": 0.9, "max_new_tokens": 32}


def sample_file(path: Path, rows: list[tuple[str, str]], **settings: float) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "response": t, **settings}) + "\n" for p, t in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Eight texts each; A's are the more alliterative ones, and the last two pairs are equal."""
    prompts = [f"Story {index % 3}:" for index in range(8)]
    good = [f" big brown bears bring {word}" for word in ["bread", "balloons", "bees", "books", "bells", "bags"]]
    plain = [f" one old man took {word}" for word in ["bread", "balloons", "bees", "books", "bells", "bags"]]
    same = [" the end", " the end"]
    return (
        sample_file(tmp_path / "a.jsonl", list(zip(prompts, [*good, *same])), **ALIKE),
        sample_file(tmp_path / "b.jsonl", list(zip(prompts, [*plain, *same])), **ALIKE),
    )


def opened(folder: Path, files: tuple[Path, Path], **settings: Any) -> BlindComparison:
    return BlindComparison(folder, CompareConfig(a=str(files[0]), b=str(files[1]), **settings), collect)


def run(*words: object, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, words)], input=typed)


def at_terminal(comparison: BlindComparison, typed: str, width: int = 80) -> str:
    screen = io.StringIO()
    judge_at_terminal(comparison, "ann", Console(file=screen, width=width), LineKeys(io.StringIO(typed)))
    return screen.getvalue()


def test_unequal_sampling_is_refused(tmp_path: Path) -> None:
    """GWERN-11: temperature .95 against top-p .95 is no comparison of models, unless one asks for it."""
    one = sample_file(tmp_path / "a.jsonl", [("p", "x")], temperature=0.95)
    other = sample_file(tmp_path / "b.jsonl", [("p", "y")], temperature=1.0, top_p=0.95)
    samples = read_samples(one, "a"), read_samples(other, "b")
    with pytest.raises(PreferenceError, match=r"temperature: 0.95 of a, 1 of b; top_p: none of a, 0.95 of b"):
        check_settings(*samples, allow_unequal=False)
    assert len(check_settings(*samples, allow_unequal=True)) == 2
    result = run(one, other, "-o", tmp_path / "out")
    assert isinstance(result.exception, PreferenceError)
    assert "--allow-unequal" in str(result.exception)


def test_settings_that_are_not_known_are_said(tmp_path: Path) -> None:
    """GWERN-11: a file without settings is not refused, and not passed over in silence."""
    known = read_samples(sample_file(tmp_path / "a.jsonl", [("p", "x")], **ALIKE), "a")
    silent = read_samples(sample_file(tmp_path / "b.jsonl", [("p", "x")]), "b")
    notes = check_settings(known, silent, allow_unequal=False)
    assert notes == [f"{key} of b is not known" for key in ("temperature", "top_p", "max_new_tokens")]
    assert check_settings(known, known, allow_unequal=False) == []


def test_texts_of_the_same_prompt_meet(tmp_path: Path) -> None:
    """GWERN-11: the k-th text of each prompt by one meets the k-th by the other, whatever the order of the files."""
    one = read_samples(sample_file(tmp_path / "a.jsonl", [("p", "a1"), ("q", "a2"), ("p", "a3")]), "a")
    other = read_samples(sample_file(tmp_path / "b.jsonl", [("q", "b1"), ("p", "b2"), ("p", "b3")]), "b")
    met = [(first.text, second.text) for first, second in paired(one, other, False, 9)]
    assert met == [("a1", "b2"), ("a2", "b1"), ("a3", "b3")]
    assert len(paired(one, other, False, 2)) == 2
    short = read_samples(sample_file(tmp_path / "c.jsonl", [("p", "c1")]), "c")
    with pytest.raises(PreferenceError, match="2 texts of a and c have no text by the other"):
        paired(one, short, False, 9)
    assert [(first.text, second.text) for first, second in paired(one, short, True, 9)] == [("a1", "c1")]
    alien = read_samples(sample_file(tmp_path / "d.jsonl", [("z", "d1")]), "d")
    with pytest.raises(PreferenceError, match="no prompt in common"):
        paired(one, alien, True, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "p", "response": "x"}\n{"prompt": 3, "response": "x"}\n', "s.jsonl:2: a sample is"),
        ('{"prompt": "p"}\n', "s.jsonl:1: a sample is"),
        ("no json\n", "s.jsonl:1: "),
        ("", "no samples"),
        ('{"text": "x", "temperature": 1}\n{"text": "x", "temperature": 2}\n', "s.jsonl:2: sampled with"),
        ('{"text": "x", "temperature": -1}\n', "temperature: "),
    ],
)
def test_faulty_sample_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(content)
    with pytest.raises(PreferenceError, match=message):
        read_samples(path, "s")


def test_sides_are_hidden_and_drawn_anew(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """GWERN-10: what is shown does not name a model, sides are mixed, and no seed tells which is which."""
    sides = []
    for attempt in range(12):
        with opened(tmp_path / f"out{attempt}", files) as comparison:
            sides.append(tuple(pair.items[0].extra["model"] for pair in comparison.pairs))
            screen = at_terminal(comparison, "1\nx\n")
            assert "a.jsonl" not in screen
            assert "b.jsonl" not in screen
    drawn = [side for row in sides for side in row]
    assert 24 < drawn.count("A") < 72  # of 96: five standard deviations
    assert len(set(sides)) > 6


def test_a_person_judges_takes_back_and_goes_on(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """GWERN-10: one key a verdict; a comparison that was stopped goes on with the same pairs and sides."""
    with opened(tmp_path / "out", files) as comparison:
        shown = [tuple(item.id for item in pair.items) for pair in comparison.pairs]
        screen = at_terminal(comparison, "1\n2\nu\nz\n3\nb\nx\n", width=100)
        assert "'z' is no key here" in screen
        assert [row["choice"] for row in comparison.results()] == ["left", "tie", "tie"]
        assert [row["both_bad"] for row in comparison.results()] == [False, False, True]
        assert len(comparison.waiting()) == 5
    with opened(tmp_path / "out", files) as comparison:
        assert [tuple(item.id for item in pair.items) for pair in comparison.pairs] == shown
        assert "pair 4 of 8" in at_terminal(comparison, "u\n1\n")
        assert len(comparison.waiting()) == 4
        row = comparison.results()[0]
        first = comparison.pairs[row["pair"]].items[0]
    assert row["left_model"] == first.generator
    assert row["winner"] == first.extra["model"]
    assert {"pair", "left_model", "right_model", "choice", "seconds"} <= set(row)


def test_each_verdict_is_on_the_disk_at_once(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """GWERN-10: what was judged before a crash is there: the store is read while the first one is still open."""
    comparison = opened(tmp_path / "out", files)
    comparison.save(comparison.pairs[0], 0, "manual", "ann")
    with opened(tmp_path / "out", files) as other:
        assert len(other.waiting()) == 7
    comparison.__exit__(None, None, None)


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM items WHERE number = 2", "UPDATE comparisons SET extra = '{}'", "UPDATE items SET extra = '{}'",
     "UPDATE items SET extra = '{\"model\": []}'"],
)  # fmt: skip
def test_a_store_that_somebody_changed_is_named(tmp_path: Path, files: tuple[Path, Path], statement: str) -> None:
    with opened(tmp_path / "out", files) as comparison:
        for pair in comparison.pairs:
            comparison.save(pair, 0, "manual", "ann")
    with closing(sqlite3.connect(tmp_path / "out" / STORE, isolation_level=None)) as connection:
        connection.execute(statement)
    with (
        pytest.raises(PreferenceError, match=r"comparison\.sqlite is damaged"),
        opened(tmp_path / "out", files) as other,
    ):
        other.results()


def test_other_settings_do_not_go_on(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with opened(tmp_path / "out", files):
        pass
    with pytest.raises(PreferenceError, match=r"margin: 0\.0 then, 2\.0 now"):
        opened(tmp_path / "out", files, margin=2.0)


def test_equal_texts_are_ties(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with opened(tmp_path / "out", files) as comparison:
        assert judge_equal_texts(comparison) == 2
        assert comparison.tally() == Tally(0, 0, 2)
        assert {row["source"] for row in comparison.results()} == {"auto"}


def test_a_judge_compares_files(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """GWERN-11: a reward by name judges; its better texts win from either side; figures are written and printed."""
    result = run(*files, "--judge", "alliteration", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "8 pairs: A won 6, B won 0, 2 ties" in result.output
    assert "A won 100.0% of 6 decisive pairs" in result.output
    figures = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (figures["wins"], figures["losses"], figures["ties"], figures["decisive"]) == (6, 0, 2, 6)
    assert figures["p_value"] == pytest.approx(2 / 2**6)
    assert figures["decisive_pairs_needed"]["55 %"] == 783
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert all(
        row["choice"] == ("left" if row["left_model"] == str(files[0]) else "right") for row in rows if row["winner"]
    )


def test_a_judge_ties_within_the_margin() -> None:
    """GWERN-11."""
    assert [verdict(1.0, 1.5, margin) for margin in (0.0, 0.4, 0.5, 1.0)] == [1, 1, "tie", "tie"]
    assert [verdict(2.0, 1.0, 0.5), verdict(1.0, 1.0, 0.0)] == [0, "tie"]


def test_a_judge_sees_the_token_ids_that_are_known() -> None:
    item = Item("Once", " upon", (5, 6), (7, 8, 9))
    [turn] = trajectory_of(item).turns
    np.testing.assert_array_equal(turn.prompt_ids, [5, 6])
    np.testing.assert_array_equal(turn.response_ids, [7, 8, 9])
    assert (turn.observation, turn.action, len(turn.logprobs)) == ("Once", " upon", 3)


def test_models_are_sampled_alike(tmp_path: Path, tiny_model: Path) -> None:
    """GWERN-11: a model against itself: the same prompts and settings, texts of their own, judged by a person."""
    out = tmp_path / "out"
    words = (tiny_model, tiny_model, "-o", out, "--samples", 4, "--max-new-tokens", 6, "--prompt", "Tim took")
    result = run(*words, typed="1\n2\nx\n")
    assert result.exit_code == 0, result.output
    assert "2 pairs wait" in result.output
    result = run(*words, typed="3\n1\n")
    assert "4 pairs" in result.output
    config = CompareConfig(a=str(tiny_model), b=str(tiny_model), samples=4, max_new_tokens=6, prompt="Tim took")
    with BlindComparison(out, config, collect) as comparison:
        assert {pair.items[0].prompt for pair in comparison.pairs} == {"Tim took"}
        assert all(pair.items[0].text != pair.items[1].text for pair in comparison.pairs)
        assert all(item.text_ids and item.seed is not None for pair in comparison.pairs for item in pair.items)


def test_wrong_arguments_are_named(tmp_path: Path, files: tuple[Path, Path]) -> None:
    for words, fault in (
        (["--temperature", "0"], UserError),
        (["--param", "letter=e"], UserError),
        (["--judge", "aliteration"], RewardError),
    ):
        result = run(*files, "-o", tmp_path / "out", *words)
        assert isinstance(result.exception, fault), result.output
