"""Comparisons of OpenAI's summarize-from-feedback: JSONL or an array of objects.

    {"info": {"post": .., "title": .., "subreddit": ..}, "summaries": [{"text": .., "policy": ..}, {..}],
     "choice": 1, "worker": .., "extra": {"confidence": 7}}

The prompt is the one of that paper's models (Stiennon et al. 2020, appendix B.2): it ends with "TL;DR:".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

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
    each,
    index_of,
    number_of,
    rater_of,
    shown,
    text_of,
)
from rayrlhf.preferences.formats.pairs import split_note, text_pairs
from rayrlhf.preferences.records import Comparison, Item

KEPT = "summarize"
"""Field of a record's `extra` with its row, the summaries' texts left out."""


def recognises(value: Object) -> bool:
    return "summaries" in value


def read(rows: Iterable[Row | Fault], options: ReadOptions) -> Iterator[Outcome]:
    identify = Identifier(KEPT)
    return each(rows, lambda row: _entry(row, identify, options))


def _entry(row: Row, identify: Identifier, options: ReadOptions) -> Entry:
    value = row.value
    info, summaries, extra = value.get("info"), value.get("summaries"), value.get("extra") or {}
    if not isinstance(info, dict):
        raise Faulty(f'"info" has to be an object with the post, not {shown(info)}')
    if not isinstance(summaries, list) or len(summaries) < 2:
        raise Faulty(f'"summaries" has to be a list of at least two, not {shown(summaries)}')
    if not isinstance(extra, dict):
        raise Faulty(f'"extra" has to be an object, not {shown(extra)}')
    for summary in summaries:
        if not isinstance(summary, dict):
            raise Faulty(f'"summaries" has to be a list of objects, not of {shown(summary)}')
    prompt = _prompt(info)
    items = tuple(
        Item(prompt, text_of(summary, "text"), generator=text_of(summary, "policy", options.generator))
        for summary in summaries
    )
    if len({item.id for item in items}) < len(items):
        raise Faulty("two of the summaries are the same text of the same policy: there is nothing to compare")
    comparison = Comparison(
        items=tuple(item.id for item in items),
        best=index_of(value, "choice", len(items)),
        rater=rater_of(value, "worker"),
        created=options.created,
        confidence=number_of(extra, "confidence"),
        extra={KEPT: {**value, "summaries": [{**summary, "text": None} for summary in summaries]}},
        id=identify(items, value),
    )
    return Entry(row.line, items, comparison)


def _prompt(info: Object) -> str:
    """A post of Reddit, or an article of CNN / Daily Mail; a post without title and subreddit is the prompt itself."""
    if "post" not in info and "article" in info:
        return f"Article:\n\n{text_of(info, 'article')}\n\nTL;DR:"
    post = text_of(info, "post")
    title, subreddit = info.get("title"), info.get("subreddit")
    if title is None and subreddit is None:
        return post
    head = [f"SUBREDDIT: r/{text_of(info, 'subreddit')}"] if subreddit is not None else []
    head += [f"TITLE: {text_of(info, 'title')}"] if title is not None else []
    return "\n\n".join([*head, f"POST: {post}", "TL;DR:"])


def write(content: Content) -> Export:
    """Decisive comparisons; of k > 2 texts that came from elsewhere, as pairs of the best with each other one."""
    found, left_out = text_pairs(content)
    rows: list[Object] = []
    several = 0
    for record, pairs in found:
        items = [content.items[item] for item in record.items]
        if kept := record.extra.get(KEPT):
            summaries = [{**form, "text": item.text} for form, item in zip(kept["summaries"], items, strict=True)]
            rows.append({**kept, "summaries": summaries})
        elif len({item.prompt for item in items}) > 1:
            left_out["comparisons of texts with different prompts"] += 1
        else:
            several += len(pairs) > 1
            rows += [_row(record, pair) for pair in ([items] if len(items) == 2 else pairs)]
    return Export(tuple(rows), +left_out, split_note(several))


def _row(record: Comparison, items: Sequence[Item]) -> Object:
    ids = [item.id for item in items]
    return {
        "info": {"post": items[0].prompt},
        "summaries": [{"text": item.text, "policy": item.generator} for item in items],
        "choice": ids.index(str(record.winner)),
        "worker": record.rater,
        "extra": {} if record.confidence is None else {"confidence": record.confidence},
    }
