"""Memory items in SQLite: JSON values by namespace and key, their time to live, and their words in the index."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any

from session_middleware.models import from_text, to_text
from session_middleware.storage.filters import passes
from session_middleware.storage.memory_types import MemoryPut, MemoryQuery, StoredMemory
from session_middleware.storage.search.bm25 import ITEM, LENGTHS, Statistics, length_code
from session_middleware.storage.search.tokenizer import terms_of
from session_middleware.storage.sql.memory import posting_lists
from session_middleware.storage.sql.memory.posting_lists import PART_BITS, PostingsByRow
from session_middleware.storage.sql.row_mapping import namespace_text

_COLUMNS = "namespace, key, value, text, session_id, created_at, updated_at, message_id, expires_at, paths"
_LIVE = "(expires_at IS NULL OR expires_at > ?)"


# Putting

# What all of a put have in common is bound once, and a statement takes many of its items: most of what an
# insert of a row by itself costs is binding.
_INSERT = """
    INSERT INTO memories (namespace, paths, session_id, message_id, created_at, updated_at, expires_at, ttl_minutes,
        embedded, indexed, key, value, text)
    SELECT ?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7, CASE WHEN column3 IS NOT NULL THEN ?8 END, column3 IS NULL,
        column1, column2, column3
    FROM (VALUES (?, ?, ?){more}) WHERE true ON CONFLICT (namespace, key) DO NOTHING
"""
_INSERTS = {size: _INSERT.format(more=", (?, ?, ?)" * (size - 1)) for size in (100, 10, 1)}
_UPDATE = """
    UPDATE memories SET paths = ?2, session_id = ?3, message_id = ?4, updated_at = ?5, expires_at = ?6,
        ttl_minutes = ?7, embedded = CASE WHEN ?11 IS NOT NULL THEN ?8 END, indexed = ?11 IS NULL,
        value = ?10, text = ?11, created_at = CASE WHEN expires_at <= ?5 THEN ?5 ELSE created_at END
    WHERE namespace = ?1 AND key = ?9
"""  # what comes after its end is new


def put(connection: sqlite3.Connection, puts: Sequence[MemoryPut], now: datetime) -> None:
    """Store them; what they say is indexed later, or read from here by a search that comes before that."""
    for each in puts:
        namespace, *_ = shared = _shared(each, now)
        gone = [key for key, value, _ in each.items if value is None]
        delete(connection, list(_find(connection, namespace, gone).values()))
        last = connection.execute("SELECT MAX(id) FROM memories").fetchone()[0] or 0
        kept = [item for item in each.items if item[1] is not None]
        if _insert(connection, shared, kept) == len(kept):
            continue
        found = _find(connection, namespace, [key for key, _, _ in kept])
        known = {key: number for key, number in found.items() if number <= last}
        unindex(connection, list(known.values()))
        connection.executemany(_UPDATE, [(*shared, *item) for item in kept if item[0] in known])


def _shared(put: MemoryPut, now: datetime) -> tuple[Any, ...]:
    """The first parameters of the statements above."""
    return (
        namespace_text(put.namespace),
        None if put.paths is None else json.dumps(list(put.paths)),
        put.session_id,
        put.message_id,
        to_text(now),
        None if put.ttl is None else to_text(now + put.ttl),
        None if put.ttl is None else put.ttl.total_seconds() / 60,
        0 if put.embed else None,
    )


def _insert(connection: sqlite3.Connection, shared: tuple[Any, ...], items: Sequence[Sequence[Any]]) -> int:
    """Those that are not there; how many."""
    inserted = first = 0
    for size, statement in _INSERTS.items():
        while first + size <= len(items):
            some = chain.from_iterable(items[first : first + size])
            inserted += connection.execute(statement, (*shared, *some)).rowcount
            first += size
    return inserted


def _find(connection: sqlite3.Connection, namespace: str, keys: Sequence[str]) -> dict[str, int]:
    """The ids of those of these keys that are there. One by one: as JSON, a key would end at a NUL."""
    found = {}
    for key in keys:
        row = connection.execute("SELECT id FROM memories WHERE namespace = ? AND key = ?", (namespace, key)).fetchone()
        if row is not None:
            found[key] = int(row[0])
    return found


# Indexing


def backlog(connection: sqlite3.Connection, up_to: int) -> int:
    """How many items are not indexed; counted no further than `up_to`."""
    return int(
        connection.execute(
            "SELECT COUNT(*) FROM (SELECT 1 FROM memories INDEXED BY memories_to_index WHERE indexed = 0 LIMIT ?)",
            (up_to,),
        ).fetchone()[0]
    )


def index_some(connection: sqlite3.Connection, limit: int) -> int:
    """Index the words of the next items, at most `limit`; how many that was."""
    rows = connection.execute(
        "SELECT id, namespace, text FROM memories INDEXED BY memories_to_index WHERE indexed = 0 ORDER BY id LIMIT ?",
        (limit,),
    ).fetchall()
    adding = _Adding(connection)
    for number, namespace, text in rows:
        adding.add(namespace, number, text)
    adding.finish()
    connection.executemany("UPDATE memories SET indexed = 1 WHERE id = ?", [(number,) for number, _, _ in rows])
    return len(rows)


def unindexed(
    connection: sqlite3.Connection, namespaces: Sequence[tuple[str, ...]], *, prefix: bool
) -> dict[int, list[str]]:
    """The terms of the items in these namespaces that are not indexed yet, by their place."""
    if not namespaces:
        return {}
    where, values = _visible(namespaces, prefix=prefix)
    rows = connection.execute(
        f"SELECT id, text FROM memories INDEXED BY memories_to_index WHERE indexed = 0 AND ({where})", values
    )
    return {ITEM | number: terms_of(text) for number, text in rows}


def unindex(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Take the words and vectors of items out of the index; what they said tells which those are."""
    rows = connection.execute(
        "SELECT namespace, m.id, text FROM json_each(?) AS wanted CROSS JOIN memories AS m ON m.id = wanted.value"
        " WHERE indexed AND text IS NOT NULL ORDER BY namespace, m.id",
        (json.dumps(ids),),
    ).fetchall()
    for namespace, said in groupby(rows, itemgetter(0)):
        scope_id = posting_lists.make_scope(connection, "item", namespace)
        _unindex(connection, scope_id, {ITEM | number: terms_of(text) for _, number, text in said})
        posting_lists.drop_empty(connection, scope_id)


