"""The content of a database: every row can be read, and state and files match their checksums.

The record has no checksums. Its rows are read as their models, and their text as UTF-8. The time is linear in the
stored bytes.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from session_middleware.models import Branch, Event, Message, ModelCall, Problem, Run, SessionInfo, ToolCall, Value
from session_middleware.storage.sql.checkpoints import lists
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow, checked_blob, inline_value
from session_middleware.storage.sql.checkpoints.rows import Row, WriteRow, references_in
from session_middleware.storage.sql.checks import describe
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.row_mapping import read_column, value_of
from session_middleware.storage.sqlite.connection import SqliteConnection
from session_middleware.storage.sqlite.integrity.reading import UNREADABLE, first_line, original_schema

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

_ENDLESS = 1 << 62


def check(connection: SqliteConnection, *, deep: bool) -> list[Problem]:
    """The rows that are unreadable or damaged: of `sessions` only, or with `deep` of all tables."""
    return _Contents(connection).check(deep=deep)


class _Contents:
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
        values = () if session_id is None else (session_id,)
        try:
            cursor = self._connection.execute(f"SELECT * FROM {table} {where}", values)
            count = 0
            for row in cursor:
                count += 1
                if problem := self._problem_of(table, cursor, row):
                    named = dict(zip((column[0] for column in cursor.description), row, strict=True))
                    self._add(problem, named.get("session_id", session_id), table, self._key(table, named))
            if table == "sessions" and count == 0:
                self._add("its row cannot be found by its id", session_id, table)
        except UNREADABLE as error:
            self._add(f"some of its rows cannot be read ({first_line(error)})", session_id, table)

    def _add(self, what: str, session_id: Any, table: str, key: str | None = None) -> None:
        if table in _STATE:
            advice = "resume the session from another checkpoint, or delete it"
        elif session_id is not None:
            advice = "correct the row, or delete the session"
        else:
            advice = "correct or delete the row, or restore a backup"
        self._found.append(describe("damage", f"{what}; {advice}", session_id, table=table, key=key))

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

    def _problem_of(self, table: str, cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> str:
        """The problem of a row of ``SELECT *``, or nothing."""
        try:
            self._check(table, cursor, row)
        except CorruptRow as what:
            return str(what) if " is " in str(what) else f"{what} is not what was written"
        except UNREADABLE as error:
            return f"it cannot be read ({first_line(error)})"
        return ""

    def _check(self, table: str, cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> None:
        for (name, kind, _), value in zip(self._columns_of(table), row, strict=True):
            if value is not None and not isinstance(value, kind):
                raise CorruptRow(f"{name} is of another type than was written")
            if isinstance(value, str) and not value.isascii() and not _is_text(value):
                raise CorruptRow(f"{name} is not valid UTF-8")
            if (table, name) in _JSON and not isinstance(json.loads(value or ""), _JSON[table, name]):
                raise CorruptRow(name)
            if table not in _MODELS and value is not None:
                read_column(name, value)
        if table == "checkpoints":
            (checkpoint := Row(*row)).check()
            for ref in references_in(checkpoint):
                self._check_reference(checkpoint.home, ref)
        elif table == "writes":
            (write := WriteRow(*row)).check()
            for ref in references_in(write):
                self._check_reference(write.home, ref)
        elif table == "files":
            if row[1] != f"sha256:{hashlib.sha256(row[3]).hexdigest()}":
                raise CorruptRow("the file")
        elif table in _MODELS:
            value_of(_MODELS[table], cursor, row)

    # References

    def _check_reference(self, home: int, ref: Any) -> None:
        """Raise `CorruptRow` unless a reference leads to the content that it was made for."""
        if isinstance(ref, str):
            if what := self._blob(home, bytes.fromhex(ref)):
                raise CorruptRow(what)
        elif isinstance(ref, list):
            list_id, length, check = ref
            ends, checks, problem = self._list(home, list_id)
            place = bisect_left(ends, length)
            if place == len(ends) or checks[place] != check:
                raise CorruptRow(problem or f"what list {list_id} holds")
        elif isinstance(ref, dict):
            inline_value(ref)
        elif ref is not None:
            raise CorruptRow("a reference")

    def _list(self, home: int, list_id: int) -> tuple[list[int], list[int], str]:
        """The end of each chunk of a list, the check over all digests up to there, and the problem that ends it."""
        if (home, list_id) in self._lists:
            return self._lists[home, list_id]
        ends, checks, problem = [0], [0], ""
        for item in lists.items(self._connection, home, list_id, _ENDLESS):
            problem = self._blob(home, item.digest) if item.data is None else _problem_of_item(item, list_id)
            if problem or item.position != ends[-1] or item.length < 1:
                break
            ends.append(item.position + item.length)
            checks.append(zlib.crc32(item.digest, checks[-1]))
        self._lists[home, list_id] = ends, checks, problem
        return self._lists[home, list_id]

    def _blob(self, home: int, digest: bytes) -> str:
        """The problem of a blob, or nothing."""
        if (home, digest) not in self._blobs:
            what = f"blob {digest.hex()} is missing"
            try:
                sql = "SELECT type, data, digest, checksum FROM blobs WHERE home = ? AND digest = ?"
                if row := self._connection.execute(sql, (home, digest)).fetchone():
                    checked_blob(row, "")
                    what = ""
            except (CorruptRow, *UNREADABLE):
                what = f"blob {digest.hex()} is not what was written"
                self._add(what, self._owner_of(home), "blobs", digest.hex())
            self._blobs[home, digest] = what
        return self._blobs[home, digest]

    def _owner_of(self, home: int) -> str | None:
        """A session of the family, for the location of a problem."""
        row = self._connection.execute("SELECT MIN(id) FROM sessions WHERE home = ?", (home,)).fetchone()
        return None if row is None else row[0]


def _problem_of_item(item: lists.Item, list_id: int) -> str:
    try:
        checked_blob((item.type, item.data, item.digest, None), "")
    except CorruptRow:
        return f"an element of list {list_id} is not what was written"
    return ""


def _is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)
