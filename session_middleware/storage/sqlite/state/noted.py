"""Finding that a checkpoint, or a write of one, is missing, by what was noted of it a second time.

A checkpoint's row notes the next older one of its namespace and how many writes that has; `heads`
notes the newest. So between two rows that follow each other there never was a third, and what is
not found there was never stored or was deleted on purpose, which changes the notes; all else is lost.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from session_middleware.storage.sqlite.state import heads
from session_middleware.storage.sqlite.state.blobs import Damaged
from session_middleware.storage.sqlite.state.sealed import Key, Note

_GONE = "its row cannot be found"


class Listed(NamedTuple):
    """What was asked for, as `checkpoints.list_` was asked; and whether all of it was passed."""

    session_id: str | None
    checkpoint_ns: str | None
    checkpoint_id: str | None
    before: str | None
    after: Key | None
    is_end: bool


class Passed(NamedTuple):
    """A row that a list came past, whether or not it is one that was wanted."""

    key: Key
    previous: Note | None


def find(connection: sqlite3.Connection, session_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> Note | None:
    """What is noted of a checkpoint, or of the newest; ``None`` when the row that should do so is missing."""
    head = heads.find(connection, session_id, checkpoint_ns)
    if checkpoint_id is None or (head is not None and head.checkpoint_id == checkpoint_id):
        return head
    row = connection.execute(
        "SELECT COALESCE(previous_id, parent_id), previous_writes FROM checkpoints"
        " WHERE session_id = ? AND checkpoint_ns = ?"
        " AND checkpoint_id > ? ORDER BY checkpoint_id LIMIT 1",
        (session_id, checkpoint_ns, checkpoint_id),
    ).fetchone()
    return Note(*row) if row is not None and row[0] == checkpoint_id else None


def check_absent(
    connection: sqlite3.Connection, session_id: str, checkpoint_ns: str, checkpoint_id: str | None
) -> None:
    """A checkpoint, or the newest, was not found. Raises `Damaged` if that is not because there is none."""
    if checkpoint_id is None:
        if heads.find(connection, session_id, checkpoint_ns) is not None:
            raise Damaged(_GONE)
    elif checkpoint_id <= _older_than(connection, session_id, checkpoint_ns, checkpoint_id):
        raise Damaged(_GONE)


def _older_than(connection: sqlite3.Connection, session_id: str, checkpoint_ns: str, bound: str) -> str:
    """Which one was the newest below `bound`; or the head, if that is older or has been lost. "" if there was none."""
    row = connection.execute(
        "SELECT COALESCE(previous_id, parent_id, '') FROM checkpoints"
        " WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id >= ? ORDER BY checkpoint_id LIMIT 1",
        (session_id, checkpoint_ns, bound),
    ).fetchone()
    if row is None:
        head = heads.find(connection, session_id, checkpoint_ns)
        return "" if head is None else head.checkpoint_id
    if not isinstance(row[0], str):
        raise Damaged("its row")
    return row[0]


def find_lost(connection: sqlite3.Connection, listed: Listed, passed: Sequence[Passed]) -> tuple[Key, str] | None:
    """A checkpoint that should have been among those passed, or stands where none should, and what is said of it."""
    expected: dict[tuple[str, str], str] = {}
    for row in _heads(connection, listed, passed[-1].key if passed and not listed.is_end else None):
        place, wanted = row[:2], listed.checkpoint_id or row[2]
        try:
            heads.checked(*row)
            if listed.checkpoint_id is None:
                expected[place] = _first(connection, listed, row[:3])
            elif not any(each.key[:2] == place for each in passed):
                check_absent(connection, row[0], row[1], wanted)
        except Damaged as damage:
            return (row[0], row[1], wanted), str(damage)
    return None if listed.checkpoint_id is not None else _follow(expected, passed, is_end=listed.is_end)


def _follow(expected: dict[tuple[str, str], str], passed: Sequence[Passed], *, is_end: bool) -> tuple[Key, str] | None:
    """Go from the first of each namespace to the one it notes, and so on."""
    for key, previous in passed:
        wanted = expected.get(key[:2])
        if wanted is None:
            return key, "the note of its head cannot be found"
        if wanted != key[2]:
            return ((*key[:2], wanted), _GONE) if wanted > key[2] else (key, "it is not noted")
        expected[key[:2]] = previous.checkpoint_id if previous else ""
    last = None if is_end else passed[-1].key[:2]
    return next((((*place, wanted), _GONE) for place, wanted in expected.items() if wanted and place != last), None)


def _first(connection: sqlite3.Connection, listed: Listed, head: Key) -> str:
    """Which one a list of a namespace begins with."""
    bounds = [bound for bound in (listed.before, _upto(listed.after, head)) if bound is not None]
    if not bounds or head[2] < min(bounds):
        return head[2]
    return _older_than(connection, *head[:2], min(bounds))


def _upto(after: Key | None, head: Key) -> str | None:
    return after[2] if after is not None and after[:2] == head[:2] else None


def _heads(connection: sqlite3.Connection, listed: Listed, last: Key | None) -> list[Any]:
    """The rows that note the newest of each namespace, as far as a list has come."""
    conditions: list[str] = ["1"]
    values: list[str] = []
    for condition, value in (("session_id = ?", listed.session_id), ("checkpoint_ns = ?", listed.checkpoint_ns)):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    for condition, key in (
        ("(session_id, checkpoint_ns) >= (?, ?)", listed.after),
        ("(session_id, checkpoint_ns) <= (?, ?)", last),
    ):
        if key is not None:
            conditions.append(condition)
            values += key[:2]
    sql = f"SELECT * FROM heads WHERE {' AND '.join(conditions)} ORDER BY session_id, checkpoint_ns"
    return connection.execute(sql, values).fetchall()


_COUNTS = """
    SELECT COALESCE(previous_id, parent_id), previous_writes FROM checkpoints
    WHERE session_id = :session AND checkpoint_ns = :ns AND checkpoint_id > :oldest
    AND checkpoint_id <= COALESCE((
        SELECT MIN(checkpoint_id) FROM checkpoints
        WHERE session_id = :session AND checkpoint_ns = :ns AND checkpoint_id > :newest
    ), :newest)
    UNION ALL SELECT checkpoint_id, write_count FROM heads WHERE session_id = :session AND checkpoint_ns = :ns
"""


def count_writes(connection: sqlite3.Connection, keys: Sequence[Key]) -> dict[Key, int]:
    """How many writes are noted of each, as far as they are noted: one statement for each namespace among them."""
    namespaces: dict[tuple[str, str], set[str]] = defaultdict(set)
    for key in keys:
        namespaces[key[:2]].add(key[2])
    counts: dict[Key, int] = {}
    for (session_id, namespace), ids in namespaces.items():
        where = {"session": session_id, "ns": namespace, "oldest": min(ids), "newest": max(ids)}
        for checkpoint_id, count in connection.execute(_COUNTS, where):
            if checkpoint_id in ids:
                counts[session_id, namespace, checkpoint_id] = count
    return counts
