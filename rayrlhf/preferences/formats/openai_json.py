"""Labels of openai/lm-human-preferences (SPEC LMHP-1, -2, -4): a JSON array, token ids or text.

    {"query": [0, 0], "sample0": [..], "sample1": [..], .., "best": 1}               best of k, k >= 2
    {"query": [..], "sample": [..], "score": 3.5}                                     scalar rating
    {"query": [..], "sample0": [..], "sample1": [..], "difference": 0.7}              scalar comparison

Other fields are kept and written back. The format has no ties: one is k records in a row, with each sample winning once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from rayrlhf.preferences.formats.content import (
    Content,
    Entry,
    Export,
    Fault,
    Faulty,
    Identifier,
    Object,
    Outcome,
    ReadOptions,
    Row,
    ids_of,
    index_of,
    indices_of,
    number_of,
    rater_of,
    required_number,
    shown,
    source_of,
    text_of,
    whole_of,
)
from rayrlhf.preferences.formats.token_text import check_vocabulary, decoded, encoded, without_run
from rayrlhf.preferences.records import Best, Comparison, Item, Rating, Skip

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT = "openai_json"
"""Field of a record's `extra` with its rows as they stood in the file, ids left out: what makes an export exact."""
_SAMPLE = re.compile(r"sample(0|[1-9][0-9]{0,5})")


def recognises(value: Object) -> bool:
    return "query" in value and any(key in value for key in ("sample0", "sample")) and "samples" not in value


def read(rows: Iterable[Row | Fault], options: ReadOptions) -> Iterator[Outcome]:
    """Entries in the order of the file; k neighbouring records that make one tie are one entry."""
    listed = list(rows)
    identify = Identifier(KEPT)
    at = 0
    while at < len(listed):
        row = listed[at]
        count = 1
        if isinstance(row, Row):
            count = _tie_length(listed, at)
            try:
                yield _entry(cast(list[Row], listed[at : at + count]), identify, options)
            except ValueError as error:
                yield Fault(row.line, str(error))
                count = 1
        else:
            yield row
        at += count


def _tie_length(rows: Sequence[Row | Fault], start: int) -> int:
    """How many rows from `start` on are one tie: k of the same query and k samples, each of which wins once; else 1."""
    first = cast(Row, rows[start]).value
    samples = [key for key in first if _SAMPLE.fullmatch(key)]
    group = [row.value for row in rows[start : start + len(samples)] if isinstance(row, Row)]
    if len(samples) < 2 or len(group) < len(samples):
        return 1
    same = ["query", "rater", *samples]
    if any(value.get(key) != first.get(key) for value in group for key in same):
        return 1
    winners = [value.get("best") for value in group]
    if any(type(winner) is not int for winner in winners) or set(winners) != set(range(len(samples))):
        return 1
    return len(samples)


def _entry(rows: Sequence[Row], identify: Identifier, options: ReadOptions) -> Entry:
    value = rows[0].value
    if "sample" in value:
        return _rating(rows[0], identify, options)
    keys = [key for key in value if _SAMPLE.fullmatch(key)]
    ordered = [f"sample{index}" for index in range(len(keys))]
    if len(keys) < 2 or set(keys) != set(ordered):
        raise Faulty(f"expected sample0, sample1 and so on without a gap, at least two of them, not {', '.join(keys)}")
    if ("best" in value) == ("difference" in value):
        raise Faulty('a label of samples has "best" (which one won) or "difference", one of the two')
    items = tuple(_item(value, key, options) for key in ordered)
    for index, item in enumerate(items):
        if item.id in [other.id for other in items[:index]]:
            raise Faulty(f"sample{index} is the same as one before it: there is nothing to compare")
    best, difference = _verdict(rows, len(items))
    broken = _broken(rows, best, len(items))
    created = number_of(value, "ts")
    comparison = Comparison(
        items=tuple(item.id for item in items),
        best=best,
        source=source_of(value, "auto" if broken else "manual"),
        rater=rater_of(value, "rater"),
        created=options.created if created is None else created,
        broken=broken,
        difference=difference,
        extra={KEPT: [_kept(row.value, options) for row in rows]},
        id=identify(items, [row.value for row in rows]),
    )
    return Entry(rows[0].line, items, comparison, rows=len(rows))


