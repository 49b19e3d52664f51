"""Reading a database file that may be damaged in its schema, its pages or its text."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import TypeVar

from session_middleware.errors import StorageError
from session_middleware.models import Problem
from session_middleware.storage.sql.checks import describe
from session_middleware.storage.sql.connection import DamagedRow
from session_middleware.storage.sqlite.connection import SqliteConnection
from session_middleware.storage.sqlite.readonly_open import read_unlocked

T = TypeVar("T")

UNREADABLE = (
    sqlite3.DatabaseError,
    DamagedRow,
    TypeError,
    AttributeError,
    ValueError,
    RecursionError,
)  # raised when damaged content is read

_LINES = 100  # of SQLite's check, in which one torn page leads to thousands
_ENTRIES = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
_INDEX = re.compile(r"(?:missing from|entries in) index (\w+)$")
_RESTORE = "restore a backup, or copy what can be read with `sqlite3 broken.db .recover | sqlite3 saved.db`"


def inspect(path: str, operation: Callable[[SqliteConnection], T]) -> T:
    """Run `operation`, which only reads, on an existing file in any state.

    Raises:
        StorageError: the file cannot be opened.
    """
    try:
        return read_unlocked(path, operation)
    except (sqlite3.Error, DamagedRow) as error:
        advice = "restore a backup, or list the damage with session-middleware check --deep"
        raise StorageError(path, f"it cannot be read ({error})", advice=advice) from error


@contextmanager
def tolerant(connection: SqliteConnection) -> Iterator[list[Problem]]:
    """Make text that is not UTF-8 and a damaged schema readable; yields the problems of the schema."""
    text_factory, connection.text_factory = connection.text_factory, _decoded
    try:
        yield [in_file(f"its schema is damaged ({reason})") for reason in _schema_errors(connection)]
    finally:
        connection.text_factory = text_factory
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA writable_schema=OFF")


def _schema_errors(connection: SqliteConnection) -> Iterator[str]:
    for pragma in ("OFF", "ON"):
        try:
            connection.execute(f"PRAGMA writable_schema={pragma}")
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            return
        except sqlite3.OperationalError:
            raise
        except UNREADABLE as error:
            yield first_line(error)


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def in_file(text: str, table: str | None = None) -> Problem:
    return describe("file", f"{text}; {_RESTORE}", table=table)


def unfinished(error: Exception) -> Problem:
    """The problem that stopped a check: unreadable pages, or a damaged row."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR):
        return in_file(f"it cannot be read to the end ({first_line(error)})")
    return describe("damage", f"a check could not be finished ({first_line(error)}); check --deep names the row")


def first_line(error: Exception) -> str:
    return " ".join(str(error).encode("utf-8", "replace").decode().split())[:120]


def structure(connection: SqliteConnection, *, deep: bool) -> list[Problem]:
    """The problems that SQLite's own check finds. `deep` includes the indexes and changes of the schema."""
    check = "integrity_check" if deep else "quick_check"
    lines = [line for (text,) in connection.execute(f"PRAGMA {check}({_LINES})") for line in text.splitlines()]
    names = {str(page): name for page, name in connection.execute("SELECT rootpage, name FROM sqlite_master")}
    found = []
    for line in lines:
        if index := _INDEX.search(line):
            found.append(describe("index", line, key=index[1]))
        elif line != "ok" and not line.startswith("*** in database"):
            tree = re.search(r"\b[Tt]ree (\d+)", line)
            found.append(in_file(line, names.get(tree[1]) if tree else None))
    return found + _schema_changes(connection) if deep else found


def _schema_changes(connection: SqliteConnection) -> list[Problem]:
    """Differences from the original schema, which could make SQLite run other statements, such as triggers."""
    found = dict(connection.execute(_ENTRIES).fetchall())
    return [
        in_file(f"the schema's entry of {name} is {'changed' if name in found else 'missing'}")
        for name, sql in original_schema().items()
        if found.get(name) != sql
    ]


def original_schema() -> dict[str, str]:
    """The statements that create the tables, indexes and triggers, by name."""
    from sqlite_utils import Database

    from session_middleware.storage.sqlite import migrations

    with closing(Database(memory=True)) as database:
        migrations.apply(database)
        return dict(database.execute(_ENTRIES).fetchall())
