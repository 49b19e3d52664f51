"""What is stored of a namespace as a whole: the checkpoint put last, the newest position, and the counts.

A row whose key is damaged is not found by it. Without these facts an older checkpoint would pass for the latest, or
a task whose result was lost would run again, unnoticed.

The newest checkpoint is the one at the greatest position. The latest, from which a thread continues, is the one that
was put last. Mostly the two are the same.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from session_middleware.errors import StorageError
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow
from session_middleware.storage.sql.checkpoints.rows import HOME, LATE, Key

if TYPE_CHECKING:
    from session_middleware.storage.sql.session_state import SessionWrite

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


def known(write: SessionWrite, key: Key) -> Head | None:
    """The head of a namespace that is being written to."""
    heads = write.state.heads
    if key[1] not in heads:
        heads[key[1]] = find(write.connection, key[0], key[1])
    return heads[key[1]]


def put(write: SessionWrite, head: Head | None, key: Key, position: str) -> None:
    """A new checkpoint was stored: it is the latest."""
    home, count = write.state.home, 1 if head is None else head.checkpoint_count + 1
    newest = position if head is None else max(position, head.newest_position)
    write.defer(_PUT, (home, *key, newest, count, home, *key))
    write.state.heads[key[1]] = Head(key[2], newest, count, 0)


_PUT = f"""
    INSERT INTO heads VALUES (?, ?, ?, ?, ?, ?, {_WRITE_COUNT})
    ON CONFLICT (home, session_id, checkpoint_ns) DO UPDATE SET latest_id = excluded.latest_id,
    newest_position = excluded.newest_position, checkpoint_count = excluded.checkpoint_count,
    write_count = excluded.write_count
"""


def count_writes(write: SessionWrite, key: Key) -> None:
    """Writes were stored. Those of a checkpoint that is not the latest, or not there yet, are not counted."""
    head = known(write, key)
    if head is not None and head.latest_id == key[2]:
        write.defer(_COUNT_WRITES, (write.state.home, *key, write.state.home, *key))


_COUNT_WRITES = f"""
    UPDATE heads SET write_count = {_WRITE_COUNT}
    WHERE home = ? AND session_id = ? AND checkpoint_ns = ? AND latest_id = ?
"""


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
