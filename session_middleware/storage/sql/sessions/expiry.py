"""The sessions that are due, found by indexes.

`lifecycle.expiry_of` decides whether a session is due. The statements here find the candidates by the same rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from session_middleware import lifecycle
from session_middleware.models import OnExpire, Status, SweepResult, from_text, to_text
from session_middleware.storage.sql.connection import UNLIMITED, Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.sessions import leases, session_rows
from session_middleware.storage.sql.sessions.endings import STRATEGIES

_FREE = "pinned IS NULL AND (postponed_until IS NULL OR postponed_until <= :now)"
_SELECT = "SELECT id, user_id, on_expire, last_active_at, {0} FROM sessions WHERE {1} AND " + _FREE
_IN_ORDER = " AND {0} <= :since AND {2} ORDER BY {0}, id LIMIT :limit"
_DUE = {  # by reason: sessions without an own duration, the own durations, and the sessions with one of them
    reason: (
        (_SELECT + _IN_ORDER).format(column, condition, f"{reason}_seconds IS NULL"),
        f"SELECT DISTINCT {reason}_seconds FROM sessions WHERE {reason}_seconds IS NOT NULL",
        (_SELECT + _IN_ORDER).format(column, own_condition, f"{reason}_seconds = :seconds"),
    )
    for reason, column, condition, own_condition in (  # the signs keep SQLite from reading all active sessions
        ("idle_timeout", "last_active_at", "status = 'active'", "+status = 'active'"),
        ("max_age", "active_since", *["+status = 'active' AND ended_at IS NULL"] * 2),
        ("retention", "ended_at", *["ended_at IS NOT NULL"] * 2),
    )
}
_OF_ARCHIVES = "SELECT id, user_id, NULL, ended_at, ended_at FROM tombstones WHERE archive IS NOT NULL" + _IN_ORDER
_ARCHIVES_DUE = (  # as in `_DUE`: archives past their retention
    _OF_ARCHIVES.format("ended_at", "", "retention_seconds IS NULL"),
    "SELECT DISTINCT retention_seconds FROM tombstones WHERE retention_seconds IS NOT NULL",
    _OF_ARCHIVES.format("ended_at", "", "retention_seconds = :seconds"),
)
# Sessions that expired before their strategy was set.
_UNDONE = _SELECT.format("ended_at", "status = 'expired' AND on_expire IS :own AND pruned = :pruned") + (
    " ORDER BY ended_at, id LIMIT :limit"
)


def list_due(connection: Connection, rules: EngineContext, now: datetime, limit: int | None) -> list[SweepResult]:
    """The sessions due at `now`, first due first: to expire, prune, archive or delete, or past their retention."""
    settings, live = rules.settings, leases.live(connection, rules)
    values = {"now": to_text(now), "limit": UNLIMITED if limit is None else limit + len(live)}
    found: dict[str, SweepResult] = {}

    def add(reason: str, duration: timedelta, action: OnExpire, statement: str, **more: Any) -> None:
        rows = connection.execute(statement, values | more).fetchall()
        for due in _results(rows, reason, duration, action, rules):
            known = found.get(due.session_id)
            if due.session_id not in live and (known is None or due.expired_at < known.expired_at):
                found[due.session_id] = due

    for reason, (by_settings, durations, of_own) in (*_DUE.items(), ("retention", _ARCHIVES_DUE)):
        timeout: timedelta | None = getattr(settings, reason)
        if timeout is not None:
            add(reason, timeout, settings.on_expire, by_settings, since=to_text(now - timeout))
        for (seconds,) in connection.execute(durations).fetchall():
            if (own := session_rows.duration_of(seconds)) is not None:
                add(reason, own, settings.on_expire, of_own, since=to_text(now - own), seconds=seconds)
    for own_action in (None, *STRATEGIES):
        action: OnExpire = own_action or settings.on_expire
        for pruned in STRATEGIES[action].applies_to:
            add("on_expire", timedelta(0), action, _UNDONE, own=own_action, pruned=pruned)
    return sorted(found.values(), key=lambda due: (due.expired_at, due.session_id))[:limit]


def _results(
    rows: Iterable[tuple[Any, ...]], reason: str, duration: timedelta, action: OnExpire, rules: EngineContext
) -> Iterator[SweepResult]:
    """Sessions that are due for one reason, so long after the moment in the last column."""
    for session_id, user_id, on_expire, last_active_at, since in rows:
        try:
            active_at, expired_at = _moment(last_active_at), _moment(since) + duration
        except (TypeError, ValueError):
            session_rows.leave_out(session_id, f"malformed times: {last_active_at!r}, {since!r}", rules)
            continue
        yield SweepResult.model_construct(
            session_id=session_id,
            user_id=user_id,
            reason=reason,
            action="delete" if reason == "retention" else on_expire or action,
            last_active_at=active_at,
            expired_at=expired_at,
            bytes=None,
        )


def _moment(text: str) -> datetime:
    moment = from_text(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment


def list_older(
    connection: Connection, before: datetime, status: Status | None, rules: EngineContext, limit: int | None
) -> list[SweepResult]:
    """Sessions last active before a moment, except those that are pinned or have a run in progress."""
    now = rules.clock()
    live = leases.live(connection, rules)
    cursor = connection.execute(
        "SELECT * FROM sessions WHERE last_active_at < ? AND pinned IS NULL ORDER BY last_active_at, id",
        (to_text(before),),
    )
    rows = (
        (session.id, session.user_id, None, to_text(session.last_active_at), to_text(before))
        for session in session_rows.readable(cursor, rules)
        if session is not None
        and session.id not in live
        and status in (None, lifecycle.status_at(session, rules.settings, now))
    )
    return list(islice(_results(rows, "older_than", timedelta(0), "delete", rules), limit))


_MEMBERS = "(SELECT COUNT(*) FROM sessions AS one WHERE one.home = sessions.home)"
_SIZES = (
    "SUM(LENGTH(body) + LENGTH(channels)) FROM sessions JOIN checkpoints AS own"
    " ON own.home = sessions.home AND session_id = id",
    "SUM(LENGTH(value)) FROM sessions JOIN writes AS own ON own.home = sessions.home AND session_id = id",
    "SUM(LENGTH(text) + COALESCE(LENGTH(content), 0)) FROM sessions JOIN messages ON session_id = id",
    "SUM(COALESCE(LENGTH(arguments), 0) + COALESCE(LENGTH(result), 0))"
    " FROM sessions JOIN tool_calls ON session_id = id",
    f"SUM(LENGTH(data)) / {_MEMBERS} FROM sessions JOIN blobs ON blobs.home = sessions.home",
    f"SUM(LENGTH(data)) / {_MEMBERS} FROM sessions JOIN list_items ON list_items.home = sessions.home",
)


def sizes(connection: Connection, session_ids: Sequence[str]) -> dict[str, int]:
    """An estimate of the bytes of each session, with its share of what its family has in common. Reads no blob."""
    # PostgreSQL would read all sessions for a list of ids.
    statements = [
        (f"SELECT {select} WHERE sessions.id = ? GROUP BY sessions.id", each)
        for each in session_ids
        for select in _SIZES
    ]
    for sql, session_id in statements:
        connection.prefetch(sql, (session_id,))
    found = dict.fromkeys(session_ids, 0)
    for sql, session_id in statements:
        for (count,) in connection.execute(sql, (session_id,)):
            found[session_id] += int(count or 0)
    return found
