"""The outbox in SQLite: events that hooks have not been called for yet.

A row for each hook is written in the transaction of what it tells, and goes when that has returned. Which
hooks there are is kept beside it, so that a process tells those of others too. A process that has such a hook
takes the rows of it and puts its name on them; when it dies before they are acknowledged, another takes them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from session_middleware.model import Event, from_text, to_text
from session_middleware.storage.processes import is_gone
from session_middleware.storage.upkeep import Told

KEPT = timedelta(days=30)  # how long a row waits for a process that has its hook


def knows(connection: sqlite3.Connection, hooks: Mapping[str, Collection[str]]) -> bool:
    wanted = {(hook, kind) for hook, kinds in hooks.items() for kind in kinds}
    return wanted <= set(connection.execute("SELECT hook, kind FROM hooks"))


def note(connection: sqlite3.Connection, hooks: Mapping[str, Collection[str]]) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO hooks (hook, kind) VALUES (?, ?)",
        [(hook, kind) for hook, kinds in hooks.items() for kind in sorted(kinds)],
    )


def has_any(connection: sqlite3.Connection, hooks: Collection[str]) -> bool:
    statement = "SELECT 1 FROM outbox WHERE hook IN (SELECT value FROM json_each(?)) LIMIT 1"
    return connection.execute(statement, (json.dumps(sorted(hooks)),)).fetchone() is not None


def list_given_up(connection: sqlite3.Connection, hooks: Collection[str], now: datetime) -> list[str]:
    """Hooks that nobody has been called by for so long that no process seems to have them any more, but for `hooks`."""
    rows = connection.execute("SELECT DISTINCT hook FROM outbox WHERE created_at < ?", (to_text(now - KEPT),))
    return [hook for (hook,) in rows if hook not in hooks]


def give_up(connection: sqlite3.Connection, hooks: Sequence[str]) -> None:
    """Until a process comes that has them."""
    for hook in hooks:
        connection.execute("DELETE FROM hooks WHERE hook = ?", (hook,))
        connection.execute("DELETE FROM outbox WHERE hook = ?", (hook,))


def take(connection: sqlite3.Connection, hooks: Collection[str], process: str, limit: int) -> list[Told]:
    takers = connection.execute("SELECT DISTINCT process FROM outbox WHERE process IS NOT NULL").fetchall()
    for (taker,) in takers:
        if is_gone(taker):
            connection.execute("UPDATE outbox SET process = NULL WHERE process = ?", (taker,))
    rows = connection.execute(
        "SELECT id, hook, session_id, kind, reason, detail, created_at FROM outbox WHERE process IS NULL"
        " AND hook IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?",
        (json.dumps(sorted(hooks)), limit),
    ).fetchall()
    connection.executemany("UPDATE outbox SET process = ? WHERE id = ?", [(process, row[0]) for row in rows])
    return [
        Told(
            number,
            hook,
            Event(
                session_id=session_id,
                seq=0,
                kind=kind,
                reason=reason,
                detail=json.loads(detail),
                created_at=from_text(created_at),
            ),
        )
        for number, hook, session_id, kind, reason, detail, created_at in rows
    ]


def acknowledge(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    connection.executemany("DELETE FROM outbox WHERE id = ?", [(number,) for number in numbers])
