"""Runs: their beginning and end, the interruption of those whose process has died, and whole records of sessions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from session_middleware.models import to_text
from session_middleware.storage.processes import is_gone, this_process
from session_middleware.storage.record_entries import ASIDE, RunEnd
from session_middleware.storage.sql.checkpoints.rows import AT, at
from session_middleware.storage.sql.connection import Connection, Cursor
from session_middleware.storage.sql.record import questions
from session_middleware.storage.sql.record.branches import Line
from session_middleware.storage.sql.row_mapping import clean, to_json
from session_middleware.storage.sql.run_write import RunWrite
from session_middleware.storage.sql.session_state import SessionWrite

TABLES = (
    "runs",
    "messages",
    "tool_calls",
    "model_calls",
    "questions",
    "events",
    "branches",
    "files",
    "conversation_items",
)


def next_seq(connection: Connection, session_id: str) -> int | None:
    """Return the next seq in the session's order; ``None`` when there is no such session."""
    row = connection.execute(
        "UPDATE sessions SET version = version + 1, last_seq = last_seq + 1 WHERE id = ? RETURNING last_seq",
        (session_id,),
    ).fetchone()
    return None if row is None else int(row[0])


# Runs


def begin_run(write: SessionWrite, run: RunWrite, now: datetime) -> bool:
    """Insert the row of a run; returns whether earlier runs were interrupted, because their process has died."""
    run.state = run.state._replace(has_row=True)
    has_dead = interrupt_earlier(write, run)
    counters = write.counters
    counters.runs += 1

    def uncount() -> None:  # another recorder has recorded it
        counters.runs, counters.changed = counters.runs - 1, True

    row = (
        *(run.session_id, counters.next_seq(), run.run_id, run.context.identity.user_id, "running", to_text(now)),
        *(run.context.started_from, int(run.context.checkpointed), this_process()),
        *(to_json(list(run.context.tags) or None), to_json(run.context.metadata or None)),
    )
    write.insert("runs", _BEGUN, [row], " ON CONFLICT (id, session_id) DO NOTHING", if_there=uncount)
    if run.context.continues_without_input:
        questions.go_on(write, run, now)
    return has_dead


_BEGUN = (
    *("session_id", "seq", "id", "user_id", "outcome", "started_at", "started_from", "checkpointed", "process"),
    *("tags", "metadata"),
)
_RUNNING = "SELECT session_id, seq, id, process FROM runs WHERE outcome = 'running'"
_RUNNING_OF = f"{_RUNNING} AND session_id = ?"


def interrupt_earlier(write: SessionWrite, run: RunWrite) -> bool:
    """Interrupt dead runs of the session, and decide what becomes of the messages that the state does not contain.

    A run without new input repeats them. New input discards them, even if tasks have stored them as pending writes.
    Returns whether there were dead runs.
    """
    session_id, state = run.session_id, write.state
    if not state.may_have_dead_runs:
        return False
    running = write.query(_RUNNING_OF, (session_id,)).fetchall()
    dead = [DeadRun(*each) for *each, process in running if is_gone(process)]
    for each in dead:
        _interrupt(write, each)
    state.message_rows.clear()
    state.may_have_dead_runs = {process for *_, process in running} - {this_process()} != set()
    last = write.query(_LAST_RUN, (session_id, run.run_id)).fetchone()
    if last is not None and last[-1]:
        if run.context.continues_without_input:
            own = (session_id, last[2], *at(session_id, "", run.context.started_from or ""))
            run.add_unclaimed({(role, what): own for role, what, own in write.query(_AHEAD_OF_STATE, own)})
        else:
            write.execute(_MARK_ASIDE, (*last[:3], 1))
    return bool(dead)


_LAST_RUN = """
    SELECT session_id, seq, id, outcome = 'interrupted' AND duration_ms IS NULL FROM runs
    WHERE session_id = ? AND id IS NOT ? ORDER BY seq DESC LIMIT 1
"""
_AHEAD_OF_STATE = f"""
    SELECT role, COALESCE(tool_call_id, text), message_id FROM messages WHERE session_id = ? AND run_id = ?
    AND seq > COALESCE((SELECT seq FROM checkpoints WHERE {AT}), 0)
    AND checkpoint_ns = '' AND COALESCE(tool_call_id, text) != ''
"""


def end_run(write: SessionWrite, run: RunWrite, end: RunEnd) -> None:
    if end.rejects_answers:
        questions.reopen(write, run)
    elif write.state.is_waiting and end.is_finished and not run.context.checkpointed:  # else by a checkpoint
        questions.drop(write, run)
    outcome = (end.outcome, end.error and clean(end.error), end.duration_ms, run.checkpoint_id)
    values = (*outcome, run.run_id, run.session_id)
    if not end.cut_off and end.outcome != "error":
        write.execute(_END_RUN, values)
        return
    row = write.execute(f"{_END_RUN} RETURNING seq", values).fetchone()
    if row is None:
        return
    if end.cut_off:
        _interrupt_calls(write, DeadRun(run.session_id, row[0], str(run.run_id)))
    if end.outcome == "error":
        write.counters.count_error()


