"""The pairs that a sitting asks about next: proposed a few at a time, those that checks can decide taken out.

A proposal may take seconds, as it may fit a ranking: the next ones are sought in a thread while people read.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, Protocol

from rayrlhf.preferences.auto_rating import auto_comparison
from rayrlhf.preferences.checks import Checks
from rayrlhf.preferences.records import Comparison, Item, Skip
from rayrlhf.preferences.store import RatingStore

Pair = tuple[str, str]  # ids of items
_AHEAD = 8  # pairs that are proposed at once


class Propose(Protocol):
    """Which pairs to ask about next: `pairing.propose` with its configs bound."""

    def __call__(
        self,
        items: Sequence[Item],
        comparisons: Sequence[Comparison],
        skips: Sequence[Skip],
        *,
        count: int,
        seed: int,
        without: Collection[frozenset[str]],
    ) -> list[Pair]: ...


class PairQueue:
    """Not for several threads at once."""

    def __init__(
        self,
        store: RatingStore,
        propose: Propose,
        checks: Checks,
        broken: Literal["decide", "hide", "show"],
        rng: random.Random,
    ) -> None:
        """broken: what is done with pairs that have a broken text, see `RatingConfig.broken`."""
        self._store = store
        self._propose = propose
        self._checks = checks
        self._broken = broken
        self._rng = rng
        self._waiting: list[Pair] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pair-queue")
        self._search: Future[list[Pair]] | None = None  # while it runs nothing but its result changes what is below
        self._faults: dict[str, tuple[str, ...]] = {}  # of the items that were checked so far
        self._decided = {frozenset(record.items) for record in store.comparisons() if record.source == "auto"}
        self.items = store.items()  # read again with every proposal

    def take(self, refused: Collection[frozenset[str]]) -> tuple[Item, Item] | None:
        """The next pair for people; None where there is none. refused: pairs that are no use to who asks.

        Raises:
            PreferenceError: a check cannot be run.
        """
        pair = self._first(refused)
        if pair is None:
            self._end_search()
            pair = self._first(refused)
        if pair is None:
            self._waiting += self._found(self._not_again(refused))
            pair = self._first(refused)
        if pair is None:
            return None
        self._waiting.remove(pair)
        if self._search is None and len(self._waiting) <= _AHEAD // 2:
            self._search = self._thread.submit(self._found, {*self._not_again(refused), frozenset(pair)})
        return self.items[pair[0]], self.items[pair[1]]

    def auto_rate(self, most: int) -> tuple[int, int]:
        """Decides those of the next `most` pairs that the checks can decide; the others stay unasked.

        Returns how many pairs were decided and how many were not (SPEC GWERN-1, key r).
        """
        self._end_search()
        further = self._proposed({}, most, self._not_again(()))
        pairs = (self._waiting + further)[:most]
        self._waiting = []
        decided = sum(self._decide(pair) for pair in pairs)
        return decided, len(pairs) - decided

    def _first(self, refused: Collection[frozenset[str]]) -> Pair | None:
        return next((pair for pair in self._waiting if frozenset(pair) not in refused), None)

    def _not_again(self, refused: Collection[frozenset[str]]) -> set[frozenset[str]]:
        return {*refused, *(frozenset(pair) for pair in self._waiting)}

    def _end_search(self) -> None:
        """Waits for the search that runs, if one does, and puts what it finds in the queue."""
        if self._search is not None:
            search, self._search = self._search, None
            self._waiting += search.result()

    def _found(self, without: Collection[frozenset[str]]) -> list[Pair]:
        """New pairs that people may be asked about.

        Where broken texts are decided, the checks first decide what they can of one round of proposals; broken texts
        that are known then are proposed no more, so that it ends even where almost all texts are broken.
        """
        hidden: dict[str, tuple[str, ...]] = {} if self._broken == "decide" else self._faults
        while True:
            pairs = self._proposed(hidden, _AHEAD, without)
            asked = [pair for pair in pairs if self._broken == "show" or not self._is_broken(pair)]
            if self._broken == "decide":
                for pair in pairs:
                    self._decide(pair)
            if asked or not pairs:
                return asked
            hidden = self._faults

    def _proposed(
        self, hidden: dict[str, tuple[str, ...]], count: int, without: Collection[frozenset[str]]
    ) -> list[Pair]:
        self.items = self._store.items()
        items = [item for item in self.items.values() if not hidden.get(item.id)]
        seed = self._rng.getrandbits(32)
        excluded = self._decided.union(without)
        comparisons, skips = self._store.comparisons(), self._store.skips()
        return self._propose(items, comparisons, skips, count=count, seed=seed, without=excluded)

    def _decide(self, pair: Pair) -> bool:
        comparison = auto_comparison(pair, *(self._faults_of(item) for item in pair))
        if comparison is not None:
            self._store.add(comparison)
            self._decided.add(frozenset(pair))
        return comparison is not None

    def _is_broken(self, pair: Pair) -> bool:
        return any(self._faults_of(item) for item in pair)

    def _faults_of(self, item: str) -> tuple[str, ...]:
        if item not in self._faults:
            self._faults[item] = self._checks.faults(self.items[item].text)
        return self._faults[item]