def _rating(row: Row, identify: Identifier, options: ReadOptions) -> Entry:
    value = row.value
    item = _item(value, "sample", options)
    created = number_of(value, "ts")
    rating = Rating(
        item=item.id,
        score=required_number(value, "score"),
        scale=text_of(value, "scale", ""),
        source=source_of(value, "manual"),
        rater=rater_of(value, "rater"),
        created=options.created if created is None else created,
        extra={KEPT: [_kept(value, options)]},
        id=identify([item], value),
    )
    return Entry(row.line, (item,), rating)


def _verdict(rows: Sequence[Row], k: int) -> tuple[Best, float | None]:
    value = rows[0].value
    if len(rows) > 1:
        return "both_bad" if all(row.value.get("both_bad") is True for row in rows) else "tie", None
    if "difference" in value:
        difference = required_number(value, "difference")
        if k != 2:
            raise Faulty(f"a difference is between two samples, not {k}")
        return "tie" if difference == 0 else int(difference > 0), difference
    best = value["best"]
    if isinstance(best, str):
        if best not in ("tie", "both_bad"):
            raise Faulty(f'"best" has to be an index below {k}, "tie" or "both_bad", not {shown(best)}')
        return cast(Best, best), None
    return index_of(value, "best", k), None


def _broken(rows: Sequence[Row], best: Best, k: int) -> tuple[int, ...]:
    """Indices of samples that failed a check (SPEC GWERN-7): a list names them; a flag means all that did not win."""
    found: list[Any] = [row.value.get("broken") for row in rows]
    if isinstance(found[0], list):
        return indices_of(rows[0].value, "broken", k)
    for flag in found:
        if flag is not None and not isinstance(flag, bool | int | float):
            raise Faulty(f'"broken" has to be a flag or a list of indices, not {shown(flag)}')
    return tuple(index for index in range(k) if index != best) if any(found) else ()


def _item(value: Object, key: str, options: ReadOptions) -> Item:
    iteration = whole_of(value, "iteration")
    query, sample = value.get("query"), value.get(key)
    if isinstance(query, str) and isinstance(sample, str):
        return Item(query, sample, iteration=iteration)
    prompt_ids, text_ids = ids_of(query, "query"), ids_of(sample, key)
    if options.pad_id is not None:
        text_ids = without_run(text_ids, options.pad_id)
    if options.tokenizer is not None:
        check_vocabulary(prompt_ids, options.tokenizer, "query")
        check_vocabulary(text_ids, options.tokenizer, key)
    if options.without_text:
        return Item("", "", prompt_ids, text_ids, iteration=iteration)
    if options.tokenizer is None:
        raise Faulty(
            "token ids: name the model whose tokenizer made them (--tokenizer MODEL), or keep ids alone (--without-text)"
        )
    prompt, text = decoded(prompt_ids, options.tokenizer, "query"), decoded(text_ids, options.tokenizer, key)
    return Item(prompt, text, prompt_ids, text_ids, iteration=iteration)


def _kept(value: Object, options: ReadOptions) -> Object:
    """A row without its ids: null stands for what the items hold, [id, count] for that and a run of padding."""
    kept = dict(value)
    for key in value:
        if key in ("query", "sample") or _SAMPLE.fullmatch(key):
            kept[key] = None
            if key != "query" and options.pad_id is not None and isinstance(value[key], list):
                padding = len(value[key]) - len(without_run(tuple(value[key]), options.pad_id))
                kept[key] = [options.pad_id, padding] if padding else None
    return kept


