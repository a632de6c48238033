"""Label files of every format: what is read, what is written back, and what is said of the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.formats.content import Entry, ReadOptions
from rayrlhf.preferences.formats.registry import FORMATS, encode, read_file
from rayrlhf.preferences.label_import import LabelFile, import_file, refuse_faults
from rayrlhf.preferences.records import Comparison, Item, Rating
from rayrlhf.preferences.store import FILE_NAME, RatingStore
from tests.label_files import (
    EXAMPLES,
    GWERN,
    IDS_ALONE,
    content_of,
    data_of,
    full_store,
    gpt2_like,
    read,
    rows_of,
    take,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RatingStore]:
    with RatingStore(tmp_path / FILE_NAME) as opened:
        yield opened


def one(store: RatingStore) -> Comparison:
    [comparison] = store.comparisons()
    return comparison


def faults_of(data: bytes, options: ReadOptions = IDS_ALONE, name: str | None = None) -> list[tuple[int, str]]:
    return [(fault.line, fault.message) for fault in read(data, options, name).faults]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_format_is_found_by_content(name: str) -> None:
    file = read(data_of(name))
    assert (file.format, file.faults) == (name, [])


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_that_is_imported_again_adds_nothing(store: RatingStore, name: str) -> None:
    first = take(store, data_of(name))
    revision = store.revision()
    again = take(store, data_of(name), ReadOptions(without_text=True, created=200.0))
    assert first.labels == first.new == again.present
    assert (again.new, again.new_items, store.revision()) == (0, 0, revision)


@pytest.mark.parametrize("name", ["openai_json", "trl", "anthropic_hh", "summarize"])
def test_a_file_comes_back_as_it_was(store: RatingStore, name: str) -> None:
    """LMHP-1: order, ids, extra fields and the order of keys; TRL's implicit prompts become explicit ones."""
    rows = [row for row in EXAMPLES[name] if not isinstance(row.get("query"), str)]
    take(store, data_of(name, rows))
    expected = rows
    if name == "trl":
        user = [{"role": "user", "content": "Two?"}]
        expected = [
            rows[0],
            {"prompt": "The sky is", "chosen": " clear", "rejected": " wet"},
            rows[2],
            {"prompt": user, "chosen": rows[3]["chosen"][1:], "rejected": rows[3]["rejected"][1:]},
        ]
    assert json.dumps(rows_of(store, name)) == json.dumps(expected)


def test_labels_of_text_come_back_too(store: RatingStore) -> None:
    """LMHP-8: text or ids; ties and "both bad" are one record each in the file, as they were."""
    rows = EXAMPLES["openai_json"][-2:]
    take(store, data_of("openai_json", rows))
    assert rows_of(store, "openai_json") == rows
    assert [record.best for record in store.comparisons()] == ["tie", "both_bad"]


# --- lm-human-preferences


@pytest.mark.parametrize("pad_id", [None, 27])
@pytest.mark.parametrize("with_text", [False, True])
def test_gwerns_file_goes_in_and_out(store: RatingStore, pad_id: int | None, with_text: bool) -> None:
    """LMHP-1, -4, -7, GWERN-3: queries of 2 ids, samples of 256 padded with 27, `broken`, doubled ties."""
    options = ReadOptions(gpt2_like() if with_text else None, not with_text, pad_id)
    report = take(store, GWERN.read_bytes(), options)
    assert (report.rows, report.labels, report.new_items) == (13, 10, 20)
    found = store.comparisons()
    assert [record.best for record in found] == [0, 1, "tie", 1, 0, "tie", 0, 1, "tie", 0]
    assert [record.broken for record in found] == [(), (), (), (0,), (), (), (1,), (), (0, 1), ()]
    assert [record.source for record in found].count("auto") == 3
    assert (found[9].rater, found[9].created) == ("g", 1571961600.25)
    lengths = {len(item.text_ids or ()) for item in store.items().values()}
    assert (lengths == {256}) == (pad_id is None)
    assert max(lengths) <= 256
    expected = json.loads(GWERN.read_bytes())
    assert json.dumps(rows_of(store, "openai_json", options.tokenizer)) == json.dumps(expected)


