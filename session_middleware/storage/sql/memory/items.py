"""Memory items in SQL: JSON values by namespace and key, their time to live, and their words in the index.

Each item has a position, which is unique in its namespace and grows with each new item: it gives the order of
first put, and with the namespace's scope it is the item's document id.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any, TypeAlias

from session_middleware.models import from_text, to_text
from session_middleware.storage.filters import passes
from session_middleware.storage.memory_types import MemoryPut, MemoryQuery, StoredMemory
from session_middleware.storage.search.bm25 import ITEM, LENGTHS, Statistics, length_code
from session_middleware.storage.search.texts import text_of
from session_middleware.storage.search.tokenizer import terms_of, version
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.memory import posting_lists
from session_middleware.storage.sql.memory.indexing import MAX_UNINDEXED, LongBacklog
from session_middleware.storage.sql.memory.posting_lists import BLOCK_BITS, IndexScope, PostingsByRow
from session_middleware.storage.sql.row_mapping import namespace_text

ItemRef: TypeAlias = tuple[str, int]  # a namespace as text, and a position in it
IndexableItem: TypeAlias = tuple[int, str, str | None]  # its position, value and text

POSITION_BITS = 24  # the first sixteen million items of a namespace are indexed
BATCH = 500  # items indexed in one transaction
IN_NAMESPACE = (1 << POSITION_BITS) - 1

_COLUMNS = "namespace, key, value, text, session_id, created_at, updated_at, message_id, expires_at, paths"
_ARCHIVED = (*_COLUMNS.split(", "), "ttl_minutes")
_LIVE = "(expires_at IS NULL OR expires_at > ?)"
_ORDER = "ORDER BY created_at, rtrim(namespace, ']'), position"  # ["a" comes before ["a","b"


def document_of(scope_id: int, position: int) -> int:
    return ITEM | scope_id << POSITION_BITS | position


# Putting

_SHARED = (  # by all items of a put
    *("namespace", "paths", "session_id", "message_id", "created_at", "updated_at"),
    *("expires_at", "ttl_minutes", "embedded"),
)
_UPDATE = """
    UPDATE memories SET paths = ?2, session_id = ?3, message_id = ?4, updated_at = ?5, expires_at = ?7,
        ttl_minutes = ?8, embedded = ?9, value = ?11, text = ?12,
        created_at = CASE WHEN expires_at <= ?6 THEN ?6 ELSE created_at END
    WHERE namespace = ?1 AND key = ?10
"""  # an item put after its expiry is new


@lru_cache(maxsize=64)
def _insert_statement(columns: tuple[str, ...], count: int) -> str:
    """Inserts `count` items. Binding is most of the cost of an insertion, so shared values are bound once."""
    shared = ", ".join(f"?{number}" for number in range(1, len(columns) + 1))
    rows = ", ".join(f"({shared}, ?{len(columns) + 1} + {number}, ?, ?, ?)" for number in range(1, count + 1))
    return (
        f"INSERT INTO memories ({', '.join(columns)}, position, key, value, text) VALUES {rows}"
        " ON CONFLICT (namespace, key) DO NOTHING"
    )


def put(connection: Connection, puts: Sequence[MemoryPut], now: datetime) -> None:
    """Store items. The words of new items are indexed later; until then a search reads them from here."""
    for each in puts:
        namespace, *_ = shared = _shared_values(each, now)
        deleted = [key for key, value, _ in each.items if value is None]
        delete(connection, [(namespace, position) for position in _find(connection, namespace, deleted).values()])
        stored = [item for item in each.items if item[1] is not None]
        if stored:
            last = _reserve_positions(connection, namespace, len(stored))
            if _insert(connection, shared, last, stored) < len(stored):
                _replace(connection, shared, last, stored)


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


def _reserve_positions(connection: Connection, namespace: str, count: int) -> int:
    """Reserve the next positions of a namespace; returns the position before them."""
    [(last,)] = connection.execute(
        "INSERT INTO index_scopes (kind, name, positions) VALUES ('item', ?, ?)"
        " ON CONFLICT (kind, name) DO UPDATE SET positions = index_scopes.positions + excluded.positions"
        " RETURNING positions",
        (namespace, count),
    )
    return int(last) - count


def _insert(connection: Connection, shared: tuple[Any, ...], last: int, items: Sequence[Sequence[Any]]) -> int:
    """Insert those items whose keys are new, after the position `last`; returns how many."""
    given = {column: value for column, value in zip(_SHARED, shared, strict=True) if value is not None}
    inserted = first = 0
    for size in (100, 10, 1):
        statement = _insert_statement(tuple(given), size)
        while first + size <= len(items):
            some = chain.from_iterable(items[first : first + size])
            inserted += connection.execute(statement, (*given.values(), last + first, *some)).rowcount
            first += size
    return inserted


def _replace(connection: Connection, shared: tuple[Any, ...], last: int, items: Sequence[Sequence[Any]]) -> None:
    """Replace items that were stored before this put, and index them again if they were indexed."""
    namespace = shared[0]
    found = _find(connection, namespace, [key for key, _, _ in items])
    known = {key: position for key, position in found.items() if position <= last}
    unindex(connection, [(namespace, position) for position in known.values()])
    connection.executemany(_UPDATE, [(*shared, *item) for item in items if item[0] in known])
    [(scope_id, indexed)] = connection.execute(
        "UPDATE index_scopes SET positions = ? WHERE kind = 'item' AND name = ? RETURNING id, indexed",
        (max(last, *found.values()), namespace),
    )
    _index(connection, scope_id, [(known[key], *rest) for key, *rest in items if known.get(key, last + 1) <= indexed])


def _find(connection: Connection, namespace: str, keys: Sequence[str]) -> dict[str, int]:
    """The positions of existing keys. Each key is a parameter, because SQLite's JSON ends a text at a NUL."""
    sql = "SELECT position FROM memories WHERE namespace = ? AND key = ?"
    rows = ((key, connection.execute(sql, (namespace, key)).fetchone()) for key in keys)
    return {key: int(row[0]) for key, row in rows if row is not None}


