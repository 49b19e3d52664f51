"""The consistency checks of a file, which may be damaged in its schema, its pages, its rows or its text.

Every row can be read, state and files match their checksums, and the relations between rows hold. The record has
no checksums: its rows are read as their models, and their text as UTF-8. The time is linear in the stored bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

from session_middleware.errors import StorageError
from session_middleware.models import (
    Branch,
    Event,
    Message,
    ModelCall,
    Problem,
    Run,
    SessionInfo,
    ToolCall,
    Value,
    utc_now,
)
from session_middleware.settings import SessionSettings
from session_middleware.storage.sql.checkpoints import lists
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow, checked_blob, inline_value
from session_middleware.storage.sql.checkpoints.rows import Row, WriteRow, references_in
from session_middleware.storage.sql.checks import checks, describe, without_moved
from session_middleware.storage.sql.connection import UNLIMITED, DamagedRow
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.row_mapping import read_column, value_of
from session_middleware.storage.sql.schema import TABLES
from session_middleware.storage.sqlite.connection import SqliteConnection, read_unlocked

T = TypeVar("T")

UNREADABLE = (  # raised when damaged content is read
    *(sqlite3.DatabaseError, DamagedRow, CorruptRow),
    *(TypeError, AttributeError, ValueError, RecursionError),
)
_LINES = 100  # of SQLite's check, in which one torn page leads to thousands
_ENTRIES = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
_INDEX = re.compile(r"(?:missing from|entries in) index (\w+)$")
_RESTORE = "restore a backup, or copy what can be read with `sqlite3 broken.db .recover | sqlite3 saved.db`"

_MODELS: Mapping[str, type[Value]] = {
    "sessions": SessionInfo,
    "runs": Run,
    "messages": Message,
    "branches": Branch,
    "tool_calls": ToolCall,
    "model_calls": ModelCall,
    "events": Event,
}
_STATE = ("checkpoints", "writes", "lists", "list_items", "blobs")
_BY_SESSION = (*runs.TABLES, *_STATE[:2])
_DERIVED = ("index_", "vector", "_sqlite")  # how the names of tables without original content begin
_TYPES = {"TEXT": str, "INTEGER": int, "REAL": int | float, "BLOB": bytes}
_JSON = {("memories", "namespace"): list, ("memories", "value"): dict, ("conversation_items", "item"): object}


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
            except UNREADABLE as error:
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
        except UNREADABLE as error:
            yield _first_line(error)


def _in_file(text: str, table: str | None = None) -> Problem:
    return describe("file", f"{text}; {_RESTORE}", table=table)


def _unfinished(error: Exception) -> Problem:
    """The problem that stopped a check: unreadable pages, or a damaged row."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR):
        return _in_file(f"it cannot be read to the end ({_first_line(error)})")
    return describe("damage", f"a check could not be finished ({_first_line(error)}); check --deep names the row")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).encode("utf-8", "replace").decode().split())[:120]


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


# The rows


