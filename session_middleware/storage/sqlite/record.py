"""The record in SQLite: runs, messages and tool calls, in one order per session."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from session_middleware.model import Branch, Event, Message, ModelCall, Run, ToolCall, to_text
from session_middleware.storage.port import MessageSeen, ToolStart
from session_middleware.storage.processes import is_gone, this_process
from session_middleware.storage.sqlite.rows import clean, to_json, values_of

_TABLES = ("runs", "messages", "tool_calls", "model_calls", "events", "branches", "files")


def next_seq(connection: sqlite3.Connection, session_id: str) -> int | None:
    """The next place in the session's order; ``None`` when there is no such session."""
    row = connection.execute(
        "UPDATE sessions SET last_seq = last_seq + 1 WHERE id = ? RETURNING last_seq", (session_id,)
    ).fetchone()
    return None if row is None else int(row[0])


def _insert(connection: sqlite3.Connection, table: str, columns: Sequence[str], values: Sequence[Any]) -> None:
    marks = ", ".join("?" * len(columns))
    connection.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", values)


# Runs


def begin_run(connection: sqlite3.Connection, session_id: str, run_id: str, now: datetime) -> None:
    if connection.execute("SELECT 1 FROM runs WHERE id = ?", (run_id,)).fetchone():
        return
    _interrupt_dead_runs(connection, session_id)
    connection.execute(
        "INSERT INTO runs (session_id, seq, id, outcome, started_at, process) VALUES (?, ?, ?, 'running', ?, ?)",
        (session_id, next_seq(connection, session_id), run_id, to_text(now), this_process()),
    )
    connection.execute("UPDATE sessions SET run_count = run_count + 1 WHERE id = ?", (session_id,))


def has_live_run(connection: sqlite3.Connection, session_id: str) -> bool:
    """Whether a run of the session is in progress in a process that is still there."""
    return any(not is_gone(process) for _, process in _in_progress(connection, session_id))


def _in_progress(connection: sqlite3.Connection, session_id: str) -> list[tuple[str, str]]:
    return connection.execute(
        "SELECT id, process FROM runs WHERE session_id = ? AND outcome = 'running'", (session_id,)
    ).fetchall()


def _interrupt_dead_runs(connection: sqlite3.Connection, session_id: str) -> None:
    """Runs whose process has died without ending them were interrupted, and so were their tool calls."""
    for run_id in [run_id for run_id, process in _in_progress(connection, session_id) if is_gone(process)]:
        connection.execute("UPDATE runs SET outcome = 'interrupted' WHERE id = ?", (run_id,))
        _interrupt_calls(connection, session_id, run_id)


def _interrupt_calls(connection: sqlite3.Connection, session_id: str, run_id: str) -> None:
    connection.execute(
        "UPDATE tool_calls SET status = 'interrupted' WHERE session_id = ? AND run_id = ? AND status = 'running'",
        (session_id, run_id),
    )


def end_run(
    connection: sqlite3.Connection,
    session_id: str,
    run_id: str,
    *,
    outcome: str,
    error: str | None,
    duration_ms: float,
) -> None:
    tokens = connection.execute(
        "SELECT SUM(input_tokens), SUM(output_tokens) FROM messages WHERE session_id = ? AND run_id = ?",
        (session_id, run_id),
    ).fetchone()
    latest = connection.execute(
        "SELECT MAX(checkpoint_id) FROM checkpoints WHERE session_id = ? AND checkpoint_ns = ''", (session_id,)
    ).fetchone()
    connection.execute(
        "UPDATE runs SET outcome = ?, error = ?, duration_ms = ?, input_tokens = ?, output_tokens = ?,"
        " checkpoint_id = ? WHERE id = ? AND session_id = ?",
        (outcome, error and clean(error), duration_ms, *tokens, *latest, run_id, session_id),
    )
    _interrupt_calls(connection, session_id, run_id)
    if outcome == "error":
        connection.execute("UPDATE sessions SET error_count = error_count + 1 WHERE id = ?", (session_id,))


# Messages


def append_messages(
    connection: sqlite3.Connection,
    session_id: str,
    messages: Sequence[MessageSeen],
    *,
    run_id: str | None,
    now: datetime,
) -> None:
    for seen in messages:
        message = _clean(seen)
        known = connection.execute(
            "SELECT seq, version, role, text, content, tool_calls FROM messages"
            " WHERE session_id = ? AND message_id = ? ORDER BY version DESC LIMIT 1",
            (session_id, message.message_id),
        ).fetchone()
        words = _words(message)
        if known is None or known[2:] != words:
            _add_message(connection, session_id, message, words, known and known[:2], run_id, now)


