"""The deep check of the rows: every row can be read, and state and files match their checksums.

The record has no checksums: its rows are read as their models, and their text as UTF-8. The time is linear in the
stored bytes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from session_middleware.models import (
    Branch,
    Event,
    Message,
    ModelCall,
    Problem,
    Question,
    Run,
    SessionInfo,
    ToolCall,
    Value,
)
from session_middleware.storage.jsonable import is_text
from session_middleware.storage.sql.checkpoints import lists
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow, checked_blob, inline_value
from session_middleware.storage.sql.checkpoints.rows import Row, WriteRow, references_in
from session_middleware.storage.sql.checks import describe
from session_middleware.storage.sql.connection import UNLIMITED, Connection, Cursor, DamagedRow
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.row_mapping import read_column, value_of
from session_middleware.storage.sql.tables import tables

UNREADABLE = (DamagedRow, CorruptRow, TypeError, AttributeError, ValueError, RecursionError)

_MODELS: Mapping[str, type[Value]] = {
    "sessions": SessionInfo,
    "runs": Run,
    "messages": Message,
    "branches": Branch,
    "tool_calls": ToolCall,
    "model_calls": ModelCall,
    "questions": Question,
    "events": Event,
}
_STATE = ("checkpoints", "writes", "lists", "list_items", "blobs")
_BY_SESSION = (*runs.TABLES, *_STATE[:2])
_DERIVED = ("index_", "vector", "_sqlite")  # prefixes of the names of tables without original content
_JSON = {("memories", "namespace"): list, ("memories", "value"): dict, ("conversation_items", "item"): object}


class Described(NamedTuple):
    """The columns of a row that no cursor has read."""

    description: Sequence[Sequence[Any]]


def check_row(table: str, cursor: Any, row: tuple[Any, ...]) -> Row | WriteRow | None:
    """Raise one of `UNREADABLE` if a row is damaged, whose columns `cursor` describes; return a row of state."""
    for (name, column), value in zip(tables()[table].columns.items(), row, strict=True):
        if value is not None and (not isinstance(value, column.kind) or isinstance(value, bool)):
            raise CorruptRow(f"{name} is of another type than was written")
        if isinstance(value, str) and not is_text(value):
            raise CorruptRow(f"{name} is not valid UTF-8")
        if (table, name) in _JSON and not isinstance(json.loads(value or ""), _JSON[table, name]):
            raise CorruptRow(name)
        if table not in _MODELS and value is not None:
            read_column(name, value)
    if table in ("checkpoints", "writes"):
        state = Row(*row) if table == "checkpoints" else WriteRow(*row)
        state.check()
        return state
    if table == "files" and row[1] != f"sha256:{hashlib.sha256(row[3]).hexdigest()}":
        raise CorruptRow("the file")
    if table in _MODELS:
        value_of(_MODELS[table], cursor, row)
    return None


class Contents:
    """The rows that are unreadable or damaged: of `sessions` only, or with `deep` of all tables."""

    errors: tuple[type[Exception], ...]  # the driver's, for unreadable rows and pages

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unreadable: tuple[type[Exception], ...] = (*self.errors, *UNREADABLE)
        self._found: list[Problem] = []
        self._blobs: dict[tuple[int, bytes], str] = {}  # the problem of each; empty: none
        self._lists: dict[tuple[int, int], tuple[list[int], list[int], str]] = {}  # see `_list`

    def check(self, *, deep: bool) -> list[Problem]:
        for session_id in self.session_ids():
            self._read("sessions", "WHERE id = ?", session_id)
            for table in _BY_SESSION if deep else ():
                self._read(table, "WHERE session_id = ?", session_id)
        if not deep:
            return self._found
        for table in sorted(tables().keys() - {*_BY_SESSION, "sessions", "blobs"}):
            if not table.startswith(_DERIVED):
                self._read(table, "")
        with suppress(*self.errors):  # reported by the engine's own check
            for home, digest in self._connection.execute("SELECT home, digest FROM blobs").fetchall():
                self._blob(home, digest)
        return self._found

    def session_ids(self) -> Iterable[str]:
        """All ids that can be read."""
        return [session_id for (session_id,) in self._connection.execute("SELECT id FROM sessions ORDER BY id")]

    def rows(self, table: str, where: str, values: tuple[Any, ...]) -> Iterator[tuple[Cursor, tuple[Any, ...]]]:
        """Each row of ``SELECT *``, with its cursor."""
        cursor = self._connection.execute(f"SELECT * FROM {table} {where}", values)
        for row in cursor:
            yield cursor, row

    def _read(self, table: str, where: str, session_id: str | None = None) -> None:
        count = 0
        try:
            values = () if session_id is None else (session_id,)
            for count, (cursor, row) in enumerate(self.rows(table, where, values), 1):  # noqa: B007 - counts them
                try:
                    self._check(table, cursor, row)
                except self._unreadable as error:
                    problem = problem_of(error)
                    named = dict(zip((name for name, *_ in cursor.description), row, strict=True))
                    self.add(problem, named.get("session_id", session_id), table, self._key(table, named))
            if table == "sessions" and count == 0:
                self.add("its row cannot be found by its id", session_id, table)
        except self._unreadable as error:
            self.add(f"some of its rows cannot be read ({first_line(error)})", session_id, table)

    def add(self, problem: str, session_id: Any, table: str, key: str | None = None) -> None:
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
        names = [name for name in tables()[table].key if name not in ("home", "session_id")] or ["seq"]
        if table == "checkpoints":
            names[-1] = "checkpoint_id"  # more useful than its position
        return "/".join(str(row[name]) for name in names if row[name] != "")

    def _check(self, table: str, cursor: Cursor, row: tuple[Any, ...]) -> None:
        """Raise one of `UNREADABLE` if a row of ``SELECT *`` is damaged."""
        state = check_row(table, cursor, row)
        for ref in () if state is None else references_in(state):
            self._check_reference(state.home, ref)  # type: ignore[union-attr]

    # References

    def _check_reference(self, home: int, ref: Any) -> None:
        """Raise `CorruptRow` unless a reference matches the stored content."""
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
            if item.type is None and item.data is None:
                problem = self._blob(home, item.digest)
            else:
                try:
                    checked_blob(item.type or "", item.data or b"", item.digest)
                except CorruptRow:
                    problem = f"an element of list {list_id} is not what was written"
            if problem or item.position != ends[-1] or item.length < 1:
                break
            ends.append(item.position + item.length)
            sums.append(zlib.crc32(item.digest, sums[-1]))
        self._lists[home, list_id] = ends, sums, problem
        return self._lists[home, list_id]

    def _blob(self, home: int, digest: bytes) -> str:
        """The problem of a blob; empty if there is none."""
        if (home, digest) not in self._blobs:
            problem = f"blob {digest.hex()} is missing"
            try:
                sql = "SELECT type, data, digest FROM blobs WHERE home = ? AND digest = ?"
                if row := self._connection.execute(sql, (home, digest)).fetchone():
                    checked_blob(*row)
                    problem = ""
            except self._unreadable:
                problem = f"blob {digest.hex()} is not what was written"
                sql = "SELECT MIN(id) FROM sessions WHERE home = ?"  # one of the family, to name a location
                self.add(problem, self._connection.execute(sql, (home,)).fetchone()[0], "blobs", digest.hex())
            self._blobs[home, digest] = problem
        return self._blobs[home, digest]


def problem_of(error: Exception) -> str:
    """The problem of a row, as a sentence."""
    if isinstance(error, CorruptRow):
        return str(error) if " is " in str(error) else f"{error} is not what was written"
    return f"it cannot be read ({first_line(error)})"


def first_line(error: Exception) -> str:
    return " ".join(str(error).encode("utf-8", "replace").decode().split())[:120]
