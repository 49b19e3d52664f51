"""Claiming: a session without an owner, and its whole family, gets one."""

from __future__ import annotations

from session_middleware.errors import SessionAccessDenied, SessionBusy
from session_middleware.models import SessionInfo
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.memory import indexing
from session_middleware.storage.sql.sessions import endings, events, leases, session_rows, tombstones


def claim(connection: Connection, session_id: str, user_id: str, rules: EngineContext) -> SessionInfo:
    tombstones.check_not_revoked(connection, session_id, user_id)
    session = session_rows.get_for(connection, session_id, None, rules)
    if session.user_id == user_id:
        return session
    if session.user_id is not None:
        raise SessionAccessDenied(session_id, user_id=user_id)
    now, family = rules.clock(), list(session_rows.members(connection, session.home))
    for member in family:
        if runs := leases.live_of(connection, member, rules):  # its writes would be refused
            raise SessionBusy(member, run_id=runs[0].run_id, process=runs[0].process)
    connection.execute("UPDATE sessions SET user_id = ? WHERE home = ?", (user_id, session.home))
    endings.make_room(connection, user_id, rules, now, more=0)
    indexing.move_sessions(connection, family, user_id)
    for member in family:
        events.append(connection, member, "claimed", None, {"user_id": user_id}, now)
    return session_rows.get_for(connection, session_id, None, rules)
