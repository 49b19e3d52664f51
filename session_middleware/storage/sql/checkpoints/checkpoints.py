"""Checkpoints in SQLite: what refers to what, and how it is found damaged.

A checkpoint's `channels` says, as JSON, where each channel's value is: ``null`` for ``None``, a
blob's id, ``[list id, length, check]``, or ``"writes"`` when the writes of its ancestors make it. A
write's `value` is ``null``, a blob's id, or the ``[blob id, length]`` of each chunk of a list. Rows
carry a CRC-32 over their key and content.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from session_middleware.errors import StorageError
from session_middleware.storage.checkpoint_types import (
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
from session_middleware.storage.sql.checkpoints import gap_detection, latest_checkpoint
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow, put_blob, reading_rows
from session_middleware.storage.sql.checkpoints.gap_detection import Listed, Passed
from session_middleware.storage.sql.checkpoints.lists import ListLoader, get_blob, get_value, put_list
from session_middleware.storage.sql.checkpoints.rows import AT, LATE, REPLAYED, Key, Row, WriteRow, at, resealed

# Checkpoints


def put(
    connection: sqlite3.Connection, family_id: str, put: CheckpointPut, branch: str | None, seq: int | None
) -> tuple[str, dict[str, ListRef]]:
    channels = _inherited(connection, put)
    lists: dict[str, ListRef] = {}
    for name, value in put.values.items():
        if isinstance(value, ListPut):
            channels[name] = lists[name] = put_list(connection, family_id, value)
        else:
            channels[name] = None if value is None else put_blob(connection, family_id, value)[0]
    channels.update(dict.fromkeys(put.replayed, REPLAYED))
    text, enclosing = _json(channels), _json(dict(put.enclosing))
    key = (put.visit.session_id, put.checkpoint_ns, put.checkpoint_id)
    row = Row(*key, put.parent_id, enclosing, put.run_id, put.source, put.step, text, *put.body, branch, seq)
    ((place,),) = connection.execute(_PUT, (*row[:13], row.sum())).fetchall()
    latest_checkpoint.put(connection, key, place)
    return text, lists


_json = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` would make an encoder for each call


# What follows from another checkpoint comes after all that are there; a beginning stands where its id says. With it
# goes a note of the next older one: mostly the head until now, and the parent, whose id is there already.
_PUT = f"""
    INSERT OR REPLACE INTO checkpoints SELECT
        ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13,
        NULLIF(COALESCE(
            CASE WHEN head < own THEN head_id END,
            (SELECT checkpoint_id FROM checkpoints WHERE session_id = ?1 AND checkpoint_ns = ?2 AND place < own
             ORDER BY place DESC LIMIT 1),
            ''
        ), COALESCE(?4, '')),
        COALESCE(
            CASE WHEN head < own THEN head_writes END,
            (SELECT COUNT(*) FROM writes WHERE session_id = ?1 AND checkpoint_ns = ?2 AND checkpoint_id = (
                SELECT checkpoint_id FROM checkpoints WHERE session_id = ?1 AND checkpoint_ns = ?2 AND place < own
                ORDER BY place DESC LIMIT 1))
        ),
        own,
        ?14
    FROM (
        SELECT heads.place AS head, heads.checkpoint_id AS head_id, heads.write_count AS head_writes, CASE
            WHEN heads.place < ?3 THEN ?3
            ELSE COALESCE(
                (SELECT place FROM checkpoints  -- it is put again
                 WHERE session_id = ?1 AND checkpoint_ns = ?2 AND place >= ?3 AND checkpoint_id = ?3 LIMIT 1),
                CASE
                    WHEN ?4 IS NULL THEN ?3
                    WHEN substr(heads.place, -9, 1) = '{LATE}'
                    THEN substr(heads.place, 1, length(heads.place) - 8)
                        || printf('%08d', substr(heads.place, -8) + 1)
                    ELSE heads.place || '{LATE}00000001'
                END,
                ?3
            )
        END AS own
        FROM (SELECT 1) LEFT JOIN heads ON session_id = ?1 AND checkpoint_ns = ?2
    )
    WHERE 1
    RETURNING place