def _unindex(connection: sqlite3.Connection, scope_id: int, terms: Mapping[int, Sequence[str]]) -> None:
    """By place, in order. Each row of the index is written once a part, however many of it go."""
    for part, places in groupby(terms, lambda place: place >> PART_BITS):
        gone = set(places)
        posting_lists.remove(connection, scope_id, part, chain.from_iterable(terms[place] for place in gone), gone)
    figures = sum(map(figures_of, terms.values()), Statistics(0, 0, 0))
    posting_lists.count(connection, scope_id, Statistics(*(-figure for figure in figures)))
    connection.executemany(
        "DELETE FROM vectors WHERE scope_id = ? AND place = ?", [(scope_id, place) for place in terms]
    )


class _Adding:
    """Collects what the items of one batch add to the index, and adds it at once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._scopes: dict[str, tuple[int, Statistics]] = {}
        self._rows: PostingsByRow = {}

    def add(self, namespace: str, number: int, text: str) -> None:
        if namespace not in self._scopes:
            scope_id = posting_lists.make_scope(self._connection, "item", namespace)
            self._scopes[namespace] = scope_id, Statistics(0, 0, 0)
        scope_id, figures = self._scopes[namespace]
        terms = terms_of(text)
        posting_lists.merge(self._rows, posting_lists.postings_of(scope_id, ITEM | number, terms))
        self._scopes[namespace] = scope_id, figures + figures_of(terms)

    def finish(self) -> None:
        posting_lists.add(self._connection, self._rows)
        for scope_id, figures in self._scopes.values():
            posting_lists.count(self._connection, scope_id, figures)


def figures_of(terms: Sequence[str]) -> Statistics:
    """What one item adds to its scope's figures."""
    return Statistics(1, LENGTHS[length_code(len(terms))], 1)


# Getting


def get(
    connection: sqlite3.Connection, keys: Sequence[tuple[tuple[str, ...], str]], now: datetime
) -> list[StoredMemory | None]:
    found: list[StoredMemory | None] = []
    for namespace, key in keys:
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM memories WHERE namespace = ? AND key = ? AND {_LIVE}",
            (namespace_text(namespace), key, to_text(now)),
        ).fetchone()
        found.append(None if row is None else _stored(row))
    return found


def get_by_id(connection: sqlite3.Connection, id: int, now: datetime) -> StoredMemory | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM memories WHERE id = ? AND {_LIVE}", (id, to_text(now))).fetchone()
    return None if row is None else _stored(row)


def get_any(connection: sqlite3.Connection, id: int) -> StoredMemory:
    """Also one that has expired and was not swept yet."""
    return _stored(connection.execute(f"SELECT {_COLUMNS} FROM memories WHERE id = ?", (id,)).fetchone())


