"""The rows of sessions as they are exported: families one after the other, each with the state that it shares.

Of the state of a family only the part is exported that the exported sessions refer to. What is derived is left out:
words and vectors of the index, and leases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from session_middleware.storage.sql.checkpoints import blobs
from session_middleware.storage.sql.checkpoints.pruning import find_references
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.memory import items
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.row_mapping import namespace_text
from session_middleware.storage.sql.sessions import session_rows
from session_middleware.storage.sql.tables import Row, fetched, tables
from session_middleware.storage.types import Progress, SessionFilter

NamedRow = tuple[str, dict[str, Any]]  # with the name of its table

_PAGE = 100  # rows in memory; one may be a file
_IDS = 1_000  # sessions that are listed at a time
_OF_SESSION = {
    "sessions": "id = ?",
    **dict.fromkeys(runs.TABLES, "session_id = ?"),
    **dict.fromkeys(("checkpoints", "writes"), "session_id = ? AND home = ?"),
}
_IN_NAMESPACE = "namespace >= ? AND namespace < ?"


def families(connection: Connection, where: SessionFilter, rules: EngineContext) -> Iterator[tuple[int, Sequence[str]]]:
    """The home and the ids of the sessions of each family."""
    found = session_rows.list_by_home(connection, where, rules, limit=_IDS)
    for home, members in groupby(found, key=lambda member: member[0]):
        yield home, [session_id for _, session_id in members]


def rows(
    connection: Connection,
    found: Iterable[tuple[int, Sequence[str]]],
    namespace: tuple[str, ...] | None,
    count: int,
    progress: Progress | None,
) -> Iterator[NamedRow]:
    """The rows of some families, and the memories of a namespace; ``()``: of all but those of sessions."""
    done = 0
    for home, session_ids in found:
        yield from of_family(connection, home, session_ids)
        done += len(session_ids)
        if progress is not None:
            progress(done, count)
    if namespace is not None:
        where = _IN_NAMESPACE if namespace else f"NOT ({_IN_NAMESPACE}) AND NOT ({items.RESERVED})"
        yield from _memories(connection, where, namespace or ("session",))


def of_family(connection: Connection, home: int, session_ids: Sequence[str]) -> Iterator[NamedRow]:
    """Everything of some sessions of one family."""
    read = partial(_rows, connection)
    for table, condition in _OF_SESSION.items():
        for session_id in session_ids:
            yield from read(table, condition, (session_id, home)[: condition.count("?")])
    for session_id in session_ids:
        yield from _memories(connection, _IN_NAMESPACE, ("session", session_id))
    lengths: dict[int, int] = {}
    digests: set[bytes] = set()
    for session_id in session_ids:
        reachable = find_references(connection, [home], session_id)[home].reachable()
        digests |= reachable.digests
        for list_id, length in reachable.lengths.items():
            lengths[list_id] = max(length, lengths.get(list_id, 0))
    for table, key in (("lists", "id"), ("list_items", "list_id")):
        for named in read(table, "home = ?", (home,)):
            row = named[1]
            if row[key] in lengths and row.get("position", 0) < lengths[row[key]]:
                digests |= {row["digest"]} if "digest" in row and row["data"] is None else set()
                yield named
    for statement in blobs.statements(home, [digest.hex() for digest in digests]):
        for kind, data, digest in connection.execute(*statement):
            yield "blobs", {"home": home, "digest": digest, "type": kind, "data": data}


def _memories(connection: Connection, where: str, namespace: tuple[str, ...]) -> Iterator[NamedRow]:
    values = items.range_of(namespace_text(namespace))
    columns = ", ".join(items.EXPORTED).replace("embedded", "embedded * 0")  # the vectors are not exported
    for _, row in tables()["memories"].rows(partial(fetched, connection), where, values, limit=_PAGE, columns=columns):
        yield "memories", dict(zip(items.EXPORTED, row, strict=True))


def _rows(connection: Connection, table: str, where: str, values: Row) -> Iterator[NamedRow]:
    for _, row in tables()[table].rows(partial(fetched, connection), where, values, limit=_PAGE):
        yield table, dict(zip(tables()[table].columns, row, strict=True))
