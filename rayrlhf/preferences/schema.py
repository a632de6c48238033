"""The tables of a rating store, the steps from one version of them to the next, and records as rows.

A text is stored as TEXT in UTF-8, where half a surrogate pair stands as its three bytes: models write such texts, and
they come back bit for bit. Tuples and mappings are JSON.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rayrlhf.errors import PreferenceError
from rayrlhf.files import Damage, json_value, typed_value
from rayrlhf.preferences.records import Comparison, Item, Rating, Skip

T = TypeVar("T")
Record = Comparison | Rating | Skip
Row = tuple[Any, ...]

APPLICATION_ID = 0x5252_4C46  # "RRLF": what tells a rating store from any other SQLite file

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE items (
            number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, prompt TEXT NOT NULL, text TEXT NOT NULL,
            prompt_ids TEXT, text_ids TEXT, generator TEXT NOT NULL, checkpoint TEXT NOT NULL, iteration INTEGER,
            seed TEXT, extra TEXT NOT NULL)""",
        """CREATE TABLE comparisons (
            number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, items TEXT NOT NULL, best NOT NULL,
            source TEXT NOT NULL, rater TEXT NOT NULL, seconds REAL, created REAL NOT NULL, weight REAL NOT NULL,
            broken TEXT NOT NULL, reason TEXT NOT NULL, confidence REAL, difference REAL, ranking TEXT,
            repeats TEXT NOT NULL, extra TEXT NOT NULL, retracted INTEGER NOT NULL DEFAULT 0)""",
        """CREATE TABLE ratings (
            number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, item TEXT NOT NULL, score REAL NOT NULL,
            scale TEXT NOT NULL, source TEXT NOT NULL, rater TEXT NOT NULL, seconds REAL, created REAL NOT NULL,
            weight REAL NOT NULL, extra TEXT NOT NULL, retracted INTEGER NOT NULL DEFAULT 0)""",
        """CREATE TABLE skips (
            number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, items TEXT NOT NULL, rater TEXT NOT NULL,
            created REAL NOT NULL, retracted INTEGER NOT NULL DEFAULT 0)""",
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "CREATE TABLE revision (number INTEGER NOT NULL)",
        "INSERT INTO revision VALUES (0)",
    ),
)
"""Step n brings a file of version n to version n + 1; a new file is of version 0. Steps that shipped never change."""

ITEM_COLUMNS = (
    "id", "prompt", "text", "prompt_ids", "text_ids", "generator", "checkpoint", "iteration", "seed", "extra",
)  # fmt: skip
_COMPARISON_COLUMNS = (
    "id", "items", "best", "source", "rater", "seconds", "created", "weight", "broken", "reason", "confidence",
    "difference", "ranking", "repeats", "extra",
)  # fmt: skip
_RATING_COLUMNS = ("id", "item", "score", "scale", "source", "rater", "seconds", "created", "weight", "extra")
RECORD_COLUMNS = {
    "comparisons": _COMPARISON_COLUMNS,
    "ratings": _RATING_COLUMNS,
    "skips": ("id", "items", "rater", "created"),
}
"""Table -> its columns in the order of a record's row."""
_TABLES: dict[type, str] = {Comparison: "comparisons", Rating: "ratings", Skip: "skips"}
_NUMBERS = {"number", "best", "seconds", "created", "weight", "confidence", "difference", "score", "iteration"}


