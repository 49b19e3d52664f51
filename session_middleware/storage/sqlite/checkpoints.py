"""Checkpoints in SQLite: what refers to what, and how it is found damaged.

A checkpoint's `channels` says, as JSON, where each channel's value is: ``null`` for ``None``, a
blob's id, or ``[list id, length, check]``. A write's `value` is ``null``, a blob's id, or the
``[blob id, count]`` of each chunk of a list. Rows carry a CRC-32 over their key and content; a
blob's digest covers its type and bytes, a list's check covers the digests of its chunks.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Sequence
from typing import Any

from session_middleware.errors import StorageError
from session_middleware.storage.port import (
    Blob,
    CheckpointPut,
    Chunk,
    ListPut,
    ListRef,
    StaleParent,
    StoredCheckpoint,
    StoredList,
    StoredWrite,
    WritesPut,
)

MAX_DEPTH = 16  # of lists branched from lists, before a branch copies its references instead

Key = tuple[str, str, str]  # session id, namespace, checkpoint id


# Pieces


def _digest(blob: Blob) -> bytes:
    return hashlib.sha256(blob.type.encode() + b"\0" + blob.data).digest()[:16]


def _put_blob(connection: sqlite3.Connection, family_id: str, blob: Blob) -> tuple[int, bytes]:
    digest = _digest(blob)
    row = connection.execute(
        "SELECT id FROM blobs WHERE family_id = ? AND digest = ?", (family_id, digest)
    ).fetchone()
    if row is not None:
        return row[0], digest
    cursor = connection.execute(
        "INSERT INTO blobs (family_id, digest, type, data) VALUES (?, ?, ?, ?)",
        (family_id, digest, blob.type, blob.data),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid, digest


def _blob(row: tuple[str, bytes, bytes], where: str) -> Blob:
    """A blob from (type, data, digest), once its bytes are what they were."""
    blob = Blob(row[0], row[1])
    if _digest(blob) != row[2]:
        raise Damaged(where)
    return blob


class Damaged(Exception):
    """Stored pieces are not what they were; `where` says which."""


# Lists


_CHAIN = """
    WITH RECURSIVE chain (id, upto) AS (
        VALUES (?, ?)
        UNION ALL
        SELECT lists.parent_id, MIN(lists.parent_length, chain.upto)
        FROM chain JOIN lists ON lists.id = chain.id WHERE lists.parent_id IS NOT NULL
    )
