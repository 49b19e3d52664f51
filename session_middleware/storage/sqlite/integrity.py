"""The consistency checks of a file, which may be damaged in its schema, its pages, its rows or its text.

The checks of its rows are those of every engine (`sql/contents.py`, `sql/checks.py`).
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import TypeVar

from session_middleware.errors import StorageError
from session_middleware.models import Problem, utc_now
from session_middleware.settings import SessionSettings
from session_middleware.storage.jsonable import is_text
from session_middleware.storage.sql.checks import checks, describe, without_moved
from session_middleware.storage.sql.connection import DamagedRow
from session_middleware.storage.sql.contents import UNREADABLE, Contents, first_line
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.schema import TABLES
from session_middleware.storage.sqlite.connection import SqliteConnection, read_unlocked

T = TypeVar("T")

_UNREADABLE = (sqlite3.DatabaseError, *UNREADABLE)
_LINES = 100  # of SQLite's check, in which one torn page leads to thousands
_ENTRIES = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
_INDEX = re.compile(r"(?:missing from|entries in) index (\w+)$")
_RESTORE = "restore a backup, or copy what can be read with `sqlite3 broken.db .recover | sqlite3 saved.db`"


def check_file(path: str, settings: SessionSettings, *, deep: bool = False) -> list[Problem]:
    """Run `find` on a file, which is only read. Raises `StorageError` if the file cannot be opened."""
    rules = EngineContext(settings, utc_now, path)
    return inspect(path, lambda connection: find(connection, rules, deep=deep))


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


def find(connection: SqliteConnection, rules: EngineContext, *, deep: bool = False) -> list[Problem]:
    """The problems of a database. `deep` reads every row and compares all checksums. Damage never raises.

    Raises:
        sqlite3.OperationalError: the file cannot be opened, or is locked.
    """
    with _tolerant(connection) as found:
        of_file = [lambda: _structure(connection, deep=deep), lambda: _Contents(connection).check(deep=deep)]
        for check in [*of_file, *checks(connection, rules)] if len(found) < 2 else ():  # else no table can be read
            try:
                found += check()
            except _UNREADABLE as error:
                found.append(_unfinished(error))
        return without_moved(found)


def original_schema() -> dict[str, str]:
    """The statements that create the tables, indexes and triggers, by name."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in TABLES:
            connection.execute(statement)
        return dict(connection.execute(_ENTRIES).fetchall())


# The file


@contextmanager
def _tolerant(connection: SqliteConnection) -> Iterator[list[Problem]]:
    """Make text that is not UTF-8 and a damaged schema readable; yields the problems of the schema."""
    text_factory = connection.text_factory
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    try:
        yield [_in_file(f"its schema is damaged ({reason})") for reason in _schema_errors(connection)]
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
        except _UNREADABLE as error:
            yield first_line(error)


def _in_file(text: str, table: str | None = None) -> Problem:
    return describe("file", f"{text}; {_RESTORE}", table=table)


def _unfinished(error: Exception) -> Problem:
    """The problem that stopped a check: unreadable pages, or a damaged row."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR):
        return _in_file(f"it cannot be read to the end ({first_line(error)})")
    return describe("damage", f"a check could not be finished ({first_line(error)}); check --deep names the row")


def _structure(connection: SqliteConnection, *, deep: bool) -> list[Problem]:
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
            found.append(_in_file(line, names.get(tree[1]) if tree else None))
    if deep:  # differences from the original schema could make SQLite run other statements, such as triggers
        entries = dict(connection.execute(_ENTRIES).fetchall())
        for name, sql in original_schema().items():
            if entries.get(name) != sql:
                state = "changed" if name in entries else "missing"
                found.append(_in_file(f"the schema's entry of {name} is {state}"))
    return found


class _Contents(Contents):
    errors = (sqlite3.DatabaseError,)

    def session_ids(self) -> list[str]:
        """All ids. Where the table is damaged, the ids come from an index."""
        found: dict[str, None] = {}
        for where in ("NOT INDEXED ORDER BY id", "INDEXED BY sessions_by_home"):
            try:
                found.update((row[0], None) for row in self._connection.execute(f"SELECT id FROM sessions {where}"))
                break
            except sqlite3.DatabaseError as error:
                self.add(f"some of its rows cannot be read ({error})", None, "sessions")
        for session_id in [each for each in found if not isinstance(each, str) or not is_text(each)]:
            self.add("its id is not valid UTF-8", session_id, "sessions")
            del found[session_id]
        return list(found)
