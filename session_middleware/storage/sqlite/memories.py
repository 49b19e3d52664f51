"""Memories in SQLite: items by namespace and key, and word search over their text."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from session_middleware.model import from_text, to_text
from session_middleware.storage.filters import passes
from session_middleware.storage.port import MemoryPut, MemoryQuery, StoredMemory

_COLUMNS = "namespace, key, value, memories.text, session_id, created_at, updated_at"


def namespace_text(namespace: tuple[str, ...]) -> str:
    """A namespace as JSON in ASCII: one text a namespace, and prefixes are ranges of it."""
    return json.dumps(namespace, separators=(",", ":"))


def put(connection: sqlite3.Connection, puts: Sequence[MemoryPut], now: datetime) -> None:
    for item in puts:
        namespace = namespace_text(item.namespace)
        if item.value is None:
            connection.execute("DELETE FROM memories WHERE namespace = ? AND key = ?", (namespace, item.key))
            continue
        connection.execute(
            "INSERT INTO memories (namespace, key, value, text, session_id, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value,"
            " text = excluded.text, session_id = excluded.session_id, updated_at = excluded.updated_at",
            (namespace, item.key, json.dumps(item.value), item.text, item.session_id, to_text(now), to_text(now)),
        )


def get(connection: sqlite3.Connection, keys: Sequence[tuple[tuple[str, ...], str]]) -> list[StoredMemory | None]:
    found: list[StoredMemory | None] = []
    for namespace, key in keys:
        row = connection.execute(
            f"SELECT {_COLUMNS}, NULL FROM memories WHERE namespace = ? AND key = ?",
            (namespace_text(namespace), key),
        ).fetchone()
        found.append(None if row is None else _stored(row))
    return found


def search(connection: sqlite3.Connection, query: MemoryQuery) -> list[StoredMemory]:
    where, values = _visible(query)
    if query.query is not None:
        words = match_expression(query.query)
        if words is None:
            return []
        rows = connection.execute(
            f"SELECT {_COLUMNS}, -bm25(memories_fts)"
            " FROM memories_fts JOIN memories ON memories.id = memories_fts.rowid"
            f" WHERE memories_fts MATCH ? AND ({where}) ORDER BY bm25(memories_fts), memories.id",
            (words, *values),
        )
    else:
        rows = connection.execute(f"SELECT {_COLUMNS}, NULL FROM memories WHERE {where} ORDER BY memories.id", values)
    passing = (item for item in map(_stored, rows) if passes(item.value, query.filter))
    return list(islice(islice(passing, query.offset, None), query.limit))


def _visible(query: MemoryQuery) -> tuple[str, list[Any]]:
    if query.prefix and () in query.namespaces:
        return "1", []
    exact = [namespace_text(namespace) for namespace in query.namespaces]
    if not query.prefix:  # one parameter: thousands of them, or of ORs, are more than SQLite takes
        return "namespace IN (SELECT value FROM json_each(?))", [json.dumps(exact)]
    # ["a" is followed by , in whatever lies below it, and - comes after ,
    below = [bound for text in exact for bound in (text, text[:-1] + ",", text[:-1] + "-")]
    return " OR ".join(["namespace = ? OR namespace >= ? AND namespace < ?"] * len(exact)) or "0", below


def match_expression(query: str) -> str | None:
    """The words of a query as an FTS5 expression: any of them, each as data; ``None`` without a word."""
    words = dict.fromkeys(re.findall(r"\w+", query.lower()))
    return " OR ".join(f'"{word}"' for word in list(words)[:64]) or None


def _stored(row: tuple[Any, ...]) -> StoredMemory:
    namespace, key, value, text, session_id, created_at, updated_at, score = row
    return StoredMemory(
        tuple(json.loads(namespace)),
        key,
        json.loads(value),
        text,
        session_id,
        from_text(created_at),
        from_text(updated_at),
        score,
    )


def list_namespaces(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    rows = connection.execute("SELECT DISTINCT namespace FROM memories ORDER BY namespace")
    return sorted(tuple(json.loads(namespace)) for (namespace,) in rows)


# With their session


def own_namespaces(session_id: str) -> tuple[str, str, str]:
    """The namespace a session owns, and the range of those below it."""
    exact = namespace_text(("session", session_id))
    return exact, exact[:-1] + ",", exact[:-1] + "-"


def rename(connection: sqlite3.Connection, session_id: str, to: str) -> None:
    old, new = namespace_text(("session", session_id))[:-1], namespace_text(("session", to))[:-1]
    connection.execute(
        "UPDATE memories SET namespace = ? || substr(namespace, ?)"
        " WHERE namespace = ? OR namespace >= ? AND namespace < ?",
        (new, len(old) + 1, *own_namespaces(session_id)),
    )
    connection.execute("UPDATE memories SET session_id = ? WHERE session_id = ?", (to, session_id))


def delete_session(connection: sqlite3.Connection, session_id: str) -> int:
    """What the session remembers ends with it; what it gave to its user or group stays."""
    deleted = connection.execute(
        "DELETE FROM memories WHERE namespace = ? OR namespace >= ? AND namespace < ?", own_namespaces(session_id)
    ).rowcount
    if deleted:  # the index keeps deleted words until its segments are merged
        connection.execute("INSERT INTO memories_fts (memories_fts) VALUES ('optimize')")
    return deleted


def delete_of_user(connection: sqlite3.Connection, user_id: str, session_ids: Sequence[str]) -> int:
    """What a user remembers, and what was remembered in these sessions, for whomever."""
    exact = namespace_text(("user", user_id))
    deleted = connection.execute(
        "DELETE FROM memories WHERE namespace = ? OR namespace >= ? AND namespace < ?",
        (exact, exact[:-1] + ",", exact[:-1] + "-"),
    ).rowcount
    deleted += connection.execute(
        "DELETE FROM memories WHERE session_id IN (SELECT value FROM json_each(?))", (json.dumps(list(session_ids)),)
    ).rowcount
    if deleted:
        connection.execute("INSERT INTO memories_fts (memories_fts) VALUES ('optimize')")
    return deleted
