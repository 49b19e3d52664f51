"""What the record says of a repair: the event, and the calls that were never finished."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from session_middleware.models import RepairedCall
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.row_mapping import clean
from session_middleware.storage.sql.sessions import events


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
