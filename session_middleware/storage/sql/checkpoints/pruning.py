"""Deleting some of a session's checkpoints, and the values that nothing refers to any more."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from session_middleware.storage.sql.checkpoints import latest_checkpoint
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow
from session_middleware.storage.sql.checkpoints.delta_channels import ancestors_needed
from session_middleware.storage.sql.checkpoints.rows import HOME, Row, WriteRow, references_in
from session_middleware.storage.sql.connection import Connection, among, lock_found

Namespaces = Mapping[str, Mapping[str, Row]]  # the checkpoints of a session by namespace and id


def prune(connection: Connection, session_id: str) -> int:
    """Delete all checkpoints except the latest of each namespace in use. Returns their number.

    Raises `CorruptRow`, and deletes nothing, if the latest one cannot be found.
    """
    namespaces = _read(connection, session_id)
    latest: dict[str, str] = {}
    for namespace, rows in namespaces.items():
        head = latest_checkpoint.find(connection, session_id, namespace)
        is_complete = bool(namespace) or (head is not None and head.checkpoint_count == len(rows))
        if head is None or head.latest_id not in rows or not is_complete:
            raise CorruptRow("the newest checkpoint cannot be found")
        latest[namespace] = head.latest_id
    kept = {
        (namespace, checkpoint_id)
        for namespace, rows in namespaces.items()
        if _is_of_use(namespace, rows[latest[namespace]], latest)
        for checkpoint_id in (latest[namespace], *ancestors_needed(rows, [latest[namespace]]))
    }
    gone = {(namespace, checkpoint_id) for namespace, rows in namespaces.items() for checkpoint_id in rows} - kept
    written = connection.execute(
        f"SELECT DISTINCT checkpoint_ns, checkpoint_id FROM writes WHERE {HOME} AND session_id = ?",
        (session_id, session_id),
    ).fetchall()
    lost = {key for key in written if key[1] < latest.get(key[0], "")} - kept  # their checkpoints are not there
    _delete(connection, session_id, gone | lost)
    return len(gone)


def _is_of_use(namespace: str, row: Row, latest: Mapping[str, str]) -> bool:
    """Whether a run that continues from the latest checkpoints can enter a subgraph's namespace.

    A namespace with a task's id (``name:id``) belongs to one task of an enclosing checkpoint. It is of no use once
    its graph has a later checkpoint.
    """
    enclosing: dict[str, str] = json.loads(row.enclosing)
    return ":" not in namespace or all(id_ >= latest.get(outer, id_) for outer, id_ in enclosing.items())


def delete_for_runs(connection: Connection, run_ids: Sequence[str]) -> int:
    """Delete the checkpoints of runs, except those that others are replayed from. Returns their number."""
    by_session = lock_found(connection, partial(_of_runs, connection, run_ids))
    for session_id, keys in by_session.items():
        namespaces = _read(connection, session_id)
        for namespace in {namespace for namespace, _ in keys}:
            rows = namespaces[namespace]
            staying = [checkpoint_id for checkpoint_id in rows if (namespace, checkpoint_id) not in keys]
            keys -= {(namespace, checkpoint_id) for checkpoint_id in ancestors_needed(rows, staying)}
        _delete(connection, session_id, keys)
    return sum(len(keys) for keys in by_session.values())


def _of_runs(connection: Connection, run_ids: Sequence[str]) -> dict[str, set[tuple[str, str]]]:
    """The checkpoints of runs, by session."""
    those, values = among("run_id", run_ids)
    sql = f"SELECT session_id, checkpoint_ns, checkpoint_id FROM checkpoints WHERE {those}"
    found = connection.execute(sql, values)
    by_session: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for session_id, namespace, checkpoint_id in found.fetchall():
        by_session[session_id].add((namespace, checkpoint_id))
    return by_session


def _read(connection: Connection, session_id: str) -> Namespaces:
    columns = ", ".join(name if name != "body" else "x''" for name in Row._fields)  # which is most of a row
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    sql = f"SELECT {columns} FROM checkpoints WHERE {HOME} AND session_id = ?"
    for values in connection.execute(sql, (session_id, session_id)):
        row = Row(*values)
        found[row.checkpoint_ns][row.checkpoint_id] = row
    return found


def _delete(connection: Connection, session_id: str, keys: Collection[tuple[str, str]]) -> None:
    if not keys:
        return
    changed = "UPDATE sessions SET version = version + 1 WHERE id = ? RETURNING home"
    ((home,),) = connection.execute(changed, (session_id,)).fetchall()
    by_namespace: dict[str, list[str]] = defaultdict(list)
    for namespace, checkpoint_id in sorted(keys):
        by_namespace[namespace].append(checkpoint_id)
    gone: set[str] = set()  # of the outermost graph
    for namespace, ids in by_namespace.items():
        own, (those, values) = (home, session_id, namespace), among("checkpoint_id", ids)
        connection.execute(f"DELETE FROM writes {_OWN} AND {those}", (*own, *values))
        done = connection.execute(
            f"DELETE FROM checkpoints {_OWN} AND position >= ? AND {those} RETURNING checkpoint_id",
            (*own, ids[0], *values),
        )
        if not namespace:
            gone = {checkpoint_id for (checkpoint_id,) in done.fetchall()}
    if gone:
        latest_checkpoint.recount(connection, home, session_id, gone)
    free_unused(connection, [home])


_OWN = "WHERE home = ? AND session_id = ? AND checkpoint_ns = ?"


# Unused values, found by reachability


class Reachable(NamedTuple):
    lengths: dict[int, int]  # of lists, by id: how many elements are referred to
    digests: set[bytes]  # of blobs that checkpoints and writes refer to directly


_REFERRING: dict[Any, str] = {
    kind: f"SELECT {', '.join(name if name != 'body' else 'NULL' for name in kind._fields)} FROM {table}"
    " WHERE home = ?1 AND (CAST(?2 AS TEXT) IS NULL OR session_id = ?2)"
    for kind, table in ((Row, "checkpoints"), (WriteRow, "writes"))
}
_LISTS = "SELECT id, parent_id, parent_length FROM lists WHERE home = ?"
_ITEMS = "SELECT list_id, position, digest, type FROM list_items WHERE home = ?"
_LIST_IDS = "SELECT id FROM lists WHERE home = ?"
_BLOBS = "SELECT digest FROM blobs WHERE home = ?"


def find_reachable(connection: Connection, home: int, session_id: str | None = None) -> Reachable:
    """The values that the checkpoints and writes of a family, or of one of its sessions, refer to."""
    lengths: dict[int, int] = {}
    digests: set[bytes] = set()
    for kind, sql in _REFERRING.items():
        for values in connection.execute(sql, (home, session_id)):
            for reference in references_in(kind(*values)):
                if isinstance(reference, list):
                    lengths[reference[0]] = max(lengths.get(reference[0], 0), reference[1])
                elif isinstance(reference, str):
                    digests.add(bytes.fromhex(reference))
    branches = connection.execute(_LISTS, (home,)).fetchall()
    parents: dict[int, tuple[int, int]] = {list_id: (parent, length) for list_id, parent, length in branches}
    for child, length in list(lengths.items()):
        list_id = child
        while list_id in parents:
            list_id, upto = parents[list_id]
            length = min(length, upto)
            if lengths.get(list_id, -1) >= length:
                break
            lengths[list_id] = length
    return Reachable(lengths, digests)


def free_unused(connection: Connection, homes: Iterable[int]) -> None:
    """Delete the unused lists of families, the unused ends of lists, and the unused blobs.

    A list may be cut, because a writer appends only to a list that is as long as its reference says.
    """
    those = "SELECT CAST(value AS INTEGER) FROM json_each(?1)"
    in_use = (
        f"SELECT home FROM checkpoints WHERE home IN ({those}) UNION SELECT home FROM writes WHERE home IN ({those})"
    )
    ids = json.dumps([*homes])
    kept = {home for (home,) in connection.execute(in_use, (ids,)).fetchall()}
    ids = json.dumps([home for home in homes if home not in kept])
    for table in ("list_items", "lists", "blobs"):
        connection.execute(f"DELETE FROM {table} WHERE home IN ({those})", (ids,))
    for home in kept:
        _free_unused(connection, home)


def _free_unused(connection: Connection, home: int) -> None:
    for sql in _REFERRING.values():
        connection.prefetch(sql, (home, None))
    for sql in (_LISTS, _ITEMS, _LIST_IDS, _BLOBS):
        connection.prefetch(sql, (home,))
    items, lists, stored = (connection.execute(sql, (home,)).fetchall() for sql in (_ITEMS, _LIST_IDS, _BLOBS))
    lengths, digests = find_reachable(connection, home)
    unused = []
    for list_id, position, digest, kind in items:
        if position < lengths.get(list_id, 0):
            if kind is None:  # not inline
                digests.add(bytes(digest))
        else:
            unused.append((home, list_id, position))
    connection.executemany("DELETE FROM list_items WHERE home = ? AND list_id = ? AND position = ?", unused)
    gone = [(home, list_id) for (list_id,) in lists if list_id not in lengths]
    connection.executemany("DELETE FROM lists WHERE home = ? AND id = ?", gone)
    connection.executemany(
        "DELETE FROM blobs WHERE home = ? AND digest = ?",
        [(home, digest) for (digest,) in stored if bytes(digest) not in digests],
    )