class _Contents:
    """The rows that are unreadable or damaged: of `sessions` only, or with `deep` of all tables."""

    def __init__(self, connection: SqliteConnection) -> None:
        self._connection = connection
        self._found: list[Problem] = []
        self._blobs: dict[tuple[int, bytes], str] = {}  # the problem of each, or nothing
        self._lists: dict[tuple[int, int], tuple[list[int], list[int], str]] = {}  # see `_list`
        self._columns: dict[str, list[tuple[str, type | Any, bool]]] = {}

    def check(self, *, deep: bool) -> list[Problem]:
        for session_id in self._session_ids():
            self._read("sessions", "WHERE id = ?", session_id)
            for table in _BY_SESSION if deep else ():
                self._read(table, "WHERE session_id = ?", session_id)
        if not deep:
            return self._found
        tables = {name for name, sql in original_schema().items() if sql.upper().startswith("CREATE TABLE")}
        for table in sorted(tables - {*_BY_SESSION, "sessions", "blobs"}):
            if not table.startswith(_DERIVED):
                self._read(table, "")
        with suppress(sqlite3.DatabaseError):  # reported by SQLite's own check
            for home, digest in self._connection.execute("SELECT home, digest FROM blobs").fetchall():
                self._blob(home, digest)
        return self._found

    def _session_ids(self) -> list[str]:
        """All ids. Where the table is damaged, the ids come from an index."""
        found: dict[str, None] = {}
        for where in ("NOT INDEXED ORDER BY id", "INDEXED BY sessions_by_home"):
            try:
                found.update((row[0], None) for row in self._connection.execute(f"SELECT id FROM sessions {where}"))
                break
            except sqlite3.DatabaseError as error:
                self._add(f"some of its rows cannot be read ({error})", None, "sessions")
        for session_id in [each for each in found if not isinstance(each, str) or not _is_text(each)]:
            self._add("its id is not valid UTF-8", session_id, "sessions")
            del found[session_id]
        return list(found)

    def _read(self, table: str, where: str, session_id: str | None = None) -> None:
        count = 0
        try:
            values = () if session_id is None else (session_id,)
            cursor = self._connection.execute(f"SELECT * FROM {table} {where}", values)
            for count, row in enumerate(cursor, 1):  # noqa: B007 - counts them
                try:
                    self._check(table, cursor, row)
                except UNREADABLE as error:
                    problem = f"it cannot be read ({_first_line(error)})"
                    if isinstance(error, CorruptRow):
                        problem = str(error) if " is " in str(error) else f"{error} is not what was written"
                    named = dict(zip((column[0] for column in cursor.description), row, strict=True))
                    self._add(problem, named.get("session_id", session_id), table, self._key(table, named))
            if table == "sessions" and count == 0:
                self._add("its row cannot be found by its id", session_id, table)
        except UNREADABLE as error:
            self._add(f"some of its rows cannot be read ({_first_line(error)})", session_id, table)

    def _add(self, problem: str, session_id: Any, table: str, key: str | None = None) -> None:
        if table in _STATE:
            advice = "resume the session from another checkpoint, or delete it"
        elif session_id is not None:
            advice = "correct the row, or delete the session"
        else:
            advice = "correct or delete the row, or restore a backup"
        self._found.append(describe("damage", f"{problem}; {advice}", session_id, table=table, key=key))

    def _key(self, table: str, row: Mapping[str, Any]) -> str | None:
        """The primary key of a row within its session, as text."""
        if table == "sessions":
            return None
        keys = [name for name, _, is_key in self._columns_of(table) if is_key]
        names = [name for name in keys if name not in ("home", "session_id")] or ["seq"]
        if table == "checkpoints":
            names[-1] = "checkpoint_id"  # more useful than its position
        return "/".join(str(row[name]) for name in names if row[name] != "")

    def _columns_of(self, table: str) -> list[tuple[str, Any, bool]]:
        """The name and type of each column, and whether it belongs to the primary key."""
        if table not in self._columns:
            rows = self._connection.execute(f"PRAGMA table_info({table})").fetchall()
            self._columns[table] = [(row[1], _TYPES.get(row[2], object), bool(row[5])) for row in rows]
        return self._columns[table]

    def _check(self, table: str, cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> None:
        """Raise one of `UNREADABLE` if a row of ``SELECT *`` is damaged."""
        for (name, kind, _), value in zip(self._columns_of(table), row, strict=True):
            if value is not None and not isinstance(value, kind):
                raise CorruptRow(f"{name} is of another type than was written")
            if isinstance(value, str) and not value.isascii() and not _is_text(value):
                raise CorruptRow(f"{name} is not valid UTF-8")
            if (table, name) in _JSON and not isinstance(json.loads(value or ""), _JSON[table, name]):
                raise CorruptRow(name)
            if table not in _MODELS and value is not None:
                read_column(name, value)
        if table in ("checkpoints", "writes"):
            state = Row(*row) if table == "checkpoints" else WriteRow(*row)
            state.check()
            for ref in references_in(state):
                self._check_reference(state.home, ref)
        elif table == "files" and row[1] != f"sha256:{hashlib.sha256(row[3]).hexdigest()}":
            raise CorruptRow("the file")
        elif table in _MODELS:
            value_of(_MODELS[table], cursor, row)

    # References

    def _check_reference(self, home: int, ref: Any) -> None:
        """Raise `CorruptRow` unless a reference leads to the content that it was made for."""
        if isinstance(ref, str):
            if problem := self._blob(home, bytes.fromhex(ref)):
                raise CorruptRow(problem)
        elif isinstance(ref, list):
            list_id, length, check = ref
            ends, sums, problem = self._list(home, list_id)
            place = bisect_left(ends, length)
            if place == len(ends) or sums[place] != check:
                raise CorruptRow(problem or f"what list {list_id} holds")
        elif isinstance(ref, dict):
            inline_value(ref)
        elif ref is not None:
            raise CorruptRow("a reference")

    def _list(self, home: int, list_id: int) -> tuple[list[int], list[int], str]:
        """The end of each chunk of a list, the check over all digests up to there, and the problem that ends it."""
        if (home, list_id) in self._lists:
            return self._lists[home, list_id]
        ends, sums, problem = [0], [0], ""
        for item in lists.items(self._connection, home, list_id, UNLIMITED):
            if item.data is None:
                problem = self._blob(home, item.digest)
            else:
                try:
                    checked_blob(item.type or "", item.data, item.digest)
                except CorruptRow:
                    problem = f"an element of list {list_id} is not what was written"
            if problem or item.position != ends[-1] or item.length < 1:
                break
            ends.append(item.position + item.length)
            sums.append(zlib.crc32(item.digest, sums[-1]))
        self._lists[home, list_id] = ends, sums, problem
        return self._lists[home, list_id]

    def _blob(self, home: int, digest: bytes) -> str:
        """The problem of a blob, or nothing."""
        if (home, digest) not in self._blobs:
            problem = f"blob {digest.hex()} is missing"
            try:
                sql = "SELECT type, data, digest FROM blobs WHERE home = ? AND digest = ?"
                if row := self._connection.execute(sql, (home, digest)).fetchone():
                    checked_blob(*row)
                    problem = ""
            except UNREADABLE:
                problem = f"blob {digest.hex()} is not what was written"
                sql = "SELECT MIN(id) FROM sessions WHERE home = ?"  # one of the family, to name a location
                self._add(problem, self._connection.execute(sql, (home,)).fetchone()[0], "blobs", digest.hex())
            self._blobs[home, digest] = problem
        return self._blobs[home, digest]


def _is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)
