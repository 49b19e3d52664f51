"""Checkpoints and writes: how they refer to values, and how damage is detected.

A checkpoint's `channels` is JSON: per channel a reference to a value (see `blobs`), ``[list id, length, check]`` for
a list, or ``"writes"`` when the writes of its ancestors make the value.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from session_middleware.errors import StorageError
from session_middleware.storage.checkpoint_types import (
    Blob,
    CheckpointFilter,
    CheckpointPut,
    Chunk,
    ListPut,
    ListRef,
    StaleParent,
    StoredCheckpoint,
    StoredWrite,
    WritesPut,
)
from session_middleware.storage.sql.checkpoints import latest_checkpoint
from session_middleware.storage.sql.checkpoints.blobs import (
    INLINE_BYTES,
    INLINE_ONCE_BYTES,
    BlobReader,
    CorruptRow,
    put_blobs,
    refer,
)
from session_middleware.storage.sql.checkpoints.lists import ValueReader, put_list
from session_middleware.storage.sql.checkpoints.lists import prefetch as prefetch_values
from session_middleware.storage.sql.checkpoints.rows import (
    AT,
    HOME,
    REPLAYED,
    Key,
    Row,
    WriteRow,
    at,
    references_in,
)
from session_middleware.storage.sql.connection import UNLIMITED, Connection, Cursor, among
from session_middleware.storage.sql.session_state import CheckpointPoint, SessionState, SessionWrite

_json = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` would make an encoder for each call

_INPUT = "__start__"  # LangGraph's channel of a graph's input

# Writing


def put(write: SessionWrite, put: CheckpointPut, branch: str | None, seq: int | None) -> tuple[str, dict[str, ListRef]]:
    """Store a checkpoint. Returns its channels as stored, and the references of its lists. Raises `StaleParent`."""
    home, key = write.state.home, (put.context.session_id, put.checkpoint_ns, put.checkpoint_id)
    channels = _inherited(write, put)
    blobs: dict[bytes, Blob] = {}
    lists: dict[str, ListRef] = {}
    for name, value in put.values.items():
        if isinstance(value, ListPut):
            channels[name] = lists[name] = put_list(write, value, blobs)
        else:
            inline_bytes = INLINE_ONCE_BYTES if name == _INPUT else INLINE_BYTES
            channels[name] = None if value is None else refer(value, blobs, inline_bytes)
    if blobs:
        put_blobs(write, blobs)
    channels.update(dict.fromkeys(put.replayed, REPLAYED))
    text, enclosing = _json(channels), _json({**put.enclosing}) if put.enclosing else "{}"
    position = latest_checkpoint.place(write, key, is_root=put.parent_id is None)
    row = Row(
        *(home, key[0], key[1], position, key[2], put.parent_id, enclosing, put.run_id, put.source, put.step),
        *(text, *put.body, branch, seq),
    )
    write.insert("checkpoints", Row._fields, [(*row[:-1], row.sum())], _PUT_AGAIN)
    write.state.points.keep(key[1:], CheckpointPoint(text, branch, seq))
    return text, lists


_PUT_AGAIN = f"""
    ON CONFLICT (home, session_id, checkpoint_ns, position)
    DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in Row._fields[4:])}
"""


def _inherited(write: SessionWrite, put: CheckpointPut) -> dict[str, Any]:
    """The references that the checkpoint takes over from its parent. Raises `StaleParent`."""
    if put.parent_channels is None:
        return {}
    key = put.context.session_id, put.checkpoint_ns, put.parent_id or ""
    if (point := write.state.points.get(key[1:])) is not None:
        is_same = point.channels == put.parent_channels
    else:
        row = write.query(f"SELECT channels FROM checkpoints WHERE {AT}", at(*key)).fetchone()
        is_same = row is not None and row[0] == put.parent_channels
    if not is_same:
        raise StaleParent
    channels: dict[str, Any] = json.loads(put.parent_channels)
    for name in channels.keys() - put.inherited:
        del channels[name]
    return channels


def put_writes(write: SessionWrite, put: WritesPut) -> None:
    """Store a task's writes. Of a write that is stored already, only a special one is replaced."""
    key = (put.context.session_id, put.checkpoint_ns, put.checkpoint_id)
    blobs: dict[bytes, Blob] = {}
    rows: list[tuple[Any, ...]] = []
    for idx, channel, value in put.writes:
        reference = "null"
        if isinstance(value, Blob):
            reference = _json(refer(value, blobs, INLINE_ONCE_BYTES))
        elif value is not None:
            reference = _json([(refer(chunk.blob, blobs, INLINE_ONCE_BYTES), chunk.length) for chunk in value])
        row = WriteRow(write.state.home, *key, put.task_id, idx, put.task_path, channel, reference)
        values = (*row[:-1], row.sum())
        if idx >= 0:
            rows.append(values)
        else:
            write.execute(_REPLACE, values)
    if blobs:
        put_blobs(write, blobs)
    write.insert("writes", WriteRow._fields, rows, "ON CONFLICT DO NOTHING")
    latest_checkpoint.count_writes(write, key)