"""


def insert(connection: sqlite3.Connection, row: Row, checksum: int) -> None:
    """As it was stored elsewhere, with its note of the next older one."""
    connection.execute(f"INSERT INTO checkpoints VALUES ({', '.join('?' * len(row))})", (*row[:-1], checksum))


def _inherited(connection: sqlite3.Connection, put: CheckpointPut) -> dict[str, Any]:
    if put.parent is None:
        return {}
    row = connection.execute(
        f"SELECT channels FROM checkpoints WHERE {AT}",
        at(put.visit.session_id, put.checkpoint_ns, put.parent.checkpoint_id),
    ).fetchone()
    if row is None or row[0] != put.parent.channels:
        raise StaleParent
    channels = json.loads(row[0])
    return {name: channels[name] for name in put.inherited}


def get(
    connection: sqlite3.Connection,
    session_id: str,
    checkpoint_ns: str,
    checkpoint_id: str | None,
    path: str,
    have: Mapping[int, ListRef] = MappingProxyType({}),
) -> StoredCheckpoint | None:
    row = find(connection, session_id, checkpoint_ns, checkpoint_id)
    try:
        if row is None:
            gap_detection.check_absent(connection, session_id, checkpoint_ns, checkpoint_id)
            return None
        row.check()
        if row.key[:2] != (session_id, checkpoint_ns) or checkpoint_id not in (None, row.checkpoint_id):
            raise CorruptRow("another row stands in its place")
        note = gap_detection.find(connection, row)
        values = {name: get_value(connection, ref, have) for name, ref in row.refs.items()}
        writes = [
            StoredWrite(write.task_id, write.channel, _written(connection, json.loads(write.value)))
            for write in _writes(connection, row.key)
        ]
        if note is not None and len(writes) != note.write_count:
            raise CorruptRow("a write of it cannot be found")
    except CorruptRow as damage:
        key = row.key if row else (session_id, checkpoint_ns, checkpoint_id or "(latest)")
        raise damaged(path, key, str(damage)) from None
    return StoredCheckpoint(*row.key, row.parent_id, Blob(row.type, row.body), row.channels, values, writes)


def find(connection: sqlite3.Connection, session_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> Row | None:
    """That one, or the latest."""
    if checkpoint_id is not None:
        found = connection.execute(
            f"SELECT * FROM checkpoints WHERE {AT}", at(session_id, checkpoint_ns, checkpoint_id)
        ).fetchone()
    else:
        found = connection.execute(_LATEST, (session_id, checkpoint_ns)).fetchone()
    return None if found is None else Row(*found)


_LATEST = """
    SELECT * FROM checkpoints WHERE session_id = ?1 AND checkpoint_ns = ?2
    AND place >= (SELECT latest_id FROM heads WHERE session_id = ?1 AND checkpoint_ns = ?2)
    AND checkpoint_id = (SELECT latest_id FROM heads WHERE session_id = ?1 AND checkpoint_ns = ?2) LIMIT 1
