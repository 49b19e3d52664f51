"""Delta channels: values that are not stored, but replayed from the writes of ancestors.

The value of such a channel at a checkpoint is that of the nearest ancestor which holds one, and the writes since.
So an ancestor must not be deleted while a checkpoint depends on its writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from session_middleware.storage.checkpoint_types import StoredHistory, StoredWrite
from session_middleware.storage.sql.checkpoints import latest_checkpoint
from session_middleware.storage.sql.checkpoints.checkpoints import damage_context, find, stored_write, writes_of
from session_middleware.storage.sql.checkpoints.lists import ValueReader
from session_middleware.storage.sql.checkpoints.rows import REPLAYED, Row, references_in
from session_middleware.storage.sql.connection import Connection


def get_history(
    connection: Connection,
    session_id: str,
    checkpoint_ns: str,
    checkpoint_id: str | None,
    channels: Sequence[str],
    path: str,
) -> dict[str, StoredHistory]:
    target = find(connection, session_id, checkpoint_ns, checkpoint_id)
    if target is None:
        with damage_context(path, (session_id, checkpoint_ns, checkpoint_id or "(latest)")):
            latest_checkpoint.check_absent(connection, session_id, checkpoint_ns, checkpoint_id)
        return {channel: StoredHistory(has_seed=False, seed=None, writes=[]) for channel in channels}
    ancestors, seeds = _walk(connection, target, frozenset(channels), path)
    writes = writes_of(connection, ancestors, path)
    refs = [ancestors[depth].refs[channel] for channel, depth in seeds.items()]
    written = [ref for rows in writes.values() for row in rows for ref in references_in(row)]
    values = ValueReader(connection, target.home, refs, written)
    found: dict[str, StoredHistory] = {}
    for channel in channels:
        seed, since = None, ancestors
        if channel in seeds:  # the value of the nearest ancestor that has one
            since = ancestors[: seeds[channel] + 1]
            with damage_context(path, since[-1].key):
                seed = values.value(since[-1].refs[channel])
        later: list[StoredWrite] = []
        for row in reversed(since):
            with damage_context(path, row.key):
                later += [stored_write(write, values) for write in writes[row.key] if write.channel == channel]
        found[channel] = StoredHistory(channel in seeds, seed, later)
    return found


def _walk(connection: Connection, target: Row, channels: frozenset[str], path: str) -> tuple[list[Row], dict[str, int]]:
    """The ancestors up to the nearest value of each channel, nearest first; and the index of that value by channel."""
    ancestors: list[Row] = []
    seeds: dict[str, int] = {}
    nearest = target.parent_id
    cursor = connection.execute(  # the position of an ancestor is less
        "SELECT * FROM checkpoints WHERE home = ? AND session_id = ? AND checkpoint_ns = ? AND position < ?"
        " ORDER BY position DESC",
        target[:4],
    )
    while nearest is not None and len(seeds) < len(channels) and (found := cursor.fetchone()) is not None:
        row = Row(*found)
        if row.checkpoint_id == nearest:
            with damage_context(path, row.key):
                row.check()
            for channel in channels & row.refs.keys():
                seeds.setdefault(channel, len(ancestors))
            ancestors.append(row)
            nearest = row.parent_id
    cursor.close()
    if nearest is not None and len(seeds) < len(channels):
        with damage_context(path, (*target.key[:2], nearest)):
            latest_checkpoint.check_absent(connection, *target.key[:2], nearest)
    return ancestors, seeds


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