# What a run's models were asked stands behind it in the session's order, so no more than that is read.
_MODEL_CALLS = "FROM model_calls WHERE session_id = runs.session_id AND seq > runs.seq AND run_id = runs.id"
_END_RUN = f"""
    UPDATE runs SET outcome = ?, error = ?, duration_ms = ?, checkpoint_id = ?,
    (input_tokens, output_tokens, cost) = (SELECT SUM(input_tokens), SUM(output_tokens), SUM(cost) {_MODEL_CALLS})
    WHERE id = ? AND session_id = ? AND duration_ms IS NULL
"""


# Runs and tool calls of processes that have died. They are read as interrupted at once; the next run of the session
# or the next sweep updates their rows.


class DeadRun(NamedTuple):
    session_id: str
    seq: int
    id: str


def find_dead(connection: Connection) -> tuple[list[DeadRun], list[tuple[str, int]]]:
    """Return the runs, and the session and seq of tool calls outside of runs, that dead processes have left running."""
    calls = connection.execute("SELECT session_id, seq, process FROM tool_calls WHERE process IS NOT NULL").fetchall()
    dead_calls = [row[:2] for row in calls if is_gone(row[2])]
    return [DeadRun(*run) for *run, process in connection.execute(_RUNNING) if is_gone(process)], dead_calls


def list_left_behind(connection: Connection, session_id: str) -> set[int]:
    """Return the seqs of messages of dead runs that the state does not contain, and that are not yet marked so."""
    running = connection.execute(_RUNNING_OF, (session_id,)).fetchall()
    dead = [(*run, 0) for *run, process in running if is_gone(process)]
    for run in dead:
        connection.prefetch(_LEFT_BEHIND, run)
    return {seq for run in dead for (seq,) in connection.execute(_LEFT_BEHIND, run)}


def prefetch_left_behind(connection: Connection, session_id: str) -> None:
    """Announce the first statement of `list_left_behind`."""
    connection.prefetch(_RUNNING_OF, (session_id,))


# The messages of a run with a checkpointer after the latest checkpoint. If that has pending writes, the state contains
# some of these messages, until new input discards them (?4).
_LEFT_BEHIND = f"""
    SELECT seq FROM messages WHERE session_id = ?1 AND seq > ?2 AND run_id = ?3 AND checkpoint_ns = ''
    AND COALESCE(flags, '') NOT LIKE '%"{ASIDE}"%' AND EXISTS (
        SELECT 1 FROM runs JOIN sessions ON sessions.id = runs.session_id WHERE runs.id = ?3
        AND runs.session_id = ?1 AND runs.checkpointed = 1
        AND (?4 = 1 OR COALESCE(latest_checkpoint_id, '') = COALESCE(started_from, '') OR write_count = 0)
        AND messages.seq > COALESCE((
            SELECT latest.seq FROM checkpoints AS latest
            WHERE latest.home = sessions.home AND latest.session_id = sessions.id AND latest.checkpoint_ns = ''
            AND latest.position >= latest_checkpoint_id AND latest.checkpoint_id = latest_checkpoint_id LIMIT 1
        ), 0)
    )
"""
_MARK_ASIDE = f"""
    UPDATE messages SET flags = json_insert(COALESCE(flags, '[]'), '$[#]', '{ASIDE}')
    WHERE session_id = ?1 AND seq IN ({_LEFT_BEHIND})
"""


def interrupt_dead(connection: Connection) -> None:
    """Interrupt them, except in sessions that another process writes to at the moment."""
    free = connection.lock_free({session_id for found in find_dead(connection) for session_id, *_ in found})
    runs, calls = find_dead(connection)
    interrupt(connection, [run for run in runs if run.session_id in free], [call for call in calls if call[0] in free])


def interrupt(connection: Connection, runs: Sequence[DeadRun], calls: Sequence[tuple[str, int]]) -> None:
    """Mark runs, and tool calls outside of runs, as interrupted."""
    for run in runs:
        _interrupt(connection, run)
    connection.executemany(_INTERRUPT_CALL, calls)


_INTERRUPT_CALL = "UPDATE tool_calls SET status = 'interrupted', process = NULL WHERE session_id = ? AND seq = ?"


def interrupt_calls_outside(connection: Connection, session_id: str) -> None:
    """Mark a session's tool calls outside of runs as interrupted if their process has died."""
    sql = "SELECT session_id, seq, process FROM tool_calls WHERE session_id = ? AND process IS NOT NULL"
    calls = connection.execute(sql, (session_id,)).fetchall()
    connection.executemany(_INTERRUPT_CALL, [row[:2] for row in calls if is_gone(row[2])])


