"""Finding that a checkpoint, or a write of one, is missing, by what was noted of it a second time.

A checkpoint's row notes the next older one of its namespace and how many writes that has; `heads`
notes the newest. So between two rows that follow each other there never was a third, and what is
not found there was never stored or was deleted on purpose, which changes the notes; all else is lost.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from session_middleware.storage.sql.checkpoints import latest_checkpoint
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow
from session_middleware.storage.sql.checkpoints.rows import Key, Note, Row

_GONE = "its row cannot be found"

Namespace = tuple[str, str]  # of a session


class Listed(NamedTuple):
    """What was asked for, as `checkpoints.list_` was asked; and whether all of it was passed."""

    session_id: str | None
    checkpoint_ns: str | None
    checkpoint_id: str | None
    before: str | None  # a place
    after: Key | None  # a place, with the session and namespace it is in
    is_end: bool


class Passed(NamedTuple):
    """A row that a list came past, whether or not it is one that was wanted."""

    key: Key
    place: str
    previous: Note | None


def find(connection: sqlite3.Connection, row: Row) -> Note | None:
    """What is noted of a checkpoint; ``None`` when the row that should do so is missing."""
    head = latest_checkpoint.find(connection, row.session_id, row.checkpoint_ns)
    if head is not None and head.checkpoint_id == row.checkpoint_id:
        return Note(head.checkpoint_id, head.write_count)
    found = connection.execute(
        "SELECT COALESCE(previous_id, parent_id), previous_writes FROM checkpoints"
        " WHERE session_id = ? AND checkpoint_ns = ? AND place > ? ORDER BY place LIMIT 1",
        (row.session_id, row.checkpoint_ns, row.place),
    ).fetchone()
    return Note(*found) if found is not None and found[0] == row.checkpoint_id else None


def check_absent(
    connection: sqlite3.Connection, session_id: str, checkpoint_ns: str, checkpoint_id: str | None
) -> None:
    """A checkpoint, or the latest, was not found. Raises `CorruptRow` if that is not because there is none."""
    if checkpoint_id is None:
        sql = (
            "SELECT 1 FROM heads WHERE session_id = ?1 AND checkpoint_ns = ?2"
            " UNION ALL SELECT 1 FROM checkpoints WHERE session_id = ?1 AND checkpoint_ns = ?2 LIMIT 1"
        )
        is_lost = connection.execute(sql, (session_id, checkpoint_ns)).fetchone() is not None
    else:
        sql = (
            "SELECT 1 FROM checkpoints WHERE session_id = ?1 AND checkpoint_ns = ?2 AND place > ?3"
            " AND COALESCE(previous_id, parent_id) = ?3 AND NOT EXISTS (SELECT 1 FROM checkpoints"
            "  WHERE session_id = ?1 AND checkpoint_ns = ?2 AND place >= ?3 AND checkpoint_id = ?3) LIMIT 1"
        )
        is_lost = (
            checkpoint_id <= _older_than(connection, session_id, checkpoint_ns, checkpoint_id)
            or connection.execute(sql, (session_id, checkpoint_ns, checkpoint_id)).fetchone() is not None
        )
    if is_lost:
        raise CorruptRow(_GONE)


def _older_than(connection: sqlite3.Connection, session_id: str, checkpoint_ns: str, bound: str) -> str:
    """Which one was the newest before a place; or the head, if that is older or has been lost. "" if there was none."""
    row = connection.execute(
        "SELECT COALESCE(previous_id, parent_id, '') FROM checkpoints"
        " WHERE session_id = ? AND checkpoint_ns = ? AND place >= ? ORDER BY place LIMIT 1",
        (session_id, checkpoint_ns, bound),
    ).fetchone()
    if row is None:
        head = latest_checkpoint.find(connection, session_id, checkpoint_ns)
        return "" if head is None else head.checkpoint_id
    if not isinstance(row[0], str):
        raise CorruptRow("its row")
    return row[0]


def find_lost(connection: sqlite3.Connection, listed: Listed, passed: Sequence[Passed]) -> tuple[Key, str] | None:
    """A checkpoint that should have been among those passed, or stands where none should, and what is said of it.

    That the oldest one of a namespace is lost may be found at the end of a list only.
    """
    last = "" if listed.is_end or not passed else passed[-1].place
    namespaces = {each.key[:2]: None for each in passed}
    if listed.is_end or listed.after is None:
        namespaces.update(dict.fromkeys(_namespaces(connection, listed, last)))
    expected: dict[Namespace, str] = {}
    for namespace in namespaces:
        try:
            if listed.checkpoint_id is not None:
                if not any(each.key[:2] == namespace for each in passed):
                    check_absent(connection, *namespace, listed.checkpoint_id)
            elif (head := latest_checkpoint.find(connection, *namespace)) is not None:
                expected[namespace] = _first(connection, listed, namespace, head)
        except CorruptRow as damage:
            return (*namespace, listed.checkpoint_id or "(latest)"), str(damage)
    return None if listed.checkpoint_id is not None else _follow(expected, passed, last)


def _follow(expected: dict[Namespace, str], passed: Sequence[Passed], last: str) -> tuple[Key, str] | None:
    """Go from the first of each namespace to the one it notes, and so on."""
    for key, _, previous in passed:
        wanted = expected.get(key[:2])
        if wanted is None:
            return key, "the note of its head cannot be found"
        if wanted != key[2]:
            return ((*key[:2], wanted), _GONE) if wanted else (key, "it is not noted")
        expected[key[:2]] = previous.checkpoint_id if previous else ""
    return next((((*place, wanted), _GONE) for place, wanted in expected.items() if wanted > last), None)


def _first(connection: sqlite3.Connection, listed: Listed, namespace: Namespace, head: latest_checkpoint.Head) -> str:
    """Which one a list has first of a namespace."""
    bounds = [] if listed.before is None else [listed.before]
    if listed.after is not None:
        place, *other = listed.after
        bounds.append(f"{place}\0" if namespace > tuple(other) else place)  # of two at one place, it is the second
    if not bounds or head.place < min(bounds):
        return head.checkpoint_id
    return _older_than(connection, *namespace, min(bounds))


def _namespaces(connection: sqlite3.Connection, listed: Listed, last: str) -> Iterator[Namespace]:
    """Those that are listed, and have anything as new as the last one that was passed."""
    conditions, values = ["place >= ?"], [last if listed.checkpoint_id is None else ""]
    for condition, value in (("session_id = ?", listed.session_id), ("checkpoint_ns = ?", listed.checkpoint_ns)):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    sql = f"SELECT session_id, checkpoint_ns FROM heads WHERE {' AND '.join(conditions)}"
    yield from connection.execute(sql, values).fetchall()


_COUNTS = """
    SELECT COALESCE(previous_id, parent_id), previous_writes FROM checkpoints
    WHERE session_id = :session AND checkpoint_ns = :ns AND place > :oldest
    AND place <= COALESCE((
        SELECT MIN(place) FROM checkpoints
        WHERE session_id = :session AND checkpoint_ns = :ns AND place > :newest
    ), :newest)
    UNION ALL SELECT checkpoint_id, write_count FROM heads WHERE session_id = :session AND checkpoint_ns = :ns
"""


def count_writes(connection: sqlite3.Connection, rows: Sequence[Row]) -> dict[Key, int]:
    """How many writes are noted of each, as far as they are noted: one statement for each namespace among them."""
    namespaces: dict[Namespace, list[Row]] = defaultdict(list)
    for row in rows:
        namespaces[row.key[:2]].append(row)
    counts: dict[Key, int] = {}
    for (session_id, namespace), found in namespaces.items():
        places, ids = [row.place for row in found], {row.checkpoint_id for row in found}
        where = {"session": session_id, "ns": namespace, "oldest": min(places), "newest": max(places)}
        for checkpoint_id, count in connection.execute(_COUNTS, where):
            if checkpoint_id in ids:
                counts[session_id, namespace, checkpoint_id] = count
    return counts