def test_ids_become_text_by_the_tokenizer(store: RatingStore) -> None:
    """GWERN-16: the letters of the marker are letters, its token at an end is no text."""
    row: dict[str, Any] = {
        "query": [55, 25],
        "sample0": [27, 91, 437, 1659, 5239, 91, 29, 5, 50256],
        "sample1": [59, 77],
        "best": 0,
    }
    take(store, data_of("openai_json", [row]), ReadOptions(gpt2_like()))
    [first, second] = store.items().values()
    assert (first.prompt, first.text, second.text) == ("X:", "<|endoftext|> w5", "\\n")
    assert first.text_ids == tuple(row["sample0"])


def test_ids_without_a_tokenizer_are_refused() -> None:
    [first, *_] = faults_of(data_of("openai_json"), ReadOptions())
    assert first[0] == 2
    assert "--tokenizer MODEL" in first[1]


def test_ids_of_a_larger_vocabulary_are_refused() -> None:
    row = {"query": [0], "sample0": [50257], "sample1": [1], "best": 0}
    assert faults_of(data_of("openai_json", [row]), ReadOptions(gpt2_like())) == [
        (2, '"sample0" has the id 50257, and the tokenizer only 50257 tokens: name another one')
    ]


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("verdict", ["tie", "both_bad"])
def test_a_tie_is_k_records_and_back(
    store: RatingStore, tmp_path: Path, k: int, verdict: Literal["tie", "both_bad"]
) -> None:
    """LMHP-4, Q-2: each side wins once; read again, they are one tie, of the same kind."""
    items = [Item("Q", f" {index}", (0,), (index,)) for index in range(k)]
    store.add_items(items)
    store.add(Comparison(tuple(item.id for item in items), verdict))
    rows = rows_of(store, "openai_json")
    assert [row["best"] for row in rows] == list(range(k))
    assert all(row["query"] == [0] and row["sample1"] == [1] for row in rows)
    with RatingStore(tmp_path / "other.sqlite") as other:
        report = take(other, data_of("openai_json", rows))
        assert (report.rows, report.labels) == (k, 1)
        assert one(other).best == verdict


def test_two_raters_who_disagree_are_no_tie(store: RatingStore) -> None:
    """LMHP-4: a doubled tie is of neighbours, of one rater, with each side winning once."""
    base = {"query": [0], "sample0": [1], "sample1": [2]}
    rows = [{**base, "best": 0, "rater": "a"}, {**base, "best": 1, "rater": "b"}, {**base, "best": 1, "rater": "b"}]
    report = take(store, data_of("openai_json", rows))
    assert report.labels == 3
    assert [record.best for record in store.comparisons()] == [0, 1, 1]


def test_all_label_types_of_a_store_are_written(tmp_path: Path) -> None:
    """LMHP-2: best of k, scalar rating, scalar comparison, from labels that were made here."""
    with full_store(tmp_path) as store:
        export = FORMATS["openai_json"].write
        assert export is not None
        written = export(content_of(store), None)
        rows = rows_of(store, "openai_json")
    kinds = [next(key for key in ("best", "score", "difference") if key in row) for row in rows]
    assert kinds == ["best", "best", "best", "best", "difference", "score"]
    assert rows[1]["sample2"] == " answer 2"
    assert rows[1]["broken"] == [0]
    assert (rows[5]["score"], rows[5]["scale"], rows[5]["rater"]) == (3.5, "1-5", "bob")
    assert dict(written.left_out) == {"skips": 1, "comparisons of texts with different prompts": 1}
    assert "1 ties are written as one record for each text" in written.notes[0]