_REPLACE = f"""
    INSERT INTO writes VALUES ({", ".join("?" * len(WriteRow._fields))})
    ON CONFLICT (home, session_id, checkpoint_ns, checkpoint_id, task_id, idx)
    DO UPDATE SET task_path = excluded.task_path, channel = excluded.channel, value = excluded.value,
    checksum = excluded.checksum
"""


# Reading


def get(
    connection: Connection,
    session_id: str,
    checkpoint_ns: str,
    checkpoint_id: str | None,
    path: str,
    have: Container[ListRef] = (),
) -> StoredCheckpoint | None:
    row = find(connection, session_id, checkpoint_ns, checkpoint_id)
    key = row.key if row else (session_id, checkpoint_ns, checkpoint_id or "(latest)")
    with damage_context(path, key):
        if row is None:
            latest_checkpoint.check_absent(connection, session_id, checkpoint_ns, checkpoint_id)
            return None
        row.check()
        if key[:2] != (session_id, checkpoint_ns) or checkpoint_id not in (None, row.checkpoint_id):
            raise CorruptRow("another row stands in its place")
    return _with_values(connection, [row], path, have)[0]


def prefetch(
    connection: Connection, session_id: str, checkpoint_ns: str, checkpoint_id: str | None, state: SessionState | None
) -> None:
    """Announce the statements of `get`. The state, if it is known, names the latest checkpoint."""
    connection.prefetch(*_one(session_id, checkpoint_ns, checkpoint_id))
    head = None if state is None else state.heads.get(checkpoint_ns)
    latest = checkpoint_id or (None if head is None else head.latest_id)
    if state is not None and latest is not None:
        connection.prefetch(_WRITES, (state.home, session_id, checkpoint_ns, latest, latest, session_id))


