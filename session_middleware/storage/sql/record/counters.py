"""What one transaction adds to a session's counters, and the places it gives in the session's order.

The counters are read once and written once a transaction, however many rows it adds: each statement
lets go of the interpreter, which under load costs more than what the statement does.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field


@dataclass(slots=True)
class SessionCounters:
    session_id: str
    last_seq: int
    branch: str  # the branch the session is on
    messages: int = 0
    tool_calls: int = 0
    model_calls: int = 0
    unpriced: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None  # what is known of it
    replaced: bool = False  # a model call took another one's place: the cost is summed anew
    changed: bool = False
    rows: dict[str, int] = field(default_factory=dict)  # the seq of each message that was seen

    def next_seq(self) -> int:
        self.changed = True
        self.last_seq += 1
        return self.last_seq

    def move_to(self, branch: str) -> None:
        if branch != self.branch:
            self.branch, self.changed = branch, True

    def count_error(self, by: int = 1) -> None:
        self.errors, self.changed = self.errors + by, True

    def count_model_call(
        self,
        input_tokens: int | None,
        output_tokens: int | None,
        cost: float | None,
        *,
        failed: bool = False,
        by: int = 1,
    ) -> None:
        self.model_calls += by
        self.input_tokens += input_tokens or 0
        self.output_tokens += output_tokens or 0
        self.unpriced += by * (cost is None and not failed)
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost
        self.changed = True


def read(connection: sqlite3.Connection, session_id: str) -> SessionCounters | None:
    """``None``: there is no such session."""
    row = connection.execute("SELECT last_seq, branch FROM sessions WHERE id = ?", (session_id,)).fetchone()
    return None if row is None else SessionCounters(session_id, *row)


def write(connection: sqlite3.Connection, tally: SessionCounters) -> None:
    if not tally.changed:
        return
    connection.execute(
        "UPDATE sessions SET last_seq = ?, branch = ?, message_count = message_count + ?,"
        " tool_call_count = tool_call_count + ?, model_call_count = model_call_count + ?,"
        " unpriced_count = unpriced_count + ?, error_count = error_count + ?, input_tokens = input_tokens + ?,"
        " output_tokens = output_tokens + ?, cost = COALESCE(cost + ?, cost, ?) WHERE id = ?",
        (tally.last_seq, tally.branch, tally.messages, tally.tool_calls, tally.model_calls, tally.unpriced)
        + (tally.errors, tally.input_tokens, tally.output_tokens, tally.cost, tally.cost, tally.session_id),
    )
    if tally.replaced:
        connection.execute(
            "UPDATE sessions SET cost = (SELECT SUM(cost) FROM model_calls WHERE session_id = ?) WHERE id = ?",
            (tally.session_id, tally.session_id),
        )


def insert(
    connection: sqlite3.Connection, table: str, columns: tuple[str, ...], rows: list[tuple[object, ...]]
) -> None:
    """Several rows by one statement."""
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        marks = f"({', '.join('?' * len(columns))})"
        connection.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([marks] * len(some))}",
            [value for row in some for value in row],
        )


_ROWS = 16  # inserted by one statement, at most