def test_scalar_labels_are_read(store: RatingStore) -> None:
    """LMHP-2: difference = r(sample1) - r(sample0), so its sign names the better."""
    rows: list[dict[str, Any]] = [{"query": [0], "sample": [1], "score": -2}]
    rows += [{"query": [0], "sample0": [1], "sample1": [2], "difference": value} for value in (0.5, -0.5, 0)]
    take(store, data_of("openai_json", rows))
    assert [rating.score for rating in store.ratings()] == [-2.0]
    assert [(record.best, record.difference) for record in store.comparisons()] == [(1, 0.5), (0, -0.5), ("tie", 0.0)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 60_000), max_size=9), min_size=2, max_size=6, unique_by=repr), max_size=12
    ),
    st.data(),
)
def test_any_number_of_labels_of_any_lengths(
    tmp_path: Path, samples: list[list[list[int]]], data: st.DataObject
) -> None:
    """LMHP-5, -6, -7: no length is fixed, no number has to divide another, and none is dropped."""
    rows = [
        {"query": data.draw(st.lists(st.integers(0, 9), max_size=4))}
        | {f"sample{index}": ids for index, ids in enumerate(group)}
        | {"best": data.draw(st.integers(0, len(group) - 1))}
        for group in samples
    ]
    (tmp_path / FILE_NAME).unlink(missing_ok=True)
    (tmp_path / f"{FILE_NAME}-wal").unlink(missing_ok=True)
    (tmp_path / f"{FILE_NAME}-shm").unlink(missing_ok=True)
    with RatingStore(tmp_path / FILE_NAME) as store:
        report = take(store, data_of("openai_json", rows), name="openai_json")
        assert report.rows == len(rows)
        assert rows_of(store, "openai_json") == rows


def test_texts_become_ids_where_a_tokenizer_is_named(store: RatingStore) -> None:
    """LMHP-8: the original loader takes ids alone."""
    first, second = Item("X", "text"), Item("X", "end", (55,), (437,))
    store.add_items([first, second])
    store.add(Comparison((first.id, second.id), 0))
    [row] = rows_of(store, "openai_json", gpt2_like())
    assert (row["query"], row["sample0"], row["sample1"]) == ([55], [5239], [437])
    [row] = rows_of(store, "openai_json")
    assert (row["query"], row["sample0"], row["sample1"]) == ("X", "text", "end")


# --- TRL, Anthropic, summaries