"""


def _put_list(connection: sqlite3.Connection, family_id: str, put: ListPut) -> ListRef:
    tail = [(*_put_blob(connection, family_id, chunk.blob), chunk.count) for chunk in put.tail]
    base = put.base if put.base is not None and put.keep else None
    if base is None:
        return _branch(connection, family_id, None, 0, 0, tail)
    if base.length == put.keep:
        if not tail:
            return base
        appended = _append(connection, base, tail)
        return appended or _branch(connection, family_id, base, base.length, base.check, tail)
    check = _check_of(connection, base.list_id, put.keep)
    if not tail:
        return ListRef(base.list_id, put.keep, check)
    return _branch(connection, family_id, base, put.keep, check, tail)


def _append(connection: sqlite3.Connection, base: ListRef, tail: Sequence[tuple[int, bytes, int]]) -> ListRef | None:
    """Add to the end of a list; ``None`` when somebody has added something else there."""
    last = connection.execute(
        "SELECT position, count FROM list_items WHERE list_id = ? ORDER BY position DESC LIMIT 1", (base.list_id,)
    ).fetchone()
    if last is None or last[0] + last[1] != base.length:
        return None
    return _extend(connection, base, tail)


def _extend(connection: sqlite3.Connection, base: ListRef, tail: Sequence[tuple[int, bytes, int]]) -> ListRef:
    list_id, length, check = base
    for blob_id, digest, count in tail:
        connection.execute("INSERT INTO list_items VALUES (?, ?, ?, ?)", (list_id, length, count, blob_id))
        length += count
        check = zlib.crc32(digest, check)
    return ListRef(list_id, length, check)


def _branch(
    connection: sqlite3.Connection,
    family_id: str,
    base: ListRef | None,
    keep: int,
    check: int,
    tail: Sequence[tuple[int, bytes, int]],
) -> ListRef:
    """A new list: the first `keep` elements of `base`, then `tail`."""
    parent = depth = None
    if base is not None:
        depth = connection.execute("SELECT depth FROM lists WHERE id = ?", (base.list_id,)).fetchone()[0] + 1
        parent = base.list_id if depth < MAX_DEPTH else None
    cursor = connection.execute(
        "INSERT INTO lists (family_id, parent_id, parent_length, depth) VALUES (?, ?, ?, ?)",
        (family_id, parent, keep if parent else 0, depth if parent else 0),
    )
    list_id = cursor.lastrowid
    assert list_id is not None
    if base is not None and parent is None:
        connection.execute(
            f"{_CHAIN} INSERT INTO list_items SELECT ?, position, MIN(count, ? - position), blob_id"
            " FROM chain JOIN list_items ON list_id = chain.id AND position < chain.upto",
            (base.list_id, keep, list_id, keep),
        )
    return _extend(connection, ListRef(list_id, keep, check), tail)


def _check_of(connection: sqlite3.Connection, list_id: int, length: int) -> int:
    rows = connection.execute(
        f"{_CHAIN} SELECT digest FROM chain JOIN list_items ON list_id = chain.id AND position < chain.upto"
        " JOIN blobs ON blobs.id = blob_id ORDER BY position",
        (list_id, length),
    )
    return zlib.crc32(b"".join([digest for (digest,) in rows]))


def _get_list(connection: sqlite3.Connection, ref: ListRef) -> StoredList:
    rows = connection.execute(
        f"{_CHAIN} SELECT type, data, digest, position, MIN(count, chain.upto - position)"
        " FROM chain JOIN list_items ON list_id = chain.id AND position < chain.upto"
        " JOIN blobs ON blobs.id = blob_id ORDER BY position",
        (ref.list_id, ref.length),
    ).fetchall()
    where = f"list {ref.list_id}"
    chunks = [Chunk(_blob((kind, data, digest), where), count) for kind, data, digest, _, count in rows]
    if sum(chunk.count for chunk in chunks) != ref.length or zlib.crc32(b"".join([r[2] for r in rows])) != ref.check:
        raise Damaged(where)
    return StoredList(ref, chunks)


# Checkpoints


def put(connection: sqlite3.Connection, family_id: str, put: CheckpointPut) -> tuple[str, dict[str, ListRef]]:
    key = (put.visit.session_id, put.checkpoint_ns, put.checkpoint_id)
    channels = _inherited(connection, put)
    lists: dict[str, ListRef] = {}
    for name, value in put.values.items():
        if isinstance(value, ListPut):
            channels[name] = lists[name] = _put_list(connection, family_id, value)
        else:
            channels[name] = None if value is None else _put_blob(connection, family_id, value)[0]
    text = json.dumps(channels, separators=(",", ":"))
    connection.execute(
        "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*key, put.parent_id, put.source, put.step, text, *put.body)
        + (_checksum(key, put.parent_id, text, put.body),),
    )
    return text, lists


def _inherited(connection: sqlite3.Connection, put: CheckpointPut) -> dict[str, Any]:
    if put.parent is None:
        return {}
    row = connection.execute(
        "SELECT channels FROM checkpoints WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
        (put.visit.session_id, put.checkpoint_ns, put.parent.checkpoint_id),
    ).fetchone()
    if row is None or row[0] != put.parent.channels:
        raise StaleParent
    channels = json.loads(row[0])
    return {name: channels[name] for name in put.inherited}


def _checksum(key: Key, parent_id: str | None, channels: str, body: Blob) -> int:
    return zlib.crc32(body.data, zlib.crc32("\0".join((*key, parent_id or "", channels, body.type)).encode()))


_GET = "SELECT checkpoint_id, parent_id, channels, type, body, checksum FROM checkpoints"


def get(
    connection: sqlite3.Connection, session_id: str, checkpoint_ns: str, checkpoint_id: str | None, path: str
) -> StoredCheckpoint | None:
    if checkpoint_id is not None:
        row = connection.execute(
            f"{_GET} WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",
            (session_id, checkpoint_ns, checkpoint_id),
        ).fetchone()
    else:
        row = connection.execute(
            f"{_GET} WHERE session_id = ? AND checkpoint_ns = ? ORDER BY checkpoint_id DESC LIMIT 1",
            (session_id, checkpoint_ns),
        ).fetchone()
    if row is None:
        return None
    key = (session_id, checkpoint_ns, row[0])
    try:
        body = _body(key, row[1:])
        values = {name: _value(connection, ref) for name, ref in json.loads(row[2]).items()}
        writes = _get_writes(connection, key)
    except Damaged as damage:
        raise damaged(path, key, str(damage)) from None
    return StoredCheckpoint(*key, row[1], body, row[2], values, writes)


def damaged(path: str, key: Key, what: str) -> StorageError:
    return StorageError(
        path,
        f"checkpoint {key[2]} of session {key[0]!r} (namespace {key[1]!r}) is damaged: {what}",
        advice="resume from an earlier checkpoint id, or restore a backup; other sessions are not concerned",
    )


def _body(key: Key, row: tuple[str | None, str, str, bytes, int]) -> Blob:
    parent_id, channels, kind, data, checksum = row
    body = Blob(kind, data)
    if _checksum(key, parent_id, channels, body) != checksum:
        raise Damaged("its row")
    return body


def _value(connection: sqlite3.Connection, ref: Any) -> Blob | StoredList | None:
    if ref is None:
        return None
    if isinstance(ref, list):
        return _get_list(connection, ListRef(*ref))
    row = connection.execute("SELECT type, data, digest FROM blobs WHERE id = ?", (ref,)).fetchone()
    if row is None:
        raise Damaged(f"blob {ref} is missing")
    return _blob(row, f"blob {ref}")


def list_(
    connection: sqlite3.Connection,
    session_id: str | None,
    *,
    checkpoint_ns: str | None,
    before: str | None,
    checkpoint_id: str | None,
    limit: int | None,
    after: Key | None,
    path: str,
) -> list[tuple[str, str, str, Blob]]:
    conditions, values = ["1"], []
    for condition, value in (
        ("session_id = ?", session_id),
        ("checkpoint_ns = ?", checkpoint_ns),
        ("checkpoint_id = ?", checkpoint_id),
        ("checkpoint_id < ?", before),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if after is not None:
        conditions.append("((session_id, checkpoint_ns) > (?, ?) OR session_id = ? AND checkpoint_ns = ? AND checkpoint_id < ?)")
        values += [*after[:2], *after]
    rows = connection.execute(
        "SELECT session_id, checkpoint_ns, checkpoint_id, parent_id, channels, type, body, checksum FROM checkpoints"
        f" WHERE {' AND '.join(conditions)} ORDER BY session_id, checkpoint_ns, checkpoint_id DESC LIMIT ?",
        (*values, -1 if limit is None else limit),
    )
    found = []
    for row in rows:
        try:
            found.append((*row[:3], _body(row[:3], row[3:])))
        except Damaged as damage:
            raise damaged(path, row[:3], str(damage)) from None
    return found


def count(connection: sqlite3.Connection, session_id: str) -> int:
    row = connection.execute("SELECT COUNT(*) FROM checkpoints WHERE session_id = ?", (session_id,)).fetchone()
    return int(row[0])


# Writes


def put_writes(connection: sqlite3.Connection, family_id: str, put: WritesPut) -> None:
    key = (put.visit.session_id, put.checkpoint_ns, put.checkpoint_id, put.task_id)
    for write in put.writes:
        if isinstance(write.value, Blob):
            value: Any = _put_blob(connection, family_id, write.value)[0]
        elif write.value is not None:
            value = [[_put_blob(connection, family_id, chunk.blob)[0], chunk.count] for chunk in write.value]
        else:
            value = None
        text = json.dumps(value, separators=(",", ":"))
        keep_first = "IGNORE" if write.idx >= 0 else "REPLACE"
        connection.execute(
            f"INSERT OR {keep_first} INTO writes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, write.idx, put.task_path, write.channel, text)
            + (_write_checksum(key, write.idx, put.task_path, write.channel, text),),
        )


def _write_checksum(key: tuple[str, ...], idx: int, task_path: str, channel: str, value: str) -> int:
    return zlib.crc32("\0".join((*key, str(idx), task_path, channel, value)).encode())


def _get_writes(connection: sqlite3.Connection, key: Key) -> list[StoredWrite]:
    rows = connection.execute(
        "SELECT task_id, idx, task_path, channel, value, checksum FROM writes"
        " WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ? ORDER BY task_path, task_id, idx",
        key,
    ).fetchall()
    found = []
    for task_id, idx, task_path, channel, value, checksum in rows:
        if _write_checksum((*key, task_id), idx, task_path, channel, value) != checksum:
            raise Damaged(f"write {idx} of task {task_id}")
        refs = json.loads(value)
        if isinstance(refs, list):
            stored: Any = [Chunk(_stored_blob(connection, blob_id), count) for blob_id, count in refs]
        else:
            stored = None if refs is None else _stored_blob(connection, refs)
        found.append(StoredWrite(task_id, channel, stored))
    return found


def _stored_blob(connection: sqlite3.Connection, blob_id: int) -> Blob:
    value = _value(connection, blob_id)
    assert isinstance(value, Blob)
    return value


# With their session


def rename(connection: sqlite3.Connection, session_id: str, to: str) -> None:
    """Move a session's checkpoints to another id; checksums are bound to it, so they are made anew."""
    for row in connection.execute("SELECT * FROM checkpoints WHERE session_id = ?", (session_id,)).fetchall():
        _, ns, checkpoint_id, parent_id, source, step, channels, kind, data, checksum = row
        body = Blob(kind, data)
        if _checksum((session_id, ns, checkpoint_id), parent_id, channels, body) == checksum:
            checksum = _checksum((to, ns, checkpoint_id), parent_id, channels, body)
        connection.execute(
            "INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (to, ns, checkpoint_id, parent_id, source, step, channels, kind, data, checksum),
        )
    for row in connection.execute("SELECT * FROM writes WHERE session_id = ?", (session_id,)).fetchall():
        _, ns, checkpoint_id, task_id, *rest, checksum = row
        if _write_checksum((session_id, ns, checkpoint_id, task_id), *rest) == checksum:
            checksum = _write_checksum((to, ns, checkpoint_id, task_id), *rest)
        connection.execute(
            "INSERT INTO writes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (to, ns, checkpoint_id, task_id, *rest, checksum),
        )
    delete(connection, session_id)