def write(content: Content, tokenizer: PreTrainedTokenizerBase | None = None) -> Export:
    """Rows of a store's labels: what came from such a file, as it stood there; ids where all texts have them.

    tokenizer: makes ids of texts that have none. Without one such a store's labels are written as text (SPEC LMHP-8).
    """
    records = [record for record in content.records if not isinstance(record, Skip)]
    left_out: Counter[str] = Counter()
    left_out["skips"] = len(content.records) - len(records)
    used = {item for record in records for item in ((record.item,) if isinstance(record, Rating) else record.items)}
    left_out["items without a label"] = len(content.items.keys() - used)
    coder = _Coder(tokenizer, tokenizer is not None or all(_has_ids(content.items[item]) for item in used))
    rows: list[Object] = []
    ties = 0
    for record in records:
        items = [content.items[item] for item in ((record.item,) if isinstance(record, Rating) else record.items)]
        if any(coder.lacks(item) for item in items):
            left_out["labels of texts whose ids alone are known (--tokenizer makes ids of the others)"] += 1
            continue
        if len({str(coder.query(item)) for item in items}) > 1:
            left_out["comparisons of texts with different prompts"] += 1
            continue
        forms = record.extra.get(KEPT) or _forms(record, items)
        ties += len(forms) > 1
        rows += [coder.filled(form, items) for form in forms]
    notes = (f"{ties} ties are written as one record for each text, with each winning once",) if ties else ()
    return Export(tuple(rows), +left_out, notes)


def _has_ids(item: Item) -> bool:
    return item.text_ids is not None and (item.prompt_ids is not None or not item.prompt)


class _Coder:
    """Items as values of a row: all of a file as ids, or all as text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def lacks(self, item: Item) -> bool:
        return not self._as_ids and not item.text and bool(item.text_ids)

    def query(self, item: Item) -> str | list[int]:
        return self._value(item.prompt, item.prompt_ids)

    def filled(self, form: Mapping[str, Any], items: Sequence[Item]) -> Object:
        """A row: the form with the values of query and samples in their places."""
        row = dict(form)
        samples = {"sample": items[0], **{f"sample{index}": item for index, item in enumerate(items)}}
        for key in form:
            if key == "query":
                row[key] = self.query(items[0])
            elif key in samples and (form[key] is None or isinstance(form[key], list)):
                value = self._value(samples[key].text, samples[key].text_ids)
                padding = [form[key][0]] * form[key][1] if form[key] and isinstance(value, list) else []
                row[key] = [*value, *padding] if isinstance(value, list) else value
        return row

    def _value(self, text: str, ids: tuple[int, ...] | None) -> str | list[int]:
        if not self._as_ids:
            return text
        if ids is not None:
            return list(ids)
        return encoded(text, self._tokenizer) if self._tokenizer is not None and text else []


def _forms(record: Comparison | Rating, items: Sequence[Item]) -> list[Object]:
    """What is written of a record that comes from elsewhere: its rows without query and samples."""
    extra: Object = {"source": record.source, "ts": record.created}
    if record.rater:
        extra["rater"] = record.rater
    iterations = {item.iteration for item in items}
    if len(iterations) == 1 and (iteration := iterations.pop()) is not None:
        extra["iteration"] = iteration
    if isinstance(record, Rating):
        scale = {"scale": record.scale} if record.scale else {}
        return [{"query": None, "sample": None, "score": record.score, **scale, **extra}]
    start: Object = {"query": None, **{f"sample{index}": None for index in range(len(items))}}
    if record.broken:
        extra["broken"] = list(record.broken)
    if record.difference is not None and len(items) == 2:
        return [{**start, "difference": record.difference, **extra}]
    if isinstance(record.best, int):
        return [{**start, "best": record.best, **extra}]
    if record.best == "both_bad":
        extra["both_bad"] = True  # tells it from a tie of good texts
    return [{**start, "best": index, **extra} for index in range(len(items))]