# Indexing


def scopes(connection: Connection, namespaces: Sequence[tuple[str, ...]], *, prefix: bool) -> list[IndexScope]:
    """The scopes of these namespaces, or of all below them."""
    where, values = _visible(namespaces, prefix=prefix, column="name")
    return posting_lists.list_scopes(connection, "item", where, values)


def has_unindexed(connection: Connection) -> bool:
    return connection.execute("SELECT 1 FROM index_scopes WHERE indexed < positions LIMIT 1").fetchone() is not None


def index_some(connection: Connection, limit: int) -> None:
    """Index the words of the next items, at most `limit`."""
    waiting = connection.execute(
        "SELECT id, name, indexed, positions FROM index_scopes WHERE indexed < positions LIMIT ?", (limit,)
    ).fetchall()
    for scope_id, namespace, indexed, positions in waiting:
        items = _unindexed(connection, namespace, indexed, limit)
        _index(connection, scope_id, items)
        connection.execute(
            "UPDATE index_scopes SET indexed = ?, version = ? WHERE id = ?",
            (positions if len(items) < limit else items[-1][0], version(), scope_id),
        )
        limit -= len(items)
        if limit <= 0:
            break


def _unindexed(connection: Connection, namespace: str, indexed: int, limit: int) -> list[IndexableItem]:
    """The next items after the position `indexed`."""
    return connection.execute(
        "SELECT position, value, text FROM memories WHERE namespace = ? AND position > ? ORDER BY position LIMIT ?",
        (namespace, indexed, limit),
    ).fetchall()


def _terms_by_document(scope_id: int, items: Iterable[IndexableItem]) -> dict[int, list[str]]:
    """The terms of items, by document id; an item whose position is no document id is not found by words."""
    return {
        document_of(scope_id, position): terms_of(text_of(json.loads(value)) if text is None else text)
        for position, value, text in items
        if position <= IN_NAMESPACE
    }


def _index(connection: Connection, scope_id: int, items: Iterable[IndexableItem]) -> None:
    rows: PostingsByRow = {}
    by_document = _terms_by_document(scope_id, items)
    for document, terms in by_document.items():
        posting_lists.merge(rows, posting_lists.postings_of(scope_id, document, terms))
    posting_lists.add(connection, rows)
    posting_lists.add_statistics(connection, scope_id, statistics_of(by_document))


