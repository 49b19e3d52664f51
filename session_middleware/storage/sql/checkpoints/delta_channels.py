"""Replayed channels in SQLite: values that are not stored, but made again from the writes of ancestors.

LangGraph's delta channels are such. Their value at a checkpoint is that of the nearest ancestor which
holds one, and the writes since. So an ancestor may not go while a checkpoint leans on its writes.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from session_middleware.storage.checkpoint_types import StoredHistory
from session_middleware.storage.sql.checkpoints import gap_detection
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow
from session_middleware.storage.sql.checkpoints.checkpoints import damage_context, find, stored_write
from session_middleware.storage.sql.checkpoints.lists import ListLoader
from session_middleware.storage.sql.checkpoints.rows import REPLAYED, Row, WriteRow

# `CROSS JOIN` keeps the line outside, so that each step is one look-up by the primary key; `UNION`
# ends a line that a checkpoint put twice has made a ring. Rows come as they are found: nearest first.
_LINE = """
    WITH RECURSIVE line (id) AS (
        VALUES (:parent)
        UNION
        SELECT parent_id FROM line CROSS JOIN checkpoints
        ON session_id = :session AND checkpoint_ns = :ns AND place = {place} WHERE parent_id IS NOT NULL
    )
    SELECT checkpoints.* FROM line CROSS JOIN checkpoints
    ON session_id = :session AND checkpoint_ns = :ns AND place = {place}
""".format(
    place="(SELECT place FROM checkpoints AS own WHERE own.session_id = :session AND own.checkpoint_ns = :ns"
    " AND own.place >= line.id AND own.checkpoint_id = line.id LIMIT 1)"
)


def get_history(
    connection: sqlite3.Connection,
    session_id: str,
    checkpoint_ns: str,
    checkpoint_id: str | None,
    channels: Sequence[str],
    path: str,
) -> dict[str, StoredHistory]:
    target = find(connection, session_id, checkpoint_ns, checkpoint_id)
    line, seeds = _walk(connection, target, frozenset(channels), path) if target else ([], {})
    _check_writes(connection, line, path)
    writes = _writes_of(connection, line, channels)
    refs = [line[depth].refs[channel] for channel, depth in seeds.items()]
    pieces = ListLoader(connection, refs, [json.loads(write.value) for found in writes.values() for write in found])
    return {channel: _history(line, seeds.get(channel), channel, writes, pieces, path) for channel in channels}


def _history(
    line: Sequence[Row],
    depth: int | None,
    channel: str,
    writes: Mapping[tuple[str, str], Sequence[WriteRow]],
    pieces: ListLoader,
    path: str,
) -> StoredHistory:
    """One channel's, from the ancestor at `depth`, or from the first of the line."""
    seed = None
    if depth is not None:
        with damage_context(path, line[depth].key):
            seed = pieces.value(line[depth].refs[channel])
    found = []
    for row in reversed(line if depth is None else line[: depth + 1]):
        with damage_context(path, row.key):
            found += [stored_write(write, pieces) for write in writes.get((row.checkpoint_id, channel), ())]
    return StoredHistory(depth is not None, seed, found)


def _walk(
    connection: sqlite3.Connection, target: Row, channels: frozenset[str], path: str
) -> tuple[list[Row], dict[str, int]]:
    """The ancestors, nearest first, as far as they are needed; and where in them each channel's value is."""
    line: list[Row] = []
    seeds: dict[str, int] = {}
    where = {"session": target.session_id, "ns": target.checkpoint_ns, "parent": target.parent_id}
    cursor = connection.execute(_LINE, where)
    while len(seeds) < len(channels) and (found := cursor.fetchone()) is not None:
        row = Row(*found)
        with damage_context(path, row.key):
            row.check()
        for channel in channels & row.refs.keys():
            seeds.setdefault(channel, len(line))
        line.append(row)
    cursor.close()
    last = line[-1] if line else target
    if len(seeds) < len(channels) and last.parent_id is not None:
        with damage_context(path, (*last.key[:2], last.parent_id)):
            gap_detection.check_absent(connection, *last.key[:2], last.parent_id)
    return line, seeds


def _check_writes(connection: sqlite3.Connection, line: Sequence[Row], path: str) -> None:
    """Raises `StorageError` when a write of any of them cannot be found."""
    if not line:
        return
    ids = [row.checkpoint_id for row in line]
    found: dict[str, int] = dict(
        connection.execute(
            "SELECT checkpoint_id, COUNT(*) FROM writes WHERE session_id = ? AND checkpoint_ns = ?"
            " AND checkpoint_id BETWEEN ? AND ? GROUP BY checkpoint_id",
            (*line[0].key[:2], min(ids), max(ids)),
        ).fetchall()
    )
    for key, count in gap_detection.count_writes(connection, line).items():
        if found.get(key[2], 0) != count:
            with damage_context(path, key):
                raise CorruptRow("a write of it cannot be found")


def _writes_of(
    connection: sqlite3.Connection, line: Sequence[Row], channels: Sequence[str]
) -> dict[tuple[str, str], list[WriteRow]]:
    """The writes of a line of checkpoints by checkpoint and channel, in the order they were applied."""
    found: dict[tuple[str, str], list[WriteRow]] = defaultdict(list)
    ids = [row.checkpoint_id for row in line]
    if ids:
        for values in connection.execute(
            "SELECT * FROM writes WHERE session_id = ? AND checkpoint_ns = ? AND checkpoint_id BETWEEN ? AND ?"
            f" AND channel IN ({', '.join('?' * len(channels))}) ORDER BY task_path, task_id, idx",
            (line[0].session_id, line[0].checkpoint_ns, min(ids), max(ids), *channels),
        ):
            write = WriteRow(*values)
            found[write.checkpoint_id, write.channel].append(write)
    return found


def ancestors_needed(rows: Mapping[str, Row], kept: Iterator[str] | Sequence[str]) -> set[str]:
    """Which checkpoints of a namespace the `kept` ones are replayed from: up to the value of each such channel."""
    needed: set[str] = set()
    walked: set[tuple[str, frozenset[str]]] = set()  # lines meet, and are walked once
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
