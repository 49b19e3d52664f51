"""Reading a database file that may be damaged: its schema, its pages, text that is not valid UTF-8."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

from session_middleware.errors import StorageError
from session_middleware.findings import Problem
from session_middleware.storage.sqlite.readonly_open import read_unlocked

T = TypeVar("T")

UNREADABLE = (sqlite3.DatabaseError, TypeError, AttributeError, ValueError, RecursionError)  # what damage leads to

_LINES = 100  # of SQLite's own check: one torn page leads to thousands
_INDEX = re.compile(r"(?:missing from|entries in) index (\w+)$")
_RESTORE = "restore a backup, or copy what can be read with `sqlite3 broken.db .recover | sqlite3 saved.db`"


def inspect(path: str, operation: Callable[[sqlite3.Connection], T]) -> T:
    """Carry out `operation` on a file that is there, which is only read, whatever its state.

    Raises:
        StorageError: the file cannot be opened.
    """
    try:
        return read_unlocked(path, operation)
    except sqlite3.Error as error:
        raise StorageError(path, f"it cannot be read ({error})", advice="restore a backup") from error


@contextmanager
def tolerant(connection: sqlite3.Connection) -> Iterator[list[Problem]]:
    """Read past text that is not UTF-8, and past what is damaged of the schema; yields what is wrong with that."""
    text_factory, connection.text_factory = connection.text_factory, _decoded
    try:
        yield [in_file(f"it cannot be opened as usual ({why})") for why in _problems_of_schema(connection)]
    finally:
        connection.text_factory = text_factory
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA writable_schema=OFF")


def _problems_of_schema(connection: sqlite3.Connection) -> Iterator[str]:
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


def problem(kind: str, text: str, session_id: Any = None, *, table: str | None = None, key: Any = None) -> Problem:
    """A problem at as much of a place as is known; whatever that has become, it can be printed."""
    texts = (
        None if part is None else str(part).encode("utf-8", "replace").decode() for part in (session_id, key, text)
    )
    return Problem(kind=kind, table=table, **dict(zip(("session_id", "key", "text"), texts, strict=True)))


def in_file(text: str, table: str | None = None) -> Problem:
    return problem("file", f"{text}; {_RESTORE}", table=table)


def unfinished(error: Exception) -> Problem:
    """A check came upon pages that cannot be read, or upon a row that is not what was written."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR):
        return in_file(f"it cannot be read to the end ({first_line(error)})")
    return problem("damage", f"a check could not be finished ({first_line(error)}); check --deep names the row")


def first_line(error: Exception) -> str:
    return " ".join(str(error).encode("utf-8", "replace").decode().split())[:120]


def structure(connection: sqlite3.Connection, *, deep: bool) -> list[Problem]:
    """What SQLite's own check says of the file; `deep`, also of its indexes, and whether the schema was altered."""
    check = "integrity_check" if deep else "quick_check"
    said = [line for (text,) in connection.execute(f"PRAGMA {check}({_LINES})") for line in text.splitlines()]
    names = {str(page): name for page, name in connection.execute("SELECT rootpage, name FROM sqlite_master")}
    found = []
    for line in said:
        if index := _INDEX.search(line):
            found.append(problem("index", line, key=index[1]))
        elif line != "ok" and not line.startswith("*** in database"):
            tree = re.search(r"\b[Tt]ree (\d+)", line)
            found.append(in_file(line, names.get(tree[1]) if tree else None))
    return found + _altered(connection) if deep else found


def _altered(connection: sqlite3.Connection) -> list[Problem]:
    """SQLite does as the schema says, so the entries of our tables must be what they were made."""
    from sqlite_utils import Database

    from session_middleware.storage.sql import schema

    entries = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    there = dict(connection.execute(entries).fetchall())
    with closing(Database(memory=True)) as database:
        schema.apply(database)
        made = dict(database.execute(entries).fetchall())
    return [
        in_file(f"the schema's entry of {name} is {'not what was made' if name in there else 'missing'}")
        for name, sql in made.items()
        if there.get(name) != sql
    ]
