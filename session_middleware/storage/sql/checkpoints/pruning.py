"""Deleting checkpoints of sessions, and the values that nothing refers to any more.

The rows of several sessions are read together, and the statements are made from them, because a round trip to a server
takes longer than a statement.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

from session_middleware.storage.sql.checkpoints import blobs, latest_checkpoint
from session_middleware.storage.sql.checkpoints.blobs import CorruptRow
from session_middleware.storage.sql.checkpoints.delta_channels import ancestors_needed
from session_middleware.storage.sql.checkpoints.latest_checkpoint import HEAD, Head
from session_middleware.storage.sql.checkpoints.rows import Row, WriteRow, references_in
from session_middleware.storage.sql.connection import Connection, DamagedRow, Statement, among, lock_found

_TOGETHER = 20  # sessions or families whose rows are in memory, at most

T = TypeVar("T")
_Key: TypeAlias = tuple[str, str]  # of a checkpoint in its session: namespace and id


def _together(given: Collection[T]) -> Iterator[list[T]]:
    listed = [*given]
    return (listed[start : start + _TOGETHER] for start in range(0, len(listed), _TOGETHER))


class Pruned(NamedTuple):
    checkpoints: int = 0
    damaged: Sequence[Exception] = ()  # why a session was left as it is


class _State(NamedTuple):
    """The checkpoints of a session as they are stored, without their bodies."""

    session_id: str
    home: int
    head: Head | None
    namespaces: dict[str, dict[str, Row]]  # by namespace and id
    written: set[_Key]  # checkpoints that have writes; some of these checkpoints may not be stored


def prune(connection: Connection, session_ids: Sequence[str]) -> Pruned:
    """Delete all checkpoints of sessions except the latest of each namespace in use.

    A session is left as it is if its rows are damaged, or its latest checkpoint cannot be found.
    """
    count, damaged = 0, list[Exception]()
    for some in _together(session_ids):
        deletions: list[_Deletion] = []
        for state in _read(connection, some):
            try:
                with blobs.reading_rows(state.session_id):
                    deletions.append(_deletion(state, _superseded(state)))
            except (DamagedRow, ValueError) as error:
                damaged.append(error)
        count += _delete(connection, deletions)
    return Pruned(count, damaged)


def _superseded(state: _State) -> set[_Key]:
    """The checkpoints that pruning deletes, with those that are lost but have writes. Raises `CorruptRow`."""
    latest = {
        namespace: max((row.position, row.checkpoint_id) for row in rows.values())[1]
        for namespace, rows in state.namespaces.items()
    }
    head, outermost = state.head, state.namespaces.get("")
    if outermost is not None:
        if head is None or head.latest_id not in outermost or head.checkpoint_count != len(outermost):
            raise CorruptRow("the newest checkpoint cannot be found")
        latest[""] = head.latest_id
    kept = {
        (namespace, checkpoint_id)
        for namespace, rows in state.namespaces.items()
        if _is_of_use(namespace, rows[latest[namespace]], latest)
        for checkpoint_id in (latest[namespace], *ancestors_needed(rows, [latest[namespace]]))
    }
    stored = {(namespace, checkpoint_id) for namespace, rows in state.namespaces.items() for checkpoint_id in rows}
    lost = {key for key in state.written if key[1] < latest.get(key[0], "")}
    return (stored | lost) - kept


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
    deletions = []
    for state in _read(connection, [*by_session]):
        keys = by_session[state.session_id]
        for namespace in {namespace for namespace, _ in keys}:
            rows = state.namespaces[namespace]
            staying = [checkpoint_id for checkpoint_id in rows if (namespace, checkpoint_id) not in keys]
            keys -= {(namespace, checkpoint_id) for checkpoint_id in ancestors_needed(rows, staying)}
        deletions.append(_deletion(state, keys))
    return _delete(connection, deletions)


def _of_runs(connection: Connection, run_ids: Sequence[str]) -> dict[str, set[_Key]]:
    """The checkpoints of runs, by session."""
    those, values = among("run_id", run_ids)
    sql = f"SELECT session_id, checkpoint_ns, checkpoint_id FROM checkpoints WHERE {those}"
    found = connection.execute(sql, values)
    by_session: dict[str, set[_Key]] = defaultdict(set)
    for session_id, namespace, checkpoint_id in found.fetchall():
        by_session[session_id].add((namespace, checkpoint_id))
    return by_session


def _read(connection: Connection, session_ids: Sequence[str]) -> list[_State]:
    """The sessions that exist."""
    ids = (json.dumps(session_ids),)
    for sql in (_HEADS, _CHECKPOINTS, _WRITTEN):
        connection.prefetch(sql, ids)
    states: dict[str, _State] = {}
    for session_id, home, *head in connection.execute(_HEADS, ids):
        found = None if head[0] is None else Head(*head)
        states[session_id] = _State(session_id, home, found, defaultdict(dict), set())
    for values in connection.execute(_CHECKPOINTS, ids):
        row = Row(*values)
        states[row.session_id].namespaces[row.checkpoint_ns][row.checkpoint_id] = row
    for session_id, *key in connection.execute(_WRITTEN, ids):
        states[session_id].written.add((key[0], key[1]))
    return [*states.values()]


_AMONG = "sessions.id IN (SELECT value FROM json_each(?))"
_HEADS = f"SELECT id, home, {HEAD} FROM sessions WHERE {_AMONG}"
_OWN_ROWS = "FROM sessions JOIN {0} AS own ON own.home = sessions.home AND own.session_id = sessions.id WHERE " + _AMONG
_CHECKPOINTS = (  # without the body, which is most of a row
    f"SELECT {', '.join(f'own.{name}' if name != 'body' else 'NULL' for name in Row._fields)} "
    + _OWN_ROWS.format("checkpoints")
)
_WRITTEN = f"SELECT DISTINCT own.session_id, own.checkpoint_ns, own.checkpoint_id {_OWN_ROWS.format('writes')}"


class _Deletion(NamedTuple):
    home: int
    checkpoints: int
    statements: Sequence[Statement]


def _deletion(state: _State, keys: Collection[_Key]) -> _Deletion:
    """The deletion of checkpoints of a session, with their writes."""
    statements: list[Statement] = []
    by_namespace: dict[str, list[str]] = defaultdict(list)
    for namespace, checkpoint_id in sorted(keys):
        by_namespace[namespace].append(checkpoint_id)
    for namespace, ids in by_namespace.items():
        own, (those, values) = (state.home, state.session_id, namespace), among("checkpoint_id", ids)
        statements.append((f"DELETE FROM writes {_OWN} AND {those}", (*own, *values)))
        sql = f"DELETE FROM checkpoints {_OWN} AND position >= ? AND {those}"
        statements.append((sql, (*own, ids[0], *values)))
    if statements:
        rows = state.namespaces.get("", {})
        gone = rows.keys() & by_namespace.get("", ())
        statements.append(latest_checkpoint.without((state.home, state.session_id), state.head, rows, gone))
    count = sum(checkpoint_id in state.namespaces.get(namespace, ()) for namespace, checkpoint_id in keys)
    return _Deletion(state.home, count, statements)


_OWN = "WHERE home = ? AND session_id = ? AND checkpoint_ns = ?"


def _delete(connection: Connection, deletions: Iterable[_Deletion]) -> int:
    """Returns the number of checkpoints."""
    due = [each for each in deletions if each.statements]
    for deletion in due:
        for statement in deletion.statements:
            connection.execute(*statement)
    if due:
        free_unused(connection, {deletion.home for deletion in due})
    return sum(deletion.checkpoints for deletion in due)


# Unused values, found by reachability


class Reachable(NamedTuple):
    lengths: dict[int, int]  # of lists, by id: how many elements are referred to
    digests: set[bytes]  # of blobs that checkpoints and writes refer to directly


class References(NamedTuple):
    """What may refer to the values of a family."""

    rows: list[Row | WriteRow]
    parents: dict[int, tuple[int, int]]  # of lists that branch off others, by id: the parent, and the shared length

    def reachable(self) -> Reachable:
        lengths: dict[int, int] = {}
        digests: set[bytes] = set()
        for row in self.rows:
            for reference in references_in(row):
                if isinstance(reference, list):
                    lengths[reference[0]] = max(lengths.get(reference[0], 0), reference[1])
                elif isinstance(reference, str):
                    digests.add(bytes.fromhex(reference))
        for child, length in list(lengths.items()):
            list_id = child
            while list_id in self.parents:
                list_id, upto = self.parents[list_id]
                length = min(length, upto)
                if lengths.get(list_id, -1) >= length:
                    break
                lengths[list_id] = length
        return Reachable(lengths, digests)


_OF_FAMILIES = "home IN (SELECT CAST(value AS INTEGER) FROM json_each(?1))"
_REFERRING: dict[Any, str] = {
    kind: f"SELECT {', '.join(name if name != 'body' else 'NULL' for name in kind._fields)} FROM {table}"
    f" WHERE {_OF_FAMILIES} AND (CAST(?2 AS TEXT) IS NULL OR session_id = ?2)"
    for kind, table in ((Row, "checkpoints"), (WriteRow, "writes"))
}
_LISTS = f"SELECT home, id, parent_id, parent_length FROM lists WHERE {_OF_FAMILIES}"
_ITEMS = f"SELECT home, list_id, position, digest, type FROM list_items WHERE {_OF_FAMILIES}"
_BLOBS = f"SELECT home, digest FROM blobs WHERE {_OF_FAMILIES}"


def find_references(
    connection: Connection, homes: Collection[int], session_id: str | None = None
) -> dict[int, References]:
    """What refers to values, by family: all its checkpoints and writes, or those of one session."""
    found = {home: References([], {}) for home in homes}
    ids = json.dumps([*homes])
    for kind, sql in _REFERRING.items():
        for values in connection.execute(sql, (ids, session_id)):
            found[values[0]].rows.append(kind(*values))
    for home, list_id, parent_id, length in connection.execute(_LISTS, (ids,)):
        found[home].parents[list_id] = parent_id, length
    return found


def free_unused(connection: Connection, homes: Collection[int]) -> None:
    """Delete the unused lists of families, the unused ends of lists, and the unused blobs.

    A list may be cut, because a writer appends only to a list that is as long as its reference says. Of a family with
    damaged references nothing is deleted.
    """
    in_use = f"SELECT home FROM checkpoints WHERE {_OF_FAMILIES} UNION SELECT home FROM writes WHERE {_OF_FAMILIES}"
    kept = {home for (home,) in connection.execute(in_use, (json.dumps([*homes]),))}
    if gone := [home for home in homes if home not in kept]:
        for table in ("list_items", "lists", "blobs"):
            connection.execute(f"DELETE FROM {table} WHERE {_OF_FAMILIES}", (json.dumps(gone),))
    for some in _together(kept):
        _free_unused(connection, some)


def _free_unused(connection: Connection, homes: Collection[int]) -> None:
    ids = json.dumps([*homes])
    for sql in _REFERRING.values():
        connection.prefetch(sql, (ids, None))
    for sql in (_LISTS, _ITEMS, _BLOBS):
        connection.prefetch(sql, (ids,))
    references, reachable = find_references(connection, homes), dict[int, Reachable]()
    for home, family in references.items():
        with suppress(TypeError, AttributeError, ValueError, LookupError):
            reachable[home] = family.reachable()
    unused = []
    for home, list_id, position, digest, kind in connection.execute(_ITEMS, (ids,)):
        if home not in reachable:
            continue
        lengths, digests = reachable[home]
        if position >= lengths.get(list_id, 0):
            unused.append((home, list_id, position))
        elif kind is None:  # not inline
            digests.add(bytes(digest))
    stored = connection.execute(_BLOBS, (ids,)).fetchall()
    connection.executemany("DELETE FROM list_items WHERE home = ? AND list_id = ? AND position = ?", unused)
    connection.executemany(
        "DELETE FROM lists WHERE home = ? AND id = ?",
        [
            (home, list_id)
            for home, found in reachable.items()
            for list_id in references[home].parents
            if list_id not in found.lengths
        ],
    )
    connection.executemany(
        "DELETE FROM blobs WHERE home = ? AND digest = ?",
        [
            (home, digest)
            for home, digest in stored
            if home in reachable and bytes(digest) not in reachable[home].digests
        ],
    )