def _clean(message: MessageSeen) -> MessageSeen:
    """The message with all of its text such as a database can hold."""
    texts: dict[str, Any] = {n: clean(value) for n in _TEXTS if isinstance(value := getattr(message, n), str)}
    return message._replace(**texts) if any(getattr(message, name) != text for name, text in texts.items()) else message


_TEXTS = ("message_id", "role", "text", "name", "tool_call_id", "model", "checkpoint_ns")


def _words(message: MessageSeen) -> tuple[Any, ...]:
    """What makes two sightings of a message the same: who said what."""
    calls = to_json(list(message.tool_calls)) if message.tool_calls else None
    return message.role, message.text, to_json(message.content), calls


_MESSAGE_COLUMNS = (
    *("session_id", "seq", "place", "run_id", "message_id", "version", "role", "name", "text", "content", "tool_calls"),
    *("tool_call_id", "model", "input_tokens", "output_tokens", "checkpoint_ns", "created_at"),
)


def _add_message(
    connection: sqlite3.Connection,
    session_id: str,
    message: MessageSeen,
    words: tuple[Any, ...],
    known: tuple[int, int] | None,
    run_id: str | None,
    now: datetime,
) -> None:
    role, text, content, calls = words
    seq = next_seq(connection, session_id)
    tokens = (message.input_tokens, message.output_tokens)
    _insert(
        connection,
        "messages",
        _MESSAGE_COLUMNS,
        (session_id, seq, seq, run_id, message.message_id, known[1] + 1 if known else 1, role, message.name, text)
        + (content, calls, message.tool_call_id, message.model, *tokens, message.checkpoint_ns, to_text(now)),
    )
    if known:
        connection.execute(
            "UPDATE messages SET replaced_by = ? WHERE session_id = ? AND seq = ?", (seq, session_id, known[0])
        )
        return
    connection.execute(
        "UPDATE sessions SET message_count = message_count + 1, input_tokens = input_tokens + ?,"
        " output_tokens = output_tokens + ? WHERE id = ?",
        (*(count or 0 for count in tokens), session_id),
    )
    for call in message.tool_calls:
        connection.execute(
            "UPDATE tool_calls SET message_id = ? WHERE session_id = ? AND tool_call_id = ? AND message_id IS NULL",
            (message.message_id, session_id, clean(str(call.get("id")))),
        )
    if message.role == "tool" and message.tool_call_id:
        _add_answered_call(connection, session_id, message, message.tool_call_id, run_id)


# Tool calls


def start_tool_call(
    connection: sqlite3.Connection, session_id: str, call: ToolStart, *, run_id: str | None, now: datetime
) -> None:
    tool_call_id = clean(call.tool_call_id)
    earlier = connection.execute(
        "SELECT COUNT(*) FROM tool_calls WHERE session_id = ? AND tool_call_id = ?", (session_id, tool_call_id)
    ).fetchone()[0]
    if earlier:
        connection.execute(
            "UPDATE tool_calls SET status = 'interrupted'"
            " WHERE session_id = ? AND tool_call_id = ? AND status = 'running'",
            (session_id, tool_call_id),
        )
    asked = _asking_message(connection, session_id, tool_call_id)
    _insert_call(
        connection,
        session_id,
        run_id=run_id,
        execution_id=call.execution_id,
        tool_call_id=tool_call_id,
        attempt=earlier + 1,
        name=clean(call.name),
        arguments=to_json(call.arguments),
        status="running",
        message_id=asked and asked[0],
        checkpoint_ns=call.checkpoint_ns,
        node=call.node,
        started_at=to_text(now),
    )


def end_tool_call(
    connection: sqlite3.Connection,
    session_id: str,
    execution_id: str,
    *,
    status: str,
    result: Any,
    error: str | None,
    duration_ms: float,
) -> None:
    connection.execute(
        "UPDATE tool_calls SET status = ?, result = ?, error = ?, duration_ms = ?"
        " WHERE execution_id = ? AND session_id = ?",
        (status, to_json(result), error and clean(error), duration_ms, execution_id, session_id),
    )
    if status == "error":
        connection.execute("UPDATE sessions SET error_count = error_count + 1 WHERE id = ?", (session_id,))


