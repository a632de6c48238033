"""RayRLHF's own labels (SPEC section 11): JSONL, a header, then an object for each label; it holds a store losslessly.

    {"type": "header", "format": "rayrlhf-labels", "version": 1, "tokenizer": .., "formatter": .., "meta": {..}}
    {"type": "comparison", "id": .., "query": .., "samples": [{"text": .., "generator": ..}, ..], "best": 0, ..}
    {"type": "scalar", "id": .., "query": .., "sample": {"text": ..}, "score": 3.5, "scale": "1-5", ..}
    {"type": "skip", "samples": [..]}   {"type": "item", "query": .., "text": ..}   {"type": "retraction", "id": ..}

Lines are only ever appended. What a line leaves out has its default; `type` may be left out of labels. A sample may
have a `query` of its own; `query_ids` and `ids` are token ids, whose tokenizer the header names by its fingerprint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from rayrlhf.preferences.formats.content import (
    Content,
    Entry,
    Export,
    Fault,
    Faulty,
    Header,
    Identifier,
    Object,
    Outcome,
    ReadOptions,
    Row,
    each,
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
from rayrlhf.preferences.formats.token_text import decoded
from rayrlhf.preferences.records import Best, Comparison, Item, Rating, Skip
from rayrlhf.preferences.schema import Record

FORMAT = "rayrlhf-labels"
VERSION = 1
_TYPES = ("comparison", "scalar", "skip", "item", "retraction", "header")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def recognises(value: Object) -> bool:
    return value.get("format") == FORMAT or ("samples" in value and "best" in value)


def read(rows: Iterable[Row | Fault], options: ReadOptions) -> Iterator[Outcome]:
    reader = _Reader(options)
    return each(rows, reader.outcome)


class _Reader:
    """Knows what the header said: ids need a tokenizer that is known (SPEC LMHP-8)."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._identify = Identifier(FORMAT)
        self._ids_are_known = options.tokenizer is not None or options.without_text
        self._by_id: dict[str, Item | Record] = {}  # what has an id of its own

    def outcome(self, row: Row) -> Outcome:
        """Raises ValueError for what is no label, or has the id of another one."""
        outcome = self._outcome(row)
        if isinstance(outcome, Entry):
            for thing in (*outcome.items, *([] if outcome.record is None else [outcome.record])):
                if self._by_id.setdefault(thing.id, thing) != thing:
                    raise Faulty(f"the id {shown(thing.id)} is taken by another label or text of this file")
        return outcome

    def _outcome(self, row: Row) -> Outcome:
        value = row.value
        kind = value.get("type", "comparison" if "samples" in value else "scalar" if "sample" in value else None)
        if kind == "header":
            return self._header(row)
        if kind == "retraction":
            return Entry(row.line, (), retracts=text_of(value, "id"))
        if kind == "item":
            return Entry(row.line, (self._item(value, value),))
        if kind == "comparison" or kind == "skip":
            samples = value.get("samples")
            if not isinstance(samples, list) or not samples:
                raise Faulty(f'"samples" has to be a list of objects, not {shown(samples)}')
            items = tuple(self._item(value, sample) for sample in samples)
            make = self._comparison if kind == "comparison" else self._skip
            return Entry(row.line, items, make(value, items))
        if kind == "scalar":
            item = self._item(value, value.get("sample"))
            return Entry(row.line, (item,), self._rating(value, item))
        raise Faulty(f'"type" has to be one of {", ".join(_TYPES)}, not {shown(kind)}')

    def _header(self, row: Row) -> Header:
        value = row.value
        if value.get("format") != FORMAT or value.get("version") != VERSION:
            raise Faulty(
                f"the header has format {shown(value.get('format'))}, version {shown(value.get('version'))}; this "
                f"version of RayRLHF reads {FORMAT}, version {VERSION}"
            )
        meta = value.get("meta", {})
        if not isinstance(meta, dict) or not all(isinstance(text, str) for text in meta.values()):
            raise Faulty(f'"meta" has to be an object of texts, not {shown(meta)}')
        named = {key: text_of(value, key) for key in ("tokenizer", "formatter") if value.get(key) is not None}
        self._ids_are_known = self._ids_are_known or "tokenizer" in named
        return Header(row.line, {**meta, **named})

    def _item(self, line: Object, sample: Any) -> Item:
        """A sample of a line; `query` and `query_ids` may be the line's."""
        if not isinstance(sample, dict):
            raise Faulty(f"a sample has to be an object, not {shown(sample)}")
        value = sample if "query" in sample or "query_ids" in sample else {**sample, **_queries(line)}
        prompt_ids, text_ids = (_ids(value, key) for key in ("query_ids", "ids"))
        if (prompt_ids is not None or text_ids is not None) and not self._ids_are_known:
            raise Faulty(
                "token ids, but no header names their tokenizer: name its model (--tokenizer MODEL), or keep ids whatever "
                "they mean (--without-text)"
            )
        if "text" not in value and text_ids is None:
            raise Faulty('a sample has "text", "ids" or both')
        extra = value.get("extra", {})
        if not isinstance(extra, dict):
            raise Faulty(f'"extra" has to be an object, not {shown(extra)}')
        return Item(
            prompt=self._text(value, "query", prompt_ids),
            text=self._text(value, "text", text_ids),
            prompt_ids=prompt_ids,
            text_ids=text_ids,
            generator=text_of(value, "generator", ""),
            checkpoint=text_of(value, "checkpoint", ""),
            iteration=whole_of(value, "iteration"),
            seed=_seed(value),
            extra=extra,
            id=_id(sample),
        )

    def _text(self, value: Object, key: str, ids: tuple[int, ...] | None) -> str:
        if key in value or ids is None:
            return text_of(value, key, "")
        return decoded(ids, self._options.tokenizer, key) if self._options.tokenizer is not None else ""

    def _comparison(self, value: Object, items: tuple[Item, ...]) -> Comparison:
        k = len(items)
        best = value.get("best")
        ranking = indices_of(value, "ranking", k) if value.get("ranking") is not None else None
        return Comparison(
            items=tuple(item.id for item in items),
            best=cast(Best, best) if best in ("tie", "both_bad") else index_of(value, "best", k),
            broken=indices_of(value, "broken", k),
            reason=text_of(value, "reason", ""),
            confidence=number_of(value, "confidence"),
            difference=number_of(value, "difference"),
            ranking=ranking,
            repeats=text_of(value, "repeats", ""),
            **self._said(value, items),
            **_judged(value),
        )

    def _rating(self, value: Object, item: Item) -> Rating:
        return Rating(
            item=item.id,
            score=required_number(value, "score"),
            scale=text_of(value, "scale", ""),
            **self._said(value, (item,)),
            **_judged(value),
        )

    def _skip(self, value: Object, items: tuple[Item, ...]) -> Skip:
        return Skip(items=tuple(item.id for item in items), **self._said(value, items))

    def _said(self, value: Object, items: tuple[Item, ...]) -> Object:
        """Who and when, and the label's id: its own, or one that follows from its content."""
        created = number_of(value, "ts")
        return {
            "rater": rater_of(value, "rater"),
            "created": self._options.created if created is None else created,
            "id": _id(value) or self._identify(items, value),
        }


