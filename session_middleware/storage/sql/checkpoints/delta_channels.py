"""Delta channels: values that are not stored, but replayed from the writes of ancestors.

The value of such a channel at a checkpoint is that of the nearest ancestor which holds one, and the writes since.
So an ancestor must not be deleted while a checkpoint depends on its writes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from session_middleware.storage.checkpoint_types import Blob, ListRef, StoredHistory, StoredList, StoredWrite
from session_middleware.storage.sql.checkpoints import latest_checkpoint
from session_middleware.storage.sql.checkpoints.blobs import BlobReader
from session_middleware.storage.sql.checkpoints.checkpoints import damage_context, find, stored_writes
from session_middleware.storage.sql.checkpoints.lists import get_list
from session_middleware.storage.sql.checkpoints.rows import REPLAYED, Row, WriteRow, references_in
from session_middleware.storage.sql.connection import Connection

# `CROSS JOIN` keeps `ancestors` outside, so that each step is one look-up by the primary key. `UNION` ends a line
# that a checkpoint put twice has made a ring.
_ANCESTORS = """
    WITH RECURSIVE ancestors (id) AS (
        SELECT CAST(:parent AS TEXT)
        UNION
        SELECT parent_id FROM ancestors CROSS JOIN checkpoints
        ON home = :home AND session_id = :session AND checkpoint_ns = :ns AND position = {position}
        WHERE parent_id IS NOT NULL
    )
    SELECT checkpoints.* FROM ancestors CROSS JOIN checkpoints
    ON home = :home AND session_id = :session AND checkpoint_ns = :ns AND position = {position}
""".format(
    position="(SELECT position FROM checkpoints AS own WHERE own.home = :home AND own.session_id = :session"
    " AND own.checkpoint_ns = :ns AND own.position >= ancestors.id AND own.checkpoint_id = ancestors.id LIMIT 1)"
)


def get_history(
    connection: Connection,
    session_id: str,
    checkpoint_ns: str,
    checkpoint_id: str | None,
    channels: Sequence[str],
    path: str,
) -> dict[str, StoredHistory]:
    target = find(connection, session_id, checkpoint_ns, checkpoint_id)
    ancestors, seeds = _walk(connection, target, frozenset(channels), path) if target else ([], {})
    writes = _writes_of(connection, ancestors)
    blobs = BlobReader(connection, target.home if target else 0)
    blobs.prefetch_references(ref for rows in writes.values() for row in rows for ref in references_in(row))
    return {
        channel: _history(connection, ancestors, seeds.get(channel), channel, writes, blobs, path)
        for channel in channels
    }


def _history(
    connection: Connection,
    ancestors: Sequence[Row],
    depth: int | None,
    channel: str,
    writes: Mapping[str, Sequence[WriteRow]],
    blobs: BlobReader,
    path: str,
) -> StoredHistory:
    """The history of one channel, from the ancestor at `depth`, or from the first one."""
    seed: Blob | StoredList | None = None
    if depth is not None:
        row = ancestors[depth]
        with damage_context(path, row.key):
            ref = row.refs[channel]
            is_list = isinstance(ref, list)
            seed = get_list(connection, row.home, ListRef(*ref)) if is_list else blobs.value(ref)
    found: list[StoredWrite] = []
    for row in reversed(ancestors if depth is None else ancestors[: depth + 1]):
        with damage_context(path, row.key):
            for write in writes.get(row.checkpoint_id, ()):
                found += stored_writes(write, blobs, [channel])
    return StoredHistory(depth is not None, seed, found)


def _walk(connection: Connection, target: Row, channels: frozenset[str], path: str) -> tuple[list[Row], dict[str, int]]:
    """The ancestors, nearest first, as far as they are needed; and at which of them each channel has a value."""
    ancestors: list[Row] = []
    seeds: dict[str, int] = {}
    where = {"home": target.home, "session": target.session_id, "ns": target.checkpoint_ns, "parent": target.parent_id}
    cursor = connection.execute(_ANCESTORS, where)
    for row in _nearest_first((Row(*found) for found in cursor), target.parent_id):
        with damage_context(path, row.key):
            row.check()
        for channel in channels & row.refs.keys():
            seeds.setdefault(channel, len(ancestors))
        ancestors.append(row)
        if len(seeds) == len(channels):
            break
    cursor.close()
    last = ancestors[-1] if ancestors else target
    if len(seeds) < len(channels) and last.parent_id is not None:
        with damage_context(path, (*last.key[:2], last.parent_id)):
            latest_checkpoint.check_absent(connection, *last.key[:2], last.parent_id)
    return ancestors, seeds


def _nearest_first(rows: Iterable[Row], nearest: str | None) -> Iterator[Row]:
    """SQLite returns the ancestors in this order, as they are needed; PostgreSQL returns them in any order."""
    found: dict[str, Row] = {}
    for each in rows:
        found[each.checkpoint_id] = each
        while nearest is not None and nearest in found:
            row = found.pop(nearest)
            yield row
            nearest = row.parent_id


def _writes_of(connection: Connection, rows: Sequence[Row]) -> dict[str, list[WriteRow]]:
    """The writes of checkpoints of one namespace by checkpoint, in the order they were applied."""
    found: dict[str, list[WriteRow]] = defaultdict(list)
    ids = {row.checkpoint_id for row in rows}
    if ids:
        for values in connection.execute(
            "SELECT * FROM writes WHERE home = ? AND session_id = ? AND checkpoint_ns = ?"
            " AND checkpoint_id BETWEEN ? AND ? ORDER BY task_path, task_id, idx",
            (*rows[0][:3], min(ids), max(ids)),
        ):
            write = WriteRow(*values)
            if write.checkpoint_id in ids:
                found[write.checkpoint_id].append(write)
    return found


def ancestors_needed(rows: Mapping[str, Row], kept: Iterator[str] | Sequence[str]) -> set[str]:
    """The checkpoints of a namespace that the `kept` ones are replayed from."""
    needed: set[str] = set()
    walked: set[tuple[str, frozenset[str]]] = set()  # lines of ancestors meet, and are walked once
    for checkpoint_id in kept:
        row: Row | None = rows[checkpoint_id]
        wanted = _replayed(rows[checkpoint_id])
        while row is not None and wanted and row.parent_id is not None:
            if (row.parent_id, wanted) in walked:
                break
            walked.add((row.parent_id, wanted))
            row = rows.get(row.parent_id)
            if row is not None:
                needed.add(row.checkpoint_id)
                wanted = wanted.difference(row.refs)
    return needed


def _replayed(row: Row) -> frozenset[str]:
    channels: dict[str, Any] = json.loads(row.channels)
    return frozenset(name for name, ref in channels.items() if ref == REPLAYED)
