"""Memory items in SQL: JSON values by namespace and key, with their time to live and the terms of their texts.

A put computes no terms. A search computes the terms of items that have none, and stores them first if there are many.
A search reads the terms of all items in its namespaces, so only these determine its cost.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache, partial
from itertools import chain, islice
from typing import Any

from session_middleware.models import from_text, to_text
from session_middleware.storage.filters import passes
from session_middleware.storage.memory_types import MemoryPut, MemoryQuery, StoredMemory, text_of
from session_middleware.storage.search.tokenizer import terms_of, version
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.memory.indexing import BATCH, MAX_UNINDEXED, LongBacklog
from session_middleware.storage.sql.row_mapping import namespace_text
from session_middleware.storage.sql.tables import tables

_COLUMNS = (
    "namespace, key, value, text, session_id, created_at, updated_at, message_id, expires_at, ttl_minutes, paths, id"
)
LIVE = "(expires_at IS NULL OR expires_at > ?)"
RESERVED = """namespace >= '["langgraph"' AND namespace < '["langgraph"^'"""  # notes of a server about its sessions

# Putting

_SHARED = (  # by all items of a put
    *("namespace", "paths", "session_id", "message_id", "created_at", "updated_at"),
    *("expires_at", "ttl_minutes", "embedded"),
)
EXPORTED = (*_SHARED, "key", "value", "text")
_REPLACED = ("value", "text", *(name for name in _SHARED if name not in ("namespace", "created_at")))
_ON_CONFLICT = f"""
    ON CONFLICT (namespace, key) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _REPLACED)},
        terms = NULL, vectors = NULL, created_at = CASE WHEN memories.expires_at <= excluded.created_at
        THEN excluded.created_at ELSE memories.created_at END
"""  # an item put after its expiry is new


@lru_cache(maxsize=64)
def _put_statement(columns: tuple[str, ...], count: int) -> str:
    """Stores `count` items. Binding is most of the cost of an insertion, so shared values are bound once."""
    row = f"({', '.join(f'?{number}' for number in range(1, len(columns) + 1))}, ?, ?, ?)"
    names = ", ".join((*columns, "key", "value", "text"))
    return f"INSERT INTO memories ({names}) VALUES {', '.join([row] * count)} {_ON_CONFLICT}"


def owner_lock(owner: tuple[str, ...]) -> str:
    """The lock of the items of a session, or of another owner."""
    return owner[1] if owner[0] == "session" and len(owner) > 1 else "\0" + namespace_text(owner)


def locks_of(found: Iterable[MemoryPut | StoredMemory]) -> set[str]:
    """The locks that a change of items needs."""
    return {owner_lock(each.namespace[:2]) for each in found}


def put(connection: Connection, puts: Sequence[MemoryPut], now: datetime) -> None:
    """Store and delete items."""
    for each in puts:
        values = zip(_SHARED, _shared_values(each, now), strict=True)
        shared = {column: value for column, value in values if value is not None}
        connection.executemany(
            "DELETE FROM memories WHERE namespace = ? AND key = ?",
            [(shared["namespace"], key) for key, value, _ in each.items if value is None],
        )
        items = [item for item in each.items if item[1] is not None]
        first = 0
        for size in (100, 10, 1):
            statement = _put_statement(tuple(shared), size)
            while first + size <= len(items):
                some = chain.from_iterable(items[first : first + size])
                connection.execute(statement, (*shared.values(), *some))
                first += size


def _shared_values(put: MemoryPut, now: datetime) -> tuple[Any, ...]:
    """The values of `_SHARED`."""
    return (
        namespace_text(put.namespace),
        None if put.paths is None else json.dumps(list(put.paths)),
        put.session_id,
        put.message_id,
        to_text(now),
        to_text(now),
        None if put.ttl is None else to_text(now + put.ttl),
        None if put.ttl is None else put.ttl.total_seconds() / 60,
        0 if put.embed else None,
    )


# Terms


def index_some(connection: Connection, query: MemoryQuery) -> int:
    """Store the terms of the next items of the query's namespaces, at most `BATCH`; returns how many."""
    where, values = visible(query)
    rows = connection.execute(
        f"SELECT id, value, text FROM memories WHERE ({where}) AND (terms IS NULL OR terms NOT LIKE ?) LIMIT ?"
        " /* SKIP LOCKED */",
        (*values, f"{version()} %", BATCH),
    )
    computed = [(terms, number) for number, terms in _computed(rows)]
    connection.executemany("UPDATE memories SET terms = ? WHERE id = ?", computed)
    return len(computed)


def read_terms(connection: Connection, query: MemoryQuery, now: datetime, *, can_index: bool) -> dict[int, str]:
    """The version of the tokenizer and the terms of each item in the query's namespaces, each followed by a space.

    Raises `LongBacklog` if very many have to be computed, unless the database is read-only.
    """
    if not query.namespaces:
        return {}
    where, values = visible(query)
    sql = f"SELECT id, terms FROM memories WHERE ({where}) AND {LIVE}"
    found: dict[int, str] = dict(connection.execute(sql, (*values, to_text(now))))
    missing = [number for number, terms in found.items() if not (terms and terms.startswith(version()))]
    if can_index and len(missing) > MAX_UNINDEXED:
        raise LongBacklog(partial(index_some, query=query))
    rows = connection.execute(
        "SELECT m.id, m.value, m.text FROM json_each(?) AS missing CROSS JOIN memories AS m"
        " WHERE m.id = CAST(missing.value AS INTEGER)",
        (json.dumps(missing),),
    )
    found.update(_computed(rows))
    return found


