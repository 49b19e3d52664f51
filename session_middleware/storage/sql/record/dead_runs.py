"""Runs and tool calls whose process has died: read as interrupted at once, and written so by the next sweep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from session_middleware.models import Run, ToolCall
from session_middleware.storage.processes import is_gone
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.session_state import SessionWrite
from session_middleware.storage.types import Record

E = TypeVar("E", bound=Record)

_CALLS = "UPDATE tool_calls SET status = 'interrupted', process = NULL WHERE session_id = ? AND seq = ?"


def as_known(connection: Connection, entries: Iterable[E]) -> list[E]:
    """The entries; a run or a call that is stored as running, and whose process is gone, was interrupted."""
    return [_as_known(connection, entry) for entry in entries]


def _as_known(connection: Connection, entry: E) -> E:
    if isinstance(entry, Run):
        is_dead = entry.outcome == "running" and is_gone(_process_of(connection, entry))
        return entry.model_copy(update={"outcome": "interrupted"}) if is_dead else entry
    if isinstance(entry, ToolCall):
        is_dead = entry.status == "running" and is_gone(_process_of(connection, entry))
        return entry.model_copy(update={"status": "interrupted"}) if is_dead else entry
    return entry


def _process_of(connection: Connection, entry: Run | ToolCall) -> str | None:
    run_id = entry.id if isinstance(entry, Run) else entry.run_id
    if run_id is not None:
        row = connection.execute("SELECT process FROM runs WHERE id = ?", (run_id,)).fetchone()
    else:
        row = connection.execute(
            "SELECT process FROM tool_calls WHERE session_id = ? AND seq = ?", (entry.session_id, entry.seq)
        ).fetchone()
    return None if row is None else row[0]


def find(connection: Connection) -> tuple[list[tuple[str, int, str]], list[tuple[str, int]]]:
    """The runs (session, seq, id) and the calls outside of any run (session, seq) that the dead have left running."""
    running = connection.execute("SELECT session_id, seq, id, process FROM runs WHERE outcome = 'running'").fetchall()
    outside = connection.execute("SELECT session_id, seq, process FROM tool_calls WHERE process IS NOT NULL").fetchall()
    return [row[:3] for row in running if is_gone(row[3])], [row[:2] for row in outside if is_gone(row[2])]


def interrupt(connection: Connection) -> None:
    """Write down that what the dead have left running was interrupted."""
    dead, outside = find(connection)
    for session_id, seq, run_id in dead:
        connection.execute("UPDATE runs SET outcome = 'interrupted' WHERE id = ?", (run_id,))
        interrupt_calls(connection, session_id, run_id, seq)
    connection.executemany(_CALLS, outside)


def interrupt_calls(connection: Connection | SessionWrite, session_id: str, run_id: str, since: int) -> None:
    connection.execute(
        "UPDATE tool_calls SET status = 'interrupted'"
        " WHERE session_id = ? AND seq > ? AND run_id = ? AND status = 'running'",
        (session_id, since, run_id),
    )
