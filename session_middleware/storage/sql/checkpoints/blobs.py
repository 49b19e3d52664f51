"""Blobs in SQLite: bytes that are stored once in a family, and found damaged.

A blob's digest covers its type and bytes, and its checksum the digest with them.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from session_middleware.storage.checkpoint_types import Blob


class CorruptRow(Exception):
    """Stored pieces are not what they were; the message says which."""


def _digest(blob: Blob) -> bytes:
    return hashlib.sha256(blob.type.encode() + b"\0" + blob.data).digest()[:16]


def put_blob(connection: sqlite3.Connection, family_id: str, blob: Blob) -> tuple[int, bytes]:
    """Most are new, so it is not looked for first. One that is there and was damaged is whole again after this."""
    checksum = _checksum(digest := _digest(blob), blob)
    cursor = connection.execute(
        "INSERT INTO blobs (family_id, digest, checksum, type, data) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (family_id, digest) DO NOTHING",
        (family_id, digest, checksum, blob.type, blob.data),
    )
    if cursor.rowcount:
        assert cursor.lastrowid is not None
        return cursor.lastrowid, digest
    blob_id, is_whole = connection.execute(
        "SELECT id, checksum IS ? AND type IS ? AND data IS ? FROM blobs WHERE family_id = ? AND digest = ?",
        (checksum, blob.type, blob.data, family_id, digest),
    ).fetchone()
    if not is_whole:
        connection.execute(
            "UPDATE blobs SET checksum = ?, type = ?, data = ? WHERE id = ?", (checksum, blob.type, blob.data, blob_id)
        )
    return blob_id, digest


@contextmanager
def reading_rows(session_id: str | None = None) -> Iterator[None]:
    """Work in the block on rows nobody has checked: a value of another type than was written is damage."""
    try:
        yield
    except (CorruptRow, TypeError, AttributeError) as error:
        where = "" if session_id is None else f" of session {session_id!r}"
        what = error if isinstance(error, CorruptRow) else "a value of another type than was written"
        raise sqlite3.DatabaseError(f"malformed row{where}: {what}") from error


def has_checksum(made: Callable[[], int], stored: Any) -> bool:
    """Whether a checksum is what is stored; a value of another type than was written makes none."""
    try:
        return bool(made() == stored)
    except (TypeError, AttributeError, UnicodeEncodeError):
        return False


def find_blob(connection: sqlite3.Connection, family_id: str, digest: bytes) -> int | None:
    row = connection.execute("SELECT id FROM blobs WHERE family_id = ? AND digest = ?", (family_id, digest)).fetchone()
    return None if row is None else int(row[0])


def _checksum(digest: bytes, blob: Blob) -> int:
    """Bound to the digest, and several times cheaper to make again at each read."""
    return zlib.crc32(blob.data, zlib.crc32(blob.type.encode(), zlib.crc32(digest)))


def checked_blob(row: tuple[str, bytes, bytes, int], where: str) -> Blob:
    """A blob from (type, data, digest, checksum), once its bytes are what they were."""
    kind, data, digest, checksum = row
    blob = Blob(kind, data)
    if not has_checksum(lambda: _checksum(digest, blob), checksum):
        raise CorruptRow(where)
    return blob