def find(connection: Connection, session_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> Row | None:
    """The named checkpoint, or the latest; unchecked."""
    found = connection.execute(*_one(session_id, checkpoint_ns, checkpoint_id)).fetchone()
    return None if found is None else Row(*found)


def _one(session_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> tuple[str, tuple[Any, ...]]:
    if checkpoint_id is not None:
        return f"SELECT * FROM checkpoints WHERE {AT}", at(session_id, checkpoint_ns, checkpoint_id)
    if checkpoint_ns:
        return _LATEST_INNER, (session_id, session_id, checkpoint_ns)
    return _LATEST, (session_id,)


_LATEST = """
    SELECT own.* FROM sessions JOIN checkpoints AS own ON own.home = sessions.home AND own.session_id = sessions.id
    AND own.checkpoint_ns = '' AND own.position >= sessions.latest_checkpoint_id
    AND own.checkpoint_id = sessions.latest_checkpoint_id
    WHERE sessions.id = ? LIMIT 1
"""
_LATEST_INNER = (
    f"SELECT * FROM checkpoints WHERE {HOME} AND session_id = ? AND checkpoint_ns = ? ORDER BY position DESC LIMIT 1"
)


def list_(
    connection: Connection,
    where: CheckpointFilter,
    *,
    limit: int | None,
    matches: Callable[[Blob], bool] | None,
    path: str,
) -> list[StoredCheckpoint]:
    session_id, checkpoint_ns, checkpoint_id, before, after, owner = where
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
    for column, value in owner.items():
        conditions.append(f"EXISTS (SELECT 1 FROM sessions WHERE id = session_id AND {column} IS ?)")
        values.append(value)
    if last is not None:
        conditions.append("(position < ? OR (session_id, checkpoint_ns) > (?, ?))")
        values += last
    is_one = None not in (session_id, checkpoint_ns, checkpoint_id)
    most = 1 if is_one else limit if limit is not None and matches is None else UNLIMITED
    cursor = connection.execute(  # of the rows outside of the limit only the keys are read
        "SELECT checkpoints.* FROM (SELECT home, session_id, checkpoint_ns, position FROM checkpoints"
        f" WHERE {' AND '.join(conditions)} {_NEWEST_FIRST} LIMIT ?) AS wanted"
        f" CROSS JOIN checkpoints USING (home, session_id, checkpoint_ns, position) {_NEWEST_FIRST}",
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
        _check_listed(connection, where, passed if is_whole else None, path)
    return _with_values(connection, rows, path)


_NEWEST_FIRST = "ORDER BY position DESC, session_id, checkpoint_ns"


def _check_listed(connection: Connection, where: CheckpointFilter, passed: int | None, path: str) -> None:
    """Raise `StorageError` if a first page lacks the latest checkpoint of an outermost graph, or a whole list any."""
    session_id, checkpoint_ns, checkpoint_id, *_ = where
    if checkpoint_ns or (passed is None and (session_id is None or checkpoint_ns is None)):
        return
    own, values = " AND ".join(["TRUE", *(f"{column} IS ?" for column in where.owner)]), [*where.owner.values()]
    if session_id is not None:
        own, values = f"{own} AND id = ?", [*values, session_id]
    if passed is not None:
        counted = "SELECT COALESCE(SUM(checkpoint_count), 0) FROM sessions"
        if connection.execute(f"{counted} WHERE {own}", values).fetchone()[0] == passed:
            return
    has_any = f"SELECT id FROM sessions WHERE {own} AND checkpoint_count > 0"
    for (session,) in connection.execute(has_any, values).fetchall():
        with damage_context(path, (session, "", checkpoint_id or "(latest)")):
            if passed is not None or find(connection, session, "", checkpoint_id) is None:
                latest_checkpoint.check_absent(connection, session, "", checkpoint_id or "")


def _position(connection: Connection, session_id: str | None, checkpoint_ns: str | None, checkpoint_id: str) -> str:
    """The position of a checkpoint that bounds a list; its id if it is not stored."""
    if session_id is None:
        return checkpoint_id
    if checkpoint_ns is None:
        where, values = f"{HOME} AND session_id = ? AND position >= ? AND checkpoint_id = ? LIMIT 1", [session_id] * 2
    else:
        where, values = AT, [session_id, session_id, checkpoint_ns]
    sql = f"SELECT position FROM checkpoints WHERE {where}"
    found = connection.execute(sql, (*values, checkpoint_id, checkpoint_id)).fetchone()
    return checkpoint_id if found is None else found[0]


@contextmanager
def damage_context(path: str, key: Key) -> Iterator[None]:
    """Damage found in the block is reported as damage of this checkpoint."""
    try:
        yield
    except (CorruptRow, TypeError, AttributeError, ValueError) as error:
        is_found = isinstance(error, CorruptRow)
        what = str(error) if is_found else "a value of another type than was written"  # a cycle would keep the cursor
        raise StorageError(
            path,
            f"checkpoint {key[2]} of session {key[0]!r} (namespace {key[1]!r}) is damaged: {what}",
            advice="resume from an earlier checkpoint id, or restore a backup; other sessions are not affected",
        ) from (None if is_found else error)


def _with_values(
    connection: Connection, rows: Sequence[Row], path: str, have: Container[ListRef] = ()
) -> list[StoredCheckpoint]:
    """Join checked rows with their values. Each blob and list is read once, and no list in `have`."""
    writes = writes_of(connection, rows, path)
    references: dict[int, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for row in rows:
        refs, written = references[row.home]
        refs += references_in(row)
        written += [ref for write in writes[row.key] for ref in references_in(write)]
    if len(rows) > 1:
        for home, referred in references.items():
            prefetch_values(connection, home, *referred)
    readers = {home: ValueReader(connection, home, *referred, have) for home, referred in references.items()}
    stored = []
    for row in rows:
        reader, key = readers[row.home], row.key
        with damage_context(path, key):
            values = {name: reader.value(ref) for name, ref in row.refs.items()}
            own = [stored_write(write, reader) for write in writes[key]]
        stored.append(StoredCheckpoint(*key, row.parent_id, Blob(row.type, row.body), row.channels, values, own))
    return stored


def writes_of(connection: Connection, rows: Sequence[Row], path: str) -> dict[Key, list[WriteRow]]:
    """The checked rows of writes of checkpoints, those of each in LangGraph's order.

    Raises `StorageError` if one is damaged, or one of a session's latest checkpoint is lost.
    """
    found: dict[Key, list[WriteRow]] = {row.key: [] for row in rows}
    heads: dict[tuple[str, str], tuple[str | None, int]] = {}
    ids: dict[tuple[int, str, str], list[str]] = defaultdict(list)
    for row in rows:
        ids[row.home, row.session_id, row.checkpoint_ns].append(row.checkpoint_id)
    ranges = [(*namespace, min(some), max(some), namespace[1]) for namespace, some in ids.items()]
    if len(ranges) > 1:
        for each in ranges:
            connection.prefetch(_WRITES, each)
    for each in ranges:
        for latest, count, *values in connection.execute(_WRITES, each):
            heads[each[1:3]] = latest, count
            key = tuple(values[1:4])
            if key in found:
                found[key].append(WriteRow(*values))
    for row in rows:
        key = row.key
        own = found[key]
        with damage_context(path, key):
            for write in own:
                write.check()
            head = heads.get(key[:2])
            if head is None or (head[0] is None and not row.checkpoint_ns):
                raise CorruptRow("its session's row does not name a latest checkpoint")
            if head[0] == row.checkpoint_id and head[1] != len(own) and not row.checkpoint_ns:
                raise CorruptRow("a write of it cannot be found")
    return found


_WRITES = """
    SELECT latest_checkpoint_id, write_count, writes.* FROM sessions LEFT JOIN writes ON writes.home = ?
    AND writes.session_id = ? AND writes.checkpoint_ns = ? AND writes.checkpoint_id BETWEEN ? AND ?
    WHERE sessions.id = ? ORDER BY task_path, task_id, idx
"""


def stored_write(row: WriteRow, blobs: BlobReader) -> StoredWrite:
    """Raises `CorruptRow`."""
    value: Any = json.loads(row.value)
    if isinstance(value, list):
        value = [Chunk(blobs.blob(each) or Blob("", b""), length) for each, length in value]
    else:
        value = blobs.blob(value)
    return StoredWrite(row.task_id, row.channel, value)


def list_namespaces(connection: Connection, session_id: str) -> list[str]:
    sql = f"SELECT DISTINCT checkpoint_ns FROM checkpoints WHERE {HOME} AND session_id = ?"
    return [namespace for (namespace,) in connection.execute(sql, (session_id, session_id))]


def count(connection: Connection, session_id: str, table: str = "checkpoints") -> int:
    sql = f"SELECT COUNT(*) FROM {table} WHERE {HOME} AND session_id = ?"
    return int(connection.execute(sql, (session_id, session_id)).fetchone()[0])


# With their session

_COLUMNS = {
    table: ", ".join(name for name in kind._fields if name not in ("home", "session_id"))
    for table, kind in (("writes", WriteRow), ("checkpoints", Row))
}


def copy(connection: Connection, home: int, session_id: str, to: str) -> None:
    """Give another session of the family the same checkpoints and writes."""
    for table, columns in _COLUMNS.items():
        connection.execute(
            f"INSERT INTO {table} (home, session_id, {columns})"
            f" SELECT home, CAST(? AS TEXT), {columns} FROM {table} WHERE home = ? AND session_id = ?",
            (to, home, session_id),
        )


def copy_some(connection: Connection, key: tuple[int, str, str], places: Mapping[str, Sequence[str]]) -> None:
    """`copy` of some checkpoints, by the positions in each namespace, without their writes."""
    home, session_id, to = key
    for namespace, some in places.items():
        those, values = among("position", some)
        connection.execute(
            f"INSERT INTO checkpoints (home, session_id, {_COLUMNS['checkpoints']})"
            f" SELECT home, CAST(? AS TEXT), {_COLUMNS['checkpoints']} FROM checkpoints WHERE home = ?"
            f" AND session_id = ? AND checkpoint_ns = ? AND {those}",
            (to, home, session_id, namespace, *values),
        )


def copy_writes(
    connection: Connection, key: tuple[int, str, str], ids: Mapping[str, Sequence[str]], *, only_questions: bool = False
) -> None:
    """Copy the writes of checkpoints, by their ids in each namespace.

    Args:
        only_questions: of tasks that were interrupted, the questions; and all of tasks beside these.
    """
    home, session_id, to = key
    for namespace, some in ids.items():
        those, values = among("checkpoint_id", some)
        own, given = (
            f"home = ? AND session_id = ? AND checkpoint_ns = ? AND {those}",
            (home, session_id, namespace, *values),
        )
        asking = f"SELECT task_id FROM writes WHERE {own} AND channel = '__interrupt__'"
        chosen = (
            f" AND channel != '__resume__' AND EXISTS ({asking})"
            f" AND (channel = '__interrupt__' OR task_id NOT IN ({asking}))"
        )
        connection.execute(
            f"INSERT INTO writes (home, session_id, {_COLUMNS['writes']})"
            f" SELECT home, CAST(? AS TEXT), {_COLUMNS['writes']} FROM writes WHERE {own}{chosen * only_questions}",
            (to, *given * (3 if only_questions else 1)),
        )


def rename(connection: Connection, home: int, session_id: str, to: str) -> None:
    for table in _COLUMNS:
        sql = f"UPDATE {table} SET session_id = ? WHERE home = ? AND session_id = ?"
        connection.execute(sql, (to, home, session_id))


def delete(connection: Connection, session_ids: Sequence[str]) -> Cursor:
    """Delete the checkpoints and writes of sessions that still have rows, but not their values.

    The cursor counts the checkpoints.
    """
    ids = (json.dumps(session_ids),)
    connection.execute(f"DELETE FROM writes {_OF_SESSIONS}", ids)
    return connection.execute(f"DELETE FROM checkpoints {_OF_SESSIONS}", ids)


_OF_SESSIONS = (
    "WHERE (home, session_id) IN (SELECT home, id FROM sessions WHERE id IN (SELECT value FROM json_each(?)))"
)
