"""Statistics of texts that show a collapse which the reward alone hides: pure functions over words, see `words`.

All of them are defined for an empty list and for empty texts, where they are 0: nothing written is nothing distinct.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence

import regex

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Tibetan}\p{Line_Break=Complex_Context}"  # the last: Thai, Lao, Khmer, Burmese, ...
_UNSPACED_CHARACTER = regex.compile(rf"[{_UNSPACED}]")
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[^{_UNSPACED}\s]+")


def words(text: str) -> list[str]:
    """The words of a text: split at whitespace, as English is written.

    Of scripts that are written without blanks between words each character, with its marks, is one, as where the default
    word boundaries of Unicode (UAX 29) know no better without a dictionary.
    """
    if text.isascii() or _UNSPACED_CHARACTER.search(text) is None:
        return text.split()
    return _WORD.findall(text)


def word_units(texts: Iterable[str]) -> str:
    """What counts as a word in these texts, for people."""
    unspaced = any(not text.isascii() and _UNSPACED_CHARACTER.search(text) for text in texts)
    return "each character a word where no blanks are written" if unspaced else "words split at blanks"


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams of the texts together, in [0, 1] (Li et al. 2016, "distinct-n").

    N-grams do not reach from one text into the next. Falls as the number of texts grows: compare equal numbers only.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        said = words(text)
        grams = list(zip(*(said[offset:] for offset in range(n)), strict=False))
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def duplicate_rate(texts: Sequence[str]) -> float:
    """Share of the texts that equal an earlier one, in [0, 1)."""
    return 1.0 - len(set(texts)) / len(texts) if texts else 0.0


def gzip_ratio(texts: Sequence[str]) -> float:
    """Bytes of the texts (UTF-8, one a line) after gzip over bytes before it (SPEC GWERN-6).

    Repetition brings it down: English prose is at some 0.4, one word over and over under 0.05. A few words alone are
    above 1, since gzip adds some 20 bytes of its own.
    """
    data = "\n".join(texts).encode("utf-8", "surrogatepass")  # a policy may write half of a surrogate pair
    return len(gzip.compress(data, compresslevel=9, mtime=0)) / len(data) if data else 0.0


def empty_rate(texts: Sequence[str]) -> float:
    """Share of the texts that hold nothing but whitespace, in [0, 1] (SPEC TW-25)."""
    return sum(not text.strip() for text in texts) / len(texts) if texts else 0.0


def text_metrics(
    texts: Sequence[str], token_lengths: Sequence[int], responses: Sequence[str] | None = None
) -> dict[str, float]:
    """The metrics `text/*` of SPEC X-10 of one iteration.

    texts: whole episodes, prompts included. token_lengths: response tokens of each. responses: what the policy itself
    wrote, where the texts hold more than that; `text/empty_rate` is about these.
    """
    if len(texts) != len(token_lengths) or (responses is not None and len(responses) != len(texts)):
        raise ValueError("texts, token_lengths and responses must be equally many")
    return {
        "text/distinct_1": distinct_n(texts, 1),
        "text/distinct_2": distinct_n(texts, 2),
        "text/dup_rate": duplicate_rate(texts),
        "text/gzip_ratio": gzip_ratio(texts),
        "text/mean_len": sum(token_lengths) / len(token_lengths) if token_lengths else 0.0,
        "text/empty_rate": empty_rate(texts if responses is None else responses),
    }
