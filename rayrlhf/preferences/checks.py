"""Checks that find broken texts without a reader (SPEC GWERN-5, -6); which ones run is the config's `checks`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np

from rayrlhf.error_location import location_of
from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.check_config import ChecksConfig, CompressibilityConfig
from rayrlhf.preferences.plugin_reference import load_callable
from rayrlhf.preferences.records import Item
from rayrlhf.preferences.text_command import run_on
from rayrlhf.reading import read_text
from rayrlhf.text_statistics import distinct_n, gzip_ratio, words

Check = Callable[[str], str | None]
"""A text -> why it is broken, or None where it is not."""

_PIECES = 100  # of a corpus, from which a quantile is taken


class Checks:
    """The checks of a config, built once."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = tuple(checks)

    def faults(self, text: str) -> tuple[str, ...]:
        """Why the text is broken, a line for each check that it fails; empty where it is sound.

        Raises:
            PreferenceError: a check of the user's raises, returns no bool, or cannot be started.
        """
        return tuple(fault for check in self._checks if (fault := check(text)) is not None)

    def sound(self, items: Iterable[Item]) -> list[Item]:
        """The items whose texts fail no check (SPEC LMHP-18: what people are shown can be filtered like that)."""
        return [item for item in items if not self.faults(item.text)]


def load_checks(config: ChecksConfig) -> Checks:
    """Builds the checks that a config switches on.

    Raises:
        PreferenceError: the validity check cannot be loaded or the corpus cannot be read.
    """
    checks: list[Check] = []
    if config.min_length:
        checks.append(min_length(config.min_length))
    if config.blacklist:
        checks.append(blacklist(config.blacklist))
    if config.pattern is not None:
        checks.append(pattern(config.pattern))
    if config.repetition is not None:
        checks.append(repetition(config.repetition.n, config.repetition.most))
    if config.compressibility is not None:
        checks.append(_compressibility_of(config.compressibility))
    if config.validity is not None:
        checks.append(validity(config.validity))
    if config.command:
        checks.append(command(config.command, config.command_seconds))
    return Checks(checks)


def min_length(fewest: int) -> Check:
    """fewest: characters, whitespace around the text not counted."""

    def check(text: str) -> str | None:
        length = len(text.strip())
        return f"min_length: {length} characters, fewer than {fewest}" if length < fewest else None

    return check


def blacklist(entries: Sequence[str]) -> Check:
    """Fails a text that holds an entry as it stands, no pattern, upper and lower case alike."""
    folded = [(entry, entry.casefold()) for entry in entries]

    def check(text: str) -> str | None:
        within = text.casefold()
        found = next((entry for entry, sought in folded if sought in within), None)
        return f"blacklist: holds {found!r}" if found is not None else None

    return check


def pattern(expression: str) -> Check:
    compiled = re.compile(expression)

    def check(text: str) -> str | None:
        return None if compiled.search(text) else f"pattern: nothing in it matches {expression!r}"

    return check


def repetition(n: int, most: float) -> Check:
    """Fails a text of which more than `most` of the word n-grams are repetitions of an earlier one."""

    def check(text: str) -> str | None:
        repeated = 1 - distinct_n([text], n) if len(words(text)) >= n else 0.0
        return f"repetition: {repeated:.0%} of its {n}-grams are repeated" if repeated > most else None

    return check


def compressibility(threshold: Callable[[int], float], header: str | None = None) -> Check:
    """Fails a text whose gzip ratio (`text_statistics.gzip_ratio`) is below the threshold.

    threshold: characters of a text -> smallest ratio. header: regular expression of what is left out first.
    """

    def check(text: str) -> str | None:
        body = re.sub(header, "", text) if header is not None else text
        if not body:
            return None
        ratio, smallest = gzip_ratio([body]), threshold(len(body))
        return f"compressibility: gzip ratio {ratio:.3f}, below {smallest:.3f}" if ratio < smallest else None

    return check


def corpus_threshold(corpus: str, quantile: float) -> Callable[[int], float]:
    """Characters of a text -> quantile of the gzip ratios of 100 pieces of that length, spread evenly over the corpus.

    The ratio falls with the length of a text, so that one number for all lengths would fail long texts or pass short
    ones. Texts of more than half of the corpus are held to pieces of its half, which is a little too strict for them.
    """

    @cache
    def threshold(length: int) -> float:
        piece = min(length, len(corpus) // 2)
        starts = np.linspace(0, len(corpus) - piece, _PIECES).astype(int)
        return float(np.quantile([gzip_ratio([corpus[start : start + piece]]) for start in starts], quantile))

    return threshold


def validity(name: str) -> Check:
    """name: `module:Name` of a callable, text -> bool."""
    plugin = load_callable(name, "validity check")

    def check(text: str) -> str | None:
        try:
            valid = plugin(text)
        except Exception as error:  # the user's code may raise anything
            place = location_of(error) or "an unknown place"
            raise PreferenceError(
                f"the validity check `{name}` failed: {place}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(valid, bool | np.bool_):
            raise PreferenceError(f"the validity check `{name}` returned {valid!r}: it has to return True or False")
        return None if valid else f"validity: {name} refused it"

    return check


def command(arguments: Sequence[str], seconds: float) -> Check:
    """Fails a text for which the command does not exit with 0 in time."""

    def check(text: str) -> str | None:
        status = run_on(arguments, text.encode("utf-8", "surrogatepass"), seconds).status
        if status is None:
            return f"command: {arguments[0]} took longer than {seconds:g} s"
        return f"command: {arguments[0]} exited with {status}" if status else None

    return check


def _compressibility_of(config: CompressibilityConfig) -> Check:
    if config.corpus is None:
        below = config.below
        assert below is not None
        return compressibility(lambda _: below, config.header)
    corpus = read_text(config.corpus, PreferenceError, f"checks.compressibility.corpus: {config.corpus}")
    if config.header is not None:
        corpus = re.sub(config.header, "", corpus)
    if len(corpus) < 2 * _PIECES:
        raise PreferenceError(
            f"checks.compressibility.corpus: {config.corpus} has too little text: {len(corpus)} characters"
        )
    return compressibility(corpus_threshold(corpus, config.quantile), config.header)
