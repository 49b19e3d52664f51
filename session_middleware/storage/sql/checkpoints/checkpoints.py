"""Checkpoints and writes: how they refer to values, and how damage is detected.

A checkpoint's `channels` is JSON: per channel a reference to a value (see `blobs`), ``[list id, length, check]`` for
a list, or ``"writes"`` when the writes of its ancestors make the value.
"""

from __future__ import annotations

import json
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
    StoredList,
    StoredWrite,
    Write,
    WritesPut,
)
from session_middleware.storage.sql.checkpoints import latest_checkpoint
from session_middleware.storage.sql.checkpoints.blobs import (
    INLINE_WRITE_BYTES,
    BlobReader,
    CorruptRow,
    batches,
    put_blobs,
    reading_rows,
    refer,
)
from session_middleware.storage.sql.checkpoints.latest_checkpoint import LOST_WRITES
from session_middleware.storage.sql.checkpoints.lists import FamilyLists, get_list, prepare, put_list
from session_middleware.storage.sql.checkpoints.rows import (
    AT,
    HOME,
    REPLAYED,
    Key,
    Row,
    WriteRow,
    at,
    references_in,
    resealed,
)
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.session_state import CheckpointPoint, SessionWrite

_json = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` would make an encoder for each call

# Writing


def put(write: SessionWrite, put: CheckpointPut, branch: str | None, seq: int | None) -> tuple[str, dict[str, ListRef]]:
    """Store a checkpoint; its channels as stored, and where each of its new lists is now. Raises `StaleParent`."""
    home, key = write.state.home, (put.context.session_id, put.checkpoint_ns, put.checkpoint_id)
    channels = _inherited(write, put)
    blobs: dict[bytes, Blob] = {}
    lists: dict[str, ListRef] = {}
    for name, value in put.values.items():
        if isinstance(value, ListPut):
            channels[name] = lists[name] = put_list(write, value, prepare(value, blobs))
        else:
            channels[name] = refer(value, blobs)
    put_blobs(write, blobs)
    channels.update(dict.fromkeys(put.replayed, REPLAYED))
    text, enclosing = _json(channels), _json(dict(put.enclosing))
    head = latest_checkpoint.known(write, key)
    stored = None
    if head is not None and head.newest_position >= key[2]:
        found = write.query(f"SELECT position FROM checkpoints WHERE {AT}", at(*key)).fetchone()
        stored = found and found[0]
    position = latest_checkpoint.position_of(head, key, is_root=put.parent_id is None, stored=stored)
    row = Row(
        *(home, key[0], key[1], position, key[2], put.parent_id, enclosing, put.run_id, put.source, put.step),
        *(text, *put.body, branch, seq),
    )
    if stored is not None:
        write.execute(_DELETE, row[:4])
    write.insert("checkpoints", Row._fields, [(*row[:-1], row.sum())])
    if stored is None:
        latest_checkpoint.put(write, head, key, position)
    write.state.keep_point(key[1], key[2], CheckpointPoint(text, branch, seq))
    return text, lists


_DELETE = "DELETE FROM checkpoints WHERE home = ? AND session_id = ? AND checkpoint_ns = ? AND position = ?"


def insert(connection: Connection, row: Row, checksum: int) -> None:
    connection.execute(f"INSERT INTO checkpoints VALUES ({', '.join('?' * len(row))})", (*row[:-1], checksum))


def _inherited(write: SessionWrite, put: CheckpointPut) -> dict[str, Any]:
    """The references that the checkpoint takes over from its parent. Raises `StaleParent`."""
    if put.parent is None:
        return {}
    point = write.state.points.get((put.checkpoint_ns, put.parent.checkpoint_id))
    if point is not None:
        stored: str | None = point.channels
    else:
        own = at(put.context.session_id, put.checkpoint_ns, put.parent.checkpoint_id)
        row = write.query(f"SELECT channels FROM checkpoints WHERE {AT}", own).fetchone()
        stored = row and row[0]
    if stored is None or stored != put.parent.channels:
        raise StaleParent
    channels = json.loads(stored)
    return {name: channels[name] for name in put.inherited}


def put_writes(write: SessionWrite, put: WritesPut) -> None:
    """Store a task's writes. An ordinary write that is there already stays; a special one is replaced."""
    home, key = write.state.home, (put.context.session_id, put.checkpoint_ns, put.checkpoint_id)
    blobs: dict[bytes, Blob] = {}
    ordinary = [_written(each, blobs) for each in put.writes if each.idx >= 0]
    special = [_written(each, blobs) for each in put.writes if each.idx < 0]
    put_blobs(write, blobs)
    if ordinary:
        row = WriteRow(home, *key, put.task_id, 0, put.task_path, _json(ordinary))
        if not _insert_writes(write, [row], _KEEP):
            _insert_writes(write, [_with_earlier(write, row)], _REPLACE)
    replacing = [WriteRow(home, *key, put.task_id, each[0], put.task_path, _json([each])) for each in special]
    _insert_writes(write, replacing, _REPLACE)
    latest_checkpoint.count_writes(write, key)


_WRITE_VALUES = f"({', '.join('?' * len(WriteRow._fields))})"
_KEEP = "DO NOTHING"
_REPLACE = """
    (home, session_id, checkpoint_ns, checkpoint_id, task_id, idx) DO UPDATE
    SET task_path = excluded.task_path, value = excluded.value, checksum = excluded.checksum
"""


def _insert_writes(connection: SessionWrite, rows: Sequence[WriteRow], on_conflict: str) -> int:
    """How many were inserted or replaced."""
    done = 0
    for some in batches(rows):
        sql = f"INSERT INTO writes VALUES {', '.join([_WRITE_VALUES] * len(some))} ON CONFLICT {on_conflict}"
        done += connection.execute(sql, [value for row in some for value in (*row[:-1], row.sum())]).rowcount
    return done


def _written(write: Write, blobs: dict[bytes, Blob]) -> tuple[int, str, Any]:
    if write.value is None or isinstance(write.value, Blob):
        return write.idx, write.channel, refer(write.value, blobs, inline_bytes=INLINE_WRITE_BYTES)
    chunks = [[refer(chunk.blob, blobs, inline_bytes=INLINE_WRITE_BYTES), chunk.length] for chunk in write.value]
    return write.idx, write.channel, chunks


def _with_earlier(connection: SessionWrite, row: WriteRow) -> WriteRow:
    """The ordinary writes of a task that has some already: those stay, and only further ones are added."""
    found = connection.query(
        "SELECT * FROM writes WHERE home = ? AND session_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?"
        " AND task_id = ? AND idx = 0",
        row[:5],
    ).fetchone()
    with reading_rows(row.session_id):
        earlier = WriteRow(*found)
        earlier.check()
        writes = {write[0]: write for write in [*row.writes, *earlier.writes]}
    return earlier._replace(value=_json([writes[idx] for idx in sorted(writes)]))


# Reading


def get(
    connection: Connection,
    session_id: str,
    checkpoint_ns: str,
    checkpoint_id: str | None,
    path: str,
    have: Mapping[int, ListRef] = MappingProxyType({}),
) -> StoredCheckpoint | None:
    row = find(connection, session_id, checkpoint_ns, checkpoint_id)
    try:
        if row is None:
            latest_checkpoint.check_absent(connection, session_id, checkpoint_ns, checkpoint_id)
            return None
        row.check()
        if row.key[:2] != (session_id, checkpoint_ns) or checkpoint_id not in (None, row.checkpoint_id):
            raise CorruptRow("another row stands in its place")
        writes = _writes_of(connection, [row]).get(row.key, [])
        _check_count(row, writes, latest_checkpoint.find(connection, session_id, checkpoint_ns))
        blobs = BlobReader(connection, row.home)
        blobs.prefetch_references([*references_in(row), *(ref for write in writes for ref in references_in(write))])
        values = {
            name: get_list(connection, row.home, ListRef(*ref), have) if isinstance(ref, list) else blobs.value(ref)
            for name, ref in row.refs.items()
        }
        return _stored(row, values, [each for write in writes for each in stored_writes(write, blobs)])
    except CorruptRow as damage:
        key = row.key if row else (session_id, checkpoint_ns, checkpoint_id or "(latest)")
        raise damaged(path, key, str(damage)) from None


def _check_count(row: Row, writes: Sequence[WriteRow], head: latest_checkpoint.Head | None) -> None:
    """Raises `CorruptRow` if a row of writes of the latest checkpoint is lost."""
    if row.checkpoint_ns:
        return
    if head is None:
        raise CorruptRow("its session's row does not name a latest checkpoint")
    if head.latest_id == row.checkpoint_id and head.write_count != len(writes):
        raise CorruptRow(LOST_WRITES)


def _stored(row: Row, values: dict[str, Blob | StoredList | None], writes: Sequence[StoredWrite]) -> StoredCheckpoint:
    return StoredCheckpoint(*row.key, row.parent_id, Blob(row.type, row.body), row.channels, values, writes)


def find(connection: Connection, session_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> Row | None:
    """That one, or the latest; unchecked."""
    if checkpoint_id is not None:
        sql, values = f"SELECT * FROM checkpoints WHERE {AT}", at(session_id, checkpoint_ns, checkpoint_id)
        found = connection.execute(sql, values).fetchone()
    elif checkpoint_ns:
        found = connection.execute(_LATEST_INNER, (session_id, session_id, checkpoint_ns)).fetchone()
    else:
        found = connection.execute(_LATEST, (session_id,)).fetchone()
    return None if found is None else Row(*found)


_LATEST = """
    SELECT own.* FROM sessions JOIN checkpoints AS own ON own.home = sessions.home AND own.session_id = sessions.id
    AND own.checkpoint_ns = '' AND own.position >= sessions.latest_checkpoint_id
    AND own.checkpoint_id = sessions.latest_checkpoint_id
    WHERE sessions.id = ? LIMIT 1
"""
_LATEST_INNER = (
    f"SELECT * FROM checkpoints WHERE {HOME} AND session_id = ? AND checkpoint_ns = ? ORDER BY position DESC LIMIT 1"
)


def damaged(path: str, key: Key, what: str) -> StorageError:
    return StorageError(
        path,
        f"checkpoint {key[2]} of session {key[0]!r} (namespace {key[1]!r}) is damaged: {what}",
        advice="resume from an earlier checkpoint id, or restore a backup; other sessions are not affected",
    )


def list_(
    connection: Connection,
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
    bound = None if before is None else _position(connection, session_id, checkpoint_ns, before)
    last = None if after is None else (_position(connection, *after), *after[:2])
    conditions, values = ["TRUE"], []
    for condition, value in (
        (HOME, session_id),
        ("session_id = ?", session_id),
        ("checkpoint_ns = ?", checkpoint_ns),
        ("checkpoint_id = ?", checkpoint_id),
        ("position >= ?", checkpoint_id),
        ("position < ?", bound),
        ("position <= ?", last and last[0]),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if last is not None:
        conditions.append("(position < ? OR (session_id, checkpoint_ns) > (?, ?))")
        values += last
    most = 1 if is_one else limit if limit is not None and matches is None else _ALL
    cursor = connection.execute(  # only the keys are sorted, and only the rows that are wanted are read
        "SELECT checkpoints.* FROM (SELECT home, session_id, checkpoint_ns, position FROM checkpoints"
        f" WHERE {' AND '.join(conditions)} ORDER BY position DESC, session_id, checkpoint_ns LIMIT ?) AS wanted"
        " CROSS JOIN checkpoints USING (home, session_id, checkpoint_ns, position)",
        (*values, most),
    )
    rows: list[Row] = []
    passed = 0
    while (limit is None or len(rows) < limit) and (found := cursor.fetchone()) is not None:
        row = Row(*found)
        with damage_context(path, row.key):
            row.check()
        passed += 1
        if matches is None or matches(Blob(row.type, row.body)):
            rows.append(row)
    cursor.close()
    if bound is None and last is None:
        is_whole = checkpoint_id is None and (limit is None or len(rows) < limit)
        _check_listed(connection, (session_id, checkpoint_ns, checkpoint_id), passed if is_whole else None, path)
    return _with_values(connection, rows, path)


_ALL = 2**62


def _check_listed(
    connection: Connection, wanted: tuple[str | None, str | None, str | None], passed: int | None, path: str
) -> None:
    """A list from the beginning: the latest of an outermost graph must be there, and all if all were passed."""
    session_id, checkpoint_ns, checkpoint_id = wanted
    if checkpoint_ns or (passed is None and (session_id is None or checkpoint_ns is None)):
        return
    own, values = ("TRUE", []) if session_id is None else ("id = ?", [session_id])
    if passed is not None:
        counted = "SELECT COALESCE(SUM(checkpoint_count), 0) FROM sessions"
        if connection.execute(f"{counted} WHERE {own}", values).fetchone()[0] == passed:
            return
    has_any = f"SELECT id FROM sessions WHERE {own} AND checkpoint_count > 0"
    for (session,) in connection.execute(has_any, values).fetchall():
        try:
            if find(connection, session, "", checkpoint_id) is None or passed is not None:
                latest_checkpoint.check_absent(connection, session, "", checkpoint_id or "")
        except CorruptRow as damage:
            raise damaged(path, (session, "", checkpoint_id or "(latest)"), str(damage)) from None


def _position(connection: Connection, session_id: str | None, checkpoint_ns: str | None, checkpoint_id: str) -> str:
    """The position of a checkpoint that bounds a list. One that is not there stands where its id says."""
    found = None
    if session_id is not None and checkpoint_ns is not None:
        sql = f"SELECT position FROM checkpoints WHERE {AT}"
        found = connection.execute(sql, at(session_id, checkpoint_ns, checkpoint_id)).fetchone()
    elif session_id is not None:
        sql = (
            f"SELECT position FROM checkpoints WHERE {HOME} AND session_id = ? AND position >= ? AND checkpoint_id = ?"
        )
        values = (session_id, session_id, checkpoint_id, checkpoint_id)
        found = connection.execute(f"{sql} LIMIT 1", values).fetchone()
    return checkpoint_id if found is None else found[0]


@contextmanager
def damage_context(path: str, key: Key) -> Iterator[None]:
    """Damage found in the block is reported as damage of this checkpoint."""
    try:
        yield
    except CorruptRow as damage:
        raise damaged(path, key, str(damage)) from None
    except (TypeError, AttributeError, ValueError) as error:
        raise damaged(path, key, "a value of another type than was written") from error


def _with_values(connection: Connection, rows: Sequence[Row], path: str) -> list[StoredCheckpoint]:
    """Join the rows with what they refer to, reading each blob and list once."""
    with reading_rows():
        writes = _writes_of(connection, rows)
        outermost = {row.session_id for row in rows if not row.checkpoint_ns}
        heads = {session_id: latest_checkpoint.find(connection, session_id, "") for session_id in outermost}
        readers: dict[int, tuple[BlobReader, FamilyLists]] = {}
        for home in {row.home for row in rows}:
            refs = [ref for row in rows if row.home == home for ref in references_in(row)]
            blobs = BlobReader(connection, home)
            written = [w for found in writes.values() for w in found if w.home == home]
            blobs.prefetch_references([*refs, *(ref for write in written for ref in references_in(write))])
            readers[home] = blobs, FamilyLists(connection, home, blobs, refs)
    stored = []
    for row in rows:
        blobs, lists = readers[row.home]
        with damage_context(path, row.key):
            own = writes.get(row.key, [])
            _check_count(row, own, heads.get(row.session_id))
            values = {
                name: lists.read(ListRef(*ref)) if isinstance(ref, list) else blobs.value(ref)
                for name, ref in row.refs.items()
            }
            stored.append(_stored(row, values, [each for write in own for each in stored_writes(write, blobs)]))
    return stored


def stored_writes(row: WriteRow, blobs: BlobReader, channels: Sequence[str] | None = None) -> Iterator[StoredWrite]:
    """The writes of a row, or those to some channels. Raises `CorruptRow`."""
    row.check()
    for _, channel, reference in row.writes:
        if channels is not None and channel not in channels:
            continue
        value: Blob | list[Chunk] | None
        if isinstance(reference, list):
            value = [Chunk(blobs.value(each) or Blob("", b""), length) for each, length in reference]
        else:
            value = blobs.value(reference)
        yield StoredWrite(row.task_id, channel, value)


def list_namespaces(connection: Connection, session_id: str) -> list[str]:
    sql = f"SELECT DISTINCT checkpoint_ns FROM checkpoints WHERE {HOME} AND session_id = ?"
    return [namespace for (namespace,) in connection.execute(sql, (session_id, session_id))]


def count(connection: Connection, session_id: str) -> int:
    sql = f"SELECT COUNT(*) FROM checkpoints WHERE {HOME} AND session_id = ?"
    return int(connection.execute(sql, (session_id, session_id)).fetchone()[0])


def has_writes(connection: Connection, session_id: str) -> bool:
    sql = f"SELECT 1 FROM writes WHERE {HOME} AND session_id = ? LIMIT 1"
    return connection.execute(sql, (session_id, session_id)).fetchone() is not None


def _writes_of(connection: Connection, rows: Sequence[Row]) -> dict[Key, list[WriteRow]]:
    """The rows of writes of many checkpoints, those of each in LangGraph's order."""
    namespaces: dict[tuple[int, str, str], list[str]] = defaultdict(list)
    for row in rows:
        namespaces[row.home, row.session_id, row.checkpoint_ns].append(row.checkpoint_id)
    found: dict[Key, list[WriteRow]] = defaultdict(list)
    for namespace, ids in namespaces.items():
        for values in connection.execute(
            "SELECT * FROM writes WHERE home = ? AND session_id = ? AND checkpoint_ns = ?"
            f" AND checkpoint_id IN ({', '.join('?' * len(ids))}) ORDER BY task_path, task_id, idx",
            (*namespace, *ids),
        ):
            write = WriteRow(*values)
            found[write.key].append(write)
    return found


# With their session


def copy(connection: Connection, home: int, session_id: str, to: str) -> int:
    """Give another session of the family the same checkpoints and writes; returns the number of checkpoints.

    Checksums are bound to the session, so they are computed anew; those that were wrong stay wrong.
    """
    copied = 0
    where = "WHERE home = ? AND session_id = ?"
    for found in connection.execute(f"SELECT * FROM checkpoints {where}", (home, session_id)).fetchall():
        row = resealed(Row(*found), session_id=to)
        insert(connection, row, row.checksum)
        copied += 1
    for found in connection.execute(f"SELECT * FROM writes {where}", (home, session_id)).fetchall():
        connection.execute(f"INSERT INTO writes VALUES {_WRITE_VALUES}", resealed(WriteRow(*found), session_id=to))
    return copied


def rename(connection: Connection, home: int, session_id: str, to: str) -> None:
    copy(connection, home, session_id, to)
    delete(connection, home, session_id)


def delete(connection: Connection, home: int, session_id: str) -> int:
    """Delete a session's checkpoints and writes; how many checkpoints. Their values: see `free_unused`."""
    connection.execute("DELETE FROM writes WHERE home = ? AND session_id = ?", (home, session_id))
    sql = "DELETE FROM checkpoints WHERE home = ? AND session_id = ?"
    return connection.execute(sql, (home, session_id)).rowcount