def test_messages_are_read_as_text(store: RatingStore) -> None:
    rows = [EXAMPLES["trl"][2], EXAMPLES["trl"][3]]
    rows.append({"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]} | rows[0])
    rows[2]["prompt"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    take(store, data_of("trl", rows))
    prompts = [(item.prompt, item.text) for item in store.items().values()]
    assert prompts == [
        ("Hello", "Hi"), ("Hello", "No"), ("Two?", "2"), ("Two?", "3"),
        ("system: Be brief.\n\nuser: Hi", "Hi"), ("system: Be brief.\n\nuser: Hi", "No"),
    ]  # fmt: skip


def test_dialogues_part_at_the_last_common_assistant() -> None:
    start = "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"
    row = {"chosen": f"{start} D\n\nHuman: E\n\nAssistant: F", "rejected": f"{start} Dog"}
    [entry] = read(data_of("anthropic_hh", [row])).entries
    assert [(item.prompt, item.text) for item in entry.items] == [
        (start, " D\n\nHuman: E\n\nAssistant: F"),
        (start, " Dog"),
    ]
    assert faults_of(data_of("anthropic_hh", [{"chosen": "\n\nHuman: A", "rejected": "\n\nHuman: B"}])) == [
        (1, "chosen and rejected have no 'Assistant:' in common: they are no answers to one dialogue")
    ]


def test_raters_and_confidence_of_summaries_are_kept(store: RatingStore) -> None:
    take(store, data_of("summarize"))
    first, second = store.comparisons()
    assert (first.rater, first.confidence, first.best) == ("w7", 8, 1)
    assert (second.rater, second.confidence, second.best) == ("w8", None, 0)
    items = store.items()
    assert items[first.items[0]].prompt == "SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: My cat sat.\n\nTL;DR:"
    assert items[first.items[0]].generator == "sup1"
    assert items[second.items[0]].prompt == "Article:\n\nNews.\n\nTL;DR:"


@pytest.mark.parametrize("name", ["trl", "anthropic_hh", "summarize"])
def test_what_pairs_cannot_hold_is_counted(tmp_path: Path, name: str) -> None:
    """Ties, "both bad", ratings, skips; best of three becomes two pairs."""
    with full_store(tmp_path) as store:
        write = FORMATS[name].write
        assert write is not None
        export = write(content_of(store), None)
    assert len(export.rows) == 4
    left_out = dict(export.left_out)
    assert left_out.pop('verdicts "both bad"') == 1
    assert left_out.pop("scalar ratings") == 1
    assert left_out.pop("skips") == 1
    assert left_out.pop("items without a comparison") == 1
    assert list(left_out.values()) == [1]  # the pair with two prompts
    assert export.notes == (
        "1 comparisons of more than two are written as pairs of the best with each other text",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["trl", "anthropic_hh", "summarize"])
def test_pairs_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    with full_store(tmp_path) as store:
        write = FORMATS[name].write
        assert write is not None
        rows = write(content_of(store), None).rows
        items = store.items()
    with RatingStore(tmp_path / "other.sqlite") as other:
        take(other, b"".join(encode(rows, False)))
        read_back = other.items()
        winners = [
            (read_back[str(record.winner)].prompt, read_back[str(record.winner)].text) for record in other.comparisons()
        ]
    texts = [item.text for item in items.values()]
    assert [texts.index(text) for _, text in winners] == [4, 2, 2, 3]
    assert {prompt for prompt, _ in winners} == {"\n\nHuman: Hi\n\nAssistant:"}


def test_texts_known_by_ids_alone_are_no_text(store: RatingStore) -> None:
    take(store, data_of("openai_json", EXAMPLES["openai_json"][:1]))
    write = FORMATS["trl"].write
    assert write is not None
    export = write(content_of(store), None)
    assert (export.rows, dict(export.left_out)) == ((), {"comparisons of texts whose ids alone are known": 1})


# --- native


def test_a_native_file_holds_the_store(tmp_path: Path) -> None:
    """Section 11: every field, order, retraction and the header's fingerprint; a second round gives equal bytes."""
    with full_store(tmp_path) as store, RatingStore(tmp_path / "other.sqlite") as other:
        rows = rows_of(store, "native")
        report = take(other, data_of("native", rows), ReadOptions())
        assert report.retracted == 2
        assert list(other.items().items()) == list(store.items().items())
        assert other.history() == store.history()
        assert other.meta() == store.meta() == {"tokenizer": "abc", "colour": "blue"}
        assert rows_of(other, "native") == rows
    assert rows[0]["tokenizer"] == "abc"
    assert rows[-1]["type"] == "retraction"


def test_a_native_file_says_what_json_cannot(store: RatingStore) -> None:
    """Two halves of a pair side by side, which no tokenizer writes, are one character in JSON."""
    store.add_items([Item("", "\ud83d\ude00", text_ids=(1,)), Item("", "\U0001f600"), Item("", "\ud83d")])
    write = FORMATS["native"].write
    assert write is not None
    tokenizer, halves = write(content_of(store), None).notes
    assert "tokenizer of its token ids is not known" in tokenizer
    assert halves.startswith("1 texts have two halves")


def test_lines_of_section_11_are_read(store: RatingStore) -> None:
    """Without `type` and `id`; ids stand beside text (GWERN-3)."""
    take(store, data_of("native"), ReadOptions(created=7.0))
    comparison = one(store)
    assert (comparison.best, comparison.ranking, comparison.broken) == (0, (0, 2, 1), (1,))
    assert (comparison.rater, comparison.created, comparison.weight, comparison.reason) == ("ann", 2.0, 0.5, "empty")
    first = store.items()[comparison.items[0]]
    assert (first.prompt, first.prompt_ids, first.text, first.text_ids) == ("Once", (1,), " a", (2,))
    assert (first.generator, first.iteration, first.seed) == ("m", 1, 5)
    assert [(rating.score, rating.scale, rating.created) for rating in store.ratings()] == [(4, "1-5", 7.0)]
    assert [skip.rater for skip in store.skips()] == ["bob"]
    assert store.meta() == {"tokenizer": "abc"}


def test_lines_may_be_appended(store: RatingStore) -> None:
    """Append-only: a longer version of a file adds what is new in it."""
    rows = EXAMPLES["native"]
    take(store, data_of("native", rows[:2]))
    report = take(store, data_of("native", rows))
    assert (report.new, report.present) == (2, 1)


def test_ids_need_a_known_tokenizer() -> None:
    """LMHP-8: the header names the tokenizer of ids, or the user does."""
    row = {"query": "Q", "samples": [{"ids": [1]}, {"ids": [2]}], "best": 0}
    [(line, message)] = faults_of(data_of("native", [row]), ReadOptions())
    assert line == 1
    assert "no header names their tokenizer" in message
    assert faults_of(data_of("native", [EXAMPLES["native"][0], row]), ReadOptions()) == []


def test_a_file_of_another_tokenizer_is_refused(store: RatingStore) -> None:
    store.set_meta("tokenizer", "xyz")
    with pytest.raises(PreferenceError, match=r"its tokenizer is 'abc', and that of .* 'xyz'"):
        take(store, data_of("native"))
    assert store.items() == {}


def test_a_later_version_is_refused() -> None:
    header = {**EXAMPLES["native"][0], "version": 2}
    assert faults_of(data_of("native", [header]))[0][0] == 1


def test_an_id_that_is_taken_is_said(store: RatingStore) -> None:
    rows = [
        {"type": "comparison", "id": "c", "samples": [{"text": "a"}, {"text": "b"}], "best": best} for best in (0, 1)
    ]
    assert faults_of(data_of("native", rows)) == [(2, 'the id "c" is taken by another label or text of this file')]
    take(store, data_of("native", rows[:1]))
    with pytest.raises(PreferenceError, match=r"labels:1: .* has another label with the id c"):
        take(store, data_of("native", rows[1:]))


def test_a_retraction_of_nothing_is_said(store: RatingStore) -> None:
    with pytest.raises(PreferenceError, match="labels:2: it takes back 'gone'"):
        take(store, data_of("native", [EXAMPLES["native"][0], {"type": "retraction", "id": "gone"}]))


# --- samples


def test_samples_of_a_run_are_items(store: RatingStore, tmp_path: Path) -> None:
    """GWERN-9, -37: unique, long enough, without markers; run and iteration are kept."""
    rows = [
        {"run": "r", "iteration": 0, "prompt": "Once", "response": " upon a time", "score": 1.5},
        {"run": "r", "iteration": 1, "prompt": "Once", "response": " upon a time<|endoftext|>"},
        {"run": "r", "iteration": 1, "prompt": "Once", "response": " hi"},
        {"run": "r", "iteration": 2, "prompt": "Once", "response": "<|endoftext|>"},
    ]
    (tmp_path / "samples.jsonl").write_bytes(data_of("samples", rows))
    file = LabelFile(tmp_path, *read_file(tmp_path, ReadOptions(min_characters=5)))
    report = import_file(store, file)
    assert list(store.items().values()) == [Item("Once", " upon a time", generator="r", iteration=0)]
    assert dict(report.left_out) == {"read before": 1, "shorter than 5 characters": 1, "empty": 1}


def test_plain_text_is_cut_at_its_markers() -> None:
    text = "======== SAMPLE 1 ========\nOne\ntwo\n======== SAMPLE 2 ========\n<|endoftext|>Three<|endoftext|>\n\nOne\ntwo\n"
    file = read(text.encode(), ReadOptions(generator="gpt2"), "text")
    assert [(entry.line, entry.items[0].text) for entry in file.entries] == [(2, "One\ntwo"), (5, "Three")]
    assert {item.generator for item in file.items()} == {"gpt2"}
    assert dict(file.left_out) == {"read before": 1}


@pytest.mark.parametrize(
    ("separator", "texts"), [("\n***\n", ["a|b", "c"]), ("|", ["a", "b\n***\nc"]), ("", ["a|b\n***\nc"])]
)
def test_a_separator_is_any_text_or_none(separator: str, texts: list[str]) -> None:
    """LMHP-31: of any length, whatever it means to a regular expression; it also ends samples of a run."""
    options = ReadOptions(separator=separator)
    assert [item.text for item in read(b"a|b\n***\nc\n", options, "text").items()] == texts
    [item] = read(data_of("samples", [{"prompt": "", "response": f"a{separator}"}]), options).items()
    assert item.text == "a"


# --- faults


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"", 1, "the file is empty"),
        (b"[\n{}\n]", 2, "no format of labels is recognised"),
        (b"plain words", 1, "not JSON"),
        (b'[\n{"query":[0],"sample0":[1],"sample1":[2],"best":0},\n]', 3, "a comma stands before the closing bracket"),
        (b'[\n{"query":[0],"sample0":[1],"sample1":[2],"best":0},\n\n{"query":', 4, "not JSON"),
        (b'[{"query":[0],"sample0":[1],"sample1":[2],"best":0}', 1, "the file is cut off"),
        (b'\n{"query":[0],"sample0":[1],"sample1":[2],"best":2}', 2, '"best" has to be an index below 2, not 2'),
        (b'{"query":[0],"sample0":[1],"sample1":[2],"best":true}', 1, "not true"),
        (b'{"query":[0],"sample0":[1],"sample1":[1],"best":0}', 1, "sample1 is the same as one before it"),
        (b'{"query":[0],"sample0":[1],"sample2":[1],"best":0}', 1, "without a gap"),
        (b'{"query":[0],"sample0":[-1],"sample1":[2],"best":0}', 1, '"sample0" has to be a list of token ids'),
        (b'{"query":[0],"sample0":[1],"sample1":[2],"best":0,"best":1}', 1, 'the key "best" stands twice'),
        (b'{"query":[0],"sample":[1],"score":NaN}', 1, "NaN is no JSON"),
        (b'{"query":[0],"sample":[1],"score":1e999}', 1, "the number 1e999 is too large"),
        (b'{"query":[0],"sample":[1],"score":' + b"9" * 5000 + b"}", 1, "a number has too many digits"),
        (b'{"query":[0],"sample":[1],"score":1,"x":' + b"[" * 60 + b"]" * 60 + b"}", 1, "nested more than 50"),
        (b'{"query":[0],"sample":[1],"score":1,"x":' + b"[" * 90000, 1, "nested more than 50 levels deep"),
        (b'{"prompt":"a","chosen":"\xff","rejected":"b"}', 1, "not UTF-8 text (byte 0xff)"),
        (b'{"prompt":"a","chosen":"b","rejected":"c"} {}', 1, "more than one value on the line"),
        (b'{"prompt":"a","chosen":"b","rejected":"b"}', 1, "chosen and rejected are the same"),
        (b'{"prompt":"a","chosen":[],"rejected":"c"}', 1, '"rejected" has to be a list of messages'),
    ],
)  # fmt: skip
def test_a_fault_names_its_line(data: bytes, line: int, message: str) -> None:
    found = faults_of(data)
    assert (line, True) in [(where, message in said) for where, said in found], found


