"""What the raters' page and rating in the terminal share: which pair is next for whom, and what a verdict records.

A pair on a rater's screen has a ticket, whose id becomes the id of the record: a verdict that arrives twice counts once.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeGuard, get_args

from rayrlhf.preferences.checks import Checks
from rayrlhf.preferences.pair_queue import PairQueue, Propose
from rayrlhf.preferences.rating_config import RatingConfig
from rayrlhf.preferences.records import Best, Comparison, Item, Skip, new_id
from rayrlhf.preferences.self_agreement import SelfAgreement, self_agreement
from rayrlhf.preferences.store import RatingStore

Verdict = Literal["1", "2", "3", "b", "s"]
"""First is better, second is better, equally good, both bad, skip: the keys of page and terminal."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

_BEST: dict[Verdict, Best] = {"1": 0, "2": 1, "3": "tie", "b": "both_bad"}
LONGEST_NAME = 80  # characters of a rater's name
_ABANDONED_S = 1800.0  # a pair that nobody judged for so long may go to another rater


def is_verdict(key: str) -> TypeGuard[Verdict]:
    return key in VERDICTS


def rater_name(given: str) -> str | None:
    """The name as it is recorded, runs of whitespace made one space; None where it is empty or too long."""
    name = re.sub(r"\s+", " ", given).strip()
    return name if 0 < len(name) <= LONGEST_NAME else None


