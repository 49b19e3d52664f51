"""Leases in SQLite: who runs in which session now, and in which order they came.

A row is a run's place in the queue of its session, and its number the fencing number. Whoever has the
lowest number of those still alive is the one that may run, where only one may. A row goes when its run
ends, or when somebody finds that its process is gone.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from session_middleware.models import to_text
from session_middleware.storage.processes import is_gone, is_near, this_process
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext

STALE = timedelta(minutes=1)  # after which a run that was not renewed is dead, where its process cannot be asked


class LeaseRow(NamedTuple):
    """A row of the table."""

    session_id: str
    number: int
    run_id: str | None
    user_id: str | None
    process: str
    started_at: str
    renewed_at: str

    def is_dead(self, rules: EngineContext) -> bool:
        """A process on this machine is asked; of another's, it is known by its silence."""
        if self.number in rules.over:
            return True
        if is_near(self.process):
            return is_gone(self.process)
        return self.renewed_at < to_text(rules.clock() - STALE)


def take(connection: Connection, context: RunContext, now: datetime) -> None:
    """Give the context's lease a row, behind those that are there, unless another thread of the run has done so."""
    assert context.lease is not None
    if context.lease.number is not None:
        return
    number = time.time_ns() // 1_000 << 12 | random.getrandbits(12)
    run = (context.run_id, context.identity.user_id, this_process(), to_text(now), to_text(now))
    row = connection.execute(_TAKE, (context.session_id, number, number, *run, context.session_id)).fetchone()
    context.lease.number = row[0]


# A number is greater than those that are there, whatever the clock says.
_TAKE = """
    INSERT INTO leases (session_id, number, run_id, user_id, process, started_at, renewed_at)
    SELECT ?, CASE WHEN COALESCE(MAX(number), 0) < ? THEN ? ELSE MAX(number) + 1 END, ?, ?, ?, ?, ?
    FROM leases WHERE session_id = ? RETURNING number
"""


def release(connection: Connection, numbers: Iterable[int], *, are_over: bool = True) -> None:
    """Delete leases. A run that is not over, and writes again, notices by its session's version."""
    if not are_over:
        connection.execute(_CHANGED, (json.dumps([*numbers]),))
    connection.execute(f"DELETE FROM leases WHERE {_NUMBERED}", (json.dumps([*numbers]),))


_NUMBERED = "number IN (SELECT CAST(value AS INTEGER) FROM json_each(?))"
_CHANGED = f"""
    UPDATE sessions SET version = version + 1
    WHERE id IN (SELECT session_id FROM leases WHERE {_NUMBERED})
"""


def renew(connection: Connection, numbers: Iterable[int], now: datetime) -> int:
    """How many of them are still there."""
    return connection.execute(
        f"UPDATE leases SET renewed_at = ? WHERE {_NUMBERED}",
        (to_text(now), json.dumps([*numbers])),
    ).rowcount


def of(connection: Connection, session_id: str) -> list[LeaseRow]:
    """First come first."""
    rows = connection.execute("SELECT * FROM leases WHERE session_id = ? ORDER BY number", (session_id,))
    return [LeaseRow(*row) for row in rows]


def before(connection: Connection, session_id: str, number: int | None, rules: EngineContext) -> list[LeaseRow]:
    """The living that are before this number, or all of the living."""
    return [
        place
        for place in of(connection, session_id)
        if (number is None or place.number < number) and not place.is_dead(rules)
    ]


def is_live(connection: Connection, session_id: str, rules: EngineContext) -> bool:
    """Whether a run is in progress in the session, in a process that is still there."""
    return any(not place.is_dead(rules) for place in of(connection, session_id))


def live(connection: Connection, rules: EngineContext) -> frozenset[str]:
    """The ids of all sessions with a run in progress."""
    rows = connection.execute("SELECT * FROM leases ORDER BY number").fetchall()
    return frozenset(place.session_id for row in rows if not (place := LeaseRow(*row)).is_dead(rules))


def dead(connection: Connection, rules: EngineContext) -> list[LeaseRow]:
    rows = connection.execute("SELECT * FROM leases ORDER BY number").fetchall()
    return [place for row in rows if (place := LeaseRow(*row)).is_dead(rules)]


def reap(connection: Connection, places: Collection[LeaseRow]) -> None:
    """Take away the rows of the dead; that they were last renewed is the last that is known of activity."""
    for place in places:
        connection.execute(
            "UPDATE sessions SET version = version + 1,"
            " last_active_at = CASE WHEN last_active_at < ?1 THEN ?1 ELSE last_active_at END WHERE id = ?2",
            (place.renewed_at, place.session_id),
        )
    release(connection, [place.number for place in places])


def rename(connection: Connection, session_id: str, to: str) -> None:
    connection.execute("UPDATE leases SET session_id = ? WHERE session_id = ?", (to, session_id))
