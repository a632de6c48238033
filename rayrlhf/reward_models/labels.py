"""From a project's records to training examples: which labels an objective takes, what is left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.auto_rating import cap_automatic
from rayrlhf.preferences.ranking import Ranking
from rayrlhf.preferences.records import Comparison, Item, Rating
from rayrlhf.reward_models.config import RewardModelConfig
from rayrlhf.reward_models.examples import Example, ExampleTable, held_out_indices
from rayrlhf.reward_models.losses import TIE
from rayrlhf.reward_models.text_format import TextFormat

_LEAST_DEVIATION = 1e-2  # anchors are known exactly: they shall not outweigh all else


@dataclass(frozen=True, slots=True)
class LabelledData:
    """What a reward model is trained and judged on."""

    training: ExampleTable
    held_out: ExampleTable
    judged: ExampleTable  # comparisons, as `_comparisons` takes them, of items of held-out labels alone
    dropped: Mapping[str, int]  # why labels were left out -> how many
    tokens_dropped: int  # tokens of items that are longer than the model's context

    def lines(self) -> list[str]:
        """What was used and what was not (SPEC LMHP-5)."""
        told = [f"{_counts(self.training)} to train on, {_counts(self.held_out)} held out"]
        told += [f"left out: {count} {reason}" for reason, count in self.dropped.items() if count]
        if self.tokens_dropped:
            told.append(f"{self.tokens_dropped} tokens of texts longer than the model's context were cut off")
        return told


def labelled_data(
    items: Mapping[str, Item],
    comparisons: Sequence[Comparison],
    ratings: Sequence[Rating],
    ranking: Ranking | None,
    config: RewardModelConfig,
    text_format: TextFormat,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: str,
) -> LabelledData:
    """The examples of the config's objective, split into training and held-out ones.

    ranking: of `items`, for the objective `latent`. vocabulary: fingerprint of the tokenizer of the items' ids.

    Raises:
        PreferenceError: there are no such labels, or an item has no text and ids of another tokenizer.
    """
    dropped: Counter[str] = Counter()
    if config.objective == "latent":
        assert ranking is not None
        labels = _latent(ranking, items, dropped)
    elif config.objective in ("rating", "binary"):
        labels = _ratings(ratings, config, items, dropped)
    else:
        labels = _comparisons(comparisons, config, items, dropped)
    if len(labels) < 2:
        reasons = "; ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it has none"
        raise PreferenceError(
            f"too few labels for objective `{config.objective}`: {len(labels)} can be used ({reasons})"
        )
    parts = _parts([ids for ids, _ in labels], items)
    training, held_out = held_out_indices(parts, config.held_out_share, config.seed)
    if config.labels is not None and len(training) > config.labels:
        dropped[f"training labels beyond {config.labels}, drawn at random"] = len(training) - config.labels
        training = np.sort(np.random.default_rng([config.seed, 0x1ABE]).permutation(training)[: config.labels])
    rows, sequences, cut = _sequences([ids for ids, _ in labels], items, text_format, tokenizer, vocabulary)
    examples = [
        Example(
            rows=tuple(rows[i] for i in ids), best=e.best, value=e.value, weight=e.weight, source=e.source, part=part
        )
        for (ids, e), part in zip(labels, parts, strict=True)
    ]
    table = ExampleTable(tuple(sequences), tuple(examples))
    unseen = table.subset(held_out)
    judged = unseen
    if config.objective != "comparison":
        known = {row for example in unseen.examples for row in example.rows}
        whole = config.model_copy(update={"objective": "comparison", "automatic_share": 1.0})
        compared = [
            replace(example, rows=tuple(rows[i] for i in ids))
            for ids, example in _comparisons(comparisons, whole, items, Counter())
            if all(rows.get(i) in known for i in ids)
        ]
        judged = ExampleTable(table.sequences, tuple(compared))
    return LabelledData(table.subset(training), unseen, judged, dict(dropped), cut)


_Label = tuple[tuple[str, ...], Example]
"""Item ids, and the example without its rows."""


def _comparisons(
    comparisons: Sequence[Comparison], config: RewardModelConfig, items: Mapping[str, Item], dropped: Counter[str]
) -> list[_Label]:
    kept = list(comparisons)
    if config.window is not None and len(kept) > config.window:
        dropped[f"comparisons older than the last {config.window}"] = len(kept) - config.window
        kept = kept[-config.window :]
    usable: list[Comparison] = []
    for comparison in kept:
        tie = not isinstance(comparison.best, int)
        if config.objective == "difference" and comparison.difference is None:
            dropped["comparisons that do not say how far apart the items are"] += 1
        elif tie and config.ties == "drop" and config.objective == "comparison":
            dropped["ties"] += 1
        elif _same(comparison.items, items):
            dropped["comparisons of equal texts"] += 1
        else:
            usable.append(comparison)
    capped = cap_automatic(usable, config.automatic_share, config.seed)
    dropped[f"automatic comparisons over a share of {config.automatic_share:g}"] = len(usable) - len(capped)
    return [(comparison.items, _compared(comparison)) for comparison in capped]


def _compared(comparison: Comparison) -> Example:
    best = comparison.best if isinstance(comparison.best, int) else TIE
    return Example((), best, comparison.difference or 0.0, comparison.weight, _source(comparison))


def _source(comparison: Comparison) -> str:
    """Who judged: raters one by one where they have names (SPEC LMHP-14, by label source)."""
    return f"{comparison.source}:{comparison.rater}" if comparison.rater else comparison.source


def _same(ids: Sequence[str], items: Mapping[str, Item]) -> bool:
    texts = {(items[i].prompt, items[i].text, items[i].text_ids if not items[i].text else None) for i in ids}
    return len(texts) == 1


def _ratings(
    ratings: Sequence[Rating], config: RewardModelConfig, items: Mapping[str, Item], dropped: Counter[str]
) -> list[_Label]:
    wanted = config.scale or ("binary" if config.objective == "binary" else "")
    scales = {rating.scale for rating in ratings}
    if not wanted and len(scales) > 1:
        raise PreferenceError(f"the ratings are on several scales ({', '.join(sorted(scales))}): name one as `scale`")
    labels: list[_Label] = []
    for rating in ratings:
        if wanted and rating.scale != wanted:
            dropped[f"ratings on the scale {rating.scale!r}"] += 1
        elif config.objective == "binary" and rating.score not in (0, 1):
            raise PreferenceError(f"rating {rating.id} is {rating.score:g}: classes are 0 and 1")
        else:
            source = f"{rating.source}:{rating.rater}" if rating.rater else rating.source
            labels.append(((rating.item,), Example((), value=rating.score, weight=rating.weight, source=source)))
    return labels


def _latent(ranking: Ranking, items: Mapping[str, Item], dropped: Counter[str]) -> list[_Label]:
    """Regression on the latent scores, weight 1 / posterior variance (SPEC GWERN-23)."""
    judged = ranking.wins + ranking.losses + ranking.ties > 0
    dropped["items that nobody compared"] = int((~judged).sum())
    precision = 1 / np.maximum(ranking.deviation, _LEAST_DEVIATION) ** 2
    return [
        ((ranking.ids[i],), Example((), value=float(ranking.mean[i]), weight=float(precision[i]), source="latent"))
        for i in np.flatnonzero(judged)
    ]


def _parts(groups: Sequence[Sequence[str]], items: Mapping[str, Item]) -> list[str]:
    """Of each label what it must not be parted from: labels of one prompt where there are several prompts, and labels
    that share an item (SPEC LMHP-5)."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while (parent := root.setdefault(name, name)) != name:
            root[name] = root[parent] = root.setdefault(parent, parent)
            name = root[name]
        return name

    several = len({items[i].prompt for ids in groups for i in ids}) > 1
    for ids in groups:
        for item in ids:
            root[find(item)] = find(ids[0])
            if several:
                root[find(item)] = find(f"prompt:{items[item].prompt}")
    return [find(ids[0]) for ids in groups]


def _sequences(
    groups: Sequence[Sequence[str]],
    items: Mapping[str, Item],
    text_format: TextFormat,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: str,
) -> tuple[dict[str, int], list[np.ndarray], int]:
    """Row of each item, the token sequences, and how many tokens did not fit."""
    rows: dict[str, int] = {}
    sequences: list[np.ndarray] = []
    cut = 0
    for item in dict.fromkeys(i for ids in groups for i in ids):
        one = items[item]
        if one.text_ids is not None and not one.text and vocabulary != text_format.vocabulary:
            raise PreferenceError(
                f"item {item} has token ids and no text, and its tokenizer (fingerprint {vocabulary or 'unknown'}) is "
                f"not the model's ({text_format.vocabulary}): import the labels with --tokenizer"
            )
        ids, dropped = text_format.encode(tokenizer, one.prompt, one.text, one.text_ids, vocabulary)
        rows[item] = len(sequences)
        sequences.append(ids)
        cut += dropped
    return rows, sequences, cut


def _counts(table: ExampleTable) -> str:
    sources = Counter(example.source for example in table.examples)
    return f"{len(table)} labels ({', '.join(f'{count} {source}' for source, count in sources.most_common())})"
