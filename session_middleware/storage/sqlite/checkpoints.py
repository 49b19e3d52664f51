"""Checkpoints in SQLite: what refers to what, and how it is found damaged.

A checkpoint's `channels` says, as JSON, where each channel's value is: ``null`` for ``None``, a
blob's id, or ``[list id, length, check]``. A write's `value` is ``null``, a blob's id, or the
``[blob id, length]`` of each chunk of a list. Rows carry a CRC-32 over their key and content.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
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
    StoredWrite,
    WritesPut,
)
from session_middleware.storage.sqlite.pieces import Damaged, get_blob, get_value, put_blob, put_list

Key = tuple[str, str, str]  # session id, namespace, checkpoint id


# Checkpoints


def put(connection: sqlite3.Connection, family_id: str, put: CheckpointPut) -> tuple[str, dict[str, ListRef]]:
    key = (put.visit.session_id, put.checkpoint_ns, put.checkpoint_id)
    channels = _inherited(connection, put)
    lists: dict[str, ListRef] = {}
    for name, value in put.values.items():
        if isinstance(value, ListPut):
            channels[name] = lists[name] = put_list(connection, family_id, value)
        else:
            channels[name] = None if value is None else put_blob(connection, family_id, value)[0]
    text = json.dumps(channels, separators=(",", ":"))
    connection.execute(
        "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*key, put.parent_id, put.source, put.step, text, *put.body) + (_checksum(key, put.parent_id, text, put.body),),
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
        values = {name: get_value(connection, ref) for name, ref in json.loads(row[2]).items()}
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
        conditions.append(
            "((session_id, checkpoint_ns) > (?, ?) OR session_id = ? AND checkpoint_ns = ? AND checkpoint_id < ?)"
        )
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
            value: Any = put_blob(connection, family_id, write.value)[0]
        elif write.value is not None:
            value = [[put_blob(connection, family_id, chunk.blob)[0], chunk.length] for chunk in write.value]
        else:
            value = None
        text = json.dumps(value, separators=(",", ":"))
        keep_first = "IGNORE" if write.idx >= 0 else "REPLACE"
        row = (write.idx, put.task_path, write.channel, text)
        connection.execute(
            f"INSERT OR {keep_first} INTO writes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, *row, _write_checksum(key, *row)),
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
            stored: Any = [Chunk(get_blob(connection, blob_id), count) for blob_id, count in refs]
        else:
            stored = None if refs is None else get_blob(connection, refs)
        found.append(StoredWrite(task_id, channel, stored))
    return found


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


def delete(connection: sqlite3.Connection, session_id: str) -> int:
    """Delete a session's checkpoints and writes; how many checkpoints. Pieces: see `free_unused`."""
    connection.execute("DELETE FROM writes WHERE session_id = ?", (session_id,))
    return connection.execute("DELETE FROM checkpoints WHERE session_id = ?", (session_id,)).rowcount
