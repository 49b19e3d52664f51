"""Memories in SQLite: what ties items, the index and vectors to their sessions."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from session_middleware.models import Message
from session_middleware.storage.memory_types import MemoryQuery, StoredMemory
from session_middleware.storage.sql.memory import indexing, items, phrases, recall
from session_middleware.storage.sql.row_mapping import namespace_text, values_of

_SAID = (
    "replaced_by IS NULL AND COALESCE(marks, '') NOT LIKE '%\"memory\"%'"  # by anybody but our memory tools
    " AND COALESCE(marks, '') NOT LIKE '%\"resume\"%'"
)


def search(connection: sqlite3.Connection, query: MemoryQuery, now: datetime) -> list[StoredMemory]:
    if query.query is None and query.vector is None:
        return items.list_(connection, query, now)
    if query.as_written:
        return phrases.search(connection, query)
    if query.only_vector and query.vector is not None:
        return recall.nearest(connection, query, now)
    return recall.search(connection, query, now)


def refresh(connection: sqlite3.Connection, now: datetime) -> None:
    """Take what was changed or deleted since it was indexed out of the index, and what came from it with it."""
    indexing.refresh(connection)
    items.sweep(connection, now)


def list_messages_around(
    connection: sqlite3.Connection, session_id: str, seq: int | None, before: int, after: int
) -> list[Message]:
    if seq is None:
        return _up_to(connection, session_id, sys.maxsize, before)
    first = _up_to(connection, session_id, seq, before + 1)
    rest = connection.execute(
        f"SELECT * FROM messages WHERE session_id = ? AND seq > ? AND {_SAID} ORDER BY seq LIMIT ?",
        (session_id, seq, after),
    )
    return [*first, *values_of(Message, rest)]


def _up_to(connection: sqlite3.Connection, session_id: str, seq: int, count: int) -> list[Message]:
    cursor = connection.execute(
        f"SELECT * FROM messages WHERE session_id = ? AND seq <= ? AND {_SAID} ORDER BY seq DESC LIMIT ?",
        (session_id, seq, count),
    )
    return values_of(Message, cursor)[::-1]


# With their session


def rename(connection: sqlite3.Connection, session_id: str, to: str) -> None:
    by_namespace: dict[str, list[int]] = {}
    for number, namespace in connection.execute(
        "SELECT id, namespace FROM memories WHERE namespace = ? OR namespace >= ? AND namespace < ?",
        own_namespaces(session_id),
    ):
        by_namespace.setdefault(renamed(namespace, session_id, to), []).append(number)
    for namespace, ids in by_namespace.items():
        items.move(connection, ids, namespace)
    connection.execute("UPDATE memories SET session_id = ? WHERE session_id = ?", (to, session_id))
    indexing.rename_session(connection, session_id, to)


def renamed(namespace: str, session_id: str, to: str) -> str:
    """A namespace that a session owns, as another session's."""
    return namespace_text(("session", to))[:-1] + namespace[len(namespace_text(("session", session_id))) - 1 :]


def delete_session(connection: sqlite3.Connection, session_id: str) -> int:
    """What the session remembers ends with it; what it gave to its user or group stays."""
    deleted = _delete_below(connection, ("session", session_id))
    indexing.forget_session(connection, session_id)
    return deleted


def delete_of_user(connection: sqlite3.Connection, user_id: str, session_ids: Sequence[str]) -> int:
    """What a user remembers, and what was remembered in these sessions, for whomever."""
    rows = connection.execute(
        "SELECT id FROM memories WHERE session_id IN (SELECT value FROM json_each(?))", (json.dumps(list(session_ids)),)
    )
    return items.delete(connection, [number for (number,) in rows]) + _delete_below(connection, ("user", user_id))


def _delete_below(connection: sqlite3.Connection, namespace: tuple[str, ...]) -> int:
    rows = connection.execute(
        "SELECT id FROM memories WHERE namespace = ? OR namespace >= ? AND namespace < ?", _range(namespace)
    )
    return items.delete(connection, [number for (number,) in rows])


def as_not_indexed(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an item's row has where it comes back, of columns that say what the index has of it."""
    return {"indexed": row["text"] is None, "embedded": None if row.get("embedded") is None else 0}


def own_namespaces(session_id: str) -> tuple[str, str, str]:
    """The namespace a session owns, and the range of those below it."""
    return _range(("session", session_id))


def _range(namespace: tuple[str, ...]) -> tuple[str, str, str]:
    exact = namespace_text(namespace)
    return exact, exact[:-1] + ",", exact[:-1] + "-"
