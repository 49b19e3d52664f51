"""The latest checkpoint of a namespace; and of the outermost graph, how many checkpoints there are.

A row whose key is damaged is not found by it. Without the counts in the session's row, an older checkpoint would pass
for the latest, or a task whose result was lost would run again, unnoticed.

The newest checkpoint is the one at the greatest position. The latest, from which a thread continues, is the one that
was put last. Mostly the two are the same; in the namespace of a subgraph they always are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from session_middleware.errors import StorageError
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow
from session_middleware.storage.sql.checkpoints.rows import AT, HOME, Key, Row, at
from session_middleware.storage.sql.connection import Connection, Statement

if TYPE_CHECKING:
    from session_middleware.storage.sql.session_state import SessionWrite

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


def place(write: SessionWrite, key: Key, *, is_root: bool) -> str:
    """The position of a checkpoint that is being put. Unless it is stored already, it is the latest from now on.

    A checkpoint without a parent is ordered by its id alone.
    """
    session_id, namespace, checkpoint_id = key
    heads = write.state.heads
    if namespace not in heads:
        heads[namespace] = find(write.connection, session_id, namespace)
    head, position = heads[namespace], checkpoint_id
    if head is not None and head.newest_position >= checkpoint_id:
        found = write.query(f"SELECT position FROM checkpoints WHERE {AT}", at(*key)).fetchone()
        if found is not None:
            return str(found[0])
        position = checkpoint_id if is_root else after(head.newest_position)
    newest = position if head is None else max(position, head.newest_position)
    if not namespace:
        heads[""] = Head(checkpoint_id, newest, 1 if head is None else head.checkpoint_count + 1)
        write.changes_head = True
    elif newest == position:
        heads[namespace] = Head(checkpoint_id, newest)
    return position


def after(newest: str) -> str:
    """A position after the newest one."""
    number = 1
    if newest[-9:-8] == _LATE:
        newest, number = newest[:-9], int(newest[-8:]) + 1
    return f"{newest}{_LATE}{number:08d}"


_LATE = "+"  # followed by a number, in the position of a checkpoint whose clock was behind that of an earlier one


def count_writes(write: SessionWrite, key: Key) -> None:
    """Writes were stored. Those of a checkpoint that is not the latest, or not there yet, are not counted."""
    head = write.state.heads.get("")
    if not key[1] and head is not None and head.latest_id == key[2]:
        write.changes_head = True


def check_absent(connection: Connection, session_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> None:
    """A checkpoint, or the latest, was not found.

    Raises `CorruptRow` if the id or the position of another one is damaged, which may be the one that was not found,
    or if one of the outermost graph is missing.
    """
    if checkpoint_id:
        for values in connection.execute(_DISPLACED, (session_id, session_id, checkpoint_ns)).fetchall():
            Row(*values).check()
    if checkpoint_ns:
        return
    head = find(connection, session_id, "")
    sql = f"SELECT COUNT(*) FROM checkpoints WHERE {HOME} AND session_id = ? AND checkpoint_ns = ''"
    (count,) = connection.execute(sql, (session_id, session_id)).fetchone()
    if count != (head.checkpoint_count if head else 0) or (head is not None and checkpoint_id is None):
        raise CorruptRow("its row cannot be found")


_DISPLACED = (  # few, of which the checksums cover both
    f"SELECT * FROM checkpoints WHERE {HOME} AND session_id = ? AND checkpoint_ns = ? AND position != checkpoint_id"
)


ANY_EVENT = "SELECT 1 FROM events WHERE session_id = ? LIMIT 1"


def check_new(connection: Connection, session_id: str, path: str) -> None:
    """A session whose row is not found must have no record. Raises `StorageError` if it has."""
    if connection.execute(ANY_EVENT, (session_id,)).fetchone() is not None:
        raise StorageError(
            path,
            f"session {session_id!r} is damaged: it has a record, but its row cannot be found",
            advice="restore a backup; other sessions are not affected",
        )


def copy(connection: Connection, session_id: str, to: str) -> None:
    """Give a copy of a session the same head, so that rows which the session has lost are missed in the copy too."""
    connection.execute(
        f"UPDATE sessions SET ({HEAD}) = (SELECT {HEAD} FROM sessions WHERE id = ?) WHERE id = ?", (session_id, to)
    )


def set_(connection: Connection, home: int, session_id: str, head: tuple[str, str, int]) -> None:
    """Set the latest checkpoint of the outermost graph, the newest position, and the count of checkpoints."""
    connection.execute(
        f"UPDATE sessions SET ({HEAD}) = (SELECT ?, ?, CAST(? AS INTEGER), {WRITE_COUNT}) WHERE id = ?",
        (*head, home, session_id, head[0], session_id),
    )


def move(connection: Connection, home: int, session_id: str, checkpoint_id: str | None) -> None:
    """Make an older checkpoint of the outermost graph the latest."""
    connection.execute(
        f"UPDATE sessions SET latest_checkpoint_id = ?, write_count = {WRITE_COUNT} WHERE id = ?",
        (checkpoint_id, home, session_id, checkpoint_id, session_id),
    )


def without(key: tuple[int, str], head: Head | None, rows: Mapping[str, Row], gone: Collection[str]) -> Statement:
    """The change of a session's row when some checkpoints of the outermost graph are deleted.

    The newest one left replaces the latest.

    Args:
        key: The family and the session.
        rows: The checkpoints by id, before the deletion.
    """
    sql, values = "UPDATE sessions SET version = version + 1", list[Any]()
    if head is not None and gone:
        left = [(row.position, checkpoint_id) for checkpoint_id, row in rows.items() if checkpoint_id not in gone]
        count = head.checkpoint_count - len(gone)
        position, checkpoint_id = max(left, default=("", "") if count > 0 else (None, None))
        sql, values = f"{sql}, newest_position = ?, checkpoint_count = ?", [position, count]
        if head.latest_id in gone:
            sql = f"{sql}, latest_checkpoint_id = ?, write_count = {WRITE_COUNT}"
            values += [checkpoint_id, *key, checkpoint_id]
    return f"{sql} WHERE id = ?", [*values, key[1]]
