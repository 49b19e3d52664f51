"""The items of other SDKs' conversations in SQLite."""

from __future__ import annotations

import json
from collections.abc import Sequence

from session_middleware.storage.record_entries import Attachment
from session_middleware.storage.sql.connection import UNLIMITED, Connection
from session_middleware.storage.sql.record import reads, tool_call_rows
from session_middleware.storage.sql.session_state import SessionWrite
from session_middleware.storage.types import ConversationItemPut, StoredItem


def append(write: SessionWrite, session_id: str, items: Sequence[ConversationItemPut]) -> None:
    sql = "SELECT COALESCE(MAX(position), 0) FROM conversation_items WHERE session_id = ?"
    (last,) = write.query(sql, (session_id,)).fetchone()
    rows = [
        (session_id, position, json.dumps(put.item), put.message_id, _hashes(put.files))
        for position, put in enumerate(items, last + 1)
    ]
    write.insert("conversation_items", ("session_id", "position", "item", "message_id", "files"), rows)
    for put in items:
        tool_call_rows.store_files(write, session_id, put.files)


def _hashes(files: Sequence[Attachment]) -> str | None:
    return json.dumps([file.hash for file in files]) if files else None


def list_items(connection: Connection, session_id: str, *, limit: int | None = None) -> list[StoredItem]:
    return [item for _, item, _ in _list_last(connection, session_id, limit)]


def _list_last(connection: Connection, session_id: str, limit: int | None) -> list[tuple[int, StoredItem, str]]:
    """Return the last items in order, each between its position and the id of its message."""
    rows = connection.execute(
        "SELECT position, item, message_id, files FROM conversation_items WHERE session_id = ? AND removed = 0"
        " ORDER BY position DESC LIMIT ?",
        (session_id, UNLIMITED if limit is None else limit),
    ).fetchall()
    found = []
    for position, item, message_id, hashes in reversed(rows):
        files = {name: reads.find_file(connection, session_id, name) for name in json.loads(hashes or "[]")}
        stored = {name: data for name, data in files.items() if data is not None}
        found.append((position, StoredItem(json.loads(item), stored), message_id))
    return found


def remove(write: SessionWrite, session_id: str, limit: int | None) -> list[StoredItem]:
    found = _list_last(write.connection, session_id, limit)
    write.executemany(
        "UPDATE conversation_items SET removed = 1 WHERE session_id = ? AND position = ?",
        [(session_id, position) for position, *_ in found],
    )
    write.executemany(
        "UPDATE messages SET flags = json_insert(COALESCE(flags, '[]'), '$[#]', 'removed')"
        " WHERE session_id = ? AND message_id = ?",
        [(session_id, message_id) for *_, message_id in found],
    )
    return [item for _, item, _ in found]