"""


def damaged(path: str, key: Key, what: str) -> StorageError:
    return StorageError(
        path,
        f"checkpoint {key[2]} of session {key[0]!r} (namespace {key[1]!r}) is damaged: {what}",
        advice="resume from an earlier checkpoint id, or restore a backup; other sessions are not concerned",
    )


def list_(
    connection: sqlite3.Connection,
    session_id: str | None,
    *,
    checkpoint_ns: str | None,
    before: str | None,
    checkpoint_id: str | None,
    matches: Callable[[Blob], bool] | None,
    limit: int | None,
    after: Key | None,
    path: str,
) -> list[StoredCheckpoint]:
    is_one = None not in (session_id, checkpoint_ns, checkpoint_id)
    bound = None if before is None else _place(connection, session_id, checkpoint_ns, before)
    last = None if after is None else (_place(connection, *after), *after[:2])
    conditions, values = ["1"], []
    for condition, value in (
        ("session_id = ?", session_id),
        ("checkpoint_ns = ?", checkpoint_ns),
        ("checkpoint_id = ?", checkpoint_id),
        ("place >= ?", checkpoint_id),
        ("place < ?", bound),
        ("place <= ?", last and last[0]),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if last is not None:
        conditions.append("(place < ? OR (session_id, checkpoint_ns) > (?, ?))")
        values += last
    cursor = connection.execute(  # the bodies are read in the order of their keys, and none that is not wanted
        "SELECT checkpoints.* FROM (SELECT session_id, checkpoint_ns, place FROM checkpoints"
        f" WHERE {' AND '.join(conditions)} ORDER BY place DESC, session_id, checkpoint_ns LIMIT ?) AS wanted"
        " CROSS JOIN checkpoints USING (session_id, checkpoint_ns, place)",
        (*values, 1 if is_one else -1 if limit is None or matches else limit),
    )
    rows: list[Row] = []
    passed: list[Passed] = []
    while (limit is None or len(rows) < limit) and (found := cursor.fetchone()) is not None:
        row = Row(*found)
        with damage_context(path, row.key):
            row.check()
        passed.append(Passed(row.key, row.place, row.previous))
        if matches is None or matches(Blob(row.type, row.body)):
            rows.append(row)
    is_end = limit is None or len(rows) < limit
    cursor.close()
    listed = Listed(session_id, checkpoint_ns, checkpoint_id, bound, last, is_end)
    if lost := gap_detection.find_lost(connection, listed, passed):
        raise damaged(path, *lost)
    return _with_pieces(connection, rows, path)


def _place(
    connection: sqlite3.Connection, session_id: str | None, checkpoint_ns: str | None, checkpoint_id: str
) -> str:
    """Where a checkpoint stands that a list begins after. One that is not there stands where its id says."""
    found = None
    if session_id is not None and checkpoint_ns is not None:
        sql = f"SELECT place FROM checkpoints WHERE {AT}"
        found = connection.execute(sql, at(session_id, checkpoint_ns, checkpoint_id)).fetchone()
    elif session_id is not None:
        sql = "SELECT place FROM checkpoints WHERE session_id = ? AND place >= ? AND checkpoint_id = ? LIMIT 1"
        found = connection.execute(sql, (session_id, checkpoint_id, checkpoint_id)).fetchone()
    return checkpoint_id if found is None else found[0]


@contextmanager
def damage_context(path: str, key: Key) -> Iterator[None]:
    """Damage found in the block is told of this checkpoint."""
    try:
        yield
    except CorruptRow as damage:
        raise damaged(path, key, str(damage)) from None
    except (TypeError, AttributeError) as error:
        raise damaged(path, key, "a value of another type than was written") from error


def _with_pieces(connection: sqlite3.Connection, rows: Sequence[Row], path: str) -> list[StoredCheckpoint]:
    """Join the rows with what they refer to, in a number of statements that does not grow with theirs."""
    with reading_rows():
        writes = _writes_of(connection, rows)
        pieces = ListLoader(
            connection,
            (ref for row in rows for ref in row.refs.values()),
            (json.loads(write.value) for found in writes.values() for write in found),
        )
        counts = gap_detection.count_writes(connection, rows)
    stored = []
    for row in rows:
        with damage_context(path, row.key):
            if counts.get(row.key) != len(writes.get(row.key, ())):
                raise CorruptRow("a write of it cannot be found")
            values = {name: pieces.value(ref) for name, ref in row.refs.items()}
            body = Blob(row.type, row.body)
            written = [stored_write(write, pieces) for write in writes.get(row.key, ())]
        stored.append(StoredCheckpoint(*row.key, row.parent_id, body, row.channels, values, written))
    return stored


def list_namespaces(connection: sqlite3.Connection, session_id: str) -> list[str]:
    rows = connection.execute("SELECT DISTINCT checkpoint_ns FROM checkpoints WHERE session_id = ?", (session_id,))
    return [namespace for (namespace,) in rows]


def count(connection: sqlite3.Connection, session_id: str) -> int:
    row = connection.execute("SELECT COUNT(*) FROM checkpoints WHERE session_id = ?", (session_id,)).fetchone()
    return int(row[0])


# Writes


def put_writes(connection: sqlite3.Connection, family_id: str, put: WritesPut) -> None:
    key = (put.visit.session_id, put.checkpoint_ns, put.checkpoint_id, put.task_id)
    rows: list[WriteRow] = []
    for write in put.writes:
        if isinstance(write.value, Blob):
            value: Any = put_blob(connection, family_id, write.value)[0]
        elif write.value is not None:
            value = [[put_blob(connection, family_id, chunk.blob)[0], chunk.length] for chunk in write.value]
        else:
            value = None
        rows.append(WriteRow(*key, write.idx, put.task_path, write.channel, _json(value)))
    insert_writes(connection, [row for row in rows if row.idx >= 0], keep_first=True)
    insert_writes(connection, [row for row in rows if row.idx < 0], keep_first=False)
    latest_checkpoint.count_writes(connection, key[:3])


_VALUES = "(?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ROWS = 16  # inserted by one statement, at most


def insert_writes(connection: sqlite3.Connection, rows: Sequence[WriteRow], *, keep_first: bool) -> None:
    """Each statement lets go of the interpreter, which under load costs more than what it does."""
    how = "IGNORE" if keep_first else "REPLACE"
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        values = [value for row in some for value in (*row[:-1], row.sum())]
        connection.execute(f"INSERT OR {how} INTO writes VALUES {', '.join([_VALUES] * len(some))}", values)


def has_writes(connection: sqlite3.Connection, session_id: str) -> bool:
    return connection.execute("SELECT 1 FROM writes WHERE session_id = ? LIMIT 1", (session_id,)).fetchone() is not None


def _writes(connection: sqlite3.Connection, key: Key) -> list[WriteRow]:
    rows = connection.execute(
        "SELECT * FROM writes WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
        " ORDER BY task_path, task_id, idx",
        key,
    )
    found = [WriteRow(*row) for row in rows.fetchall()]
    for write in found:
        write.check()
    return found


def _written(connection: sqlite3.Connection, ref: Any) -> Blob | list[Chunk] | None:
    if isinstance(ref, list):
        return [Chunk(get_blob(connection, blob_id), count) for blob_id, count in ref]
    return None if ref is None else get_blob(connection, ref)


def stored_write(write: WriteRow, pieces: ListLoader) -> StoredWrite:
    write.check()
    return StoredWrite(write.task_id, write.channel, pieces.written(json.loads(write.value)))


def _writes_of(connection: sqlite3.Connection, rows: Sequence[Row]) -> dict[Key, list[WriteRow]]:
    """The writes of many checkpoints, each's in their order: one statement for each namespace among them."""
    namespaces: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        namespaces[row.session_id, row.checkpoint_ns].append(row.checkpoint_id)
    found: dict[Key, list[WriteRow]] = defaultdict(list)
    for (session_id, checkpoint_ns), ids in namespaces.items():
        for write in connection.execute(
            "SELECT * FROM writes WHERE session_id = ? AND checkpoint_ns = ?"
            f" AND checkpoint_id IN ({', '.join('?' * len(ids))}) ORDER BY task_path, task_id, idx",
            (session_id, checkpoint_ns, *ids),
        ):
            found[write[:3]].append(WriteRow(*write))
    return found


