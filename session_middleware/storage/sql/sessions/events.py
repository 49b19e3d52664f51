"""Events: the facts of a session's lifecycle, in its record and for the hooks of this process."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from session_middleware.models import Event, to_text
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.record import runs
from session_middleware.storage.sql.row_mapping import to_json
from session_middleware.storage.sql.session_state import SessionWrite

_RECENT = timedelta(hours=1)  # a refusal that is repeated within it is counted in the event of the first
_NEAR = 50  # latest rows of the record that are searched for it
_OTHERS = "(others)"
_MOST_USERS = 10  # with events of their own; further users share one


_COLUMNS = ("session_id", "seq", "run_id", "kind", "reason", "detail", "created_at")
_INSERT = f"INSERT INTO events ({', '.join(_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?)"


def append(
    connection: Connection,
    session_id: str,
    kind: str,
    reason: str | None,
    detail: dict[str, Any],
    now: datetime,
    *,
    run_id: str | None = None,
    is_announced: bool = False,
) -> bool:
    """Append an event to the record of a session, if it exists, and announce it. Returns whether the session exists."""
    seq = runs.next_seq(connection, session_id)
    if seq is not None:
        row = (session_id, seq, run_id, kind, reason, to_json(detail), to_text(now))
        connection.execute(_INSERT, row)
    if not is_announced:
        announce(connection, session_id, kind, reason, detail, now, run_id=run_id, seq=seq or 0)
    return seq is not None


def append_all(
    connection: Connection, found: Sequence[tuple[str, str, str | None, dict[str, Any]]], now: datetime
) -> None:
    """As `append`, for events of different sessions, whose `last_seq` the caller has incremented.

    Each is given as the session, kind, reason and detail.
    """
    numbered = connection.execute(
        "SELECT id, last_seq FROM sessions WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps([session_id for session_id, *_ in found]),),
    )
    seqs: dict[str, int] = dict(numbered.fetchall())
    connection.executemany(
        _INSERT,
        [(each[0], seqs[each[0]], None, *each[1:3], to_json(each[3]), to_text(now)) for each in found],
    )
    for session_id, kind, reason, detail in found:
        announce(connection, session_id, kind, reason, detail, now, seq=seqs[session_id])


def insert(
    write: SessionWrite,
    kind: str,
    now: datetime,
    *,
    run_id: str | None,
    reason: str | None = None,
    detail: dict[str, Any] | None = None,
) -> None:
    """As `append`, with the other rows of an operation."""
    session_id, seq = write.state.session_id, write.counters.next_seq()
    text = to_json(detail) if detail else "{}"
    write.insert("events", _COLUMNS, [(session_id, seq, run_id, kind, reason, text, to_text(now))])
    announce(write.raw, session_id, kind, reason, detail or {}, now, run_id=run_id, seq=seq)


def has_entered(connection: Connection, session_id: str, run_ids: Collection[str]) -> bool:
    """Whether one of these runs has opened or resumed the session, by its latest events."""
    latest = connection.execute(_LATEST, (session_id, _NEAR)).fetchall()
    return any(run_id in run_ids and kind in _ENTRIES for run_id, kind in latest)


_LATEST = "SELECT run_id, kind FROM events WHERE session_id = ? ORDER BY seq DESC LIMIT ?"
_ENTRIES = ("opened", "resumed", "revived", "reopened")


def announce(
    connection: Connection,
    session_id: str,
    kind: str,
    reason: str | None,
    detail: dict[str, Any],
    now: datetime,
    *,
    run_id: str | None = None,
    seq: int = 0,
) -> None:
    """Pass an event to the hooks for its kind, once the transaction is committed."""
    if kind in connection.watched:
        plain = json.loads(to_json(detail) or "{}")
        event = Event(
            session_id=session_id, seq=seq, run_id=run_id, kind=kind, reason=reason, detail=plain, created_at=now
        )
        connection.written.append(event)


def deny(
    connection: Connection,
    session_id: str,
    reason: str,
    user_id: str | None,
    now: datetime,
    *,
    is_announced: bool = False,
) -> bool:
    """Record a refusal, and return whether the session exists.

    Repetitions within an hour are counted in one event, so that refusals cannot fill the disk.
    """
    rows = connection.execute(
        "SELECT seq, detail FROM events WHERE session_id = ? AND kind = 'denied' AND reason = ? AND created_at > ?"
        " AND seq > (SELECT last_seq FROM sessions WHERE id = ?) - ?",
        (session_id, reason, to_text(now - _RECENT), session_id, _NEAR),
    )
    recent = [(seq, json.loads(text)) for seq, text in rows]
    if len(recent) >= _MOST_USERS and user_id not in [detail.get("user_id") for _, detail in recent]:
        user_id = _OTHERS
    for seq, detail in recent:
        if detail.get("user_id") == user_id:
            again = {**detail, "times": detail.get("times", 1) + 1, "last_at": to_text(now)}
            connection.execute(
                "UPDATE events SET detail = ? WHERE session_id = ? AND seq = ?", (to_json(again), session_id, seq)
            )
            return True
    return append(connection, session_id, "denied", reason, {"user_id": user_id}, now, is_announced=is_announced)
