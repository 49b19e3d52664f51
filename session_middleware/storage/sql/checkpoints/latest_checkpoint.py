"""The latest checkpoint of a namespace; and of the outermost graph, how many checkpoints there are.

A row whose key is damaged is not found by it. Without the counts in the session's row, an older checkpoint would pass
for the latest, or a task whose result was lost would run again, unnoticed.

The newest checkpoint is the one at the greatest position. The latest, from which a thread continues, is the one that
was put last. Mostly the two are the same; in the namespace of a subgraph they always are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from session_middleware.errors import StorageError
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow
from session_middleware.storage.sql.checkpoints.rows import HOME, LATE, Key
from session_middleware.storage.sql.connection import Connection

if TYPE_CHECKING:
    from session_middleware.storage.sql.session_state import SessionWrite

LOST = "its row cannot be found"
LOST_WRITES = "a write of it cannot be found"

HEAD = "latest_checkpoint_id, newest_position, checkpoint_count, write_count"  # columns of sessions
WRITE_COUNT = (
    "(SELECT COUNT(*) FROM writes WHERE home = ? AND session_id = ? AND checkpoint_ns = '' AND checkpoint_id = ?)"
)
_OWN = "home = ? AND session_id = ? AND checkpoint_ns = ?"


class Head(NamedTuple):
    """The latest checkpoint of a namespace. Only those of the outermost graph are counted."""

    latest_id: str
    newest_position: str
    checkpoint_count: int = 0
    write_count: int = 0  # rows of writes of the latest checkpoint


def find(connection: Connection, session_id: str, checkpoint_ns: str) -> Head | None:
    if checkpoint_ns:
        sql = f"SELECT checkpoint_id, position FROM checkpoints WHERE {HOME} AND session_id = ? AND checkpoint_ns = ?"
        values: tuple[str, ...] = (session_id, session_id, checkpoint_ns)
        row = connection.execute(f"{sql} ORDER BY position DESC LIMIT 1", values).fetchone()
    else:
        row = connection.execute(f"SELECT {HEAD} FROM sessions WHERE id = ?", (session_id,)).fetchone()
    return None if row is None or row[0] is None else Head(*row)


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
    newest = position if head is None else max(position, head.newest_position)
    if key[1]:
        write.state.heads[key[1]] = Head(key[2], newest) if newest == position else head
    else:
        write.state.heads[""] = Head(key[2], newest, 1 if head is None else head.checkpoint_count + 1)
        write.changes_head = True


def count_writes(write: SessionWrite, key: Key) -> None:
    """Writes were stored. Those of a checkpoint that is not the latest, or not there yet, are not counted."""
    head = write.state.heads.get("")
    if not key[1] and head is not None and head.latest_id == key[2]:
        write.changes_head = True


def check_absent(connection: Connection, session_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> None:
    """A checkpoint, or the latest, was not found. Raises `CorruptRow` if one of the outermost graph is missing."""
    if checkpoint_ns:
        return
    head = find(connection, session_id, "")
    count = count_in(connection, session_id)
    if count != (head.checkpoint_count if head else 0) or (head is not None and checkpoint_id is None):
        raise CorruptRow(LOST)


def count_in(connection: Connection, session_id: str) -> int:
    """The number of checkpoints of the outermost graph that are there."""
    sql = f"SELECT COUNT(*) FROM checkpoints WHERE {HOME} AND session_id = ? AND checkpoint_ns = ''"
    return int(connection.execute(sql, (session_id, session_id)).fetchone()[0])


def check_new(connection: Connection, session_id: str, path: str) -> None:
    """A session whose row is not found must have no record. Raises `StorageError` if it has."""
    if connection.execute("SELECT 1 FROM events WHERE session_id = ? LIMIT 1", (session_id,)).fetchone() is not None:
        raise StorageError(
            path,
            f"session {session_id!r} is damaged: it has a record, but its row cannot be found",
            advice="restore a backup; other sessions are not affected",
        )


def copy(connection: Connection, session_id: str, to: str) -> None:
    """Give a copy of the session the same head, so that it misses what its source misses."""
    connection.execute(
        f"UPDATE sessions SET ({HEAD}) = (SELECT {HEAD} FROM sessions WHERE id = ?) WHERE id = ?", (session_id, to)
    )


def recount(connection: Connection, home: int, session_id: str, gone: set[str]) -> None:
    """Checkpoints of the outermost graph were deleted on purpose. What was missing before is missing afterwards.

    If the latest is among them, the newest that is left takes its place.
    """
    head = find(connection, session_id, "")
    if head is None:
        return
    newest = connection.execute(
        f"SELECT position, checkpoint_id FROM checkpoints WHERE {_OWN} ORDER BY position DESC LIMIT 1",
        (home, session_id, ""),
    ).fetchone()
    count = head.checkpoint_count - len(gone)
    position, checkpoint_id = newest or (None, None)
    if newest is None and count > 0:
        position, checkpoint_id = "", ""
    connection.execute(
        "UPDATE sessions SET newest_position = ?, checkpoint_count = ? WHERE id = ?", (position, count, session_id)
    )
    if head.latest_id in gone:
        connection.execute(
            f"UPDATE sessions SET latest_checkpoint_id = ?, write_count = {WRITE_COUNT} WHERE id = ?",
            (checkpoint_id, home, session_id, checkpoint_id, session_id),
        )
