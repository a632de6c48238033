"""Checks of texts, what they decide alone, how many automatic labels count (SPEC GWERN-5 to -8, Q-18, LMHP-18)."""

from __future__ import annotations

import gzip
import random
import string
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rayrlhf.errors import ConfigError, PreferenceError
from rayrlhf.preferences.auto_rating import (
    auto_comparison,
    auto_verdict,
    cap_automatic,
    source_shares,
    without_sources,
)
from rayrlhf.preferences.check_config import ChecksConfig, CompressibilityConfig, RepetitionConfig
from rayrlhf.preferences.checks import corpus_threshold, load_checks
from rayrlhf.preferences.project import load_project_config
from rayrlhf.preferences.records import Best, Comparison, Item, Source

PROSE = Path(__file__).resolve().parent.parent / "README.md"


def faults(text: str, **settings: object) -> tuple[str, ...]:
    return load_checks(ChecksConfig.model_validate(settings)).faults(text)


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


@pytest.mark.parametrize(
    ("broken_first", "broken_second", "verdict"),
    [(False, False, None), (False, True, 0), (True, False, 1), (True, True, "tie")],
)
def test_truth_table_of_automatic_verdicts(broken_first: bool, broken_second: bool, verdict: Best | None) -> None:
    """GWERN-7: one broken, the other wins; both broken, a tie, not a win of the second; none, no verdict."""
    assert auto_verdict(broken_first, broken_second) == verdict
    faults_first = ["blacklist: holds 'x'"] if broken_first else []
    faults_second = ["min_length: 0 characters, fewer than 9"] if broken_second else []
    made = auto_comparison(("one", "two"), faults_first, faults_second)
    if verdict is None:
        assert made is None
        return
    assert made is not None
    assert (made.best, made.source, made.rater) == (verdict, "auto", "")
    assert made.broken == tuple(index for index, broken in enumerate((broken_first, broken_second)) if broken)
    assert made.reason == "; ".join(faults_first + faults_second)


def test_a_pair_that_is_decided_twice_is_one_record() -> None:
    first = auto_comparison(("one", "two"), ["broken"], [])
    again = auto_comparison(("two", "one"), [], ["broken"])
    other = auto_comparison(("one", "three"), ["broken"], [])
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.id == again.id != other.id
    assert first.winner == again.winner == "two"


def test_nothing_is_checked_by_default() -> None:
    for text in ["", "a a a a a a a a a", "\ud800", "x" * 10_000]:
        assert faults(text) == ()


def test_blacklist_is_literal_and_ignores_case() -> None:
    """GWERN-5: fixed strings, as `grep --fixed-strings --ignore-case` takes them."""
    listed = {"blacklist": ["a.c", "straße"]}
    assert faults("xA.Cx", **listed) == ("blacklist: holds 'a.c'",)
    assert faults("abc", **listed) == ()
    assert faults("DIE STRASSE", **listed) == ("blacklist: holds 'straße'",)


def test_an_empty_entry_of_the_blacklist_is_an_error() -> None:
    with pytest.raises(ValidationError, match="an empty string is in every text"):
        ChecksConfig(blacklist=("",))


def test_length_counts_characters_without_whitespace_around() -> None:
    assert faults("  abc\n", min_length=4) == ("min_length: 3 characters, fewer than 4",)
    assert faults("abcd", min_length=4) == ()


def test_repetition_counts_repeated_n_grams() -> None:
    """Of the 6 bigrams of "a b a b a b c" (ab ba ab ba ab bc) 3 are repetitions: exactly half of them."""
    text = "a b a b a b c"
    assert faults(text, repetition={"n": 2, "most": 0.5}) == ()
    assert faults(text, repetition={"n": 2, "most": 0.49}) == ("repetition: 50% of its 2-grams are repeated",)
    assert faults("a", repetition={"n": 2, "most": 0}) == ()
    assert RepetitionConfig().n == 3


def test_a_regular_expression_has_to_be_found() -> None:
    """GWERN-5: the validity check may be a regular expression."""
    assert faults("K:C\nabc", pattern=r"(?m)^K:") == ()
    assert len(faults("abc", pattern=r"(?m)^K:")) == 1


