"""The outbox in SQLite: events that hooks have not been called for yet.

A row is written in the transaction of what it tells, and goes when the hooks have returned. A process
that takes rows puts its name on them; when it dies before they are acknowledged, another takes them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence

from session_middleware.model import Event, from_text
from session_middleware.storage.processes import is_gone
from session_middleware.storage.upkeep import Told


def has_any(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM outbox LIMIT 1").fetchone() is not None


def take(connection: sqlite3.Connection, kinds: Collection[str], process: str, limit: int) -> list[Told]:
    takers = connection.execute("SELECT DISTINCT process FROM outbox WHERE process IS NOT NULL").fetchall()
    for (taker,) in takers:
        if is_gone(taker):
            connection.execute("UPDATE outbox SET process = NULL WHERE process = ?", (taker,))
    rows = connection.execute(
        "SELECT id, session_id, kind, reason, detail, created_at FROM outbox WHERE process IS NULL"
        " AND kind IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?",
        (json.dumps(sorted(kinds)), limit),
    ).fetchall()
    connection.executemany("UPDATE outbox SET process = ? WHERE id = ?", [(process, row[0]) for row in rows])
    return [
        Told(
            number,
            Event(
                session_id=session_id,
                seq=0,
                kind=kind,
                reason=reason,
                detail=json.loads(detail),
                created_at=from_text(created_at),
            ),
        )
        for number, session_id, kind, reason, detail, created_at in rows
    ]


def acknowledge(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    connection.executemany("DELETE FROM outbox WHERE id = ?", [(number,) for number in numbers])