def test_one_faulty_line_stops_all_unless_it_is_skipped(store: RatingStore) -> None:
    """LMHP-5: nothing is dropped silently."""
    rows = [
        b'{"prompt":"a","chosen":"b","rejected":"c"}',
        b'{"prompt":"a"}',
        b'{"prompt":"a","chosen":"d","rejected":"e"}',
    ]
    file = read(b"\n".join(rows))
    with pytest.raises(PreferenceError, match='labels:2: "chosen" is missing\nmend it'):
        refuse_faults([file], "mend it")
    report = import_file(store, file)
    assert (report.rows, report.new, report.refused) == (2, 2, 1)


def test_a_damaged_line_of_jsonl_costs_itself_alone() -> None:
    good = b'{"prompt":"a","chosen":"b","rejected":"c"}'
    file = read(b"\n".join([good, b"\xff\xfe", b"", b"[1", good]))
    assert [(type(outcome) is Entry, outcome.line) for outcome in file.outcomes] == [
        (True, 1), (False, 2), (False, 4), (True, 5),
    ]  # fmt: skip


def test_equal_lines_are_labels_of_their_own(store: RatingStore) -> None:
    """The same verdict twice is two, and twice again is still two."""
    data = data_of("trl", EXAMPLES["trl"][:1] * 2)
    assert take(store, data).new == 2
    assert take(store, data).new == 0
    assert take(store, data_of("trl", EXAMPLES["trl"][:1] * 3)).new == 1


def test_ratings_keep_their_fields(store: RatingStore) -> None:
    row = {"query": [1], "sample": [2, 3], "score": 0.5, "rater": 7, "ts": 5, "colour": "blue"}
    take(store, data_of("openai_json", [row]))
    [rating] = store.ratings()
    assert isinstance(rating, Rating)
    assert (rating.rater, rating.created) == ("7", 5.0)
    assert rows_of(store, "openai_json") == [row]
