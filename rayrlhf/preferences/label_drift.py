"""Are labels of the same kind as rollouts (SPEC GWERN-18)? Their queries, first tokens and lengths are compared."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rayrlhf.preferences.formats.token_text import encoded
from rayrlhf.preferences.label_findings import Finding
from rayrlhf.preferences.records import Item
from rayrlhf.text_statistics import words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST = 5_000  # texts of either side, evenly taken
PERMUTATIONS = 500
CHANCE = 0.99  # quantile of the distance between random halves that a distance has to exceed
LEAST_SHARED_QUERIES = 0.5
LARGEST_LENGTH_RATIO = 2.0


def drift(
    path: Path, labels: Sequence[Item], rollouts: Sequence[Item], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[tuple[str, ...], list[Finding]]:
    """What comparing them gives, in words, and a warning for each difference that chance does not explain.

    With a tokenizer texts are compared as its tokens; else as ids where both have them, or as words and characters.
    """
    if not labels or not rollouts:
        return ("labels or rollouts have no text: there is nothing to compare",), []
    mine, theirs = ([_taken(item, tokenizer) for item in _evenly(items)] for items in (labels, rollouts))
    as_ids = all(ids is not None for _, ids, _ in (*mine, *theirs))
    if not as_ids and any(ids is not None and not text for _, ids, text in (*mine, *theirs)):
        return ("labels have token ids and rollouts text: name the tokenizer to compare them (--tokenizer)",), []
    return _compared(path, mine, theirs, as_ids)


_Taken = tuple[Hashable, tuple[int, ...] | None, str]
"""Query, ids of the sample, text of the sample."""


def _taken(item: Item, tokenizer: PreTrainedTokenizerBase | None) -> _Taken:
    ids = item.text_ids
    if ids is None and tokenizer is not None:
        ids = tuple(encoded(item.text, tokenizer))
    query: Hashable = item.prompt_ids if item.prompt_ids is not None and not item.prompt else item.prompt
    return query, ids, item.text


def _evenly(items: Sequence[Item]) -> list[Item]:
    distinct = list({item.id: item for item in items}.values())
    return [distinct[index * len(distinct) // MOST] for index in range(MOST)] if len(distinct) > MOST else distinct


def _compared(
    path: Path, mine: Sequence[_Taken], theirs: Sequence[_Taken], as_ids: bool
) -> tuple[tuple[str, ...], list[Finding]]:
    findings = []
    queries = [query for query, _, _ in mine]
    played = {query for query, _, _ in theirs}
    shared = sum(query in played for query in queries) / len(queries)
    said = [f"{shared:.0%} of the labelled texts have a query that rollouts have"]
    if shared < LEAST_SHARED_QUERIES:
        strange = next(query for query in queries if query not in played)
        example = f"labels have {_short(strange)}, rollouts {_short(theirs[0][0])}"
        findings.append(Finding("other queries", str(path), f"{said[0]}: {example}"))

    unit = "token" if as_ids else "word"
    first = [[_first(ids if as_ids else None, text) for _, ids, text in side] for side in (mine, theirs)]
    distance, by_chance = first_token_distance(first[0], first[1])
    said.append(f"first {unit}s: total variation {distance:.2f}, by chance up to {by_chance:.2f}")
    if distance > by_chance:
        common = [statistics.mode(side) for side in first]
        example = f"labels mostly begin with {_short(common[0])}, rollouts with {_short(common[1])}"
        findings.append(Finding("other beginnings", str(path), f"{said[1]}: {example}"))

    unit = "tokens" if as_ids else "characters"
    lengths = [
        statistics.median(len(ids if as_ids and ids else text) for _, ids, text in side) for side in (mine, theirs)
    ]
    said.append(f"median length: {lengths[0]:g} {unit} of labels, {lengths[1]:g} of rollouts")
    if max(lengths) > LARGEST_LENGTH_RATIO * max(1, min(lengths)):
        findings.append(Finding("other lengths", str(path), said[2]))
    return tuple(said), findings


def first_token_distance(mine: Sequence[Hashable], theirs: Sequence[Hashable], seed: int = 0) -> tuple[float, float]:
    """Total variation distance of two histograms, in [0, 1], and its 99 % quantile where chance alone told them apart.

    The latter by permutation: labels and rollouts are shuffled together and dealt out again.
    """
    codes: dict[Hashable, int] = {}
    values = np.array([codes.setdefault(value, len(codes)) for value in (*mine, *theirs)])
    generator = np.random.default_rng(seed)

    def distance(order: np.ndarray) -> float:
        histograms = [np.bincount(part, minlength=len(codes)) / len(part) for part in np.split(order, [len(mine)])]
        return float(np.abs(histograms[0] - histograms[1]).sum() / 2)

    shuffled = [distance(generator.permutation(values)) for _ in range(PERMUTATIONS)]
    return distance(values), float(np.quantile(shuffled, CHANCE))


def _first(ids: tuple[int, ...] | None, text: str) -> Hashable:
    if ids is not None:
        return ids[0] if ids else ""
    return next(iter(words(text)), "")


def _short(value: Hashable) -> str:
    if isinstance(value, tuple):
        return f"ids {' '.join(map(str, value[:8]))}"
    return ascii(value if len(str(value)) <= 40 else f"{str(value)[:40]}...")
