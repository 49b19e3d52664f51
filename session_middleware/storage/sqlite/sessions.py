"""Sessions in SQLite: the door of each operation, and their rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from session_middleware import lifecycle
from session_middleware.errors import SessionAccessDenied, SessionError, SessionExpired, SessionNotFound
from session_middleware.model import Admission, Clock, Ended, NewId, SessionInfo, to_text
from session_middleware.settings import SessionSettings
from session_middleware.storage.port import Deleted, SessionDetails, SessionFilter, Visit
from session_middleware.storage.sqlite import checkpoints, heads, memories, pieces, record
from session_middleware.storage.sqlite.rows import clean, to_json, value_of, values_of


@dataclass(frozen=True, slots=True)
class Rules:
    """What every operation needs to know besides its arguments."""

    settings: SessionSettings
    clock: Clock
    new_id: NewId
    path: str  # for messages to people


def find(connection: sqlite3.Connection, session_id: str) -> SessionInfo | None:
    cursor = connection.execute("SELECT * FROM sessions WHERE id = ?", (session_id,))
    row = cursor.fetchone()
    return None if row is None else value_of(SessionInfo, cursor, row)


def get(connection: sqlite3.Connection, session_id: str) -> SessionInfo:
    session = find(connection, session_id)
    if session is None:
        raise SessionNotFound(session_id)
    return session


# The door

_SECOND = len("2026-01-31T12:00:00")


def look(connection: sqlite3.Connection, visit: Visit, rules: Rules) -> SessionInfo | None:
    session = find(connection, visit.session_id)
    if session is not None:
        lifecycle.check_access(session, visit.identity)
    if visit.admission is None:
        visit.admission = _admission(connection, session, rules, rules.clock())
    return None if visit.admission == "fresh" and not visit.admitted else session


def _admission(connection: sqlite3.Connection, session: SessionInfo | None, rules: Rules, now: datetime) -> Admission:
    """As `lifecycle.admit`; but a session with a run in progress has not expired, however long that takes."""
    if session is not None and _has_expired(session, rules, now) and record.has_live_run(connection, session.id):
        return "resumed"
    return lifecycle.admit(session, rules.settings, now)


def _has_expired(session: SessionInfo, rules: Rules, now: datetime) -> bool:
    return lifecycle.status_at(session, rules.settings, now) == "expired"


def admit(connection: sqlite3.Connection, visit: Visit, rules: Rules, *, announce: bool = True) -> str:
    """Let a visit in, opening or reviving its session; returns the family. Raises one of `REFUSALS`.

    Without `announce`, that an active session was resumed is left for a later operation to say.
    The visit's flags are set here, in the writer's turn, so that no second operation admits it again.
    """
    now = rules.clock()
    family_id = _admit_again(connection, visit, rules, now) if visit.admitted else None
    if family_id is None:
        family_id = _admit_first(connection, visit, rules, now)
        visit.admitted, visit.begun = True, False
    if announce and not visit.announced:
        visit.announced = True
        if visit.is_run and visit.admission == "resumed":
            _revive(connection, visit, "resumed", None, now)
    if visit.run_id is not None and visit.announced and not visit.begun and rules.settings.tracking:
        record.begin_run(connection, visit, now)
    return family_id


def _admit_first(connection: sqlite3.Connection, visit: Visit, rules: Rules, now: datetime) -> str:
    session = find(connection, visit.session_id)
    if session is not None:
        lifecycle.check_access(session, visit.identity)
        if visit.admission is None:
            visit.admission = _admission(connection, session, rules, now)
        session = _apply(connection, session, visit, rules, now)
    if session is None:
        session = _insert(connection, visit, rules, now)
    return session.family_id


def _admit_again(connection: sqlite3.Connection, visit: Visit, rules: Rules, now: datetime) -> str | None:
    """A visit goes on: its owner is checked and its clock set back; ``None`` when the session is gone."""
    row = connection.execute(
        "SELECT family_id, status, last_active_at FROM sessions WHERE id = ? AND (user_id IS NULL OR user_id = ?)",
        (visit.session_id, visit.identity.user_id),
    ).fetchone()
    if row is None:
        return None
    if row[2][:_SECOND] != to_text(now)[:_SECOND]:  # each touch rewrites four indexes: once a second will do
        _touch(connection, visit.session_id, rules, now)
    if row[1] == "expired":  # by a sweep that did not know of this run
        _revive(connection, visit, "revived", "running", now)
    return str(row[0])


def refuse(connection: sqlite3.Connection, visit: Visit, error: SessionError, rules: Rules) -> None:
    """Leave an event of a refusal, which says who and why and nothing of what was asked."""
    reason = "owner" if isinstance(error, SessionAccessDenied) else "expired"
    detail = {"user_id": visit.identity.user_id}
    append_event(connection, visit.session_id, "denied", reason, detail, rules.clock())


REFUSALS = (SessionAccessDenied, SessionExpired)


def _apply(
    connection: sqlite3.Connection, session: SessionInfo, visit: Visit, rules: Rules, now: datetime
) -> SessionInfo | None:
    """Carry out what was decided when the visit was first looked at; ``None``: the id is free now."""
    status = lifecycle.status_at(session, rules.settings, now)
    if visit.admission == "fresh" and status == "expired":
        _put_aside(connection, session, rules, now)
        return None
    _touch(connection, session.id, rules, now)
    if visit.admission in ("revived", "reopened") and status not in ("active", "idle"):
        _revive(connection, visit, visit.admission, "idle_timeout" if status == "expired" else None, now)
    elif session.status != "active":  # ended by another process since this visit was let in
        _revive(connection, visit, "revived", "running", now)
    return session


def _revive(connection: sqlite3.Connection, visit: Visit, kind: str, reason: str | None, now: datetime) -> None:
    connection.execute(
        "UPDATE sessions SET status = 'active', ended_at = NULL, opened_as = ? WHERE id = ?", (kind, visit.session_id)
    )
    append_event(connection, visit.session_id, kind, reason, {}, now, run_id=visit.run_id)


def _insert(connection: sqlite3.Connection, visit: Visit, rules: Rules, now: datetime) -> SessionInfo:
    identity = visit.identity
    heads.check_new(connection, visit.session_id, rules.path)
    connection.execute(
        "INSERT INTO sessions (id, family_id, user_id, group_id, opened_as, created_at, last_active_at, expires_at)"
        " VALUES (?, ?, ?, ?, 'opened', ?, ?, ?)",
        (visit.session_id,) * 2 + (identity.user_id, identity.group_id) + (to_text(now),) * 2 + (_expiry(rules, now),),
    )
    append_event(connection, visit.session_id, "opened", None, {}, now, run_id=visit.run_id)
    return get(connection, visit.session_id)


def _touch(connection: sqlite3.Connection, session_id: str, rules: Rules, now: datetime) -> None:
    connection.execute(
        "UPDATE sessions SET last_active_at = ?, expires_at = ? WHERE id = ?",
        (to_text(now), _expiry(rules, now), session_id),
    )


def _expiry(rules: Rules, now: datetime) -> str | None:
    timeout = rules.settings.idle_timeout
    return None if timeout is None else to_text(now + timeout)


def _put_aside(connection: sqlite3.Connection, session: SessionInfo, rules: Rules, now: datetime) -> None:
    """Keep an expired session under another id, so that its own is free for a fresh one.

    It is abandoned, not expired: it can be read, and resumed by its new id, like any that has ended.
    """
    number = 1
    while find(connection, aside := f"{session.id}~{number}") is not None:
        number += 1
    _expire(connection, session, rules, now)
    family = aside if session.family_id == session.id else session.family_id
    connection.execute(
        "UPDATE sessions SET id = ?, family_id = ?, status = 'abandoned' WHERE id = ?", (aside, family, session.id)
    )
    record.rename(connection, session.id, aside)
    memories.rename(connection, session.id, aside)
    checkpoints.rename(connection, session.id, aside)
    if family == aside:
        connection.execute("UPDATE sessions SET family_id = ? WHERE family_id = ?", (aside, session.id))
        pieces.rename_family(connection, session.id, aside)
    append_event(connection, aside, "put_aside", "fresh", {"was": session.id}, now)


# Rows


def append_event(
    connection: sqlite3.Connection,
    session_id: str,
    kind: str,
    reason: str | None,
    detail: dict[str, Any],
    now: datetime,
    *,
    run_id: str | None = None,
) -> None:
    seq = record.next_seq(connection, session_id)
    if seq is not None:
        connection.execute(
            "INSERT INTO events (session_id, seq, run_id, kind, reason, detail, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (session_id, seq, run_id, kind, reason, to_json(detail), to_text(now)),
        )


def update(connection: sqlite3.Connection, session_id: str, details: SessionDetails) -> SessionInfo:
    session = get(connection, session_id)
    changes: dict[str, Any] = {}
    for name in ("title", "purpose"):
        if (text := getattr(details, name)) is not None:
            changes[name] = clean(text)
    if details.tags is not None:
        changes["tags"] = to_json(list(details.tags))
    for name in ("metadata", "context", "client"):
        if (given := getattr(details, name)) is not None:
            changes[name] = to_json({**getattr(session, name), **given})
    for name, value in changes.items():
        connection.execute(_SET[name], (value, session_id))
    return get(connection, session_id)


_SET = {
    "title": "UPDATE sessions SET title = ? WHERE id = ?",
    "purpose": "UPDATE sessions SET purpose = ? WHERE id = ?",
    "tags": "UPDATE sessions SET tags = ? WHERE id = ?",
    "metadata": "UPDATE sessions SET metadata = ? WHERE id = ?",
    "context": "UPDATE sessions SET context = ? WHERE id = ?",
    "client": "UPDATE sessions SET client = ? WHERE id = ?",
}


def _conditions(where: SessionFilter, rules: Rules) -> tuple[list[str], list[Any]]:
    """`where` as fixed fragments of SQL and their parameters."""
    settings, now = rules.settings, rules.clock()
    idle = to_text(now - settings.idle_after)
    gone = to_text(now - settings.idle_timeout) if settings.idle_timeout else ""
    by_status: dict[str, tuple[str, list[Any]]] = {
        "active": ("status = 'active' AND last_active_at > ? AND last_active_at > ?", [idle, gone]),
        "idle": ("status = 'active' AND last_active_at <= ? AND last_active_at > ?", [idle, gone]),
        "expired": ("(status = 'expired' OR status = 'active' AND last_active_at <= ?)", [gone]),
    }
    found: list[tuple[str, list[Any]]] = []
    if where.user_id is not None:
        found.append(("user_id = ?", [where.user_id]))
    if where.group_id is not None:
        found.append(("group_id = ?", [where.group_id]))
    if where.status is not None:
        found.append(by_status.get(where.status) or ("status = ?", [where.status]))
    if where.since is not None:
        found.append(("last_active_at >= ?", [to_text(where.since)]))
    if where.until is not None:
        found.append(("last_active_at < ?", [to_text(where.until)]))
    found += [("EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)", [tag]) for tag in where.tags]
    return [sql for sql, _ in found], [value for _, values in found for value in values]


def list_(
    connection: sqlite3.Connection,
    where: SessionFilter,
    rules: Rules,
    *,
    limit: int | None,
    before: tuple[datetime, str] | None,
) -> list[SessionInfo]:
    conditions, values = _conditions(where, rules)
    if before is not None:
        conditions.append("(last_active_at, id) < (?, ?)")
        values += [to_text(before[0]), before[1]]
    cursor = connection.execute(
        f"SELECT * FROM sessions WHERE {' AND '.join(conditions) or '1'} ORDER BY last_active_at DESC, id DESC LIMIT ?",
        (*values, -1 if limit is None else limit),
    )
    return values_of(SessionInfo, cursor)


def count(connection: sqlite3.Connection, where: SessionFilter, rules: Rules) -> int:
    conditions, values = _conditions(where, rules)
    sql = f"SELECT COUNT(*) FROM sessions WHERE {' AND '.join(conditions) or '1'}"
    return int(connection.execute(sql, values).fetchone()[0])


# Ends


def list_due(connection: sqlite3.Connection, rules: Rules, now: datetime) -> list[SessionInfo]:
    """Sessions that have expired at `now` but do not say so yet, oldest first."""
    if rules.settings.idle_timeout is None:
        return []
    cursor = connection.execute(
        "SELECT * FROM sessions WHERE status = 'active' AND last_active_at <= ? ORDER BY last_active_at, id",
        (to_text(now - rules.settings.idle_timeout),),
    )
    due = values_of(SessionInfo, cursor)
    return [session for session in due if not record.has_live_run(connection, session.id)]


def ended(session: SessionInfo, rules: Rules) -> Ended:
    end = lifecycle.expires_at(session, rules.settings)
    return Ended(
        session_id=session.id,
        user_id=session.user_id,
        action=rules.settings.on_expire,
        last_active_at=session.last_active_at,
        expired_at=end or session.last_active_at,
    )


def end_one(connection: sqlite3.Connection, session_id: str, rules: Rules, now: datetime) -> Ended | None:
    """Expire one session if it is still due; ``None`` when it has been used meanwhile, or is gone."""
    session = find(connection, session_id)
    if session is None or session.status != "active":
        return None
    if not _has_expired(session, rules, now) or record.has_live_run(connection, session_id):
        return None
    if rules.settings.on_expire == "delete":
        delete(connection, session_id)
    else:
        _expire(connection, session, rules, now)
    return ended(session, rules)


def _expire(connection: sqlite3.Connection, session: SessionInfo, rules: Rules, now: datetime) -> None:
    if session.status == "expired":
        return
    end = lifecycle.expires_at(session, rules.settings) or now
    connection.execute("UPDATE sessions SET status = 'expired', ended_at = ? WHERE id = ?", (to_text(end), session.id))
    detail = {"last_active_at": to_text(session.last_active_at)}
    append_event(connection, session.id, "expired", "idle_timeout", detail, now)


def delete(connection: sqlite3.Connection, session_id: str) -> Deleted:
    session = find(connection, session_id)
    if session is None:
        return Deleted()
    connection.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
    messages, tool_calls = record.delete(connection, session_id)
    remembered = memories.delete_session(connection, session_id)
    kept = checkpoints.delete(connection, session_id)
    pieces.free_unused(connection, session.family_id, members(connection, session.family_id))
    return Deleted(1, kept, messages, tool_calls, remembered)


def members(connection: sqlite3.Connection, family_id: str) -> Sequence[str]:
    rows = connection.execute("SELECT id FROM sessions WHERE family_id = ?", (family_id,))
    return [session_id for (session_id,) in rows]
