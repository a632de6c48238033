"""What people's preferences are made of: items, comparisons, scalar ratings (SPEC section 11).

All are immutable and carry their own id. An item's id follows from what it holds, so the same sample added twice is one
item; a comparison's or rating's id is drawn by whoever makes it, so a write that is repeated after a crash counts once.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rayrlhf.reading import Number

Source = Literal["manual", "auto", "weak", "judge"]
"""Who judged: a person, a check that needs nobody (SPEC GWERN-7), a rule of thumb, a program in a person's place."""
Tie = Literal["tie", "both_bad"]
Best = int | Tie
"""Index of the winner, or "tie" (equally good), or "both_bad" (equally bad: none of them is wanted)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One text that can be rated, and where it comes from (SPEC GWERN-37)."""

    prompt: str  # what the text goes on from; "" where there is none
    text: str  # the continuation alone, without special tokens
    prompt_ids: tuple[int, ...] | None = None  # token ids of the prompt, where they are known
    text_ids: tuple[int, ...] | None = None  # token ids of the continuation, padding excluded
    generator: str = ""  # what wrote it: a model's or run's name, "human", "corpus"; "" where unknown
    checkpoint: str = ""  # which checkpoint of it
    iteration: int | None = None  # how many updates or rounds were behind it
    seed: int | None = None  # of its sampling
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields of an imported file that have no place of their own
    id: str = ""  # [16] hexadecimal digits of the sha256 over all of the above; filled in when left out

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", self._digest())

    def _digest(self) -> str:
        content = [
            self.prompt, self.text, self.prompt_ids, self.text_ids, self.generator, self.checkpoint, self.iteration,
            self.seed, dict(self.extra),
        ]  # fmt: skip
        encoded = json.dumps(content, sort_keys=True).encode()  # ASCII: half a surrogate pair is no obstacle
        return hashlib.sha256(encoded).hexdigest()[:16]


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Comparison:
    """One verdict over k >= 2 items that were shown together."""

    items: tuple[str, ...]  # [k] item ids, in the order in which they were shown
    best: Best
    source: Source = "manual"
    rater: str = ""
    seconds: Number | None = None  # from showing to verdict
    created: Number = field(default_factory=time.time)  # seconds since 1970, UTC
    weight: Number = 1.0  # evidence that it counts for
    broken: tuple[int, ...] = ()  # indices into items of those that failed a check
    reason: str = ""  # why a check or judge decided so
    confidence: Number | None = None  # of the rater, on the scale of the file that it comes from
    difference: Number | None = None  # value of items[1] minus that of items[0] (scalar_compare, SPEC LMHP-2)
    ranking: tuple[int, ...] | None = None  # [k] indices into items from best to worst, where all were ranked
    repeats: str = ""  # id of the comparison that was asked again here, to see how far a rater agrees with themselves
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields of an imported file without a place of their own
    id: str = field(default_factory=new_id)

    def __post_init__(self) -> None:
        k = len(self.items)
        if k < 2 or len(set(self.items)) != k:
            raise ValueError(f"a comparison is of at least two different items, not {self.items}")
        if not (self.best in ("tie", "both_bad") or (isinstance(self.best, int) and 0 <= self.best < k)):
            raise ValueError(f'best is an index below {k}, "tie" or "both_bad", not {self.best!r}')
        if not all(0 <= index < k for index in self.broken):
            raise ValueError(f"broken has indices below {k}, not {self.broken}")
        if self.ranking is not None and sorted(self.ranking) != list(range(k)):
            raise ValueError(f"ranking has each index below {k} once, not {self.ranking}")

    @property
    def winner(self) -> str | None:
        """Item id of the winner; None for ties of either kind."""
        return self.items[self.best] if isinstance(self.best, int) else None


@dataclass(frozen=True, slots=True)
class Rating:
    """One number given to one item (SPEC LMHP-2: scalar_rating)."""

    item: str
    score: Number
    scale: str = ""  # what the number means, such as "1-10" or "binary" (0 and 1); ratings are compared within a scale
    source: Source = "manual"
    rater: str = ""
    seconds: Number | None = None
    created: Number = field(default_factory=time.time)
    weight: Number = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=new_id)


@dataclass(frozen=True, slots=True)
class Skip:
    """Items that a rater was shown and would not judge: they are not shown to them together again."""

    items: tuple[str, ...]
    rater: str = ""
    created: Number = field(default_factory=time.time)
    id: str = field(default_factory=new_id)