@dataclass(frozen=True, slots=True)
class Ticket:
    """A pair on a rater's screen."""

    items: tuple[Item, Item]  # in the order in which they are shown
    repeats: str = ""  # id of the rater's own comparison that is asked again
    id: str = field(default_factory=new_id)  # of the record that the verdict will make

    @property
    def pair(self) -> frozenset[str]:
        return frozenset(item.id for item in self.items)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rater is."""

    done: int  # comparisons by this rater, of earlier sittings too
    sitting: int  # verdicts and skips of this sitting, by this rater
    by_all: int  # comparisons by people, of all raters
    target: int  # comparisons by people that the project wants; 0: no target
    per_hour: float | None  # verdicts and skips of this rater in this sitting; None before the first
    agreement: SelfAgreement


@dataclass
class _Desk:
    """What one rater has before them and has done."""

    rater: str
    records: list[Comparison | Skip]  # the rater's own, oldest first, of earlier sittings too; not those taken back
    started: float  # when the first pair of this sitting was shown, on the session's clock
    sitting: int = 0
    ticket: Ticket | None = None
    shown: float = 0.0  # when the ticket was, on the session's clock
    put_aside: list[Ticket] = field(default_factory=list)  # the pairs that undo took from the screen, shown again next

    revision: int = -1  # of the store when the records were read

    asked_again: set[str] = field(default_factory=set)  # ids of comparisons that were repeated, if only to be skipped

    @property
    def comparisons(self) -> list[Comparison]:
        return [record for record in self.records if isinstance(record, Comparison)]

    def holds(self, now: float) -> set[frozenset[str]]:
        """The pairs that this rater has before them, unless they left them there for too long."""
        on_screen = [self.ticket] if self.ticket is not None and now - self.shown < _ABANDONED_S else []
        return {ticket.pair for ticket in [*on_screen, *self.put_aside]}


class RatingSession:
    """One sitting over a store, for any number of raters; threads may share it."""

    def __init__(
        self,
        store: RatingStore,
        propose: Propose,
        checks: Checks,
        config: RatingConfig,
        seed: int,
        limit: int | None = None,
        ask_again: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """limit: verdicts and skips after which nobody is asked any more; None: as long as there are pairs.

        ask_again: whether `propose` may ask a rater about a pair that they judged, after `repeat_after` others; else
        each pair is asked once of each rater, but for the repeats. seed: of the sides, the repeats and the proposals.
        clock: in seconds.
        """
        self._store = store
        self._config = config
        self._limit = limit
        self._ask_again = ask_again
        self._clock = clock
        self._random = random.Random(seed)
        self._queue = PairQueue(store, propose, checks, config.broken, random.Random(seed))
        self._desks: dict[str, _Desk] = {}
        self._lock = threading.RLock()

    @property
    def seconds(self) -> float:
        """The time box of a pair."""
        return self._config.seconds

    @property
    def by_all(self) -> int:
        """Comparisons by people in the project, those of this and of other sittings included."""
        return self._store.comparisons_by_people()

    @property
    def limit_reached(self) -> bool:
        with self._lock:
            return self._limit is not None and sum(desk.sitting for desk in self._desks.values()) >= self._limit

    def item(self, item_id: str) -> Item | None:
        """The item of this id; None where the store had none when the sitting began or new pairs were last sought."""
        with self._lock:
            return self._queue.items.get(item_id)

    def ticket(self, rater: str) -> Ticket | None:
        """The pair on the rater's screen, a new one where there is none; None where there is nothing left to ask."""
        with self._lock:
            desk = self._desk(rater)
            if desk.ticket is None and not self.limit_reached:
                self._show(desk, self._next(desk))
            return desk.ticket

    def seconds_left(self, rater: str) -> float:
        """Of the time box of the pair on the rater's screen; negative after its end."""
        with self._lock:
            return self._config.seconds - (self._clock() - self._desk(rater).shown)

    def judge(self, rater: str, ticket_id: str, verdict: Verdict) -> bool:
        """Records the verdict on the pair on the rater's screen: it is on the disk when this returns.

        Returns False, and records nothing, where the ticket is not on that screen: it was judged before.
        """
        with self._lock:
            desk = self._desk(rater)
            ticket = desk.ticket
            if ticket is None or ticket.id != ticket_id:
                return False
            record = self._record(desk, ticket, verdict)
            self._store.add(record)
            desk.records.append(record)  # the next look at the store may find more
            desk.ticket = None
            desk.sitting += 1
            return True

    def undo(self, rater: str) -> bool:
        """Takes back the rater's last verdict or skip and shows that pair again; False where there is none.

        Verdicts of earlier sittings can be taken back too. The pair that was on the screen comes after it.
        """
        with self._lock:
            desk = self._desk(rater)
            if not desk.records:
                return False
            last = desk.records[-1]
            self._store.retract(last.id)
            desk.records.pop()
            desk.sitting = max(0, desk.sitting - 1)
            if desk.ticket is not None:
                desk.put_aside.append(desk.ticket)
            items = self._queue.items if set(last.items) <= self._queue.items.keys() else self._store.items()
            first, second = (items[item] for item in last.items)
            self._show(desk, Ticket((first, second), last.repeats if isinstance(last, Comparison) else ""))
            return True

    def auto_rate(self, most: int) -> tuple[int, int]:
        """Has the checks decide what they can of the next `most` pairs: how many they decided, and how many not."""
        with self._lock:
            return self._queue.auto_rate(most)

    def pairs_left(self) -> int:
        """Pairs that are still wanted: up to the limit or the target, else as many as use each item once."""
        with self._lock:
            if self._limit is not None:
                return max(0, self._limit - sum(desk.sitting for desk in self._desks.values()))
            if self._config.target:
                return max(0, self._config.target - self.by_all)
            return len(self._queue.items) // 2

    def position(self, item_id: str) -> int:
        """Of an item in the project's order, from 1."""
        with self._lock:
            return list(self._queue.items).index(item_id) + 1

    def progress(self, rater: str) -> Progress:
        with self._lock:
            desk = self._desk(rater)
            elapsed = self._clock() - desk.started
            return Progress(
                done=len(desk.comparisons),
                sitting=desk.sitting,
                by_all=self.by_all,
                target=self._config.target,
                per_hour=desk.sitting / elapsed * 3600 if desk.sitting and elapsed > 0 else None,
                agreement=self_agreement(desk.comparisons),
            )

    def _desk(self, rater: str) -> _Desk:
        if rater not in self._desks:
            self._desks[rater] = _Desk(rater, [], started=self._clock())
        self._refresh(self._desks[rater])
        return self._desks[rater]

    def _refresh(self, desk: _Desk) -> None:
        """Takes up what the rater did elsewhere: before, or in another sitting over the same project meanwhile.

        A pair that they have judged there leaves the screen, so that nobody judges it twice unasked.
        """
        revision = self._store.revision()
        if revision == desk.revision:
            return
        known = {record.id for record in desk.records}
        desk.records = [
            record
            for record in self._store.done_by(desk.rater)
            if len(record.items) == 2 and (isinstance(record, Skip) or record.source == "manual")
        ]
        desk.revision = revision
        elsewhere = {frozenset(record.items) for record in desk.records if record.id not in known}
        if desk.ticket is not None and not desk.ticket.repeats and desk.ticket.pair in elsewhere:
            desk.ticket = None
        desk.put_aside = [ticket for ticket in desk.put_aside if ticket.repeats or ticket.pair not in elsewhere]

    def _show(self, desk: _Desk, ticket: Ticket | None) -> None:
        desk.ticket = ticket
        desk.shown = self._clock()
        if not desk.sitting:
            desk.started = desk.shown

    def _record(self, desk: _Desk, ticket: Ticket, verdict: Verdict) -> Comparison | Skip:
        first, second = ticket.items
        items = (first.id, second.id)
        if verdict == "s":
            return Skip(items, desk.rater, id=ticket.id)
        seconds = self._clock() - desk.shown
        return Comparison(
            items=items,
            best=_BEST[verdict],
            rater=desk.rater,
            seconds=seconds,
            repeats=ticket.repeats,
            extra={"late": True} if seconds > self._config.seconds else {},
            id=ticket.id,
        )

    def _next(self, desk: _Desk) -> Ticket | None:
        if desk.put_aside:
            return desk.put_aside.pop()
        if self._random.random() < self._config.repeats and (first := self._to_repeat(desk)) is not None:
            desk.asked_again.add(first.id)
            left, right = (self._queue.items[item] for item in first.items)
            return Ticket((right, left), repeats=first.id)
        now = self._clock()
        judged = desk.records[-self._config.repeat_after :] if self._ask_again else desk.records
        refused = {frozenset(record.items) for record in judged}
        pair = self._queue.take(refused.union(*(other.holds(now) for other in self._desks.values())))
        if pair is None:
            return None
        return Ticket(pair if self._random.random() < 0.5 else (pair[1], pair[0]))

    def _to_repeat(self, desk: _Desk) -> Comparison | None:
        """One of the rater's decisive comparisons that is old enough and was not asked again yet."""
        asked_again = desk.asked_again | {comparison.repeats for comparison in desk.comparisons}
        old = desk.records[: -self._config.repeat_after]
        candidates = [
            record
            for record in old
            if isinstance(record, Comparison)
            and record.winner is not None
            and not record.repeats
            and record.id not in asked_again
        ]
        return self._random.choice(candidates) if candidates else None