def read_unindexed(connection: Connection, scopes: Sequence[IndexScope], *, can_index: bool) -> dict[int, list[str]]:
    """The terms, by document id, of the items that are not indexed. Raises `LongBacklog` as for messages."""
    found: dict[int, list[str]] = {}
    for scope in scopes:
        if scope.indexed < scope.positions:
            limit = MAX_UNINDEXED + 1 - len(found) if can_index else sys.maxsize
            items = _unindexed(connection, scope.name, scope.indexed, limit)
            if len(items) == limit:
                raise LongBacklog(None)
            found |= _terms_by_document(scope.id, items)
    return found


def unindex(connection: Connection, refs: Iterable[ItemRef]) -> None:
    """Remove the words and vectors of items from the index; their texts give the words."""
    for namespace, group in groupby(sorted(refs), itemgetter(0)):
        rows = connection.execute(
            "SELECT s.id, m.position, m.value, m.text FROM index_scopes AS s CROSS JOIN memories AS m"
            " WHERE s.kind = 'item' AND s.name = ? AND m.namespace = s.name AND m.position <= s.indexed"
            " AND m.position IN (SELECT CAST(value AS INTEGER) FROM json_each(?)) ORDER BY m.position",
            (namespace, json.dumps([position for _, position in group])),
        ).fetchall()
        if rows:
            scope_id = rows[0][0]
            _unindex(connection, scope_id, _terms_by_document(scope_id, (row[1:] for row in rows)))


def _unindex(connection: Connection, scope_id: int, terms: Mapping[int, Sequence[str]]) -> None:
    """Terms are by document id, in order, so that each row of the index is written once a block."""
    for block, documents in groupby(terms, lambda document: document >> BLOCK_BITS):
        removed = set(documents)
        words = chain.from_iterable(terms[document] for document in removed)
        posting_lists.remove(connection, scope_id, block, words, removed)
    posting_lists.add_statistics(connection, scope_id, Statistics(*(-figure for figure in statistics_of(terms))))
    connection.executemany(
        "DELETE FROM vectors WHERE scope_id = ? AND document = ?", [(scope_id, document) for document in terms]
    )


def statistics_of(terms: Mapping[int, Sequence[str]]) -> Statistics:
    """What items add to the statistics of their scope: those with words, by document id."""
    lengths = [LENGTHS[length_code(len(each))] for each in terms.values() if each]
    return Statistics(len(lengths), sum(lengths), len(lengths))


# Getting


def get(
    connection: Connection, keys: Sequence[tuple[tuple[str, ...], str]], now: datetime
) -> list[StoredMemory | None]:
    sql, time = f"SELECT {_COLUMNS} FROM memories WHERE namespace = ? AND key = ? AND {_LIVE}", to_text(now)
    rows = [connection.execute(sql, (namespace_text(namespace), key, time)).fetchone() for namespace, key in keys]
    return [None if row is None else _stored(row) for row in rows]