def _interrupt(connection: Connection | SessionWrite, run: DeadRun) -> None:
    connection.execute(_MARK_ASIDE, (*run, 0))
    connection.execute("UPDATE runs SET outcome = 'interrupted' WHERE session_id = ? AND seq = ?", run[:2])
    questions.reopen_forgotten(connection, run.session_id, run.id)
    _interrupt_calls(connection, run)


def _interrupt_calls(connection: Connection | SessionWrite, run: DeadRun) -> None:
    connection.execute(
        "UPDATE tool_calls SET status = 'interrupted'"
        " WHERE session_id = ? AND seq > ? AND run_id = ? AND status = 'running'",
        run,
    )


def is_forgotten(connection: Connection, run: RunWrite) -> bool:
    """Whether the run's user was forgotten while it was in progress: its row then names another user."""
    if not run.state.has_row:
        return False
    sql = "SELECT user_id FROM runs WHERE id = ? AND session_id = ?"
    row = connection.execute(sql, (run.run_id, run.session_id)).fetchone()
    return row is not None and row[0] == "forgotten" != run.context.identity.user_id


# With their session


def rename(connection: Connection, session_id: str, to: str) -> None:
    for table in TABLES:
        connection.execute(f"UPDATE {table} SET session_id = ? WHERE session_id = ?", (to, session_id))


def copy(connection: Connection, session_id: str, to: str, line: Line | None = None) -> None:
    """Copy the messages of each branch, or of one line, to a fork in their order.

    Runs, tool calls and costs are not copied.
    """
    values: dict[str, Any] = {"source": session_id, "to": to}
    parts = {"kept": "TRUE", "branches": "TRUE", "current": "source.branch"}
    if line is not None:
        for number, (branch, upto) in enumerate(line):
            values |= {f"branch_{number}": branch, f"upto_{number}": upto}
        each = range(len(line))
        kept = " OR ".join(f"branch = :branch_{number} AND seq <= :upto_{number}" for number in each)
        branches = f"id IN ({', '.join(f':branch_{number}' for number in each)})"
        parts = {"kept": f"({kept})", "branches": branches, "current": ":branch_0"}
    for statement in _COPY:
        connection.execute(statement.format(**parts), values)


# Copied rows have seqs after those of the target. Events of deletions are copied, because a fork's state may still
# contain the deleted messages.
_SHIFT = "(SELECT last_seq FROM sessions WHERE id = :to)"
_COPIED = """
    message_id, branch, role, name, text, content, tool_calls, tool_call_id, model, status, checkpoint_ns,
    extra, flags, created_at
"""
_COPY = (
    f"""
    INSERT INTO messages (session_id, seq, replaced_by, position, version, {_COPIED})
    SELECT :to, seq + {_SHIFT}, replaced_by + {_SHIFT}, position + {_SHIFT},
    ROW_NUMBER() OVER (PARTITION BY message_id ORDER BY version), {_COPIED}
    FROM messages WHERE session_id = :source AND {{kept}} ORDER BY seq
    """,
    """
    UPDATE messages SET replaced_by = NULL WHERE session_id = :to AND replaced_by IS NOT NULL
    AND replaced_by NOT IN (SELECT seq FROM messages WHERE session_id = :to)
    """,
    f"""
    INSERT INTO branches (session_id, id, parent_id, parent_seq, created_at)
    SELECT :to, id, parent_id, parent_seq + {_SHIFT}, created_at FROM branches WHERE session_id = :source
    AND {{branches}}
    """,
    f"""
    INSERT INTO events (session_id, seq, kind, reason, detail, created_at)
    SELECT :to, seq + {_SHIFT}, kind, reason,
    json_remove(json_set(detail, '$.position', CAST(json_extract(detail, '$.position') AS REAL) + {_SHIFT}), '$.seqs'),
    created_at
    FROM events WHERE session_id = :source AND kind = 'message_deleted'
    """,
    """
    INSERT INTO files (session_id, hash, media_type, data)
    SELECT :to, hash, media_type, data FROM files AS own WHERE session_id = :source
    AND EXISTS (SELECT 1 FROM messages WHERE session_id = :to
    AND (instr(content, own.hash) > 0 OR instr(extra, own.hash) > 0))
    """,
    f"UPDATE checkpoints SET seq = seq + {_SHIFT}"
    " WHERE home = (SELECT home FROM sessions WHERE id = :to) AND session_id = :to",
    """
    UPDATE sessions SET (last_seq, branch) = (SELECT sessions.last_seq + source.last_seq, {current}
    FROM sessions AS source WHERE source.id = :source), message_count = message_count
    + (SELECT COUNT(DISTINCT message_id) FROM messages WHERE session_id = :source AND {kept}) WHERE id = :to
    """,
)


def delete(connection: Connection, session_ids: Sequence[str]) -> dict[str, Cursor]:
    """Delete the record of sessions. The cursors count the rows of each table."""
    of, ids = "WHERE session_id IN (SELECT value FROM json_each(?))", json.dumps([*session_ids])
    return {table: connection.execute(f"DELETE FROM {table} {of}", (ids,)) for table in TABLES}
