"""Noting each checkpoint a second time: the newest of a namespace in `heads`, the others in the next newer's row.

A row whose key is damaged is not found by it. Without these notes an older checkpoint would pass for
the newest one, or a task whose result is lost would run again, and nobody would know. What they are
good for when something is read is in `noted.py`.

The newest is the one with the greatest place. The latest, from which a thread goes on, is the one put last.
"""

from __future__ import annotations

import sqlite3
import zlib
from functools import partial
from typing import Any, NamedTuple

from session_middleware.errors import StorageError
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow, has_checksum
from session_middleware.storage.sql.checkpoints.rows import INVALID_CHECKSUM, Key, Note

_COUNT = "(SELECT COUNT(*) FROM writes WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?)"
_NEXT = (  # the row of the next newer one
    "session_id = ? AND checkpoint_ns = ? AND place = (SELECT MIN(place) FROM checkpoints"
    " WHERE session_id = ? AND checkpoint_ns = ? AND place > {})"
)
_PLACE = (
    "(SELECT place FROM checkpoints"
    " WHERE session_id = ? AND checkpoint_ns = ? AND place >= ? AND checkpoint_id = ? LIMIT 1)"
)


class Head(NamedTuple):
    """What is noted of a namespace: its newest checkpoint, and the latest."""

    checkpoint_id: str
    place: str
    latest_id: str
    write_count: int


def put(connection: sqlite3.Connection, key: Key, place: str) -> None:
    """A checkpoint was stored: it is the latest, and the head unless there is a newer one, which notes it.

    One that is put again stays what it was.
    """
    done = connection.execute(
        f"INSERT INTO heads VALUES (?, ?, ?, ?, ?, {_COUNT}, ?) ON CONFLICT (session_id, checkpoint_ns) DO UPDATE"
        " SET checkpoint_id = excluded.checkpoint_id, place = excluded.place, latest_id = excluded.latest_id,"
        " write_count = excluded.write_count, checksum = excluded.checksum WHERE excluded.place > place",
        (*key, place, key[2], *key, _sum(*key, place, key[2])),
    )
    if not done.rowcount:
        noted = connection.execute(
            f"UPDATE checkpoints SET previous_id = ?, previous_writes = {_COUNT} WHERE {_NEXT.format('?')}"
            " AND COALESCE(previous_id, parent_id, '') < ?",
            (key[2], *key, *key[:2], *key[:2], place, key[2]),
        )
        if noted.rowcount:
            _put_latest(connection, key)


def _put_latest(connection: sqlite3.Connection, key: Key) -> None:
    head = connection.execute("SELECT * FROM heads WHERE session_id = ? AND checkpoint_ns = ?", key[:2]).fetchone()
    checksum = _sum(*head[:4], key[2]) if has_checksum(partial(_sum, *head[:5]), head[6]) else INVALID_CHECKSUM
    connection.execute(
        "UPDATE heads SET latest_id = ?, checksum = ? WHERE session_id = ? AND checkpoint_ns = ?",
        (key[2], checksum, *key[:2]),
    )


def count_writes(connection: sqlite3.Connection, key: Key) -> None:
    """Writes were stored: before their checkpoint, of the newest, or of an older one."""
    done = connection.execute(
        f"UPDATE heads SET write_count = {_COUNT} WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
        key * 2,
    )
    if not done.rowcount:
        connection.execute(
            f"UPDATE checkpoints SET previous_writes = {_COUNT} WHERE {_NEXT.format(_PLACE)}"
            " AND COALESCE(previous_id, parent_id) = ?",
            (*key, *key[:2], *key[:2], *key, key[2], key[2]),
        )


def find(connection: sqlite3.Connection, session_id: str, checkpoint_ns: str) -> Head | None:
    row = connection.execute(
        "SELECT * FROM heads WHERE session_id = ? AND checkpoint_ns = ?", (session_id, checkpoint_ns)
    ).fetchone()
    return None if row is None else checked(*row)


def checked(
    session_id: str,
    checkpoint_ns: str,
    checkpoint_id: str,
    place: str,
    latest_id: str,
    write_count: int,
    checksum: int,
) -> Head:
    """A row of `heads`. Raises `CorruptRow`."""
    if not has_checksum(partial(_sum, session_id, checkpoint_ns, checkpoint_id, place, latest_id), checksum):
        raise CorruptRow("the note of its head")
    return Head(checkpoint_id, place, latest_id, write_count)


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
        insert(connection, row, to)


def insert(connection: sqlite3.Connection, row: tuple[Any, ...], session_id: str) -> None:
    """A row as it was stored, for this session; one that was damaged stays so."""
    checksum = _sum(session_id, *row[1:5]) if has_checksum(partial(_sum, *row[:5]), row[6]) else INVALID_CHECKSUM
    connection.execute("INSERT INTO heads VALUES (?, ?, ?, ?, ?, ?, ?)", (session_id, *row[1:6], checksum))


def renote(connection: sqlite3.Connection, place: Key, note: Note | None) -> None:
    """Change what the checkpoint at a place of a namespace notes, after the one it noted is gone."""
    connection.execute(
        "UPDATE checkpoints SET previous_id = ?, previous_writes = ?"
        " WHERE session_id = ? AND checkpoint_ns = ? AND place = ?",
        (*(note or ("", 0)), *place),
    )


def move(connection: sqlite3.Connection, session_id: str, checkpoint_ns: str, head: Head | None) -> None:
    """Another one is the newest now, or the latest, or there is none any more."""
    connection.execute("DELETE FROM heads WHERE session_id = ? AND checkpoint_ns = ?", (session_id, checkpoint_ns))
    if head is not None:
        checksum = _sum(session_id, checkpoint_ns, *head[:3])
        connection.execute(
            "INSERT INTO heads VALUES (?, ?, ?, ?, ?, ?, ?)", (session_id, checkpoint_ns, *head, checksum)
        )


def _sum(*texts: str) -> int:
    return zlib.crc32("\0".join(texts).encode())
