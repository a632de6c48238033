"""The tables of a rating store, the steps from one version of them to the next, and records as rows.

A text is stored as TEXT in UTF-8, where half a surrogate pair stands as its three bytes: models write such texts, and
they come back bit for bit. Tuples and mappings are JSON.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, TypeVar

from rayrlhf.errors import PreferenceError
from rayrlhf.preferences.records import Comparison, Item, Rating, Skip
from rayrlhf.reading import Damage, is_number, json_value, typed_value

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
_KINDS: dict[str, type[Record]] = {"comparisons": Comparison, "ratings": Rating, "skips": Skip}
_TABLES = {kind: table for table, kind in _KINDS.items()}
_JSON: dict[str, type] = {
    **dict.fromkeys(("items", "broken", "ranking", "prompt_ids", "text_ids"), tuple), "seed": int, "extra": dict,
}  # fmt: skip
"""Column that is JSON -> what it says."""
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
    """Raises Damage for a row that `item_row` never makes."""
    return _read(Item, ITEM_COLUMNS, row)


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
    """Raises Damage for a row that `record_row` never makes."""
    return _read(_KINDS[table], RECORD_COLUMNS[table], row)


def _read(kind: type[T], columns: Sequence[str], row: Row) -> T:
    try:
        return typed_value(kind, {name: _from_json(name, value) for name, value in zip(columns, row, strict=True)})
    except (TypeError, ValueError) as error:
        raise Damage(f"{kind.__name__.lower()}: {error}") from error


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _json(value: Any) -> bytes | None:
    return None if value is None else _encode(value).encode("ascii")


def _from_json(column: str, value: Any) -> Any:
    """What a column says; of a text that is JSON, what that does. Raises Damage."""
    if value is None or column not in _JSON:
        return value
    if value in ("[]", "{}"):  # most are empty, and reading 100,000 should take no time
        return _JSON[column]()
    told = json_value(value)
    return tuple(told) if isinstance(told, list) else told


def _finite(record: Record, name: str) -> float | None:
    value: float | None = getattr(record, name)
    if value is None or is_number(value):
        return value
    raise PreferenceError(f"record {record.id}: its {name} is {value}; it has to be a finite number")
