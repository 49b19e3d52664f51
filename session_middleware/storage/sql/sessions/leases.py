"""Leases: the runs in progress, by session, in the order of their arrival.

A row is a run's place in the queue of its session; its number is the fencing number. The lease with the lowest number
of a live process is the first. A row is deleted when its run ends, or when its process is found dead.
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
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.run_write import RunWrite

STALE = timedelta(minutes=1)  # a lease of another machine that was not renewed for so long is dead


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
        """Whether its process has ended; a process of another machine is judged by the lease's last renewal."""
        if self.number in rules.over:
            return True
        if is_near(self.process):
            return is_gone(self.process)
        return self.renewed_at < to_text(rules.clock() - STALE)


def take(connection: Connection, run: RunWrite, now: datetime) -> None:
    """Insert the run's lease behind the others, unless another thread or another `Sessions` has done so."""
    lease = run.context.lease
    for other in connection.decisions.values():  # a run that shares the lease
        if run.lease_number is None and other.context.lease is lease:
            run.lease_number = other.lease_number
    if run.lease_number is None and lease is not None and lease.is_shared:
        (run.lease_number,) = connection.execute(_SHARED, (run.session_id, run.run_id)).fetchone() or (None,)
    if run.lease_number is not None:
        return
    number = time.time_ns() // 1_000 << 12 | random.getrandbits(12)
    row = (run.run_id, run.context.identity.user_id, this_process(), to_text(now), to_text(now))
    values = (run.session_id, number, number, *row, run.session_id)
    if connection.is_optimistic:
        # NULL is an error, after which the operation is repeated with the other statement.
        connection.execute(_TAKE.format(other="CAST(NULL AS INTEGER)"), values)
    else:
        (number,) = connection.execute(f"{_TAKE.format(other='MAX(number) + 1')} RETURNING number", values).fetchone()
    run.lease_number = number


_SHARED = "SELECT number FROM leases WHERE session_id = ? AND run_id = ?"  # taken by another `Sessions`
# A number is greater than the existing ones, even if the clock was set back.
_TAKE = """
    INSERT INTO leases (session_id, number, run_id, user_id, process, started_at, renewed_at)
    SELECT ?, CASE WHEN COALESCE(MAX(number), 0) < ? THEN ? ELSE {other} END, ?, ?, ?, ?, ?
    FROM leases WHERE session_id = ?
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
    """Renew leases; returns how many of them still exist."""
    return connection.execute(
        f"UPDATE leases SET renewed_at = ? WHERE {_NUMBERED}",
        (to_text(now), json.dumps([*numbers])),
    ).rowcount


def of(connection: Connection, session_id: str) -> list[LeaseRow]:
    """The leases of a session, in the order of their arrival."""
    return [LeaseRow(*row) for row in connection.execute(_OF_SESSION, (session_id,))]


def prefetch(connection: Connection, session_id: str) -> None:
    """Announce the statement of `of` and `live_of`."""
    connection.prefetch(_OF_SESSION, (session_id,))


_OF_SESSION = "SELECT * FROM leases WHERE session_id = ? ORDER BY number"


def live_of(connection: Connection, session_id: str, rules: EngineContext) -> list[LeaseRow]:
    """The leases of a session whose processes are alive."""
    return [row for row in of(connection, session_id) if not row.is_dead(rules)]


def before(connection: Connection, run: RunWrite, rules: EngineContext) -> list[LeaseRow]:
    """The live leases before the run's own, or all if it has none; not those of the same run in other `Sessions`."""
    number, own = run.lease_number, run.context.shared_with
    rows = live_of(connection, run.session_id, rules)
    return [row for row in rows if (number is None or row.number < number) and row.run_id not in own]


def live(connection: Connection, rules: EngineContext) -> frozenset[str]:
    """The ids of all sessions with a run in progress."""
    return frozenset(row.session_id for row in _all(connection) if not row.is_dead(rules))


def dead(connection: Connection, rules: EngineContext) -> list[LeaseRow]:
    return [row for row in _all(connection) if row.is_dead(rules)]


def _all(connection: Connection) -> list[LeaseRow]:
    return [LeaseRow(*row) for row in connection.execute("SELECT * FROM leases ORDER BY number")]


def reap_dead(connection: Connection, rules: EngineContext) -> None:
    """Delete the dead leases of sessions that no other process writes to at the moment."""
    rows = dead(connection, rules)
    free = connection.lock_free({row.session_id for row in rows})
    reap(connection, [row for row in rows if row.session_id in free])


def reap(connection: Connection, rows: Collection[LeaseRow]) -> None:
    """Delete dead leases. Their last renewal is the last activity of their sessions."""
    for row in rows:
        connection.execute(
            "UPDATE sessions SET version = version + 1,"
            " last_active_at = CASE WHEN last_active_at < ?1 THEN ?1 ELSE last_active_at END WHERE id = ?2",
            (row.renewed_at, row.session_id),
        )
    release(connection, [row.number for row in rows])
