"""Messages in SQLite, read page by page: as a branch has them, in the order of the conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from session_middleware.models import Message
from session_middleware.storage.sql.connection import UNLIMITED, Connection
from session_middleware.storage.sql.record import branches, deletions
from session_middleware.storage.sql.record.branches import MAIN
from session_middleware.storage.sql.record.message_rows import rows_of
from session_middleware.storage.sql.row_mapping import values_of


def list_messages(
    connection: Connection,
    session_id: str,
    *,
    after: int,
    limit: int | None,
    all_versions: bool,
    branch: str | None,
) -> list[Message]:
    session = connection.execute(_SHAPE, (session_id,)).fetchone()
    if session is None:
        return []
    if branch == "all" or ((branch or session[0]) == MAIN and not session[1]):  # in the order it was written
        if branch != "all" and after and (gone := _deleted_at(connection, session_id, after)) is not None:
            after = int(gone.place)
        cursor = connection.execute(
            "SELECT * FROM messages WHERE session_id = ? AND seq > ? AND (? OR replaced_by IS NULL)"
            " ORDER BY seq LIMIT ?",
            (session_id, after, all_versions, UNLIMITED if limit is None else limit),
        )
        return values_of(Message, cursor)
    messages = values_of(Message, rows_of(connection, "*", session_id, branch or session[0]))
    if not all_versions:
        messages = list({message.message_id: message for message in messages}.values())
    messages.sort(key=lambda message: (message.place, message.seq))
    return messages[_start(connection, session_id, messages, after) :][:limit]


def _start(connection: Connection, session_id: str, messages: Sequence[Message], after: int) -> int:
    """How many of the messages somebody has had who has read as far as `after`.

    That may be an older version, a message that was deleted, or one of another branch: then what both
    lines have up to there.
    """
    if not after:
        return 0
    if (start := _behind(messages, lambda message: message.seq == after)) is not None:
        return start
    row = connection.execute(
        "SELECT message_id, place, branch FROM messages WHERE session_id = ? AND seq = ?", (session_id, after)
    ).fetchone()
    gone = None if row is not None else _deleted_at(connection, session_id, after)
    message_id, place, branch = row or ((gone.message_id, gone.place, gone.branch) if gone else ("", after, MAIN))
    if (start := _behind(messages, lambda message: message.message_id == message_id)) is not None:
        return start
    line = branches.line(connection, session_id, branch)
    seen = {(message.branch, message.seq) for message in messages if message.place <= place}
    shared = {(of, seq) for of, seq in seen for ours, upto in line if of == ours and seq <= upto}
    return _behind(messages, lambda message: (message.branch, message.seq) in shared) or 0


def _behind(messages: Sequence[Message], is_it: Callable[[Message], bool]) -> int | None:
    """How many messages there are up to the last one for which `is_it` is true."""
    return next((number for number in range(len(messages), 0, -1) if is_it(messages[number - 1])), None)


def _deleted_at(connection: Connection, session_id: str, seq: int) -> deletions.DeletedMessage | None:
    return next((each for each in deletions.deleted(connection, session_id) if seq in each.seqs), None)


# A session that has neither moved messages nor branches is read in the order it was written.
_SHAPE = """
    SELECT branch, EXISTS (SELECT 1 FROM messages WHERE session_id = sessions.id AND place != seq)
    OR EXISTS (SELECT 1 FROM branches WHERE session_id = sessions.id)
    FROM sessions WHERE id = ?
"""
