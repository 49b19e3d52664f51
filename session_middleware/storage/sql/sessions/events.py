"""Events: what happened to a session, in its record and for the hooks of this process."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from session_middleware.models import Event, to_text
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.row_mapping import to_json
from session_middleware.storage.sql.session_state import SessionWrite

_RECENT = timedelta(hours=1)  # within it, the same refusal again is counted and not told again
_NEAR = 50  # rows of the record that are looked at for it
_OTHERS = "(others)"
_TOLD_APART = 10  # of those who are refused in that time; the others are counted together


def append(
    connection: Connection,
    session_id: str,
    kind: str,
    reason: str | None,
    detail: dict[str, Any],
    now: datetime,
    *,
    run_id: str | None = None,
) -> int | None:
    """Its seq; ``None`` when the session is not there."""
    seq = runs.next_seq(connection, session_id)
    if seq is not None:
        connection.execute(
            "INSERT INTO events (session_id, seq, run_id, kind, reason, detail, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (session_id, seq, run_id, kind, reason, to_json(detail), to_text(now)),
        )
    return seq


def insert(write: SessionWrite, kind: str, now: datetime, *, run_id: str | None) -> None:
    """As `record`, with the other rows of an operation."""
    seq = write.counters.next_seq()
    write.insert("events", _COLUMNS, [(write.state.session_id, seq, run_id, kind, None, "{}", to_text(now))])
    record_and_announce(write.raw, write.state.session_id, kind, None, now, run_id=run_id, seq=seq)


_COLUMNS = ("session_id", "seq", "run_id", "kind", "reason", "detail", "created_at")


def record(
    connection: Connection,
    session_id: str,
    kind: str,
    reason: str | None,
    now: datetime,
    *,
    detail: dict[str, Any] | None = None,
    run_id: str | None = None,
) -> None:
    """`append`, and `announce`."""
    seq = append(connection, session_id, kind, reason, detail or {}, now, run_id=run_id)
    record_and_announce(connection, session_id, kind, reason, now, detail=detail, run_id=run_id, seq=seq or 0)


def record_and_announce(
    connection: Connection,
    session_id: str,
    kind: str,
    reason: str | None,
    now: datetime,
    *,
    detail: dict[str, Any] | None = None,
    run_id: str | None = None,
    seq: int = 0,
) -> None:
    """Pass an event on to the hooks once the transaction is committed, if there are any for it."""
    if kind in connection.watched:
        plain = json.loads(to_json(detail) or "{}")
        event = Event(
            session_id=session_id, seq=seq, run_id=run_id, kind=kind, reason=reason, detail=plain, created_at=now
        )
        connection.written.append(event)


def deny(connection: Connection, session_id: str, reason: str, user_id: str | None, now: datetime) -> None:
    """A refusal. The same again within the hour makes the event there is say how often, and adds none.

    So that nobody fills the disk by it: of ever new names, only the first few have events of their own.
    """
    rows = connection.execute(
        "SELECT seq, detail FROM events WHERE session_id = ? AND kind = 'denied' AND reason = ? AND created_at > ?"
        " AND seq > (SELECT last_seq FROM sessions WHERE id = ?) - ?",
        (session_id, reason, to_text(now - _RECENT), session_id, _NEAR),
    )
    recent = [(seq, json.loads(text)) for seq, text in rows]
    if len(recent) >= _TOLD_APART and user_id not in [detail.get("user_id") for _, detail in recent]:
        user_id = _OTHERS
    for seq, detail in recent:
        if detail.get("user_id") == user_id:
            again = {**detail, "times": detail.get("times", 1) + 1, "last_at": to_text(now)}
            connection.execute(
                "UPDATE events SET detail = ? WHERE session_id = ? AND seq = ?", (to_json(again), session_id, seq)
            )
            return
    append(connection, session_id, "denied", reason, {"user_id": user_id}, now)
