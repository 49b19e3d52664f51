"""What is stored of a namespace as a whole: the checkpoint put last, the newest position, and the counts.

A row whose key is damaged is not found by it. Without these facts an older checkpoint would pass for the latest, or
a task whose result was lost would run again, unnoticed.

The newest checkpoint is the one at the greatest position. The latest, from which a thread continues, is the one that
was put last. Mostly the two are the same.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from session_middleware.errors import StorageError
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow
from session_middleware.storage.sql.checkpoints.rows import HOME, LATE, Key

LOST = "its row cannot be found"
LOST_WRITES = "a write of it cannot be found"

_WRITE_COUNT = (
    "(SELECT COUNT(*) FROM writes WHERE home = ? AND session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?)"
)


class Head(NamedTuple):
    latest_id: str
    newest_position: str
    checkpoint_count: int
    write_count: int  # rows of writes of the latest checkpoint


def find(connection: sqlite3.Connection, session_id: str, checkpoint_ns: str) -> Head | None:
    row = connection.execute(
        "SELECT latest_id, newest_position, checkpoint_count, write_count FROM heads"
        f" WHERE {HOME} AND session_id = ? AND checkpoint_ns = ?",
        (session_id, session_id, checkpoint_ns),
    ).fetchone()
    return None if row is None else Head(*row)


def position_of(head: Head | None, key: Key, *, is_root: bool, stored: str | None) -> str:
    """The position of a checkpoint that is being put.

    Args:
        is_root: it has no parent, so it is ordered by its id alone.
        stored: its position, if it is put again.
    """
    checkpoint_id = key[2]
    if stored is not None:
        return stored
    if head is None or head.newest_position < checkpoint_id or is_root:
        return checkpoint_id
    newest, number = head.newest_position, 1
    if newest[-9:-8] == LATE:
        newest, number = newest[:-9], int(newest[-8:]) + 1
    return f"{newest}{LATE}{number:08d}"


def put(connection: sqlite3.Connection, home: int, key: Key, position: str) -> None:
    """A new checkpoint was stored: it is the latest."""
    connection.execute(
        f"INSERT INTO heads VALUES (?, ?, ?, ?, ?, 1, {_WRITE_COUNT})"
        " ON CONFLICT (home, session_id, checkpoint_ns) DO UPDATE SET latest_id = excluded.latest_id,"
        " newest_position = CASE WHEN excluded.newest_position > heads.newest_position"
        "  THEN excluded.newest_position ELSE heads.newest_position END,"
        " checkpoint_count = heads.checkpoint_count + 1, write_count = excluded.write_count",
        (home, *key, position, home, *key),
    )


def count_writes(connection: sqlite3.Connection, home: int, key: Key) -> None:
    """Writes were stored. Those of a checkpoint that is not the latest, or not there yet, are not counted."""
    connection.execute(
        f"UPDATE heads SET write_count = {_WRITE_COUNT}"
        " WHERE home = ? AND session_id = ? AND checkpoint_ns = ? AND latest_id = ?",
        (home, *key, home, *key),
    )


def check_absent(
    connection: sqlite3.Connection, session_id: str, checkpoint_ns: str, checkpoint_id: str | None
) -> None:
    """A checkpoint, or the latest, was not found. Raises `CorruptRow` if one of the namespace is missing."""
    head = find(connection, session_id, checkpoint_ns)
    count = count_in(connection, session_id, checkpoint_ns)
    if count != (head.checkpoint_count if head else 0) or (head is not None and checkpoint_id is None):
        raise CorruptRow(LOST)
    elsewhere = f"SELECT 1 FROM heads WHERE session_id = ? AND NOT {HOME} LIMIT 1"
    if head is None and connection.execute(elsewhere, (session_id, session_id)).fetchone() is not None:
        raise CorruptRow("its session's row names another family")


def count_in(connection: sqlite3.Connection, session_id: str, checkpoint_ns: str) -> int:
    row = connection.execute(
        f"SELECT COUNT(*) FROM checkpoints WHERE {HOME} AND session_id = ? AND checkpoint_ns = ?",
        (session_id, session_id, checkpoint_ns),
    ).fetchone()
    return int(row[0])


def check_new(connection: sqlite3.Connection, session_id: str, path: str) -> None:
    """A session whose row is not found must have no checkpoints. Raises `StorageError` if it has."""
    if connection.execute("SELECT 1 FROM heads WHERE session_id = ? LIMIT 1", (session_id,)).fetchone() is not None:
        raise StorageError(
            path,
            f"session {session_id!r} is damaged: it has checkpoints, but its row cannot be found",
            advice="restore a backup; other sessions are not affected",
        )


def copy(connection: sqlite3.Connection, home: int, session_id: str, to: str) -> None:
    """Give a copy of the session the same heads, so that it misses what its source misses."""
    connection.execute(
        "INSERT INTO heads SELECT home, ?, checkpoint_ns, latest_id, newest_position, checkpoint_count, write_count"
        " FROM heads WHERE home = ? AND session_id = ?",
        (to, home, session_id),
    )


def recount(connection: sqlite3.Connection, home: int, session_id: str, checkpoint_ns: str, gone: set[str]) -> None:
    """Checkpoints were deleted on purpose. If the latest is among them, the newest that is left takes its place.

    What was missing before is missing afterwards.
    """
    namespace = (home, session_id, checkpoint_ns)
    head = find(connection, session_id, checkpoint_ns)
    if head is None:
        return
    count = head.checkpoint_count - len(gone)
    newest = connection.execute(
        "SELECT position, checkpoint_id FROM checkpoints WHERE home = ? AND session_id = ? AND checkpoint_ns = ?"
        " ORDER BY position DESC LIMIT 1",
        namespace,
    ).fetchone()
    if newest is None and count <= 0:
        connection.execute("DELETE FROM heads WHERE home = ? AND session_id = ? AND checkpoint_ns = ?", namespace)
        return
    position, checkpoint_id = newest or ("", "")
    connection.execute(
        "UPDATE heads SET newest_position = ?, checkpoint_count = ?"
        " WHERE home = ? AND session_id = ? AND checkpoint_ns = ?",
        (position, count, *namespace),
    )
    if head.latest_id in gone:
        connection.execute(
            f"UPDATE heads SET latest_id = ?, write_count = {_WRITE_COUNT}"
            " WHERE home = ? AND session_id = ? AND checkpoint_ns = ?",
            (checkpoint_id, *namespace, checkpoint_id, *namespace),
        )