def _computed(rows: Iterable[tuple[int, str, str | None]]) -> Iterator[tuple[int, str]]:
    """The terms of items, from their ids, values and texts."""
    for number, value, text in rows:
        yield number, " ".join([version(), *terms_of(text_of(json.loads(value)) if text is None else text), ""])


# Getting


def get(
    connection: Connection, keys: Sequence[tuple[tuple[str, ...], str]], now: datetime
) -> list[StoredMemory | None]:
    sql, time = f"SELECT {_COLUMNS} FROM memories WHERE namespace = ? AND key = ? AND {LIVE}", to_text(now)
    wanted = [(namespace_text(namespace), key, time) for namespace, key in keys]
    for each in wanted:
        connection.prefetch(sql, each)
    rows = [connection.execute(sql, each).fetchone() for each in wanted]
    return [None if row is None else _stored(row) for row in rows]


def find(connection: Connection, numbers: Sequence[int]) -> dict[int, StoredMemory]:
    """Items by number."""
    sql = f"SELECT {_COLUMNS} FROM memories WHERE id = ?"
    for number in numbers:
        connection.prefetch(sql, (number,))
    rows = [connection.execute(sql, (number,)).fetchone() for number in numbers]
    return {row[-1]: _stored(row) for row in rows if row is not None}


def list_(
    connection: Connection, query: MemoryQuery, now: datetime, without: Collection[int] = ()
) -> list[StoredMemory]:
    """The page of items that pass the filter, in the order of first put."""
    where, values = visible(query)
    limit = sys.maxsize if query.filter or without else min(query.offset + query.limit, sys.maxsize)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM memories WHERE ({where}) AND {LIVE} AND created_at >= ?"
        " ORDER BY created_at, id LIMIT ?",
        (*values, to_text(now), "" if query.since is None else to_text(query.since), limit),
    )
    items = (_stored(row) for row in rows if row[-1] not in without)
    found = (item for item in items if passes(item.value, query.filter))
    return list(islice(islice(found, query.offset, None), query.limit))


def visible(query: MemoryQuery) -> tuple[str, list[Any]]:
    """The condition for the items of a query's namespaces, and its values."""
    if query.prefix and () in query.namespaces:
        return f"NOT ({RESERVED})", []
    exact = [namespace_text(namespace) for namespace in query.namespaces]
    if not query.prefix:  # one parameter: SQLite limits the number of parameters and of ORs
        return "namespace IN (SELECT value FROM json_each(?))", [json.dumps(exact)]
    values = [value for text in exact for value in range_of(text)]
    return " OR ".join(["namespace >= ? AND namespace < ?"] * len(exact)) or "1 = 0", values


def range_of(namespace: str) -> tuple[str, str]:
    """Bounds of a namespace and those below it, as text: ``["a"`` is followed by a bracket or a comma there."""
    return namespace[:-1], namespace[:-1] + "^"


def _stored(row: tuple[Any, ...]) -> StoredMemory:
    namespace, key, value, text, session_id, created_at, updated_at, message_id, expires_at, ttl, paths, _ = row
    return StoredMemory(
        tuple(json.loads(namespace)),
        key,
        json.loads(value),
        text,
        session_id,
        from_text(created_at),
        from_text(updated_at),
        message_id=message_id,
        expires_at=None if expires_at is None else from_text(expires_at),
        ttl_minutes=ttl,
        paths=None if paths is None else json.loads(paths),
    )


def list_namespaces(connection: Connection, now: datetime) -> list[tuple[str, ...]]:
    """The namespaces with items that have not expired."""
    rows = connection.execute(f"SELECT DISTINCT namespace FROM memories WHERE {LIVE}", (to_text(now),))
    return sorted(tuple(json.loads(namespace)) for (namespace,) in rows)


# Time to live


def refresh(connection: Connection, found: Iterable[StoredMemory], now: datetime) -> None:
    """Restart the time to live of items, unless they expired or were put again with another one."""
    connection.executemany(
        "UPDATE memories SET expires_at = ? WHERE namespace = ? AND key = ? AND ttl_minutes = ? AND expires_at > ?",
        [
            (to_text(now + timedelta(minutes=each.ttl_minutes)), namespace_text(each.namespace), each.key)
            + (each.ttl_minutes, to_text(now))
            for each in found
            if each.ttl_minutes is not None
        ],
    )


def sweep(connection: Connection, now: datetime) -> int:
    return connection.execute(_SWEEP, (to_text(now),)).rowcount


# Another transaction may be deleting or renewing some of them.
_SWEEP = "DELETE FROM memories WHERE id IN (SELECT id FROM memories WHERE expires_at <= ? /* SKIP LOCKED */)"


def restore(connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert exported items, except under keys that were put again since."""
    statement = tables()["memories"].insert(EXPORTED, "ON CONFLICT (namespace, key) DO NOTHING")
    connection.executemany(statement, [[row[name] for name in EXPORTED] for row in rows])