# With their session


def copy(connection: sqlite3.Connection, session_id: str, to: str) -> int:
    """Give another session the same checkpoints and writes; how many checkpoints.

    Checksums are bound to the id, so they are made anew; those that were wrong stay wrong.
    """
    copied = 0
    for found in connection.execute("SELECT * FROM checkpoints WHERE session_id = ?", (session_id,)).fetchall():
        renamed = resealed(Row(*found), session_id=to)
        insert(connection, renamed, renamed.checksum)
        copied += 1
    for found in connection.execute("SELECT * FROM writes WHERE session_id = ?", (session_id,)).fetchall():
        write = resealed(WriteRow(*found), session_id=to)
        connection.execute("INSERT INTO writes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", write)
    latest_checkpoint.copy(connection, session_id, to)
    return copied


def rename(connection: sqlite3.Connection, session_id: str, to: str) -> None:
    copy(connection, session_id, to)
    delete(connection, session_id)


def delete(connection: sqlite3.Connection, session_id: str) -> int:
    """Delete a session's checkpoints and writes; how many checkpoints. Pieces: see `free_unused`."""
    connection.execute("DELETE FROM writes WHERE session_id = ?", (session_id,))
    connection.execute("DELETE FROM heads WHERE session_id = ?", (session_id,))
    return connection.execute("DELETE FROM checkpoints WHERE session_id = ?", (session_id,)).rowcount
