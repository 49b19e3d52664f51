"""The items of other SDKs' conversations in SQLite."""

from __future__ import annotations

import json
from collections.abc import Sequence

from session_middleware.storage.record_entries import Attachment
from session_middleware.storage.sql.connection import UNLIMITED, Connection
from session_middleware.storage.sql.record import reads, tool_call_rows
from session_middleware.storage.sql.session_state import SessionWrite
from session_middleware.storage.types import ConversationItemPut, StoredItem


def append(connection: SessionWrite, session_id: str, items: Sequence[ConversationItemPut]) -> None:
    (last,) = connection.execute(
        "SELECT COALESCE(MAX(position), 0) FROM conversation_items WHERE session_id = ?", (session_id,)
    ).fetchone()
    connection.executemany(
        "INSERT INTO conversation_items (session_id, position, item, message_id, files) VALUES (?, ?, ?, ?, ?)",
        [
            (session_id, last + place, json.dumps(put.item), put.message_id, _names(put.files))
            for place, put in enumerate(items, 1)
        ],
    )
    for put in items:
        tool_call_rows.store_files(connection, session_id, put.files)


def _names(files: Sequence[Attachment]) -> str | None:
    return json.dumps([file.hash for file in files]) if files else None


def list_items(connection: Connection, session_id: str, *, limit: int | None = None) -> list[StoredItem]:
    return [item for _, item, _ in _list_last(connection, session_id, limit)]


def _list_last(connection: Connection, session_id: str, limit: int | None) -> list[tuple[int, StoredItem, str]]:
    rows = connection.execute(
        "SELECT position, item, message_id, files FROM conversation_items WHERE session_id = ? AND removed = 0"
        " ORDER BY position DESC LIMIT ?",
        (session_id, UNLIMITED if limit is None else limit),
    ).fetchall()
    return [
        (position, StoredItem(json.loads(item), _files(connection, session_id, json.loads(names or "[]"))), message_id)
        for position, item, message_id, names in reversed(rows)
    ]


def _files(connection: Connection, session_id: str, names: Sequence[str]) -> dict[str, bytes]:
    found = {name: reads.find_file(connection, session_id, name) for name in names}
    return {name: data for name, data in found.items() if data is not None}


def remove(connection: SessionWrite, session_id: str, limit: int | None) -> list[StoredItem]:
    found = _list_last(connection.connection, session_id, limit)
    for position, _, message_id in found:
        connection.execute(
            "UPDATE conversation_items SET removed = 1 WHERE session_id = ? AND position = ?", (session_id, position)
        )
        connection.execute(
            "UPDATE messages SET marks = json_insert(COALESCE(marks, '[]'), '$[#]', 'removed')"
            " WHERE session_id = ? AND message_id = ?",
            (session_id, message_id),
        )
    return [item for _, item, _ in found]
