"""Memories in SQL: items, the index and vectors together with their sessions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from session_middleware.models import Message
from session_middleware.storage.memory_types import MemoryQuery, StoredMemory
from session_middleware.storage.search.tokenizer import query_words
from session_middleware.storage.sql.connection import Connection, Cursor
from session_middleware.storage.sql.memory import indexing, items, recall
from session_middleware.storage.sql.row_mapping import namespace_text, values_of

# not answers of the memory tools
_SPOKEN = "replaced_by IS NULL AND COALESCE(flags, '') NOT LIKE '%\"memory\"%'"


def search(connection: Connection, query: MemoryQuery, now: datetime, can_index: bool) -> list[StoredMemory]:
    if query.query is None and query.vector is None:
        return items.list_(connection, query, now)
    if query.only_vector and query.vector is not None:
        return recall.nearest(connection, query, now)
    found = recall.search(connection, query, now, can_index)
    if query.typed and not found and not (query.offset and query_words(query.query or "")):
        return recall.search_as_written(connection, query)  # the query has no index words, or the last is unfinished
    return found


def remove_deleted(connection: Connection, session_id: str, now: datetime) -> None:
    """Remove a session's changed and deleted messages from the index, and the items that came from deleted ones."""
    indexing.remove_outdated(connection, [session_id])
    items.sweep(connection, now)


def list_messages_around(
    connection: Connection, places: Sequence[tuple[str, int | None]], *, before: int, after: int = 0
) -> list[list[Message]]:
    statements = [statement for place in places for statement in _around(*place, before, after)]
    for statement in statements:
        connection.prefetch(*statement)
    read = [values_of(Message, connection.execute(*statement)) for statement in statements]
    return [[*first[::-1], *rest] for first, rest in zip(read[::2], read[1::2], strict=True)]


def _around(session_id: str, seq: int | None, before: int, after: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    last, messages = seq or sys.maxsize, f"SELECT * FROM messages WHERE session_id = ? AND {_SPOKEN} AND seq"
    count = before if seq is None else before + 1
    yield f"{messages} <= ? ORDER BY seq DESC LIMIT ?", (session_id, last, count)
    yield f"{messages} > ? ORDER BY seq LIMIT ?", (session_id, last, after)


# With their session

_OF_NAMESPACE = "namespace >= ? AND namespace < ?"


def rename(connection: Connection, session_id: str, to: str) -> None:
    own, new = namespace_text(("session", session_id)), namespace_text(("session", to))
    connection.execute(
        f"UPDATE memories SET namespace = ? || substr(namespace, ?) WHERE {_OF_NAMESPACE}",
        (new[:-1], len(own), *items.range_of(own)),
    )
    connection.execute("UPDATE memories SET session_id = ? WHERE session_id = ?", (to, session_id))
    indexing.rename_session(connection, session_id, to)


def unite(connection: Connection, session_id: str, to: str) -> None:
    """Give the items of a session to another one, which keeps its own items of the same keys."""
    own, new = namespace_text(("session", session_id)), namespace_text(("session", to))
    connection.execute(
        f"DELETE FROM memories WHERE {_OF_NAMESPACE} AND EXISTS (SELECT 1 FROM memories AS known"
        " WHERE known.namespace = ? || substr(memories.namespace, ?) AND known.key = memories.key)",
        (*items.range_of(own), new[:-1], len(own)),
    )
    rename(connection, session_id, to)


def delete_sessions(connection: Connection, session_ids: Sequence[str]) -> Cursor:
    """Delete the own items of sessions, a server's notes, and their part of the index; those of a user or group stay.

    The cursor counts the items.
    """
    owned = [(root, each) for root in ("session", "langgraph") for each in session_ids]
    ranges = json.dumps([items.range_of(namespace_text(each)) for each in owned])
    indexing.remove_sessions(connection, session_ids)
    return connection.execute(_DELETE_RANGES, (ranges,))


_DELETE_RANGES = """
    DELETE FROM memories WHERE id IN (
        SELECT m.id FROM json_each(?) AS own CROSS JOIN memories AS m
        ON m.namespace >= CAST(json_extract(own.value, '$[0]') AS TEXT)
        AND m.namespace < CAST(json_extract(own.value, '$[1]') AS TEXT)
    )
"""


def delete_of_user(connection: Connection, user_id: str, session_ids: Sequence[str]) -> int:
    """Delete a user's items, and all items that were put in these sessions, in any scope."""
    return connection.execute(
        f"DELETE FROM memories WHERE session_id IN (SELECT value FROM json_each(?)) OR {_OF_NAMESPACE}",
        (json.dumps(list(session_ids)), *items.range_of(namespace_text(("user", user_id)))),
    ).rowcount
