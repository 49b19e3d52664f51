"""The newest checkpoint of each namespace, and how many pending writes it has, noted a second time.

A row whose key is damaged is not found by it. Without this note an older checkpoint would pass for
the newest one, or a task whose result is lost would run again, and nobody would know.
"""

from __future__ import annotations

import sqlite3
import zlib
from typing import NamedTuple

from session_middleware.errors import StorageError
from session_middleware.storage.sqlite.state.pieces import Damaged

Key = tuple[str, str, str]  # session id, namespace, checkpoint id


class Head(NamedTuple):
    checkpoint_id: str
    write_count: int


_COUNT = "(SELECT COUNT(*) FROM writes WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?)"


def put(connection: sqlite3.Connection, key: Key) -> None:
    """A checkpoint was stored: it is the head, unless there is a newer one."""
    connection.execute(
        f"INSERT INTO heads VALUES (?, ?, ?, {_COUNT}, ?) ON CONFLICT (session_id, checkpoint_ns) DO UPDATE"
        " SET checkpoint_id = excluded.checkpoint_id, write_count = excluded.write_count, checksum = excluded.checksum"
        " WHERE excluded.checkpoint_id >= checkpoint_id",
        (*key, *key, _sum(key)),
    )


def count_writes(connection: sqlite3.Connection, key: Key) -> None:
    """Writes were stored, maybe before their checkpoint."""
    connection.execute(
        f"UPDATE heads SET write_count = {_COUNT} WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
        key * 2,
    )


def find(connection: sqlite3.Connection, session_id: str, checkpoint_ns: str) -> Head | None:
    row = connection.execute(
        "SELECT checkpoint_id, write_count, checksum FROM heads WHERE session_id = ? AND checkpoint_ns = ?",
        (session_id, checkpoint_ns),
    ).fetchone()
    if row is None:
        return None
    if row[2] != _sum((session_id, checkpoint_ns, row[0])):
        raise Damaged("the note of its head")
    return Head(*row[:2])


def check_new(connection: sqlite3.Connection, session_id: str, path: str) -> None:
    """A session that is not there must have left no checkpoint: else its row, and whose it is, cannot be found."""
    if connection.execute("SELECT 1 FROM heads WHERE session_id = ? LIMIT 1", (session_id,)).fetchone() is not None:
        raise StorageError(
            path,
            f"session {session_id!r} is damaged: it has checkpoints, but its row cannot be found",
            advice="restore a backup; other sessions are not concerned",
        )


def list_missing(connection: sqlite3.Connection, session_id: str, checkpoint_ns: str | None) -> list[tuple[str, str]]:
    """The heads, as namespace and id, whose checkpoint cannot be found."""
    return connection.execute(
        "SELECT checkpoint_ns, checkpoint_id FROM heads AS head"
        " WHERE session_id = ? AND checkpoint_ns = COALESCE(?, checkpoint_ns) AND NOT EXISTS ("
        "  SELECT 1 FROM checkpoints WHERE session_id = head.session_id"
        "  AND checkpoint_ns = head.checkpoint_ns AND checkpoint_id = head.checkpoint_id)",
        (session_id, checkpoint_ns),
    ).fetchall()


def renew(connection: sqlite3.Connection, session_id: str) -> None:
    """Some checkpoints of a session have gone or come: see anew which are the newest."""
    connection.execute("DELETE FROM heads WHERE session_id = ?", (session_id,))
    newest = connection.execute(
        "SELECT session_id, checkpoint_ns, MAX(checkpoint_id) FROM checkpoints WHERE session_id = ?"
        " GROUP BY session_id, checkpoint_ns",
        (session_id,),
    )
    for key in newest.fetchall():
        put(connection, key)


def _sum(key: Key) -> int:
    return zlib.crc32("\0".join(key).encode())
