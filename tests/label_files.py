"""A tokenizer with GPT-2's ids of a few words, small label files of every format, and a store's content."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rayrlhf.preferences.formats.content import Content, ReadOptions
from rayrlhf.preferences.formats.registry import FORMATS, encode, read_data
from rayrlhf.preferences.label_import import ImportReport, LabelFile, import_file, refuse_faults
from rayrlhf.preferences.records import Comparison, Item, Rating, Skip
from rayrlhf.preferences.schema import Record
from rayrlhf.preferences.store import FILE_NAME, RatingStore

GWERN = Path(__file__).parent / "data" / "labels" / "gwern.json"

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "openai_json": [
        {"query": [0, 0], "sample0": [1, 2], "sample1": [3], "best": 1, "broken": 1},
        {"query": [5], "sample0": [6], "sample1": [7], "sample2": [8, 9], "best": 2, "rater": "ann", "ts": 3.5},
        {"best": 0, "query": [0], "sample1": [2], "sample0": [1]},
        {"best": 1, "query": [0], "sample1": [2], "sample0": [1]},
        {"query": [0], "sample": [4, 4], "score": 2.5, "iteration": 3},
        {"query": [0], "sample0": [4], "sample1": [5], "difference": -0.5, "source": "judge"},
        {"query": "A text", "sample0": " one", "sample1": " two\ud800", "best": "tie"},
        {"query": "A text", "sample0": " one", "sample1": " six", "best": "both_bad", "notes": {"why": [1.5, None]}},
    ],
    "trl": [
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "score_chosen": 9.5},
        {"chosen": "The sky is clear", "rejected": "The sky is wet"},
        {
            "prompt": [{"role": "user", "content": "Hello"}],
            "chosen": [{"role": "assistant", "content": "Hi"}],
            "rejected": [{"role": "assistant", "content": "No", "name": "x"}],
        },
        {
            "chosen": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2"}],
            "rejected": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "3"}],
        },
    ],
    "anthropic_hh": [
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: What"},
        {
            "chosen": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D",
            "rejected": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D and E",
        },
    ],
    "summarize": [
        {
            "info": {"id": "t3_1", "post": "My cat sat.", "title": "Cat", "subreddit": "pets"},
            "summaries": [
                {"text": " A cat sat.", "policy": "sup1", "note": ""},
                {"text": " Cats.", "policy": "ref", "note": "short"},
            ],
            "choice": 1,
            "worker": "w7",
            "batch": "batch3",
            "split": "train",
            "extra": {"confidence": 8},
        },
        {
            "info": {"id": "c1", "article": "News.", "site": "cnn"},
            "summaries": [{"text": " a", "policy": "p"}, {"text": " b", "policy": "p"}],
            "choice": 0,
            "worker": "w8",
        },
    ],
    "native": [
        {"type": "header", "format": "rayrlhf-labels", "version": 1, "tokenizer": "abc", "formatter": None, "meta": {}},
        {
            "query": "Once",
            "query_ids": [1],
            "samples": [
                {"text": " a", "ids": [2], "generator": "m", "iteration": 1, "seed": 5},
                {"text": " b", "ids": [3]},
                {"text": " c"},
            ],
            "best": 0,
            "ranking": [0, 2, 1],
            "source": "manual",
            "rater": "ann",
            "broken": [1],
            "reason": "empty",
            "ts": 2.0,
            "weight": 0.5,
        },
        {"query": "Once", "sample": {"text": " a"}, "score": 4, "scale": "1-5"},
        {"type": "skip", "samples": [{"text": "x"}, {"text": "y", "query": "Q"}], "rater": "bob"},
        {"type": "item", "query": "Once", "text": " alone", "extra": {"k": [1]}},
    ],
    "samples": [
        {"run": "r", "iteration": 0, "prompt": "Once", "response": " upon a time", "score": 1.5},
        {"run": "r", "iteration": 1, "prompt": "Once", "response": " upon a hill<|endoftext|>", "score": 1.0},
    ],
}

IDS_ALONE = ReadOptions(without_text=True, created=100.0)


@functools.lru_cache(1)
def gpt2_like() -> PreTrainedTokenizerBase:
    """50,257 tokens: the letters of `<|endoftext|>` and of a backslash n at GPT-2's ids, the end of text at 50256."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    known = {27: "<", 29: ">", 91: "|", 437: "end", 1659: "of", 5239: "text", 59: "\\", 77: "n", 55: "X", 25: ":"}
    vocabulary = {known.get(token, f" w{token}"): token for token in range(50_256)} | {"<|endoftext|>": 50_256}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=" w0"))
    words.decoder = decoders.Fuse()
    words.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>")


def data_of(name: str, rows: Iterable[dict[str, Any]] | None = None) -> bytes:
    """A file of a format."""
    return b"".join(encode(EXAMPLES[name] if rows is None else rows, FORMATS[name].is_array))


def read(data: bytes, options: ReadOptions = IDS_ALONE, name: str | None = None) -> LabelFile:
    return LabelFile(Path("labels"), *read_data(data, options, name))


def take(store: RatingStore, data: bytes, options: ReadOptions = IDS_ALONE, name: str | None = None) -> ImportReport:
    """Imports a sound file."""
    file = read(data, options, name)
    refuse_faults([file], "mend it")
    return import_file(store, file)


def content_of(store: RatingStore) -> Content:
    return Content(store.items(), tuple(store.history()), store.meta())


def rows_of(store: RatingStore, name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> list[dict[str, Any]]:
    """What a store's export reads as, once it is JSON."""
    form = FORMATS[name]
    assert form.write is not None
    data = b"".join(encode(form.write(content_of(store), tokenizer).rows, form.is_array))
    return json.loads(data) if form.is_array else [json.loads(line) for line in data.splitlines()]


def full_store(folder: Path) -> RatingStore:
    """A store with every kind of label, of which some are retracted, in an order that items do not follow."""
    store = RatingStore(folder / FILE_NAME)
    items = [Item("\n\nHuman: Hi\n\nAssistant:", f" answer {index}", generator="m", seed=index) for index in range(6)]
    items += [Item("Other", " text\ud800\0", (1, 2), (3,), checkpoint="c", iteration=4, extra={"k": {"deep": [None]}})]
    store.add_items(items)
    ids = [item.id for item in items]
    records: list[Record] = [
        Comparison((ids[4], ids[1]), 0, rater="ann", seconds=1.5, confidence=3.0),
        Comparison((ids[0], ids[1], ids[2]), 2, broken=(0,), reason="short", ranking=(2, 1, 0)),
        Comparison((ids[0], ids[1]), "tie", "judge", weight=0.25),
        Comparison((ids[2], ids[3]), "both_bad", "auto", broken=(0, 1)),
        Comparison((ids[0], ids[6]), 1, "weak"),
        Comparison((ids[0], ids[3]), 1, difference=0.75, repeats="x", extra={"more": [1, 2.5]}),
        Rating(ids[5], 3.5, "1-5", rater="bob"),
        Rating(ids[0], -1e-300),
        Skip((ids[0], ids[6]), "ann"),
    ]
    store.add(*records)
    store.retract(records[2].id)
    store.retract(records[7].id)
    store.set_meta("tokenizer", "abc")
    store.set_meta("colour", "blue")
    return store