def _add_answered_call(
    connection: sqlite3.Connection, session_id: str, message: MessageSeen, tool_call_id: str, run_id: str | None
) -> None:
    """A row for a call whose execution nobody watched, from the message that answers it."""
    asked = _asking_message(connection, session_id, tool_call_id)
    since = asked[2] if asked else 0  # a model may use an id again in a later turn
    earlier = connection.execute(
        "SELECT COUNT(*), MAX(seq > ? OR run_id IS ?) FROM tool_calls WHERE session_id = ? AND tool_call_id = ?",
        (since, run_id or "", session_id, tool_call_id),
    ).fetchone()
    if earlier[1]:
        return
    _insert_call(
        connection,
        session_id,
        run_id=run_id,
        execution_id=message.message_id,
        tool_call_id=tool_call_id,
        attempt=earlier[0] + 1,
        name=clean(message.name or (asked and asked[1].get("name")) or "tool"),
        arguments=to_json(asked and asked[1].get("args")),
        result=to_json(message.content if message.content is not None else message.text),
        status="error" if message.tool_error else "ok",
        error=clean(message.text) if message.tool_error else None,
        message_id=asked and asked[0],
        checkpoint_ns=message.checkpoint_ns,
    )


_CALL_COLUMNS = (
    *("run_id", "execution_id", "tool_call_id", "attempt", "name", "arguments", "result", "status", "error"),
    *("message_id", "checkpoint_ns", "node", "started_at"),
)


def _insert_call(connection: sqlite3.Connection, session_id: str, **columns: Any) -> None:
    seq = next_seq(connection, session_id)
    values = [columns.get(name) for name in _CALL_COLUMNS]
    _insert(connection, "tool_calls", ("session_id", "seq", *_CALL_COLUMNS), (session_id, seq, *values))
    connection.execute("UPDATE sessions SET tool_call_count = tool_call_count + 1 WHERE id = ?", (session_id,))


def _asking_message(
    connection: sqlite3.Connection, session_id: str, tool_call_id: str
) -> tuple[str, dict[str, Any], int] | None:
    """The id of the latest assistant message that asked for this call, the request, and the message's seq."""
    rows = connection.execute(
        "SELECT message_id, tool_calls, seq FROM messages WHERE session_id = ? AND tool_calls IS NOT NULL"
        " ORDER BY seq DESC LIMIT 50",
        (session_id,),
    )
    for message_id, calls, seq in rows:
        for call in json.loads(calls):
            if call.get("id") == tool_call_id:
                return message_id, call, seq
    return None


# Reading


def list_messages(
    connection: sqlite3.Connection, session_id: str, *, after: int, limit: int | None, all_versions: bool
) -> list[Message]:
    cursor = connection.execute(
        "SELECT * FROM messages WHERE session_id = ? AND seq > ? AND (? OR replaced_by IS NULL) ORDER BY seq LIMIT ?",
        (session_id, after, all_versions, _limit(limit)),
    )
    return values_of(Message, cursor)


def list_tool_calls(
    connection: sqlite3.Connection, session_id: str, *, after: int, limit: int | None
) -> list[ToolCall]:
    cursor = connection.execute(
        "SELECT * FROM tool_calls WHERE session_id = ? AND seq > ? ORDER BY seq LIMIT ?",
        (session_id, after, _limit(limit)),
    )
    return values_of(ToolCall, cursor)


def list_model_calls(
    connection: sqlite3.Connection, session_id: str, *, after: int, limit: int | None
) -> list[ModelCall]:
    cursor = connection.execute(
        "SELECT * FROM model_calls WHERE session_id = ? AND seq > ? ORDER BY seq LIMIT ?",
        (session_id, after, _limit(limit)),
    )
    return values_of(ModelCall, cursor)


def list_branches(connection: sqlite3.Connection, session_id: str) -> list[Branch]:
    cursor = connection.execute("SELECT * FROM branches WHERE session_id = ? ORDER BY created_at, id", (session_id,))
    return values_of(Branch, cursor)


def list_runs(connection: sqlite3.Connection, session_id: str, *, after: int, limit: int | None) -> list[Run]:
    cursor = connection.execute(
        "SELECT * FROM runs WHERE session_id = ? AND seq > ? ORDER BY seq LIMIT ?",
        (session_id, after, _limit(limit)),
    )
    return values_of(Run, cursor)


def list_events(connection: sqlite3.Connection, session_id: str, *, after: int, limit: int | None) -> list[Event]:
    cursor = connection.execute(
        "SELECT * FROM events WHERE session_id = ? AND seq > ? ORDER BY seq LIMIT ?",
        (session_id, after, _limit(limit)),
    )
    return values_of(Event, cursor)


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit


# With their session


def rename(connection: sqlite3.Connection, session_id: str, to: str) -> None:
    for table in _TABLES:
        connection.execute(f"UPDATE {table} SET session_id = ? WHERE session_id = ?", (to, session_id))


def delete(connection: sqlite3.Connection, session_id: str) -> tuple[int, int]:
    """Delete the session's record; how many messages and tool calls that was."""
    counts = {
        table: connection.execute(f"DELETE FROM {table} WHERE session_id = ?", (session_id,)).rowcount
        for table in _TABLES
    }
    return counts["messages"], counts["tool_calls"]
