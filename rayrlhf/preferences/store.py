"""The rating store of a project: one SQLite file in which nothing is ever deleted.

What a method has written is on the disk when it returns (write-ahead log, synchronous=FULL), so no verdict is lost
with its process. Threads and processes may read and write at once.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import cast

from rayrlhf.errors import PreferenceError
from rayrlhf.files import check_plain, sync_folder
from rayrlhf.preferences.records import Comparison, Item, Rating, Skip
from rayrlhf.preferences.schema import (
    APPLICATION_ID,
    ITEM_COLUMNS,
    MIGRATIONS,
    RECORD_COLUMNS,
    Record,
    insertion,
    item_of,
    item_row,
    items_of,
    loaded,
    migrate,
    record_of,
    record_row,
    stored,
    table_of,
    version_of,
)
from rayrlhf.reading import SHOWN, Damage, printable, typed_value

FILE_NAME = "ratings.sqlite"
_WAIT_S = 60.0  # for another writer; a write takes milliseconds


class RatingStore:
    """Items, comparisons, ratings and skips, each kept in the order in which it was added."""

    def __init__(self, path: Path) -> None:
        """Opens the store, makes it where there is none, and brings an older one to the newest schema.

        Raises:
            PreferenceError: the file is no rating store, is damaged, or a newer version of RayRLHF wrote it.
        """
        self.path = path
        self._lock = threading.RLock()
        # SQLite would follow links from any of them
        check_plain(path.parent, [f"{path.name}{suffix}" for suffix in ("", "-wal", "-shm", "-journal")])
        with self._faults():
            if not path.exists():
                _create(path)
            self._connection = _connect(path)
            try:
                self._check()
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> RatingStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def add_items(self, items: Iterable[Item]) -> int:
        """Adds items, in one transaction; returns how many of them were new.

        Raises:
            PreferenceError: an id that was given, not derived, is taken by another item; nothing is added then.
        """
        listed = list(items)
        with self._writing() as write:
            before = write.total_changes
            write.executemany(insertion("items", ITEM_COLUMNS), map(item_row, listed))
            new = write.total_changes - before
            for item in listed:
                if replace(item, id="").id != item.id:
                    self._refuse_other_content(item)
            return new

    def add(self, *records: Record) -> int:
        """Adds records, all or none; returns how many were new: an id that is there, even retracted, counts 0.

        Raises:
            PreferenceError: a record is of an item that the store lacks, or has a number that is not finite.
        """
        with self._writing() as write:
            before = write.total_changes
            numbers = count(self._last_number() + 1)
            numbered = [(next(numbers), record) for record in records]
            said_of = {item: record for record in records for item in items_of(record)}
            for item, record in said_of.items():
                if not write.execute("SELECT 1 FROM items WHERE id = CAST(? AS TEXT)", (stored(item),)).fetchone():
                    raise PreferenceError(
                        f"{self.path}: record {record.id} is of item {item}, which the store lacks: add items before what "
                        "is said of them"
                    )
            for table, columns in RECORD_COLUMNS.items():
                rows = [(number, *record_row(record)) for number, record in numbered if table_of(record) == table]
                write.executemany(insertion(table, ("number", *columns)), rows)
            return write.total_changes - before

    def retract(self, record_id: str) -> bool:
        """Marks a comparison, rating or skip as taken back; False where there is none or it is marked already."""
        with self._writing() as write:
            return any(
                write.execute(
                    f"UPDATE {table} SET retracted = 1 WHERE id = CAST(? AS TEXT) AND NOT retracted",
                    (stored(record_id),),
                ).rowcount
                for table in RECORD_COLUMNS
            )

    def items(self) -> dict[str, Item]:
        """Id -> item, of all, in the order of their adding."""
        with self._reading() as read:
            rows = read.execute(f"SELECT {', '.join(ITEM_COLUMNS)} FROM items ORDER BY number").fetchall()
            return {item.id: item for item in map(item_of, rows)}

    def comparisons(self) -> list[Comparison]:
        return cast(list[Comparison], self._records("comparisons"))

    def ratings(self) -> list[Rating]:
        return cast(list[Rating], self._records("ratings"))

    def skips(self) -> list[Skip]:
        return cast(list[Skip], self._records("skips"))

    def history(self) -> list[tuple[Record, bool]]:
        """All comparisons, ratings and skips in the order of their adding, with whether they are retracted."""
        found: list[tuple[int, Record, bool]] = []
        with self._reading() as read:
            for table, columns in RECORD_COLUMNS.items():
                rows = read.execute(f"SELECT number, {', '.join(columns)}, retracted FROM {table}")
                found += [(row[0], record_of(table, row[1:-1]), bool(row[-1])) for row in rows]
            _check_items(read, [record for _, record, _ in found])
        return [(record, retracted) for _, record, retracted in sorted(found, key=itemgetter(0))]

    def done_by(self, rater: str) -> list[Comparison | Skip]:
        """The comparisons and skips of one rater that stand, in the order of their adding: no clock can change it."""
        found: list[tuple[int, Comparison | Skip]] = []
        with self._reading() as read:
            for table in ("comparisons", "skips"):
                rows = read.execute(
                    f"SELECT number, {', '.join(RECORD_COLUMNS[table])} FROM {table} "
                    "WHERE rater = CAST(? AS TEXT) AND NOT retracted",
                    (stored(rater),),
                )
                found += [(row[0], cast(Comparison | Skip, record_of(table, row[1:]))) for row in rows]
            _check_items(read, [record for _, record in found])
        return [record for _, record in sorted(found, key=itemgetter(0))]

    def meta(self) -> dict[str, str]:
        """What is known of the project as a whole, such as the fingerprint of its items' tokenizer."""
        with self._reading() as read:
            return typed_value(
                dict[str, str], dict(read.execute("SELECT key, value FROM meta ORDER BY key").fetchall())
            )

    def set_meta(self, key: str, value: str) -> None:
        with self._writing() as write:
            write.execute(
                "INSERT OR REPLACE INTO meta VALUES (CAST(? AS TEXT), CAST(? AS TEXT))", (stored(key), stored(value))
            )

    def revision(self) -> int:
        """A number that grows with every write that changes something, whoever writes."""
        with self._reading() as read:
            row = read.execute("SELECT number FROM revision").fetchone()
            if row is None or not isinstance(row[0], int):
                raise Damage("it has no revision")
            return row[0]

    def _records(self, table: str) -> list[Record]:
        columns = ", ".join(RECORD_COLUMNS[table])
        with self._reading() as read:
            rows = read.execute(f"SELECT {columns} FROM {table} WHERE NOT retracted ORDER BY number").fetchall()
            records = [record_of(table, row) for row in rows]
            _check_items(read, records)
        return records

    def _last_number(self) -> int:
        """Records of all kinds are numbered in one row."""
        latest = (
            self._connection.execute(f"SELECT max(number) FROM {table}").fetchone()[0] for table in RECORD_COLUMNS
        )
        return max(number or 0 for number in latest)

    def _check(self) -> None:
        """Raises PreferenceError for a file of another program or of a later version; migrates one of an earlier."""
        if self._connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise PreferenceError(f"{self.path} is no rating store: move it away, or name another folder")
        made = self._connection.execute(
            "SELECT name FROM sqlite_master WHERE type NOT IN ('table', 'index')"
        ).fetchone()
        if made is not None:  # a view or a trigger runs what somebody wrote: without end, if they like
            raise PreferenceError(
                f"{self.path} is no rating store: it holds {printable(made[0])[:SHOWN]}, which runs by itself"
            )
        version = version_of(self._connection)
        if version > len(MIGRATIONS):
            raise PreferenceError(
                f"{self.path} has schema version {version}, and this version of RayRLHF reads {len(MIGRATIONS)} and "
                "older: use the newer RayRLHF that wrote it"
            )
        if version < len(MIGRATIONS):
            migrate(self._connection)

    def _refuse_other_content(self, item: Item) -> None:
        columns = ", ".join(ITEM_COLUMNS)
        query = f"SELECT {columns} FROM items WHERE id = CAST(? AS TEXT)"
        if item_of(self._connection.execute(query, (stored(item.id),)).fetchone()) != item:
            raise PreferenceError(f"{self.path}: the id {item.id} is taken by an item with another content")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._faults():
            yield self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; the revision grows where it changed something."""
        with self._lock, self._faults():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                before = self._connection.total_changes
                yield self._connection
                if self._connection.total_changes > before:
                    self._connection.execute("UPDATE revision SET number = number + 1")
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:  # used after close(): nobody's file is at fault
            raise
        except sqlite3.OperationalError as error:  # locked, read-only, disk full
            raise PreferenceError(f"{self.path} cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise PreferenceError(
                f"{self.path} is no rating store, or is damaged ({error}): put a copy in its place, or save what can be "
                "read with `sqlite3 FILE .recover`"
            ) from error
        except Damage as error:
            raise PreferenceError(f"{self.path} is damaged ({error}): put a copy in its place") from error
        except UnicodeDecodeError as error:
            raise PreferenceError(
                f"{self.path} is damaged (a text of it is not UTF-8): put a copy in its place"
            ) from error
        except OSError as error:
            raise PreferenceError(f"{self.path} cannot be made: {error.strerror}") from error


def _check_items(read: sqlite3.Connection, records: Iterable[Record]) -> None:
    """Raises Damage where a record is of an item that is gone. Items are added first, so all are there by now."""
    known = {row[0] for row in read.execute("SELECT id FROM items")}
    for record in records:
        if not known.issuperset(items_of(record)):
            raise Damage(f"record {record.id} is of an item that it lacks")


def _connect(path: Path) -> sqlite3.Connection:
    """In autocommit mode: transactions are begun by hand."""
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
    connection.text_factory = loaded
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _create(path: Path) -> None:
    """An empty store, made aside and linked into place: whoever else makes it, there is one, and it is whole."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with closing(_connect(aside)) as connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("PRAGMA journal_mode = WAL")
            migrate(connection)
        try:
            os.link(aside, path)
        except FileExistsError:
            return
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)