def list_(connection: sqlite3.Connection, query: MemoryQuery, now: datetime) -> list[StoredMemory]:
    """The page of what passes the filter, first put first."""
    where, values = _visible(query.namespaces, prefix=query.prefix)
    since = "" if query.since is None else to_text(query.since)
    statement = f"SELECT {_COLUMNS} FROM memories WHERE ({where}) AND {_LIVE} AND created_at >= ? ORDER BY id"
    values += [to_text(now), since]
    if not query.filter:
        rows = connection.execute(f"{statement} LIMIT ? OFFSET ?", (*values, query.limit, query.offset))
        return [_stored(row) for row in rows]
    passing = (item for item in map(_stored, connection.execute(statement, values)) if passes(item.value, query.filter))
    return list(islice(islice(passing, query.offset, None), query.limit))


def list_others(
    connection: sqlite3.Connection, query: MemoryQuery, now: datetime, ids: Collection[int], limit: int
) -> list[StoredMemory]:
    """The first of those in the scope of the query that pass its filter and are none of `ids`."""
    where, values = _visible(query.namespaces, prefix=query.prefix)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM memories WHERE ({where}) AND {_LIVE}"
        " AND id NOT IN (SELECT value FROM json_each(?)) ORDER BY id",
        (*values, to_text(now), json.dumps(list(ids))),
    )
    return list(islice((item for item in map(_stored, rows) if passes(item.value, query.filter)), limit))


def _visible(
    namespaces: Sequence[tuple[str, ...]], *, prefix: bool, column: str = "namespace"
) -> tuple[str, list[Any]]:
    if prefix and () in namespaces:
        return "1", []
    exact = [namespace_text(namespace) for namespace in namespaces]
    if not prefix:  # one parameter: thousands of them, or of ORs, are more than SQLite takes
        return f"{column} IN (SELECT value FROM json_each(?))", [json.dumps(exact)]
    # ["a" is followed by , in whatever lies below it, and - comes after ,
    below = [bound for text in exact for bound in (text, text[:-1] + ",", text[:-1] + "-")]
    return " OR ".join([f"{column} = ? OR {column} >= ? AND {column} < ?"] * len(exact)) or "0", below


def scope_ids(connection: sqlite3.Connection, namespaces: Sequence[tuple[str, ...]], *, prefix: bool) -> list[int]:
    """The scopes of the index that these namespaces, or all below them, have."""
    where, values = _visible(namespaces, prefix=prefix, column="name")
    rows = connection.execute(f"SELECT id FROM index_scopes WHERE kind = 'item' AND ({where})", values)
    return [scope_id for (scope_id,) in rows]


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


def list_namespaces(connection: sqlite3.Connection, now: datetime) -> list[tuple[str, ...]]:
    """From one namespace to the next, so that their number is what it costs."""
    rows = connection.execute(
        "WITH RECURSIVE following (name) AS (SELECT MIN(namespace) FROM memories UNION ALL"
        " SELECT (SELECT MIN(namespace) FROM memories WHERE namespace > name) FROM following WHERE name IS NOT NULL)"
        " SELECT name FROM following WHERE EXISTS"
        " (SELECT 1 FROM memories WHERE namespace = name AND (expires_at IS NULL OR expires_at > ?))",
        (to_text(now),),
    )
    return sorted(tuple(json.loads(namespace)) for (namespace,) in rows)


# Time to live


def refresh(connection: sqlite3.Connection, keys: Collection[tuple[tuple[str, ...], str]], now: datetime) -> None:
    """Give items that have a time to live all of it again."""
    for namespace, key in keys:
        at = (namespace_text(namespace), key)
        row = connection.execute(
            f"SELECT ttl_minutes FROM memories WHERE namespace = ? AND key = ? AND {_LIVE}", (*at, to_text(now))
        ).fetchone()
        if row is not None and row[0] is not None:
            connection.execute(
                "UPDATE memories SET expires_at = ? WHERE namespace = ? AND key = ?",
                (to_text(now + timedelta(minutes=row[0])), *at),
            )


def sweep(connection: sqlite3.Connection, now: datetime) -> int:
    due = connection.execute("SELECT id FROM memories WHERE expires_at <= ?", (to_text(now),))
    return delete(connection, [number for (number,) in due])


def delete(connection: sqlite3.Connection, ids: Sequence[int]) -> int:
    """Delete items, and all that the index has of them."""
    unindex(connection, ids)
    connection.executemany("DELETE FROM memories WHERE id = ?", [(number,) for number in ids])
    return len(ids)


def move(connection: sqlite3.Connection, ids: Sequence[int], namespace: str) -> None:
    """Move items to another namespace; they are indexed there anew."""
    unindex(connection, ids)
    connection.executemany(
        "UPDATE memories SET namespace = ?, indexed = text IS NULL, embedded = embedded AND 0 WHERE id = ?",
        [(namespace, number) for number in ids],
    )
