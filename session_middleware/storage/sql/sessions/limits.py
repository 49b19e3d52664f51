"""How many sessions may be open. Asked in the transaction that opens one, so that it is never one more."""

from __future__ import annotations

import json
from datetime import datetime

from session_middleware.errors import SessionLimitReached
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.sessions import endings, leases, session_rows

_OPEN = f"FROM sessions WHERE status = 'active' AND NOT {session_rows.DUE} AND id != :but"


def make_room(
    connection: Connection, user_id: str | None, rules: EngineContext, now: datetime, *, but: str = ""
) -> None:
    """See that one more session may be open, of all and of this user's.

    Raises:
        SessionLimitReached: there is no room, and ``on_limit`` is ``"reject"``, or all have a run in progress.
    """
    settings = rules.settings
    values = session_rows.moments(rules, now) | {"but": but, "live": "[]"}
    if settings.max_sessions is not None or settings.max_sessions_per_user is not None:
        values["live"] = json.dumps(sorted(leases.live(connection, rules)))
    if settings.max_sessions_per_user is not None and user_id is not None:
        _make_room(
            connection,
            f"{_OPEN} AND user_id = :user_id",
            values | {"user_id": user_id},
            settings.max_sessions_per_user,
            rules,
            user_id,
        )
    if settings.max_sessions is not None:
        _make_room(connection, _OPEN, values, settings.max_sessions, rules, None)


def _make_room(
    connection: Connection,
    chosen: str,
    values: dict[str, str],
    limit: int,
    rules: EngineContext,
    user_id: str | None,
) -> None:
    (count,) = connection.execute(f"SELECT COUNT(*) {chosen}", values).fetchone()
    surplus = count + 1 - limit
    if surplus <= 0:
        return
    oldest = []
    if rules.settings.on_limit == "expire_oldest":
        select = (
            f"SELECT * {chosen} AND pinned IS NULL AND id NOT IN (SELECT value FROM json_each(:live))"
            " ORDER BY last_active_at, id LIMIT :limit"
        )
        oldest = session_rows.first(connection, select, values, surplus, rules)
    if len(oldest) < surplus:
        raise SessionLimitReached(limit, user_id=user_id)
    for session in oldest:
        endings.expire(connection, session, "limit", rules.clock(), rules)
