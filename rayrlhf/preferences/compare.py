"""A blind comparison of two models, kept in a folder so that it can go on after a crash (SPEC GWERN-10, -11).

    OUTPUT/comparison.sqlite   texts, pairs and verdicts (a rating store)
    OUTPUT/results.jsonl       a line a verdict, with the models' names
    OUTPUT/results.json        the figures

Sides and the order of the pairs are drawn at random once. Who wrote what is not shown before its verdict is on the disk.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rayrlhf.errors import PreferenceError
from rayrlhf.files import check_plain, replace_file
from rayrlhf.intervals import Estimate
from rayrlhf.preferences.compare_config import CompareConfig
from rayrlhf.preferences.compare_samples import Samples, check_settings, paired
from rayrlhf.preferences.comparison_statistics import Tally, needed_pairs, pairs_to_settle
from rayrlhf.preferences.records import Best, Comparison, Item, Source
from rayrlhf.preferences.store import RatingStore
from rayrlhf.reading import parse_json, typed

STORE = "comparison.sqlite"
_META = "blind_comparison"
Collect = Callable[[CompareConfig], tuple[Samples, Samples]]


@dataclass(frozen=True, slots=True)
class ShownPair:
    """Two texts in the order in which they are shown. Who wrote which is not for the eyes of whoever judges."""

    number: int
    items: tuple[Item, Item]


@dataclass(frozen=True, slots=True)
class _Meta:
    """What the store keeps of the comparison as a whole."""

    config: dict[str, Any]
    notes: list[str]
    pairs: list[tuple[str, str]]


class BlindComparison:
    """The pairs of one comparison and their verdicts."""

    def __init__(self, folder: Path, config: CompareConfig, collect: Collect) -> None:
        """Opens the comparison in a folder, or begins one: `collect` gives the texts of both models.

        Raises:
            PreferenceError: the folder has a comparison with other settings, or the texts cannot be compared.
        """
        self.folder, self.config = folder, config
        folder.mkdir(parents=True, exist_ok=True)
        check_plain(folder, ["results.json", "results.jsonl"])
        self._store = RatingStore(folder / STORE)
        try:
            if _META not in self._store.meta():
                self._begin(collect)
            where = f"{self._store.path}: {_META}"
            meta = typed(_Meta, parse_json(self._store.meta()[_META], where, PreferenceError), where, PreferenceError)
            self._check_same(meta.config)
        except BaseException:
            self._store.close()
            raise
        self.notes: tuple[str, ...] = tuple(meta.notes)
        items = self._store.items()
        with self._faults():
            self.pairs = [
                ShownPair(number, (items[first], items[second])) for number, (first, second) in enumerate(meta.pairs)
            ]

    def __enter__(self) -> BlindComparison:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()

    def waiting(self) -> list[ShownPair]:
        """Pairs without a verdict, in the order in which they are to be asked."""
        judged = {frozenset(comparison.items) for comparison in self._store.comparisons()}
        return [pair for pair in self.pairs if frozenset(item.id for item in pair.items) not in judged]

    def save(
        self, pair: ShownPair, best: Best, source: Source, rater: str, seconds: float | None = None, reason: str = ""
    ) -> str:
        """Keeps a verdict, which is on the disk when this returns; its id."""
        comparison = Comparison(
            items=(pair.items[0].id, pair.items[1].id), best=best, source=source, rater=rater, seconds=seconds,
            reason=reason, extra={"pair": pair.number},
        )  # fmt: skip
        self._store.add(comparison)
        return comparison.id

    def take_back(self, verdict: str) -> None:
        self._store.retract(verdict)

    def results(self) -> list[dict[str, Any]]:
        """The record `ab_result` of SPEC section 11 of each verdict so far, in the order of the verdicts."""
        items = self._store.items()
        with self._faults():
            return [self._result(comparison, items) for comparison in self._store.comparisons()]

    def _result(self, comparison: Comparison, items: Mapping[str, Item]) -> dict[str, Any]:
        names = {"A": self.config.a, "B": self.config.b}
        left, right = (items[item].extra["model"] for item in comparison.items)
        winner = comparison.winner
        return {
            "pair": comparison.extra["pair"],
            "left_model": names[left],
            "right_model": names[right],
            "choice": "tie" if winner is None else ("left", "right")[int(winner == comparison.items[1])],
            "winner": "" if winner is None else items[winner].extra["model"],
            "both_bad": comparison.best == "both_bad",
            "source": comparison.source,
            "rater": comparison.rater,
            "seconds": comparison.seconds,
            "reason": comparison.reason,
        }

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """What the store holds, somebody else may have written, or this comparison did not."""
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise PreferenceError(
                f"{self._store.path} is damaged, or of no comparison of models ({error!r}): put a copy in its place"
            ) from error

    def tally(self) -> Tally:
        return tally(self.results())

    def write_results(self) -> None:
        """Writes results.jsonl and results.json."""
        rows = self.results()
        summary = {
            "a": self.config.a,
            "b": self.config.b,
            "pairs": len(self.pairs),
            "judged": len(rows),
            **figures(tally(rows)),
            "settings": self.config.model_dump(mode="json"),
            "notes": list(self.notes),
        }
        replace_file(self.folder / "results.jsonl", [json.dumps(row).encode("ascii") + b"\n" for row in rows])
        replace_file(self.folder / "results.json", [json.dumps(summary, indent=2).encode("ascii"), b"\n"])

    def _begin(self, collect: Collect) -> None:
        """Texts, then the pairs: a crash between them leaves a store without pairs, which begins anew."""
        one, other = collect(self.config)
        notes = check_settings(one, other, self.config.allow_unequal)
        together = paired(one, other, self.config.allow_unequal, self.config.samples)
        draw = random.Random(secrets.randbits(64))  # not from the seed: nobody can work out which side is which
        shown = [pair if draw.random() < 0.5 else pair[::-1] for pair in together]
        draw.shuffle(shown)
        self._store.add_items(item for pair in shown for item in pair)
        meta = {
            "config": self.config.model_dump(mode="json"),
            "pairs": [[item.id for item in pair] for pair in shown],
            "notes": notes,
        }
        self._store.set_meta(_META, json.dumps(meta))

    def _check_same(self, begun: Mapping[str, Any]) -> None:
        given = self.config.model_dump(mode="json")
        changed = [f"{key}: {begun.get(key)} then, {given[key]} now" for key in given if given[key] != begun.get(key)]
        if changed:
            raise PreferenceError(
                f"{self.folder} has a comparison with other settings ({'; '.join(changed)}): give the same ones to go on "
                "with it, or another --output to begin a new one"
            )


def judge_equal_texts(comparison: BlindComparison) -> int:
    """Pairs of equal texts are ties that nobody has to be asked about; how many there were."""
    equal = [pair for pair in comparison.waiting() if pair.items[0].text == pair.items[1].text]
    for pair in equal:
        comparison.save(pair, "tie", "auto", "", reason="the texts are equal")
    return len(equal)


def tally(rows: Sequence[Mapping[str, Any]]) -> Tally:
    """Of `ab_result` records."""
    winners = [row["winner"] for row in rows]
    return Tally(winners.count("A"), winners.count("B"), winners.count(""))


def figures(counted: Tally) -> dict[str, Any]:
    """Everything that a tally says, ready for JSON."""
    return {
        **asdict(counted),
        "decisive": counted.decisive,
        "share_of_decisive": _estimate(counted.share),
        "share_of_all": _estimate(counted.share_of_all),
        "p_value": counted.p_value,
        "decisive_pairs_needed": {
            "55 %": needed_pairs(0.55),
            "60 %": needed_pairs(0.60),
            "as_observed": pairs_to_settle(counted),
        },
    }


def report(counted: Tally, a: str, b: str) -> list[str]:
    """The figures as sentences."""
    said = [
        f"A is {a}, B is {b}",
        f"{counted.pairs} pairs: A won {counted.wins}, B won {counted.losses}, {counted.ties} ties",
    ]
    share = counted.share
    if share is None:
        return [*said, "no pair was decisive: there is nothing to tell them apart by"]
    said.append(
        f"A won {share.value:.1%} of {counted.decisive} decisive pairs (95 % interval {share.low:.1%} to {share.high:.1%}, "
        f"Wilson); exact two-sided test against 50 %: p = {counted.p_value:.3g}"
    )
    needed = pairs_to_settle(counted)
    if needed is not None:
        said.append(
            f"decisive pairs that find a difference with 80 % power at a level of 5 %: {needed} for one as observed, "
            f"{needed_pairs(0.55)} for 55 %, {needed_pairs(0.60)} for 60 %"
        )
    return said


def _estimate(estimate: Estimate | None) -> dict[str, float | None] | None:
    return None if estimate is None else asdict(estimate)
