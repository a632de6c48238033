"""The rating store: what is written comes back bit for bit, several write at once, older files are migrated."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.records import Comparison, Item, Rating, Skip
from rayrlhf.preferences.schema import APPLICATION_ID, MIGRATIONS, migrate, version_of
from rayrlhf.preferences.store import FILE_NAME, RatingStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


@pytest.fixture
def store(path: Path) -> Iterator[RatingStore]:
    with RatingStore(path) as opened:
        yield opened


def texts(count: int) -> list[Item]:
    return [Item("Once", f" upon a time {index}") for index in range(count)]


def test_everything_comes_back(store: RatingStore, path: Path) -> None:
    """GWERN-37, SPEC section 11: provenance, verdicts of all kinds and imported fields, also after opening again."""
    items = [
        Item("A", " b", (1, 2), (3,), "gpt2", "step-9", 9, 2**64 - 1, {"info": {"post": "p", "n": [1.5, None, True]}}),
        Item("A", " c", text_ids=(), generator="human"),
        Item("", "", iteration=-1),
    ]
    a, b, c = (item.id for item in items)
    comparisons = [
        Comparison((a, b), 1, "auto", "gzip", 0.25, 10.5, 0.5, (0,), "too short", 7.0, None, None, "", {"trl": {}}),
        Comparison((c, a, b), "tie", ranking=(2, 0, 1)),
        Comparison((a, b), "both_bad", "judge", repeats="x"),
        Comparison((a, b), 1, "weak", difference=-0.7),
    ]
    ratings = [Rating(a, 3.5, "1-5", "manual", "ann", 2.0, 11.0, 2.0, {"k": [1]}), Rating(a, -0.0)]
    skips = [Skip((a, c), "bob", 12.0)]
    assert store.add_items(items) == 3
    assert store.add(*comparisons, *ratings, *skips) == 7
    with RatingStore(path) as again:
        assert list(again.items().items()) == [(item.id, item) for item in items]
        assert again.comparisons() == comparisons
        assert again.ratings() == ratings
        assert again.skips() == skips


_texts = st.text(st.characters(), max_size=20)  # with halves of surrogate pairs, NUL and all else


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=_texts, text=_texts, rater=_texts, reason=_texts)
def test_texts_of_models_come_back_bit_for_bit(
    store: RatingStore, prompt: str, text: str, rater: str, reason: str
) -> None:
    """A model may write half a surrogate pair, both halves side by side, or NUL; so may a judge."""
    item = Item(prompt, text + "\ud83d\ude00\udc00\0", generator=rater)
    other = Item(prompt, text, generator=rater)
    comparison = Comparison((item.id, other.id), 0, rater=rater, reason=reason)
    store.add_items([item, other])
    store.add(comparison)
    assert store.items()[item.id] == item
    assert store.comparisons()[-1] == comparison


def test_nothing_is_added_twice(store: RatingStore) -> None:
    first, second = texts(2)
    verdict = Comparison((first.id, second.id), 0)
    assert store.add_items([first, second, first]) == 2
    assert store.add_items([second]) == 0
    assert store.add(verdict) == 1
    assert store.add(verdict, verdict) == 0
    assert store.comparisons() == [verdict]


def test_retraction_hides_and_keeps(store: RatingStore) -> None:
    """A verdict that is taken back is marked: it can neither be counted nor come back by a repeated write."""
    first, second = texts(2)
    store.add_items([first, second])
    verdict, rating, skip = Comparison((first.id, second.id), 0), Rating(first.id, 1.0), Skip((first.id, second.id))
    store.add(verdict, rating, skip)
    assert [store.retract(record.id) for record in (verdict, rating, skip)] == [True] * 3
    assert not store.retract(verdict.id)
    assert not store.retract("unknown")
    assert (store.comparisons(), store.ratings(), store.skips()) == ([], [], [])
    assert store.add(verdict) == 0
    later = Rating(first.id, 2.0), Comparison((second.id, first.id), "tie"), Rating(first.id, 2.0)
    store.add(*later)
    expected = [(verdict, True), (rating, True), (skip, True), *((record, False) for record in later)]
    assert store.history() == expected, "kinds are in one order"


def test_all_or_none_of_a_call_is_added(store: RatingStore) -> None:
    first, second = texts(2)
    store.add_items([first, second])
    before = store.revision()
    with pytest.raises(PreferenceError, match="item elsewhere, which the store lacks"):
        store.add(Comparison((first.id, second.id), 0), Comparison((first.id, "elsewhere"), 0))
    with pytest.raises(PreferenceError, match="its score is nan"):
        store.add(Rating(first.id, 1.0), Rating(first.id, float("nan")))
    assert store.history() == []
    assert store.revision() == before


def test_an_id_names_one_item(store: RatingStore) -> None:
    item = replace(texts(1)[0], id="chosen-by-hand")
    assert store.add_items([item]) == 1
    assert store.add_items([item]) == 0
    with pytest.raises(PreferenceError, match="the id chosen-by-hand is taken"):
        store.add_items([*texts(1), replace(item, text="another")])
    assert list(store.items().values()) == [item]


def test_revision_grows_with_every_change_by_anybody(store: RatingStore, path: Path) -> None:
    first, second = texts(2)
    seen = [store.revision()]
    verdict = Comparison((first.id, second.id), 0)
    with RatingStore(path) as other:
        for change in (
            lambda: store.add_items([first, second]),
            lambda: other.add(verdict),
            lambda: other.set_meta("tokenizer", "abc"),
            lambda: store.retract(verdict.id),
        ):
            change()
            seen.append(store.revision())
            assert seen[-1] == other.revision()
        store.add_items([first])
        other.add(verdict)
        assert store.revision() == seen[-1]
    assert seen == sorted(set(seen))
    assert store.meta() == {"tokenizer": "abc"}


def test_threads_and_stores_write_at_once(path: Path) -> None:
    """GWERN-1: several raters at once. Four threads over two open stores, none loses or repeats a verdict."""
    items = texts(2)
    with RatingStore(path) as one, RatingStore(path) as two:
        one.add_items(items)
        verdicts = [[Comparison((items[0].id, items[1].id), 0, rater=str(n)) for _ in range(40)] for n in range(4)]

        def write(number: int) -> None:
            for verdict in verdicts[number]:
                (one, two)[number % 2].add(verdict)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = one.comparisons()
    for number in range(4):
        assert [verdict for verdict in found if verdict.rater == str(number)] == verdicts[number]
    assert len(found) == 160


def test_many_make_one_store_at_once(path: Path) -> None:
    """Whoever is first makes it; the others find it whole."""
    added = []

    def open_and_add(number: int) -> None:
        with RatingStore(path) as store:
            added.append(store.add_items(texts(number + 1)))

    threads = [threading.Thread(target=open_and_add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(added), sum(added)) == (8, 8)
    assert [found.name for found in path.parent.iterdir() if found.name.startswith(".")] == []


def test_settings_of_the_file_survive_a_crash(store: RatingStore, path: Path) -> None:
    """Durable on return: write-ahead log, flushed at each commit (FULL = 2)."""
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def older_file(path: Path, steps: int, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection, migrations[:steps])


def test_a_file_of_version_0_is_migrated(path: Path) -> None:
    """A new file is of version 0, without tables; opening runs all steps up to the newest."""
    older_file(path, 0)
    with RatingStore(path) as store:
        assert store.add_items(texts(3)) == 3
        assert version_of(store._connection) == len(MIGRATIONS)


def test_a_later_step_keeps_what_was_stored(path: Path) -> None:
    """An imagined next version: its step runs once, in one transaction, on a file with data."""
    first, second = texts(2)
    verdict = Comparison((first.id, second.id), 0)
    with RatingStore(path) as store:
        store.add_items([first, second])
        store.add(verdict)
    later = (*MIGRATIONS, ("ALTER TABLE comparisons ADD COLUMN place TEXT NOT NULL DEFAULT 'home'",))
    broken = (*MIGRATIONS, ("CREATE TABLE half (a)", "no SQL"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError):
            migrate(connection, broken)
        assert version_of(connection) == len(MIGRATIONS)
        migrate(connection, later)
        migrate(connection, later)
        assert version_of(connection) == len(later)
        assert connection.execute("SELECT id, place FROM comparisons").fetchall() == [(verdict.id, "home")]
        assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'half'").fetchall() == []


def test_a_newer_file_is_left_alone(path: Path) -> None:
    older_file(path, len(MIGRATIONS) + 1, (*MIGRATIONS, ()))
    with pytest.raises(PreferenceError, match=r"ratings\.sqlite has schema version 2, and this version.*reads 1"):
        RatingStore(path)


@pytest.mark.parametrize("content", [b"", b"no database\n" * 1000, b"SQLite format 3\0" + b"\xff" * 4080])
def test_a_foreign_file_is_refused_and_kept(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(PreferenceError, match=r"ratings\.sqlite is no rating store"):
        RatingStore(path)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE items (id)")
    with pytest.raises(PreferenceError, match="is no rating store: move it away"):
        RatingStore(path)


def test_damage_is_said_when_it_is_met(path: Path) -> None:
    with RatingStore(path) as store:
        store.add_items(texts(500))
    raw = bytearray(path.read_bytes())
    raw[4096 * 2 :] = b"\xa5" * (len(raw) - 4096 * 2)
    path.write_bytes(raw)
    with (
        pytest.raises(PreferenceError, match=r"ratings\.sqlite is no rating store, or is damaged"),
        RatingStore(path) as store,
    ):
        store.items()


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DELETE FROM items WHERE number = 1", "is of an item that it lacks"),
        ("UPDATE comparisons SET weight = 'abc'", "comparison: weight: it has to be a finite number"),
        ("UPDATE comparisons SET weight = 9e999", "comparison: weight: it has to be a finite number"),
        ("UPDATE comparisons SET source = 'zzz'", "comparison: source: "),
        ("UPDATE comparisons SET items = '[1, 2]'", "comparison: items.0: "),
        ("UPDATE comparisons SET best = 7", "comparison: best is an index below 2"),
        ("UPDATE ratings SET score = x'00'", "rating: score: it has to be a finite number"),
        ("UPDATE items SET text = x'ff'", "item: text: "),
        ("UPDATE items SET prompt = x'ff'", "item: prompt: "),
        ("UPDATE items SET seed = 'seven'", "item: not JSON"),
        ("DELETE FROM revision", "it has no revision"),
        ("UPDATE revision SET number = 'many'", "it has no revision"),
        ("INSERT INTO meta VALUES ('k', x'ff')", "k: "),
    ],
)
def test_a_store_that_somebody_changed_is_one_line_that_names_it(path: Path, statement: str, told: str) -> None:
    with RatingStore(path) as store:
        first, second = texts(2)
        store.add_items([first, second])
        store.add(Comparison((first.id, second.id), 0, rater="r"), Rating(first.id, 1.0))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)
    faults = []
    with RatingStore(path) as store:
        for read in (store.items, store.comparisons, store.ratings, store.history, store.revision, store.meta):
            try:
                read()
            except PreferenceError as error:
                faults.append(str(error))
        if "comparisons SET" in statement:
            with pytest.raises(PreferenceError):
                store.done_by("r")
    assert faults
    assert all(fault.startswith(f"{path} is damaged (") and told in fault for fault in faults)
    assert all(fault.endswith("put a copy in its place") for fault in faults)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PreferenceError, match=r"nowhere.*cannot be used"):
        RatingStore(tmp_path / "nowhere" / FILE_NAME)


def test_100_000_comparisons_are_read_in_no_time(store: RatingStore) -> None:
    items = texts(400)
    store.add_items(items)
    verdicts = [Comparison((items[n % 399].id, items[n % 399 + 1].id), n % 2, created=float(n)) for n in range(100_000)]
    assert store.add(*verdicts) == 100_000
    started = time.process_time()
    found = store.comparisons()
    assert time.process_time() - started < 4.0  # a second on an idle machine
    assert found == verdicts
