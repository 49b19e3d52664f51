"""Sessions whose latest run was cut off, and that no later run has continued."""

from __future__ import annotations

from session_middleware.storage.processes import is_gone, is_near
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.sessions import leases


def ids(connection: Connection, rules: EngineContext, *, cancelled: bool) -> list[str]:
    live = leases.live(connection, rules)
    return [
        session_id
        for session_id, process in connection.execute(_CUT_OFF, (cancelled,)).fetchall()
        if session_id not in live and (process is None or is_gone(process) or not is_near(process))
    ]


# The process is that of a run that is stored as running. A run that died before its first checkpoint cannot go on.
_LATEST = """
    NOT EXISTS (SELECT 1 FROM runs AS later WHERE later.session_id = own.session_id AND later.seq > own.seq)
    AND NOT (own.checkpointed = 1 AND EXISTS
        (SELECT 1 FROM sessions WHERE id = own.session_id AND latest_checkpoint_id IS NULL))
"""
_CUT_OFF = f"""
    SELECT session_id, process FROM runs AS own WHERE outcome = 'running' AND {_LATEST}
    UNION ALL
    SELECT session_id, NULL FROM runs AS own
    WHERE outcome = 'interrupted' AND (duration_ms IS NULL OR ? = 1) AND {_LATEST}
"""