def _judged(value: Object) -> Object:
    extra = value.get("extra", {})
    if not isinstance(extra, dict):
        raise Faulty(f'"extra" has to be an object, not {shown(extra)}')
    weight = number_of(value, "weight", 1.0)
    if weight is None or weight < 0:
        raise Faulty(f'"weight" has to be a number of at least 0, not {shown(weight)}')
    return {
        "source": source_of(value, "manual"),
        "seconds": number_of(value, "seconds"),
        "weight": weight,
        "extra": extra,
    }


def _queries(value: Object) -> Object:
    return {key: value[key] for key in ("query", "query_ids") if key in value}


def _id(value: Object) -> str:
    found = text_of(value, "id", "")
    if len(found) > 200:
        raise Faulty('"id" is longer than 200 characters')
    return found


def _ids(value: Object, key: str) -> tuple[int, ...] | None:
    return None if value.get(key) is None else ids_of(value[key], key)


def _seed(value: Object) -> int | None:
    found = value.get("seed")
    if found is not None and type(found) is not int:
        raise Faulty(f'"seed" has to be a whole number, not {shown(found)}')
    return found


def write(content: Content) -> Export:
    """All of a store. Items are written in their labels, and on lines of their own where the order would be lost."""
    meta = dict(content.meta)
    named = {key: meta.pop(key, None) for key in ("tokenizer", "formatter")}
    rows: list[Object] = [{"type": "header", "format": FORMAT, "version": VERSION, **named, "meta": meta}]
    order = {item: number for number, item in enumerate(content.items)}
    written = 0  # so many items are in the file, and they are the first ones of the store
    items = list(content.items.values())
    for record, _ in content.history:
        ids = (record.item,) if isinstance(record, Rating) else record.items
        fresh = [order[item] for item in ids if order[item] >= written]
        if fresh != list(range(written, written + len(fresh))):
            rows += [_item_row(item) for item in items[written : max(fresh) + 1]]
            written = max(fresh) + 1
        else:
            written += len(fresh)
        rows.append(_record_row(record, [content.items[item] for item in ids]))
    rows += [_item_row(item) for item in items[written:]]
    rows += [{"type": "retraction", "id": record.id} for record, retracted in content.history if retracted]
    return Export(tuple(rows), {}, tuple(_notes(items, named["tokenizer"])))


