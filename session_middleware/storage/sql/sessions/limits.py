"""The limits of open sessions, enforced in the transaction that opens one."""

from __future__ import annotations

import json
from datetime import datetime

from session_middleware.errors import SessionLimitReached
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.sessions import endings, leases, session_rows

_OPEN = (
    f"FROM sessions WHERE status = 'active' AND NOT {session_rows.DUE} AND id != :but"
    " AND (CAST(:user_id AS TEXT) IS NULL OR user_id = :user_id)"
)
_OLDEST = (
    f"SELECT * {_OPEN} AND pinned IS NULL AND id NOT IN (SELECT value FROM json_each(:live))"
    " ORDER BY last_active_at, id LIMIT :limit"
)


def make_room(
    connection: Connection, user_id: str | None, rules: EngineContext, now: datetime, *, but: str = ""
) -> None:
    """Ensure that one more session may be open, of all and of this user's.

    Raises:
        SessionLimitReached: there is no room, and ``on_limit`` is ``"reject"``, or all have a run in progress.
    """
    settings = rules.settings
    limits = [(settings.max_sessions, None), (settings.max_sessions_per_user if user_id is not None else None, user_id)]
    for limit, of_user in reversed(limits):
        if limit is None:
            continue
        live = json.dumps(sorted(leases.live(connection, rules)))
        values = session_rows.moments(rules, now) | {"but": but, "live": live, "user_id": of_user}
        surplus = connection.execute(f"SELECT COUNT(*) {_OPEN}", values).fetchone()[0] + 1 - limit
        oldest = []
        if surplus > 0 and settings.on_limit == "expire_oldest":
            oldest = session_rows.first(connection, _OLDEST, values, surplus, rules)
        if len(oldest) < surplus:
            raise SessionLimitReached(limit, user_id=of_user)
        for session in oldest:
            endings.expire(connection, session, "limit", rules.clock(), rules)
