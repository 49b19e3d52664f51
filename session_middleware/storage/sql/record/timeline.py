"""A session's record across its tables, by `seq`.

Each table has an index by session and `seq`. A page is made of the first keys of each, merged, and
then of the rows that have them; so it costs what it returns, however long the record is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from session_middleware.models import Event, Message, ModelCall, Run, ToolCall
from session_middleware.storage.sql.connection import UNLIMITED, Connection
from session_middleware.storage.sql.record import dead_runs
from session_middleware.storage.sql.row_mapping import values_of
from session_middleware.storage.types import Page, Record

R = TypeVar("R", bound=Record)

_TABLES: tuple[tuple[str, type[Record], str], ...] = (  # table, value, and the condition for the timeline
    ("runs", Run, "TRUE"),
    ("messages", Message, "replaced_by IS NULL"),
    ("tool_calls", ToolCall, "TRUE"),
    ("model_calls", ModelCall, "TRUE"),
    ("events", Event, "TRUE"),
)
_UNFINISHED: dict[str, tuple[type[Record], str]] = {
    "runs": (Run, "outcome = 'running'"),
    "tool_calls": (ToolCall, "status = 'running'"),
    "messages": (Message, "status = 'incomplete' AND replaced_by IS NULL"),
}


def list_records(connection: Connection, kind: type[R], session_id: str, *, after: int, limit: int | None) -> list[R]:
    table = next(table for table, model, _ in _TABLES if model is kind)
    cursor = connection.execute(
        f"SELECT * FROM {table} WHERE session_id = ? AND seq > ? ORDER BY seq LIMIT ?",
        (session_id, after, UNLIMITED if limit is None else limit),
    )
    return dead_runs.as_known(connection, values_of(kind, cursor))


def list_timeline(connection: Connection, session_id: str, *, after: int, limit: int | None) -> Page:
    if limit is not None and limit <= 0:
        return Page([], [])
    keys = _keys(connection, session_id, after, UNLIMITED if limit is None else limit)
    if not keys:
        return Page([], [])
    entries: list[Record] = []
    for table, model, shown in _TABLES:
        cursor = connection.execute(
            f"SELECT * FROM {table} WHERE session_id = ? AND seq BETWEEN ? AND ? AND {shown}",
            (session_id, keys[0], keys[-1]),
        )
        entries += values_of(model, cursor)
    entries.sort(key=lambda entry: entry.seq)
    return Page(dead_runs.as_known(connection, entries), dead_runs.as_known(connection, _runs(connection, entries)))


def _keys(connection: Connection, session_id: str, after: int, limit: int) -> list[int]:
    """The lowest and the highest `seq` of a page are what matters."""
    parts = " UNION ALL ".join(
        f"SELECT seq FROM (SELECT seq FROM {table} WHERE session_id = ? AND seq > ? AND {shown} ORDER BY seq LIMIT ?)"
        f" AS of_{table}"
        for table, _, shown in _TABLES
    )
    rows = connection.execute(f"{parts} ORDER BY seq LIMIT ?", (*(session_id, after, limit) * len(_TABLES), limit))
    return [seq for (seq,) in rows]


def _runs(connection: Connection, entries: Iterable[Record]) -> list[Run]:
    """The runs these belong to that are not among them."""
    here = {entry.id for entry in entries if isinstance(entry, Run)}
    found: list[Run] = []
    for run_id in dict.fromkeys(entry.run_id for entry in entries if entry.run_id is not None):
        if run_id not in here:
            found += values_of(Run, connection.execute("SELECT * FROM runs WHERE id = ?", (run_id,)))
    return found


def list_unfinished(connection: Connection, session_id: str, *, up_to: int) -> list[Record]:
    found: list[Record] = []
    for table, (model, condition) in _UNFINISHED.items():
        cursor = connection.execute(
            f"SELECT * FROM {table} WHERE session_id = ? AND seq <= ? AND {condition}", (session_id, up_to)
        )
        found += values_of(model, cursor)
    return sorted(found, key=lambda entry: entry.seq)