def _notes(items: Sequence[Item], tokenizer: str | None) -> Iterator[str]:
    if tokenizer is None and any(item.text_ids is not None for item in items):
        yield "the tokenizer of its token ids is not known: an import needs --tokenizer MODEL or --without-text"
    if halves := sum(bool(_PAIR.search(item.prompt + item.text)) for item in items):
        yield f"{halves} texts have two halves of a surrogate pair side by side: JSON reads them as one character"


def _item_row(item: Item) -> Object:
    return {"type": "item", **_query(item), **_sample(item)}


def _record_row(record: Record, items: list[Item]) -> Object:
    shared = {(item.prompt, item.prompt_ids) for item in items}
    query = _query(items[0]) if len(shared) == 1 else {}
    samples = [_sample(item) if query else {**_query(item), **_sample(item)} for item in items]
    said = {"rater": record.rater, "ts": record.created}
    if isinstance(record, Skip):
        return {"type": "skip", "id": record.id, **query, "samples": samples, **said}
    said |= {"source": record.source, **_present(record, seconds=None, weight=1.0, extra={})}
    if isinstance(record, Rating):
        score = {"score": record.score, "scale": record.scale}
        return {"type": "scalar", "id": record.id, **query, "sample": samples[0], **score, **said}
    verdict = _present(record, broken=(), reason="", confidence=None, difference=None, ranking=None, repeats="")
    return {"type": "comparison", "id": record.id, **query, "samples": samples, "best": record.best, **verdict, **said}


def _query(item: Item) -> Object:
    return {"query": item.prompt} | ({} if item.prompt_ids is None else {"query_ids": list(item.prompt_ids)})


def _sample(item: Item) -> Object:
    ids = {} if item.text_ids is None else {"ids": list(item.text_ids)}
    provenance = _present(item, generator="", checkpoint="", iteration=None, seed=None, extra={})
    return {"id": item.id, "text": item.text, **ids, **provenance}


def _present(value: Any, **defaults: Any) -> Object:
    """The fields that do not have their default."""
    found = {name: getattr(value, name) for name in defaults}
    return {
        name: list(content)
        if isinstance(content, tuple)
        else dict(content)
        if isinstance(content, Mapping)
        else content
        for name, content in found.items()
        if content != defaults[name]
    }
