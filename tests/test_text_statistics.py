"""Text statistics against numbers worked out by hand (SPEC X-10, GWERN-6, TW-25)."""

from __future__ import annotations

import gzip

import pytest

from rayrlhf.preferences.checks import repetition
from rayrlhf.summary import BaseDiversity
from rayrlhf.text_statistics import distinct_n, duplicate_rate, empty_rate, gzip_ratio, text_metrics, word_units, words


def test_distinct_n_pools_the_texts_and_stays_within_each() -> None:
    """SPEC X-10: "a b a b" has bigrams ab ba ab, "b a" has ba: 2 distinct of 4; "b b" across the border is none."""
    texts = ["a b a b", "b a"]
    assert distinct_n(texts, 2) == 2 / 4
    assert distinct_n(texts, 1) == 2 / 6
    assert distinct_n(texts, 4) == 1.0  # one 4-gram in all


def test_distinct_n_splits_at_any_whitespace_and_keeps_case_and_punctuation() -> None:
    """SPEC X-10: words are split at whitespace and nothing else."""
    assert distinct_n(["The  the\nthe\tthe,"], 1) == 3 / 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("小猫 sat on垫子。", ["小", "猫", "sat", "on", "垫", "子", "。"]),
        ("ねこはカタカナ", ["ね", "こ", "は", "カタカナ"]),
        ("สวัสดี ครับ", ["ส", "วั", "ส", "ดี", "ค", "รั", "บ"]),
        ("고양이는 매트에", ["고양이는", "매트에"]),
        ("Größe  naïve «да, нет»\u00a0شكرا", ["Größe", "naïve", "«да,", "нет»", "شكرا"]),
        ("\ud800猫 \udfff", ["\ud800", "猫", "\udfff"]),
    ],
)
def test_words_of_scripts_without_blanks_are_their_characters(text: str, expected: list[str]) -> None:
    """With their marks; all other writing is split at whitespace as ever."""
    assert words(text) == expected


def test_a_collapse_shows_where_no_blanks_are_written() -> None:
    varied = [f"{start}只小猫坐在{place}上唱歌" for start in "一两三" for place in ("垫子", "屋顶", "桌子")]
    same = ["的的的的的的的的的的"] * 9
    assert distinct_n(same, 1) == 1 / 90
    assert distinct_n(same, 2) == 1 / 81
    assert distinct_n(varied, 2) > 10 * distinct_n(same, 2)
    assert BaseDiversity(varied).share(same) == pytest.approx(1 / 81 / distinct_n(varied, 2))
    assert "each character" in word_units(varied)
    assert word_units(["a cat", "größer"]) == "words split at blanks"


def test_repetition_is_found_where_no_blanks_are_written() -> None:
    assert repetition(2, 0.5)("的的的的的的") == "repetition: 80% of its 2-grams are repeated"
    assert repetition(2, 0.5)("小猫坐在垫子上") is None


def test_distinct_n_of_a_collapsed_policy() -> None:
    """SPEC ALLIT-11: 50 texts that differ by one word each still show the collapse."""
    texts = [f"silly sally sang silly sally sang word{i}" for i in range(50)]
    # 6 bigrams a text; silly-sally, sally-sang, sang-silly are shared (3 distinct), sang-word_i differs (50 distinct)
    assert distinct_n(texts, 2) == 53 / 300
    assert duplicate_rate(texts) == 0.0


@pytest.mark.parametrize("texts", [[], [""], ["", "  \n"], ["one"]])
def test_distinct_2_without_a_bigram_is_zero(texts: list[str]) -> None:
    """SPEC TW-25: empty or one-word texts count as no diversity at all."""
    assert distinct_n(texts, 2) == 0.0


def test_distinct_n_refuses_n_below_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        distinct_n(["a"], 0)


def test_duplicate_rate() -> None:
    """SPEC X-10 dup_rate: of a a b a, two repeat an earlier one."""
    assert duplicate_rate(["a", "a", "b", "a"]) == 0.5
    assert duplicate_rate([]) == 0.0


def test_gzip_ratio() -> None:
    """SPEC GWERN-6: len(gzip)/len(text) in UTF-8 bytes; repetition is far below prose."""
    assert gzip_ratio(["é", "b"]) == len(gzip.compress("é\nb".encode(), mtime=0)) / 4
    assert gzip_ratio(["ant " * 500]) < 0.05
    prose = "Once upon a time a small cat sat on a soft mat and sang a silly song to the tall trees of the town."
    assert gzip_ratio([prose]) > 0.5
    assert gzip_ratio([]) == gzip_ratio([""]) == 0.0


def test_lone_surrogates_and_nul_do_no_harm() -> None:
    """SPEC X-10: a policy may write half of a surrogate pair."""
    texts = ["\ud83d half", "\x00 nul"]
    assert gzip_ratio(texts) > 0
    assert distinct_n(texts, 2) == 1.0


def test_empty_rate() -> None:
    """SPEC TW-25: a newline at once is an empty answer."""
    assert empty_rate(["", "\n", " a", "b"]) == 0.5
    assert empty_rate([]) == 0.0


def test_text_metrics_names_and_values() -> None:
    """SPEC X-10: the names text/*; empty_rate looks at the responses, the rest at the whole texts."""
    metrics = text_metrics(["Once a cat", "Once", "Once"], [2, 1, 0], responses=[" a cat", "", " "])
    assert set(metrics) == {
        f"text/{n}" for n in ["distinct_1", "distinct_2", "dup_rate", "gzip_ratio", "mean_len", "empty_rate"]
    }
    assert metrics["text/distinct_1"] == 3 / 5
    assert metrics["text/distinct_2"] == 1.0
    assert metrics["text/dup_rate"] == pytest.approx(1 / 3)
    assert metrics["text/mean_len"] == 1.0
    assert metrics["text/empty_rate"] == pytest.approx(2 / 3)
    assert text_metrics(["Once"], [0])["text/empty_rate"] == 0.0
    assert set(text_metrics([], []).values()) == {0.0}


def test_text_metrics_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="equally many"):
        text_metrics(["a"], [])