def find_at(connection: Connection, namespace: str, position: int, now: datetime | None) -> StoredMemory | None:
    """The item at a position; without a time also one that has expired and was not swept yet."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM memories WHERE namespace = ? AND position = ? AND {_LIVE}",
        (namespace, position, "" if now is None else to_text(now)),
    ).fetchone()
    return None if row is None else _stored(row)


def list_(connection: Connection, query: MemoryQuery, now: datetime) -> list[StoredMemory]:
    """The page of items that pass the filter, in the order of first put."""
    return list(islice(islice(_list(connection, query, now, ()), query.offset, None), query.limit))


def list_others(
    connection: Connection, query: MemoryQuery, now: datetime, refs: Collection[ItemRef], limit: int
) -> list[StoredMemory]:
    """The first items that pass the filter and are none of `refs`."""
    return list(islice(_list(connection, query, now, refs), limit))


def _list(
    connection: Connection, query: MemoryQuery, now: datetime, without: Collection[ItemRef]
) -> Iterable[StoredMemory]:
    where, values = _visible(query.namespaces, prefix=query.prefix)
    limit = sys.maxsize if query.filter or without else min(query.offset + query.limit, sys.maxsize)
    rows = connection.execute(
        f"SELECT {_COLUMNS}, position FROM memories WHERE ({where}) AND {_LIVE} AND created_at >= ? {_ORDER} LIMIT ?",
        (*values, to_text(now), "" if query.since is None else to_text(query.since), limit),
    )
    found = (_stored(row[:-1]) for row in rows if (row[0], row[-1]) not in without)
    return (item for item in found if passes(item.value, query.filter))


def _visible(
    namespaces: Sequence[tuple[str, ...]], *, prefix: bool, column: str = "namespace"
) -> tuple[str, list[Any]]:
    if prefix and () in namespaces:
        return "1 = 1", []
    exact = [namespace_text(namespace) for namespace in namespaces]
    if not prefix:  # one parameter: SQLite limits the number of parameters and of ORs
        return f"{column} IN (SELECT value FROM json_each(?))", [json.dumps(exact)]
    ranges = [bound for text in exact for bound in (text, *range_below(text))]
    return " OR ".join([f"{column} = ? OR {column} >= ? AND {column} < ?"] * len(exact)) or "1 = 0", ranges


def range_below(namespace: str) -> tuple[str, str]:
    """Bounds of the namespaces below one, as text: ``["a"`` is followed by a comma there, and ``-`` comes after it."""
    return namespace[:-1] + ",", namespace[:-1] + "-"


def _stored(row: tuple[Any, ...]) -> StoredMemory:
    namespace, key, value, text, session_id, created_at, updated_at, message_id, expires_at, paths = row
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
        paths=None if paths is None else json.loads(paths),
    )


def list_namespaces(connection: Connection, now: datetime) -> list[tuple[str, ...]]:
    """The namespaces with items that have not expired."""
    rows = connection.execute(
        "SELECT name FROM index_scopes AS s WHERE kind = 'item' AND EXISTS"
        f" (SELECT 1 FROM memories AS m WHERE m.namespace = s.name AND {_LIVE})",
        (to_text(now),),
    )
    return sorted(tuple(json.loads(namespace)) for (namespace,) in rows)


# Time to live


def refresh(connection: Connection, keys: Collection[tuple[tuple[str, ...], str]], now: datetime) -> None:
    """Restart the time to live of items that have one."""
    for namespace, key in keys:
        ref = (namespace_text(namespace), key)
        row = connection.execute(
            f"SELECT ttl_minutes FROM memories WHERE namespace = ? AND key = ? AND {_LIVE}", (*ref, to_text(now))
        ).fetchone()
        if row is not None and row[0] is not None:
            connection.execute(
                "UPDATE memories SET expires_at = ? WHERE namespace = ? AND key = ?",
                (to_text(now + timedelta(minutes=row[0])), *ref),
            )


def sweep(connection: Connection, now: datetime) -> int:
    rows = connection.execute("SELECT namespace, position FROM memories WHERE expires_at <= ?", (to_text(now),))
    return delete(connection, rows.fetchall())


def delete(connection: Connection, refs: Sequence[ItemRef]) -> int:
    """Delete items together with their words and vectors."""
    unindex(connection, refs)
    connection.executemany("DELETE FROM memories WHERE namespace = ? AND position = ?", refs)
    _delete_empty_scopes(connection, refs)
    return len(refs)


def _delete_empty_scopes(connection: Connection, refs: Sequence[ItemRef]) -> None:
    for namespace in {namespace for namespace, _ in refs}:
        scope_id = posting_lists.find_scope(connection, "item", namespace)
        if scope_id is not None:
            posting_lists.delete_if_empty(connection, scope_id)


def move(connection: Connection, refs: Sequence[ItemRef], namespace: str) -> None:
    """Move items to another namespace, after the items there; they are indexed there again."""
    unindex(connection, refs)
    last = _reserve_positions(connection, namespace, len(refs))
    connection.executemany(
        "UPDATE memories SET namespace = ?, position = ?, embedded = embedded * 0 WHERE namespace = ? AND position = ?",
        [(namespace, last + number, *ref) for number, ref in enumerate(sorted(refs), 1)],
    )
    _delete_empty_scopes(connection, refs)


def restore(connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert items of an archive, in the order of first put, except under keys that were put again since."""
    for row in sorted(rows, key=lambda row: row.get("position") or 0):
        item = {
            **{name: row[name] for name in _ARCHIVED if name in row},
            "position": _reserve_positions(connection, row["namespace"], 1) + 1,
            "embedded": None if row.get("embedded") is None else 0,
        }
        connection.execute(
            f"INSERT INTO memories ({', '.join(item)}) VALUES ({', '.join('?' * len(item))})"
            " ON CONFLICT (namespace, key) DO NOTHING",
            list(item.values()),
        )
