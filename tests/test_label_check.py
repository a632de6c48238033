"""`rayrlhf labels check`, and the commands around it, on files with one thing wrong each."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rayrlhf.errors import PreferenceError
from rayrlhf.policy import vocabulary_fingerprint
from rayrlhf.preferences.formats.content import ReadOptions
from rayrlhf.preferences.label_check import CheckReport, check
from rayrlhf.preferences.label_drift import first_token_distance
from rayrlhf.preferences.label_text import check_lines
from rayrlhf.preferences.labels_cli import labels_app
from rayrlhf.preferences.records import Comparison, Item
from rayrlhf.preferences.store import FILE_NAME, RatingStore
from tests.label_files import EXAMPLES, GWERN, IDS_ALONE, data_of, full_store, gpt2_like


def checked(tmp_path: Path, name: str, rows: Sequence[dict[str, Any]], **options: Any) -> CheckReport:
    """The report on a file of these rows, which is called `labels`."""
    file = tmp_path / "labels"
    file.write_bytes(data_of(name, rows))
    return check(file, options.pop("read", IDS_ALONE), **options)


def found(report: CheckReport, kind: str) -> list[tuple[str, str]]:
    return [(finding.place.rpartition("/")[2], finding.message) for finding in report.findings if finding.kind == kind]


def pair(best: Any = 0, **fields: Any) -> dict[str, Any]:
    return {"query": [0], "sample0": [1], "sample1": [2], "best": best, **fields}


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and output of `rayrlhf labels ...`."""
    result = CliRunner().invoke(labels_app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_counts_of_gwerns_file() -> None:
    """Section 11: types, ties (doubled ones recognised, LMHP-4), sources, raters."""
    report = check(GWERN, IDS_ALONE)
    assert report.format == "openai_json"
    assert dict(report.types) == {"best_of_2": 10}
    assert (report.items, dict(report.ties), report.doubled_ties) == (20, {"tie": 3}, 3)
    assert report.first_wins == (4, 7)
    assert dict(report.sources) == {"manual": 7, "auto": 3}
    assert dict(report.raters) == {"(unnamed)": 9, "g": 1}
    assert report.faults == []


def test_counts_of_a_project(tmp_path: Path) -> None:
    """The same of a store; what is retracted is left out and said."""
    full_store(tmp_path).close()
    report = check(tmp_path, IDS_ALONE)
    assert report.format == "project"
    assert dict(report.types) == {"best_of_2": 3, "best_of_3": 1, "scalar_compare": 1, "scalar_rating": 1, "skip": 1}
    assert dict(report.left_out) == {"retracted": 2}
    assert dict(report.ties) == {"both bad": 1}
    assert report.items == 7


def test_the_marker_in_letters_is_found_in_gpt2s_ids() -> None:
    """GWERN-16: 27 91 437 1659 5239 91 29 is no end of text, 59 77 no line break; every such sample, by its line."""
    rows = [json.loads(line.rstrip(b",")) for line in GWERN.read_bytes().splitlines() if line.startswith(b"{")]
    expected = [(number, key) for number, row in enumerate(rows, start=2) for key in ("sample0", "sample1")
                if row[key][:7] == [27, 91, 437, 1659, 5239, 91, 29]]  # fmt: skip
    doubles = {
        number for number in range(3, len(rows) + 2) if rows[number - 2]["sample0"] == rows[number - 3]["sample0"]
    }
    places = [
        (int(place.rpartition(":")[2]), message)
        for place, message in found(check(GWERN, IDS_ALONE), "special token as text")
    ]
    assert [place for place, _ in places] == [number for number, _ in expected if number not in doubles]
    assert places[0][1] == "sample 0 spells <|endoftext|> in letters (ids 27 91 437 1659 5239 91 29), by GPT-2's ids"
    assert len(found(check(GWERN, IDS_ALONE), "line break as text")) == 7


def test_the_marker_in_letters_is_found_by_the_tokenizer(tmp_path: Path) -> None:
    """GWERN-16: the token itself, 50256, is no finding; its letters are, and so is a backslash n."""
    rows = [
        pair(sample0=[5, 50256, 6], sample1=[7, 50256]),
        pair(sample0=[5, 27, 91, 437, 1659, 5239, 91, 29], sample1=[7]),
        pair(sample0=[8], sample1=[9, 59, 77, 9]),
    ]
    report = checked(tmp_path, "openai_json", rows, read=ReadOptions(gpt2_like()))
    message = "sample 0 spells <|endoftext|> in letters (ids 27 91 437 1659 5239 91 29)"
    assert found(report, "special token as text") == [("labels:3", message)]
    assert [place for place, _ in found(report, "line break as text")] == ["labels:4"]


def test_special_tokens_in_texts_are_found(tmp_path: Path) -> None:
    """GWERN-16, of any format."""
    rows = [EXAMPLES["trl"][0], {"prompt": "<|im_start|>Hi", "chosen": "a</s>", "rejected": "b\\nc"}]
    report = checked(tmp_path, "trl", rows)
    assert found(report, "special token as text") == [
        ("labels:2", "the query spells <|im_start|> in letters"),
        ("labels:2", "sample 0 spells </s> in letters"),
    ]
    assert [place for place, _ in found(report, "line break as text")] == ["labels:2"]


def test_padding_with_a_visible_token_is_found(tmp_path: Path) -> None:
    """GWERN-17: a run of one id, or one character, at the end; the tokenizer's own special tokens may pad."""
    [(place, message)] = found(check(GWERN, IDS_ALONE), "visible padding")
    assert place == "gwern.json:2"
    assert message.startswith("20 of 20 samples, this one first, end in a run of the id 27, 76 to 207 long (median ")
    assert "--pad-id 27" in message
    rows = [
        pair(sample0=[5] + [50256] * 20, sample1=[7] * 7),
        {**pair(), "query": "", "sample0": "a" + "!" * 8, "sample1": "b   "},
    ]
    report = checked(tmp_path, "openai_json", rows, read=ReadOptions(gpt2_like()))
    [(place, message)] = found(report, "visible padding")
    assert (place, message) == (
        "labels:3",
        "1 of 4 samples, this one first, end in a run of '!', 8 to 8 long (median 8)",
    )


@pytest.mark.parametrize(("automatic", "is_warned"), [(3, False), (4, True)])
def test_too_many_automatic_labels_are_warned_of(tmp_path: Path, automatic: int, is_warned: bool) -> None:
    """GWERN-8, Q-18: more than 30 % of the comparisons; 3 of 10 are not more."""
    sources = ["auto", "weak", "auto", "auto"][:automatic]
    sources += ["manual"] * (10 - automatic)
    rows = [pair(sample0=[number, 1], source=source) for number, source in enumerate(sources)]
    assert bool(found(checked(tmp_path, "openai_json", rows), "automatic labels")) == is_warned


def test_a_broken_sample_without_a_source_was_judged_automatically(tmp_path: Path) -> None:
    report = checked(
        tmp_path, "openai_json", [pair(broken=1), pair(sample0=[5], broken=0), pair(sample0=[6], broken=[0])]
    )
    assert dict(report.sources) == {"auto": 2, "manual": 1}


def test_duplicates_and_contradictions_name_both_lines(tmp_path: Path) -> None:
    """Same texts, same rater: alike, the other way round, or with sides exchanged; another rater may differ."""
    rows = [
        pair(rater="a"),
        pair(rater="b", best=1),
        pair(rater="a"),
        {**pair(rater="a"), "sample0": [2], "sample1": [1]},
    ]
    report = checked(tmp_path, "openai_json", rows)
    assert found(report, "duplicate") == [("labels:4", f"the same label as {tmp_path}/labels:2")]
    assert found(report, "contradiction") == [
        ("labels:5", f"contradicts {tmp_path}/labels:2: same texts, same rater, another verdict")
    ]


def test_a_pair_that_was_asked_again_on_purpose_is_none(tmp_path: Path) -> None:
    items = [Item("Q", "a"), Item("Q", "b")]
    with RatingStore(tmp_path / FILE_NAME) as store:
        store.add_items(items)
        first = Comparison((items[0].id, items[1].id), 0)
        store.add(first, Comparison((items[1].id, items[0].id), 0, repeats=first.id))
    assert check(tmp_path, IDS_ALONE).findings == ()


def test_ids_of_another_tokenizer_are_faults(tmp_path: Path) -> None:
    """LMHP-8: ids outside the vocabulary, and the fingerprint of the header."""
    tokenizer = gpt2_like()
    report = checked(tmp_path, "openai_json", [pair(), pair(sample0=[60_000])], read=ReadOptions(tokenizer))
    assert [finding.place for finding in report.faults] == [f"{tmp_path}/labels:3"]
    fingerprint = vocabulary_fingerprint(tokenizer)
    rows = [*EXAMPLES["native"], {"samples": [{"text": "a", "ids": [60_000]}, {"text": "b"}], "best": 0}]
    report = checked(tmp_path, "native", rows, read=ReadOptions(tokenizer), fingerprint=fingerprint)
    assert [(finding.place, finding.kind) for finding in report.faults] == [
        (f"{tmp_path}/labels:1", "other tokenizer"),
        (f"{tmp_path}/labels:6", "outside the vocabulary"),
    ]
    rows[0] = {**rows[0], "tokenizer": fingerprint}
    report = checked(tmp_path, "native", rows[:-1], read=ReadOptions(tokenizer), fingerprint=fingerprint)
    assert report.faults == []


def rollouts(tmp_path: Path, prompts: Sequence[str], responses: Sequence[str]) -> Path:
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    rows = [
        {"run": "run", "iteration": index, "prompt": prompt, "response": response}
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    (folder / "samples.jsonl").write_bytes(data_of("samples", rows))
    return folder


def words(drawn: random.Random, first: Sequence[str], length: int) -> str:
    return " ".join([drawn.choice(first), *(f"w{drawn.randrange(50)}" for _ in range(length - 1))])


def test_drift_between_labels_and_rollouts_is_found(tmp_path: Path) -> None:
    """GWERN-18: labels with the query "!!" and the marker first, rollouts of "X:"; a fifth as long."""
    drawn = random.Random(0)
    played = rollouts(tmp_path, ["X:"] * 60, [words(drawn, "abcd", 20) for _ in range(60)])
    rows = [
        {
            "prompt": "!!",
            "chosen": f"<|endoftext|> {words(drawn, 'abcd', 3)}",
            "rejected": f"<|endoftext|> {words(drawn, 'ab', 4)}",
        }
        for _ in range(30)
    ]
    report = checked(tmp_path, "trl", rows, rollouts=played)
    assert found(report, "other queries") == [
        ("labels", "0% of the labelled texts have a query that rollouts have: labels have '!!', rollouts 'X:'")
    ]
    [(_, message)] = found(report, "other beginnings")
    assert message.startswith("first words: total variation 1.00")
    assert "labels mostly begin with '<|endoftext|>'" in message
    assert len(found(report, "other lengths")) == 1


def test_labels_like_their_rollouts_are_not_warned_of(tmp_path: Path) -> None:
    """GWERN-18: chance alone is no drift, nor is it where every first word is another one."""
    drawn = random.Random(1)
    first = [str(number) for number in range(1000)]
    played = rollouts(tmp_path, ["Once"] * 60, [words(drawn, first, 20) for _ in range(60)])
    rows = [
        {"prompt": "Once", "chosen": words(drawn, first, 20), "rejected": words(drawn, first, 22)} for _ in range(30)
    ]
    report = checked(tmp_path, "trl", rows, rollouts=played)
    assert [finding.kind for finding in report.findings] == []
    assert report.statements[0] == "100% of the labelled texts have a query that rollouts have"


def test_ids_and_text_are_compared_by_the_tokenizer_alone(tmp_path: Path) -> None:
    played = rollouts(tmp_path, ["X"], ["text"])
    report = check(GWERN, IDS_ALONE, rollouts=played)
    assert report.statements == (
        "labels have token ids and rollouts text: name the tokenizer to compare them (--tokenizer)",
    )
    rows = [pair(query=[55], sample0=[5239], sample1=[437])]
    report = checked(tmp_path, "openai_json", rows, read=ReadOptions(gpt2_like()), rollouts=played)
    assert report.statements[0] == "100% of the labelled texts have a query that rollouts have"
    assert report.statements[1].startswith("first tokens: total variation 0.50")


def test_faults_of_rollouts_are_faults(tmp_path: Path) -> None:
    played = rollouts(tmp_path, ["Once"], ["upon"])
    (played / "samples.jsonl").write_bytes(b'{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    report = checked(tmp_path, "trl", EXAMPLES["trl"], rollouts=played)
    assert [finding.place for finding in report.faults] == [f"{played}:2"]


def test_first_token_distance_by_hand() -> None:
    """Total variation: half the sum of |1/2 - 1/4| + |1/2 - 1/4| + |0 - 1/2| is 1/2."""
    distance, by_chance = first_token_distance(["a", "b"], ["a", "b", "c", "c"])
    assert distance == pytest.approx(0.5)
    assert distance <= by_chance <= 1.0
    distance, by_chance = first_token_distance(["a"] * 50, ["b"] * 50)
    assert distance == 1.0
    assert by_chance < 0.35


def test_the_report_names_faults_by_file_and_line(tmp_path: Path) -> None:
    """A text of the file cannot reach the terminal: it is shown in ASCII."""
    rows: list[dict[str, Any]] = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    rows += [{"prompt": "a", "chosen": "\x1b[2J"}] * 7
    rows += [{"prompt": "a", "chosen": "\x1b]0;x\x07", "rejected": 3}]
    lines = check_lines(checked(tmp_path, "trl", rows))
    assert f'fault: {tmp_path}/labels:2: "rejected" is missing' in lines
    assert "fault: 3 more of the kind: unreadable" in lines
    assert lines[-1] == "8 faults, 0 warnings"
    assert not any(re.search(r"[\x00-\x1f\x7f-\x9f]", line) for line in lines)


# --- the commands


def test_exit_codes_and_messages(tmp_path: Path) -> None:
    """1 where there are faults; warnings alone are 0."""
    code, output = run("check", GWERN)
    assert code == 0
    assert output.endswith("0 faults, 24 warnings\n")
    broken = tmp_path / "broken.json"
    broken.write_bytes(GWERN.read_bytes()[:-4])
    code, output = run("check", broken)
    assert code == 1
    assert f"fault: {broken}:14: not JSON" in output
    with pytest.raises(PreferenceError, match=r"missing\.json: cannot be read"):
        run("check", tmp_path / "missing.json")
    with pytest.raises(PreferenceError, match="no format of labels is named xml: choose from native"):
        run("check", GWERN, "--format", "xml")


def test_gwerns_file_through_all_commands(tmp_path: Path) -> None:
    """Import, check, export: the same JSON value, and a native file that makes an equal project."""
    project, other = tmp_path / "project", tmp_path / "other"
    code, output = run("import", GWERN, project, "--without-text")
    assert (code, output) == (
        0,
        f"{GWERN} (openai_json): 13 rows read, 10 labels (10 new, 0 already there), 20 new texts, 0 rows refused\n"
        "  3 ties were written as several rows, each with another winner\n",
    )
    assert "10 labels (0 new, 10 already there), 0 new texts" in run("import", GWERN, project, "--without-text")[1]
    assert run("check", project)[0] == 0
    native, back = tmp_path / "labels.jsonl", tmp_path / "back.json"
    assert run("export", project, native, "--format", "native")[0] == 0
    assert run("import", native, other, "--without-text")[0] == 0
    assert run("export", other, back, "--format", "openai_json")[0] == 0
    assert json.dumps(json.loads(back.read_bytes())) == json.dumps(json.loads(GWERN.read_bytes()))
    code, output = run("export", project, tmp_path / "trl.jsonl", "--format", "trl")
    assert "not written, since the format cannot hold them: 7 comparisons of texts whose ids alone are known" in output
    assert "not written, since the format cannot hold them: 3 ties" in output


def test_a_faulty_line_imports_nothing_of_any_file(tmp_path: Path) -> None:
    good, bad, project = tmp_path / "good.jsonl", tmp_path / "bad.jsonl", tmp_path / "project"
    good.write_bytes(data_of("trl"))
    bad.write_bytes(data_of("trl") + b"{}\n")
    with pytest.raises(PreferenceError, match=r'bad.jsonl:5: "chosen" is missing\nnothing was imported'):
        run("import", good, bad, project)
    assert not project.exists()
    code, output = run("import", good, bad, project, "--skip-faulty")
    assert code == 0
    assert f'  refused {bad}:5: "chosen" is missing' in output
    assert "4 labels (0 new, 4 already there), 0 new texts, 1 rows refused" in output


def test_files_are_not_overwritten(tmp_path: Path) -> None:
    full_store(tmp_path).close()
    with pytest.raises(PreferenceError, match="is there already"):
        run("export", tmp_path, tmp_path / FILE_NAME, "--format", "native")
    with pytest.raises(PreferenceError, match="--format xml: choose from native"):
        run("export", tmp_path, tmp_path / "x", "--format", "xml")
    with pytest.raises(PreferenceError, match="no project of preferences is there"):
        run("export", tmp_path / "none", tmp_path / "x", "--format", "trl")


def test_the_shipped_tokenizer_reads_ids(tmp_path: Path) -> None:
    """--tokenizer names the ids' tokenizer in the project; a second one is refused."""
    labels, project = tmp_path / "labels.json", tmp_path / "project"
    labels.write_bytes(data_of("openai_json", [pair(query=[400], sample0=[401], sample1=[402])]))
    assert run("import", labels, project, "--tokenizer", "tiny-stories")[0] == 0
    with RatingStore(project / FILE_NAME) as store:
        assert all(item.text and item.text_ids for item in store.items().values())
        assert set(store.meta()) == {"tokenizer"}
        store.set_meta("tokenizer", "xyz")
    with pytest.raises(PreferenceError, match="its tokenizer is"):
        run("import", labels, project, "--tokenizer", "tiny-stories")
    code, output = run("check", project, "--tokenizer", "tiny-stories")
    assert code == 1
    assert "its ids are of the tokenizer xyz" in output


ANSWERS = [{"role": "user", "content": "Name a sea."}, {"role": "assistant", "content": "No."}]


def test_a_text_prompt_beside_answers_as_messages_is_read(tmp_path: Path) -> None:
    """The layout of the most common public data sets: the messages repeat the prompt, or leave it out."""
    system = {"role": "system", "content": "Be brief."}
    better = [ANSWERS[0], {"role": "assistant", "content": "The North Sea."}]
    rows = [
        {"prompt": "Name a sea.", "chosen": better, "rejected": ANSWERS, "score_chosen": 8.0},
        {"prompt": "Name a sea.", "chosen": better[1:], "rejected": ANSWERS[1:]},
        {"prompt": "Name a sea.", "chosen": [system, *better], "rejected": [system, *ANSWERS]},
        {"prompt": "Name a lake.", "chosen": better, "rejected": ANSWERS},
    ]
    report = checked(tmp_path, "trl", rows)
    assert report.format == "trl"
    assert [finding.message for finding in report.faults] == [
        'the messages that "chosen" and "rejected" begin with do not end with the text of "prompt"'
    ]
    project = tmp_path / "project"
    assert run("import", tmp_path / "labels", project, "--skip-faulty")[0] == 0
    with RatingStore(project / FILE_NAME) as store:
        items, comparisons = store.items(), store.comparisons()
    pairs = [tuple((items[item].prompt, items[item].text) for item in record.items) for record in comparisons]
    assert pairs[0] == pairs[1] == (("Name a sea.", "The North Sea."), ("Name a sea.", "No."))
    assert pairs[2][0] == ("system: Be brief.\n\nuser: Name a sea.", "The North Sea.")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"prompt,response_a,response_b,winner\na,b,c,a\n",
            "a table of this kind is not read: write JSONL, a line such as",
        ),
        (b"prompt\tchosen\trejected\na\tb\tc\n", "a table of this kind is not read"),
        (b'{"instruction": "a", "completions": [{"response": "b", "overall_score": 9}]}\n', "write a line for each"),
        (b'[{"data": {"prompt": "a"}, "annotations": []}]\n', "the export of an annotation tool"),
        (b"\x1f\x8b\x08\x00\x00", "it is compressed: unpack it first"),
        (b"PAR1\x15\x04", "a table of this kind is not read"),
        (
            b'{"prompt": [{"role": "user", "content": [{"text": "a"}]}], "chosen": [], "rejected": []}\n',
            "list of parts",
        ),
    ],
)
def test_a_label_file_of_another_form_is_one_fault_with_what_to_write(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "labels").write_bytes(data)
    code, output = run("check", tmp_path / "labels")
    assert code == 1
    assert message in output
    assert output.count("fault: ") == 1


def test_an_empty_answer_is_found(tmp_path: Path) -> None:
    rows = [{"prompt": "Say something.", "chosen": "", "rejected": "Something."}]
    report = checked(tmp_path, "trl", rows)
    assert found(report, "empty text") == [("labels:1", "text 1 of 2 is empty")]
    assert found(checked(tmp_path, "openai_json", [pair()]), "empty text") == [], "ids alone have no text"
