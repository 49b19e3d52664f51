"""What the record says of a repair: the event, and the calls that were never finished."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from session_middleware.models import Message, RepairedCall, ToolCall
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.row_mapping import clean, values_of
from session_middleware.storage.sql.sessions import events


def find_executions(
    connection: Connection, session_id: str, tool_call_ids: Sequence[str]
) -> tuple[list[ToolCall], list[Message]]:
    found: list[ToolCall] = []
    for tool_call_id in tool_call_ids:
        cursor = connection.execute(
            "SELECT * FROM tool_calls WHERE session_id = ? AND tool_call_id = ?", (session_id, clean(tool_call_id))
        )
        found += values_of(ToolCall, cursor)
    finished = dict.fromkeys(call.tool_call_id for call in found if call.status in ("ok", "error"))
    answers = _find_answers(connection, session_id, list(finished)) if finished else []
    return sorted(found, key=lambda call: call.seq), answers


def _find_answers(connection: Connection, session_id: str, tool_call_ids: Sequence[str]) -> list[Message]:
    marks = ", ".join("?" * len(tool_call_ids))
    cursor = connection.execute(
        f"SELECT * FROM messages WHERE session_id = ? AND tool_call_id IN ({marks}) AND replaced_by IS NULL"
        " ORDER BY seq",
        (session_id, *map(clean, tool_call_ids)),
    )
    return values_of(Message, cursor)


def append(
    connection: Connection,
    session_id: str,
    calls: Sequence[RepairedCall],
    *,
    run_id: str | None,
    reason: str,
    detail: dict[str, Any],
    now: datetime,
) -> None:
    for call in calls:
        if call.answer == "interrupted":
            _interrupt(connection, session_id, call)
    named = [{"id": call.tool_call_id, "name": call.name, "answer": call.answer} for call in calls]
    detail = {**detail, "tool_calls": named}
    events.append(connection, session_id, "repaired", reason, detail, now, run_id=run_id)


def _interrupt(connection: Connection, session_id: str, call: RepairedCall) -> None:
    """The row that the answer alone made, as of a call nobody saw executed, and any that was cut off."""
    made = connection.execute(
        "UPDATE tool_calls SET status = 'interrupted', result = NULL, error = NULL"
        " WHERE session_id = ? AND execution_id = ? AND status = 'error'",
        (session_id, call.answer_id),
    ).rowcount
    if made:  # it counted as a failure
        connection.execute("UPDATE sessions SET error_count = error_count - ? WHERE id = ?", (made, session_id))
    connection.execute(
        "UPDATE tool_calls SET status = 'interrupted' WHERE session_id = ? AND tool_call_id = ? AND status = 'running'",
        (session_id, clean(call.tool_call_id)),
    )