def migrate(connection: sqlite3.Connection, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """Brings a store of an older version to the newest: all steps in one transaction, or none of them.

    The connection is in autocommit mode. Of several processes one does it; the others find it done.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in migrations[version_of(connection) :]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def version_of(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def insertion(table: str, columns: Sequence[str]) -> str:
    """The statement that adds a row unless its id is there. Texts are bound as bytes: see `stored`."""
    values = ", ".join("?" if column in _NUMBERS else "CAST(? AS TEXT)" for column in columns)
    return f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({values})"


def stored(text: str) -> bytes:
    """What a text is bound as: sqlite3 takes no str with half a surrogate pair."""
    return text.encode("utf-8", "surrogatepass")


def loaded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def item_row(item: Item) -> Row:
    """In the order of ITEM_COLUMNS. The seed is text: SQLite's integers end at 2^63 - 1, seeds do not."""
    return (
        stored(item.id), stored(item.prompt), stored(item.text), _json(item.prompt_ids), _json(item.text_ids),
        stored(item.generator), stored(item.checkpoint), item.iteration, _json(item.seed), _json(dict(item.extra)),
    )  # fmt: skip


def item_of(row: Row) -> Item:
    """Raises PreferenceError for a row that `item_row` never makes."""
    identifier, prompt, text, prompt_ids, text_ids, generator, checkpoint, iteration, seed, extra = row
    with _damage():
        return Item(
            prompt, text, _tuple(prompt_ids), _tuple(text_ids), generator, checkpoint, iteration,
            None if seed is None else int(seed), _mapping(extra), identifier,
        )  # fmt: skip


def table_of(record: Record) -> str:
    return _TABLES[type(record)]


def items_of(record: Record) -> tuple[str, ...]:
    """Ids of the items that a record is about."""
    return (record.item,) if isinstance(record, Rating) else record.items


def record_row(record: Record) -> Row:
    """In the order of RECORD_COLUMNS. Raises PreferenceError for a number that is not finite."""
    identifier = stored(record.id)
    created = _finite(record, "created")
    if isinstance(record, Skip):
        return identifier, _json(record.items), stored(record.rater), created
    who = stored(record.source), stored(record.rater), _finite(record, "seconds"), created, _finite(record, "weight")
    if isinstance(record, Rating):
        score = _finite(record, "score")
        return identifier, stored(record.item), score, stored(record.scale), *who, _json(dict(record.extra))
    return (
        identifier, _json(record.items), record.best, *who, _json(record.broken), stored(record.reason),
        _finite(record, "confidence"), _finite(record, "difference"), _json(record.ranking), stored(record.repeats),
        _json(dict(record.extra)),
    )  # fmt: skip


def record_of(table: str, row: Row) -> Record:
    """Raises PreferenceError for a row that `record_row` never makes."""
    with _damage():
        return _record_of(table, row)


def _record_of(table: str, row: Row) -> Record:
    if table == "skips":
        identifier, items, rater, created = row
        return Skip(tuple(_stored_json(list[str], items)), rater, created, identifier)
    if table == "ratings":
        identifier, item, score, scale, source, rater, seconds, created, weight, extra = row
        return Rating(item, score, scale, source, rater, seconds, created, weight, _mapping(extra), identifier)
    (
        identifier, items, best, source, rater, seconds, created, weight, broken, reason, confidence, difference,
        ranking, repeats, extra,
    ) = row  # fmt: skip
    return Comparison(
        tuple(_stored_json(list[str], items)), best, source, rater, seconds, created, weight, _tuple(broken) or (), reason,
        confidence, difference, _tuple(ranking), repeats, _mapping(extra), identifier,
    )  # fmt: skip


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (Damage, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PreferenceError(
            f"a record of the store is damaged ({error}): put a copy of its file in its place"
        ) from error


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _json(value: Any) -> bytes | None:
    return None if value is None else _encode(value).encode("ascii")


def _stored_json(kind: type[T], text: str) -> T:
    """A column of ours; whoever wrote the file, it may be another's. Raises Damage."""
    return typed_value(kind, json_value(text))


def _tuple(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    return () if text == "[]" else tuple(_stored_json(list[int], text))


def _mapping(text: str) -> dict[str, Any]:
    # most are empty, and reading 100,000 should take no time
    return {} if text == "{}" else _stored_json(dict[str, Any], text)


def _finite(record: Record, name: str) -> float | None:
    value: float | None = getattr(record, name)
    if value is None or math.isfinite(value):
        return value
    raise PreferenceError(f"record {record.id}: its {name} is {value}; it has to be a finite number")