def test_a_command_judges_what_it_gets_on_its_input() -> None:
    """GWERN-5: the validity check may be a command; nothing of the text gets to a shell or an argument."""
    valid = python("import sys; sys.exit(sys.stdin.read() != '; touch hacked $(touch hacked)')")
    assert faults("; touch hacked $(touch hacked)", command=valid) == ()
    assert faults("else", command=valid) == (f"command: {sys.executable} exited with 1",)
    assert not Path("hacked").exists()
    assert faults("x" * 1_000_000, command=["true"]) == ()  # it may end before it has read everything


def test_a_command_that_hangs_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    """Whether it came to starting anything before its time was over or not."""
    started = tmp_path / "started"
    hangs = python(
        "import os, subprocess, time; child = subprocess.Popen(['sleep', '3600']);"
        f"open('{started}.new', 'w').write(str(child.pid)); os.rename('{started}.new', '{started}'); time.sleep(3600)"
    )
    [fault] = faults("text", command=hangs, command_seconds=1.0)
    assert fault.endswith("took longer than 1 s")
    deadline = time.monotonic() + 60
    while started.exists() and is_running(int(started.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether it is there, and no zombie that waits for its parent."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_command_that_is_not_there_is_an_error_not_a_fault() -> None:
    with pytest.raises(PreferenceError, match="no-such-command"):
        faults("text", command=["no-such-command"])


def test_a_validity_check_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GWERN-5: any callable, text -> bool; what it does wrong is named with its place."""
    (tmp_path / "my_validity.py").write_text(
        "def short(text):\n    return len(text) < 5\n"
        "class Long:\n    def __call__(self, text):\n        return len(text) > 5\n"
        "def fails(text):\n    raise KeyError('lost')\n"
        "def wrong(text):\n    return 'yes'\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert faults("abc", validity="my_validity:short") == ()
    assert faults("abcdefg", validity="my_validity:short") == ("validity: my_validity:short refused it",)
    assert faults("abcdefg", validity="my_validity:Long") == ()
    with pytest.raises(PreferenceError, match=r"my_validity\.py:7: KeyError"):
        faults("abc", validity="my_validity:fails")
    with pytest.raises(PreferenceError, match="'yes'"):
        faults("abc", validity="my_validity:wrong")
    for name, message in [("number", "cannot be called"), ("absent", "AttributeError")]:
        with pytest.raises(PreferenceError, match=message):
            faults("abc", validity=f"my_validity:{name}")
    with pytest.raises(PreferenceError, match="no `module:Name`"):
        faults("abc", validity="my_validity")


def test_compressibility_is_bytes_after_gzip_over_bytes_before() -> None:
    """GWERN-6: 1,000 times one letter fails, as text and as what is left of a text without its header."""
    text = "a" * 1000
    ratio = len(gzip.compress(text.encode(), 9, mtime=0)) / 1000
    assert faults(text, compressibility={"below": ratio}) == ()
    assert len(faults(text, compressibility={"below": ratio + 1e-6})) == 1
    header = "".join(random.Random(0).choices(string.printable[:90], k=400))
    tune = f"X:{header}\n{text}"
    assert faults(tune, compressibility={"below": 0.2}) == ()
    assert len(faults(tune, compressibility={"below": 0.2, "header": r"(?m)^X:.*$"})) == 1


def test_threshold_is_a_quantile_of_the_corpus_at_the_texts_length() -> None:
    """GWERN-6: against a quantile over all pieces of that length; longer pieces shrink further."""
    corpus = PROSE.read_text(encoding="utf-8")[:6000]
    threshold = corpus_threshold(corpus, 0.05)
    for length in (80, 500):
        ratios = [
            len(gzip.compress(piece := corpus[start : start + length].encode(), 9, mtime=0)) / len(piece)
            for start in range(0, len(corpus) - length, 7)
        ]
        assert np.quantile(ratios, 0) <= threshold(length) <= np.quantile(ratios, 0.2)
    assert threshold(500) < threshold(80)
    assert threshold(5000) == threshold(3000)  # half of the corpus


def test_a_calibrated_check_passes_prose_and_fails_a_loop(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    text = PROSE.read_text(encoding="utf-8")
    corpus.write_text(text[:8000], encoding="utf-8")
    settings = {"compressibility": {"corpus": corpus, "quantile": 0.0}}
    assert faults(text[1000:1400], **settings) == ()
    assert len(faults("the cat sat. " * 30, **settings)) == 1


def test_what_the_config_refuses(tmp_path: Path) -> None:
    for settings in ({}, {"below": 0.3, "corpus": "x.txt"}):
        with pytest.raises(ValidationError, match="either `below` or `corpus`"):
            CompressibilityConfig.model_validate(settings)
    (tmp_path / "project.yaml").write_text("checks:\n  pattern: '('\n  blacklsit: [a]\n")
    with pytest.raises(ConfigError) as caught:
        load_project_config(tmp_path)
    assert "checks.pattern" in str(caught.value)
    assert "did you mean checks.blacklist" in str(caught.value)
    with pytest.raises(PreferenceError, match=r"nowhere\.txt: cannot be read"):
        load_checks(ChecksConfig(compressibility=CompressibilityConfig(corpus=Path("nowhere.txt"))))
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(PreferenceError, match="too little text"):
        load_checks(ChecksConfig(compressibility=CompressibilityConfig(corpus=tmp_path / "short.txt")))


def test_samples_for_people_can_be_filtered() -> None:
    """LMHP-18: only items that satisfy the filter."""
    items = [Item("", text) for text in ("good one", "BAD one", "good two", "x")]
    checks = load_checks(ChecksConfig(blacklist=("bad",), min_length=2))
    assert [item.text for item in checks.sound(items)] == ["good one", "good two"]


def labels(sources: list[Source]) -> list[Comparison]:
    return [Comparison(("a", "b"), 0, source, id=f"{source}-{number}") for number, source in enumerate(sources)]


@given(
    st.lists(st.sampled_from(["manual", "auto", "weak", "judge"]), max_size=60),
    st.floats(0, 1),
    st.integers(0, 5),
)
def test_automatic_labels_are_at_most_the_share_of_what_is_kept(sources: list[Source], share: float, seed: int) -> None:
    """GWERN-8: never more than the share, never fewer than it allows, all others kept, order and choice stable."""
    comparisons = labels(sources)
    kept = cap_automatic(comparisons, share, seed)
    automatic = [comparison for comparison in kept if comparison.source == "auto"]
    others = len(kept) - len(automatic)
    assert [c for c in kept if c.source != "auto"] == [c for c in comparisons if c.source != "auto"]
    assert kept == [comparison for comparison in comparisons if comparison in kept]
    exact = Fraction(repr(share))
    assert len(automatic) <= exact * len(kept)
    if len(automatic) < sources.count("auto"):
        assert len(automatic) + 1 > exact * (len(automatic) + 1 + others)
    reordered = cap_automatic(comparisons[::-1], share, seed)
    assert reordered == kept[::-1]


def test_the_share_of_automatic_labels_is_the_decimal_that_was_written() -> None:
    """29 of 100 are 0.29 of them, though as floats 0.29 * 100 is below 29."""
    automatic: list[Source] = ["auto"]
    by_hand: list[Source] = ["manual"]
    kept = cap_automatic(labels(automatic * 40 + by_hand * 71), share=0.29)
    assert [comparison.source for comparison in kept].count("auto") == 29


def test_a_third_of_the_kept_labels_at_the_default_share() -> None:
    """GWERN-8: the source's 71 % automatic labels become 30 %: 3 of 10 with 7 by hand, and the report says so."""
    automatic: list[Source] = ["auto"]
    by_hand: list[Source] = ["manual"]
    comparisons = labels(automatic * 17 + by_hand * 7)
    kept = cap_automatic(comparisons)
    assert [str(line) for line in source_shares(comparisons, kept)] == [
        "manual: 7 of 7 comparisons, 70.0% of what is kept",
        "auto: 3 of 17 comparisons, 30.0% of what is kept",
    ]
    assert {c.id for c in kept} != {c.id for c in cap_automatic(comparisons, seed=1)}
    with pytest.raises(ValueError, match="share"):
        cap_automatic(comparisons, 30)


def test_sources_can_be_switched_off() -> None:
    """Q-18: automatic labels in or out."""
    comparisons = labels(["auto", "manual", "judge"])
    assert [c.source for c in without_sources(comparisons, {"auto"})] == ["manual", "judge"]
    assert without_sources(comparisons, set()) == comparisons
    assert cap_automatic(comparisons, 0) == without_sources(comparisons, {"auto"})