def rename_family(connection: sqlite3.Connection, family_id: str, to: str) -> None:
    connection.execute("UPDATE lists SET family_id = ? WHERE family_id = ?", (to, family_id))
    connection.execute("UPDATE blobs SET family_id = ? WHERE family_id = ?", (to, family_id))


def delete(connection: sqlite3.Connection, session_id: str) -> int:
    """Delete a session's checkpoints and writes; how many checkpoints. Pieces: see `free_unused`."""
    connection.execute("DELETE FROM writes WHERE session_id = ?", (session_id,))
    return connection.execute("DELETE FROM checkpoints WHERE session_id = ?", (session_id,)).rowcount


_USED = """
    CREATE TEMP TABLE used_lists AS
    WITH RECURSIVE used (id) AS (
        SELECT json_extract(value, '$[0]') FROM checkpoints, json_each(channels)
        WHERE session_id IN (SELECT id FROM sessions WHERE family_id = :family) AND json_each.type = 'array'
        UNION
        SELECT parent_id FROM used JOIN lists USING (id) WHERE parent_id IS NOT NULL
    )
    SELECT id FROM used
"""


def free_unused(connection: sqlite3.Connection, family_id: str, members: Sequence[str]) -> None:
    """Delete the lists and blobs of a family that none of its `members` refers to any more."""
    if not members:
        connection.execute(
            "DELETE FROM list_items WHERE list_id IN (SELECT id FROM lists WHERE family_id = ?)", (family_id,)
        )
        connection.execute("DELETE FROM lists WHERE family_id = ?", (family_id,))
        connection.execute("DELETE FROM blobs WHERE family_id = ?", (family_id,))
        return
    connection.execute(_USED, {"family": family_id})
    connection.execute(
        "DELETE FROM list_items WHERE list_id IN"
        " (SELECT id FROM lists WHERE family_id = ? AND id NOT IN (SELECT id FROM used_lists))",
        (family_id,),
    )
    connection.execute(
        "DELETE FROM lists WHERE family_id = ? AND id NOT IN (SELECT id FROM used_lists)", (family_id,)
    )
    connection.execute("DROP TABLE used_lists")
    connection.execute(
        """
        DELETE FROM blobs WHERE family_id = :family AND id NOT IN (
            SELECT blob_id FROM list_items JOIN lists ON lists.id = list_id WHERE family_id = :family
            UNION
            SELECT value FROM checkpoints, json_each(channels)
            WHERE session_id IN (SELECT id FROM sessions WHERE family_id = :family) AND json_each.type = 'integer'
            UNION
            SELECT atom FROM writes, json_tree(writes.value)
            WHERE session_id IN (SELECT id FROM sessions WHERE family_id = :family) AND atom IS NOT NULL
        )
        """,
        {"family": family_id},
    )
