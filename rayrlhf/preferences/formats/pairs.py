"""What formats of a chosen and a rejected text share: pairs of a comparison, and what they cannot hold of a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rayrlhf.preferences.formats.content import Content
from rayrlhf.preferences.records import Comparison, Item, Rating


def common_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many characters, or messages, two have in common at their beginning."""
    return next(
        (at for at, (mine, other) in enumerate(zip(first, second, strict=False)) if mine != other),
        min(len(first), len(second)),
    )


def text_pairs(content: Content) -> tuple[list[tuple[Comparison, list[tuple[Item, Item]]]], Counter[str]]:
    """Each decisive comparison with its pairs (winner, loser): the best with each other text.

    Also what is not among them, by name: ties of both kinds, texts known by their ids alone, ratings, skips, items that
    no comparison is of.
    """
    left_out: Counter[str] = Counter()
    found = []
    compared: set[str] = set()
    for record in content.records:
        if not isinstance(record, Comparison):
            left_out["scalar ratings" if isinstance(record, Rating) else "skips"] += 1
            continue
        compared.update(record.items)
        items = [content.items[item] for item in record.items]
        if not isinstance(record.best, int):
            left_out["ties" if record.best == "tie" else 'verdicts "both bad"'] += 1
        elif any(item.text_ids and not item.text for item in items):
            left_out["comparisons of texts whose ids alone are known"] += 1
        else:
            winner = items[record.best]
            found.append((record, [(winner, item) for item in items if item is not winner]))
    left_out["items without a comparison"] = len(content.items.keys() - compared)
    return found, left_out


def split_note(comparisons: int) -> tuple[str, ...]:
    """What is said of comparisons of k > 2 that became pairs."""
    if not comparisons:
        return ()
    return (f"{comparisons} comparisons of more than two are written as pairs of the best with each other text",)
