"""Deleting a message from the record, with its files and memories.

A graph's state may still contain the message. So the event of the deletion names it, and it is not recorded again. A
history without ids is compared with the content, of which the event has only a short digest, which reveals next to
nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from session_middleware.storage.sql.connection import Connection, among
from session_middleware.storage.sql.memory import memories
from session_middleware.storage.sql.sessions import events
from session_middleware.storage.titles import UNTITLED, title_of

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_DIGITS = 4  # of a digest: one text in 65,536 has the same


class DeletedMessage(NamedTuple):
    """A deleted message, as its event describes it."""

    message_id: str
    position: float
    branch: str
    digests: Sequence[str]  # of its versions
    seqs: Sequence[int] = ()

    def is_same(self, words: bytes) -> bool:
        return _digest(self.message_id, words) in self.digests


def in_bytes(words: Sequence[Any]) -> bytes:
    """Return the content of a message as deleted ones are compared with it."""
    return json.dumps(words).encode()


def _digest(message_id: str, words: bytes) -> str:
    return hashlib.sha256(message_id.encode() + words).hexdigest()[:_DIGITS]


def delete_message(connection: Connection, session_id: str, message_id: str, now: datetime) -> int:
    """Delete all versions of a message; returns their number."""
    rows = connection.execute(
        "DELETE FROM messages WHERE session_id = ? AND message_id = ?"
        " RETURNING version, COALESCE(content, '') || COALESCE(extra, ''), position, branch,"
        " role, text, content, tool_calls, tool_call_id, seq",
        (session_id, message_id),
    ).fetchall()
    if not rows:
        return 0
    rows.sort()
    connection.execute(
        "UPDATE sessions SET message_count = message_count - ? WHERE id = ?",
        (sum(row[0] == 1 for row in rows), session_id),
    )
    made = {title for row in rows if row[4] == "user" and (title := title_of(row[5]))}
    those, titles = among("title", made)
    sql = f"UPDATE sessions SET title = NULL, title_key = ? WHERE id = ? AND {those}"
    connection.execute(sql, (UNTITLED, session_id, *titles))
    connection.execute(
        "DELETE FROM conversation_items WHERE session_id = ? AND message_id = ?", (session_id, message_id)
    )
    _delete_files(connection, session_id, {name for _, content, *_ in rows for name in _HASH.findall(content)})
    memories.remove_deleted(connection, session_id, now)
    seqs = [row[-1] for row in rows]
    digests = [_digest(message_id, in_bytes(row[4:-1])) for row in rows]
    detail = {"message_id": message_id, "versions": len(rows), "position": rows[0][2], "branch": rows[0][3]}
    events.append(connection, session_id, "message_deleted", None, {**detail, "digests": digests, "seqs": seqs}, now)
    return len(rows)


def _delete_files(connection: Connection, session_id: str, names: Iterable[str]) -> None:
    """Delete the files that nothing else in the session refers to."""
    for name in names:
        connection.execute(
            "DELETE FROM files WHERE session_id = ?1 AND hash = ?2"
            " AND NOT EXISTS (SELECT 1 FROM messages WHERE session_id = ?1"
            " AND (instr(content, ?2) > 0 OR instr(extra, ?2) > 0))"
            " AND NOT EXISTS (SELECT 1 FROM tool_calls WHERE session_id = ?1"
            " AND (instr(result, ?2) > 0 OR instr(artifact, ?2) > 0 OR instr(arguments, ?2) > 0))"
            " AND NOT EXISTS (SELECT 1 FROM conversation_items WHERE session_id = ?1 AND instr(files, ?2) > 0)",
            (session_id, name),
        )


def deleted(connection: Connection, session_id: str) -> list[DeletedMessage]:
    """The messages that were deleted from a session."""
    rows = connection.execute(
        "SELECT detail FROM events WHERE session_id = ? AND kind = 'message_deleted'", (session_id,)
    )
    details = [json.loads(text) for (text,) in rows]
    names = DeletedMessage._fields
    return [DeletedMessage(**{name: detail[name] for name in names if name in detail}) for detail in details]
