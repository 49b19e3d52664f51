"""Noting each checkpoint a second time: the newest of a namespace in `heads`, the others in the next newer's row.

A row whose key is damaged is not found by it. Without these notes an older checkpoint would pass for
the newest one, or a task whose result is lost would run again, and nobody would know. What they are
good for when something is read is in `noted.py`.
"""

from __future__ import annotations

import sqlite3
import zlib
from functools import partial

from session_middleware.errors import StorageError
from session_middleware.storage.sqlite.state.blobs import Damaged, is_sum
from session_middleware.storage.sqlite.state.sealed import WRONG, Key, Note

_COUNT = "(SELECT COUNT(*) FROM writes WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?)"
_NEXT = (  # the row of the next newer one
    "session_id = ? AND checkpoint_ns = ? AND checkpoint_id = (SELECT MIN(checkpoint_id) FROM checkpoints"
    " WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id > ?)"
)


def put(connection: sqlite3.Connection, key: Key) -> None:
    """A checkpoint was stored: it is the head, unless there is a newer one, which then notes it."""
    done = connection.execute(
        f"INSERT INTO heads VALUES (?, ?, ?, {_COUNT}, ?) ON CONFLICT (session_id, checkpoint_ns) DO UPDATE"
        " SET checkpoint_id = excluded.checkpoint_id, write_count = excluded.write_count, checksum = excluded.checksum"
        " WHERE excluded.checkpoint_id >= checkpoint_id",
        (*key, *key, _sum(key)),
    )
    if not done.rowcount:
        connection.execute(
            f"UPDATE checkpoints SET previous_id = ?, previous_writes = {_COUNT} WHERE {_NEXT}"
            " AND COALESCE(previous_id, parent_id, '') < ?",
            (key[2], *key, *key[:2], *key, key[2]),
        )


def count_writes(connection: sqlite3.Connection, key: Key) -> None:
    """Writes were stored: before their checkpoint, of the newest, or of an older one."""
    done = connection.execute(
        f"UPDATE heads SET write_count = {_COUNT} WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
        key * 2,
    )
    if not done.rowcount:
        connection.execute(
            f"UPDATE checkpoints SET previous_writes = {_COUNT} WHERE {_NEXT} AND COALESCE(previous_id, parent_id) = ?",
            (*key, *key[:2], *key, key[2]),
        )


def find(connection: sqlite3.Connection, session_id: str, checkpoint_ns: str) -> Note | None:
    row = connection.execute(
        "SELECT checkpoint_id, write_count, checksum FROM heads WHERE session_id = ? AND checkpoint_ns = ?",
        (session_id, checkpoint_ns),
    ).fetchone()
    return None if row is None else checked(session_id, checkpoint_ns, *row)


def checked(session_id: str, checkpoint_ns: str, checkpoint_id: str, write_count: int, checksum: int) -> Note:
    if not is_sum(partial(_sum, (session_id, checkpoint_ns, checkpoint_id)), checksum):
        raise Damaged("the note of its head")
    return Note(checkpoint_id, write_count)


def check_new(connection: sqlite3.Connection, session_id: str, path: str) -> None:
    """A session that is not there must have left no checkpoint: else its row, and whose it is, cannot be found."""
    if connection.execute("SELECT 1 FROM heads WHERE session_id = ? LIMIT 1", (session_id,)).fetchone() is not None:
        raise StorageError(
            path,
            f"session {session_id!r} is damaged: it has checkpoints, but its row cannot be found",
            advice="restore a backup; other sessions are not concerned",
        )


def copy(connection: sqlite3.Connection, session_id: str, to: str) -> None:
    """With a copy of all that they note; those that were wrong stay wrong."""
    for row in connection.execute("SELECT * FROM heads WHERE session_id = ?", (session_id,)).fetchall():
        is_right = is_sum(partial(_sum, row[:3]), row[4])
        checksum = _sum((to, *row[1:3])) if is_right else WRONG
        connection.execute("INSERT INTO heads VALUES (?, ?, ?, ?, ?)", (to, *row[1:4], checksum))


def renote(connection: sqlite3.Connection, key: Key, note: Note | None) -> None:
    """Change what a checkpoint's row notes, after the one it noted is gone."""
    connection.execute(
        "UPDATE checkpoints SET previous_id = ?, previous_writes = ?"
        " WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
        (*(note or ("", 0)), *key),
    )


def move(connection: sqlite3.Connection, session_id: str, checkpoint_ns: str, note: Note | None) -> None:
    """Another one is the newest now, or there is none any more."""
    connection.execute("DELETE FROM heads WHERE session_id = ? AND checkpoint_ns = ?", (session_id, checkpoint_ns))
    if note is not None:
        checksum = _sum((session_id, checkpoint_ns, note.checkpoint_id))
        connection.execute("INSERT INTO heads VALUES (?, ?, ?, ?, ?)", (session_id, checkpoint_ns, *note, checksum))


def renew(connection: sqlite3.Connection, session_id: str) -> None:
    """Note anew what is there of a session, and forget whatever else was noted."""
    connection.execute("DELETE FROM heads WHERE session_id = ?", (session_id,))
    rows = connection.execute(
        "SELECT session_id, checkpoint_ns, checkpoint_id, (SELECT COUNT(*) FROM writes"
        "  WHERE session_id = one.session_id AND checkpoint_ns = one.checkpoint_ns"
        "  AND checkpoint_id = one.checkpoint_id)"
        " FROM checkpoints AS one WHERE session_id = ? ORDER BY session_id, checkpoint_ns, checkpoint_id",
        (session_id,),
    )
    newest: dict[str, Note] = {}
    for _, namespace, checkpoint_id, write_count in rows.fetchall():
        renote(connection, (session_id, namespace, checkpoint_id), newest.get(namespace))
        newest[namespace] = Note(checkpoint_id, write_count)
    for namespace, note in newest.items():
        move(connection, session_id, namespace, note)


def _sum(key: Key) -> int:
    return zlib.crc32("\0".join(key).encode())
