"""Questions: what a graph asked at its interrupts, and the answers.

The state of a graph holds the same questions: the interrupts among the writes of its latest checkpoint. They are open
until an answer comes, or until the graph has a later checkpoint and is no longer at the interrupt. `update_state` does
not end the wait, because the next run is at the same node: it asks again, goes on, or gets the answer.

A task that is executed again asks again, and a graph asks what its subgraph asks. LangGraph's id of an interrupt is the
same each time, so an open question is recorded once. Releases of LangGraph differ in whether successive interrupts of a
task have different ids, so a question with the id of an answered one is new.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from session_middleware.models import to_text
from session_middleware.storage.record_entries import AnswerEntry, QuestionEntry
from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.row_mapping import clean, flags_of, to_json
from session_middleware.storage.sql.run_write import RunWrite
from session_middleware.storage.sql.session_state import SessionWrite

_INTERRUPT_ID = re.compile(r"[0-9a-f]{32}")


def ask(write: SessionWrite, run: RunWrite, entries: Sequence[QuestionEntry], now: datetime) -> None:
    for entry in entries:
        name, value, node = entry.interrupt_id, to_json(entry.value), entry.node and clean(entry.node)
        if write.state.is_waiting:
            if entry.checkpoint_id is not None:
                _drop_before(write, entry.checkpoint_id)
            again = (value, entry.checkpoint_id, node, entry.checkpoint_ns, run.session_id, name)
            if write.execute(_ASK_AGAIN, again).rowcount:
                continue
        flags = flags_of(entry.flags, value)
        place = (node, entry.checkpoint_ns, entry.checkpoint_id)
        row = (run.session_id, write.counters.next_seq(), run.run_id, name, value, *place, to_text(now), flags)
        write.insert("questions", _ASKED, [row])
        write.state.is_waiting = True
    if entries:
        _count(write)


_ASKED = (
    *("session_id", "seq", "run_id", "interrupt_id", "value", "node", "checkpoint_ns", "checkpoint_id"),
    *("asked_at", "flags"),
)
_ASK_AGAIN = """
    UPDATE questions SET value = ?1, checkpoint_id = COALESCE(?2, checkpoint_id),
    node = CASE WHEN length(?4) > length(checkpoint_ns) THEN ?3 ELSE COALESCE(node, ?3) END,
    checkpoint_ns = CASE WHEN length(?4) > length(checkpoint_ns) THEN ?4 ELSE checkpoint_ns END
    WHERE session_id = ?5 AND status = 'open' AND interrupt_id IS ?6
"""


class _Row(NamedTuple):
    seq: int
    interrupt_id: str | None
    is_open: bool
    is_here: bool  # at the checkpoint that the run started from
    is_done: bool  # this run has answered it


def answer(write: SessionWrite, run: RunWrite, entry: AnswerEntry) -> None:
    """Answer open questions, or again those of the earlier checkpoint that the run was sent back to.

    One value answers the only question; LangGraph refuses it if there are several. If two `Sessions` serve a run,
    both may bring the answer, which is recorded once.
    """
    started_from = run.context.started_from
    asked = (started_from, run.run_id, run.session_id, started_from)
    rows = [_Row(*row) for row in write.query(_ANSWERABLE, asked).fetchall()]
    if any(row.is_done for row in rows):
        return
    answers: dict[Any, Any] = {}
    if type(entry.value) is dict and entry.value and all(map(_INTERRUPT_ID.fullmatch, map(str, entry.value))):
        answers = entry.value
    rows = [row for row in rows if not answers or row.interrupt_id in answers]
    is_open = [row for row in rows if row.is_open]
    rows = [row for row in is_open if row.is_here] or is_open or rows
    if not answers and rows:
        if len({row.interrupt_id for row in is_open and rows}) > 1:
            return
        rows, answers = rows[:1], {rows[0].interrupt_id: entry.value}
    for row in rows:
        value = to_json(answers.get(row.interrupt_id))
        by = (run.context.identity.user_id, to_text(entry.answered_at), run.run_id, flags_of(entry.flags, value))
        if row.is_open:
            write.execute(_ANSWER, (value, *by, run.session_id, row.seq))
        else:
            write.execute(_ANSWER_AGAIN, (write.counters.next_seq(), value, *by, run.session_id, row.seq))
    _count(write)


_ANSWERABLE = """
    SELECT seq, interrupt_id, status = 'open', checkpoint_id IS ?, COALESCE(answer_run_id = ?, 1 = 0) FROM questions
    WHERE session_id = ? AND (status = 'open' OR checkpoint_id = ?) ORDER BY seq
"""
_ANSWER = """
    UPDATE questions SET status = 'answered', answer = ?, answered_by = ?, answered_at = ?, answer_run_id = ?,
    flags = COALESCE(flags, ?) WHERE session_id = ? AND seq = ?
"""
_QUESTION = "session_id, run_id, interrupt_id, value, node, checkpoint_ns, checkpoint_id, asked_at"
_ANSWER_AGAIN = f"""
    INSERT INTO questions (seq, status, answer, answered_by, answered_at, answer_run_id, flags, {_QUESTION})
    SELECT ?, 'answered', ?, ?, ?, ?, COALESCE(flags, ?), {_QUESTION} FROM questions WHERE session_id = ? AND seq = ?
"""


def go_on(write: SessionWrite, run: RunWrite, now: datetime) -> None:
    """A run without input continues from a breakpoint, which is its answer."""
    if write.state.is_waiting:
        by = (run.context.identity.user_id, to_text(now), run.run_id, run.session_id)
        write.execute(_GO_ON, (*by, run.context.started_from))
        _count(write)


_GO_ON = """
    UPDATE questions SET status = 'answered', answered_by = ?1, answered_at = ?2, answer_run_id = ?3
    WHERE session_id = ?4 AND status = 'open' AND interrupt_id IS NULL
    AND COALESCE(checkpoint_id <= ?5, 1 = 1)
"""


def drop(write: SessionWrite, run: RunWrite, *, before: str | None = None) -> None:
    """Close open questions without an answer: those of checkpoints before this one, or all."""
    if before is None:
        write.execute(_DROP, (run.session_id,))
    else:
        _drop_before(write, before)
    _count(write)


def _drop_before(write: SessionWrite, checkpoint_id: str) -> None:
    write.execute(f"{_DROP} AND checkpoint_id < ?", (write.state.session_id, checkpoint_id))


_DROP = "UPDATE questions SET status = 'dropped' WHERE session_id = ? AND status = 'open'"


def reopen(write: SessionWrite, run: RunWrite) -> None:
    """Undo the answers of a run: the graph has refused them."""
    if write.execute(_REOPEN, (run.session_id, run.run_id)).rowcount:
        _count(write)


_REOPEN = """
    UPDATE questions SET status = 'open', answer = NULL, answered_by = NULL, answered_at = NULL, answer_run_id = NULL
    WHERE session_id = ? AND answer_run_id = ? AND status = 'answered'
"""


def reopen_forgotten(connection: Connection | SessionWrite, session_id: str, run_id: str) -> None:
    """Undo the answers of a dead run that its graph asks for again.

    LangGraph stores answers by ids with the output of their nodes. So without any output at the question's checkpoint,
    which is the latest, they are lost. It stores a single answer before the run, as a write of the checkpoint.
    """
    if connection.execute(_REOPEN_FORGOTTEN, (session_id, run_id)).rowcount:
        if isinstance(connection, SessionWrite):
            _count(connection)
        else:
            connection.execute(f"{COUNT}, version = version + 1 WHERE id = ?", (session_id,))


_REOPEN_FORGOTTEN = f"""
    {_REOPEN} AND checkpoint_ns = '' AND EXISTS (
        SELECT 1 FROM sessions WHERE sessions.id = questions.session_id
        AND sessions.latest_checkpoint_id = questions.checkpoint_id AND NOT EXISTS (
            SELECT 1 FROM writes WHERE writes.home = sessions.home AND writes.session_id = sessions.id
            AND writes.checkpoint_ns = '' AND writes.checkpoint_id = questions.checkpoint_id
            AND writes.channel != '__interrupt__'
        )
    )
"""


def _count(write: SessionWrite) -> None:
    """Set the session's count of open questions anew."""
    sql = f"{COUNT} WHERE id = ? RETURNING waiting_count"
    write.state.is_waiting = write.finish().execute(sql, (write.state.session_id,)).fetchone() != (0,)


COUNT = """
    UPDATE sessions SET waiting_count =
    (SELECT COUNT(*) FROM questions WHERE session_id = sessions.id AND status = 'open')
"""


def move(connection: Connection, session_id: str, checkpoint_id: str) -> None:
    """Open what was asked at a checkpoint that is the latest again, and drop what was asked elsewhere."""
    connection.execute(_MOVE, (checkpoint_id, session_id))
    connection.execute(f"{COUNT} WHERE id = ?", (session_id,))


_MOVE = """
    UPDATE questions SET status = CASE WHEN checkpoint_id = ?1 THEN 'open' ELSE 'dropped' END
    WHERE session_id = ?2 AND (status = 'open' OR status = 'dropped' AND checkpoint_id = ?1)
"""


def copy(connection: Connection, source_id: str, target_id: str, *, asked_again: bool) -> None:
    """Copy the questions at the latest checkpoint of a fork, whose seqs were shifted: its graph waits there too.

    Args:
        asked_again: the fork does not have the answers, and waits at the last question of each node.
    """
    status = "'open'" if asked_again else "CASE status WHEN 'dropped' THEN 'open' ELSE status END"
    columns, last = (_COPIED, _LAST) if asked_again else (f"{_COPIED}, {_ANSWERED}", "")
    sql = _COPY.format(status=status, columns=columns, last=last)
    connection.execute(sql, {"source": source_id, "to": target_id})
    connection.execute(f"{COUNT} WHERE id = ?", (target_id,))


_COPIED = "interrupt_id, value, node, checkpoint_ns, checkpoint_id, asked_at, flags"
_ANSWERED = "answer, answered_by, answered_at"
_COPY = """
    INSERT INTO questions (session_id, seq, status, {columns})
    SELECT :to,
    seq + (SELECT last_seq FROM sessions WHERE id = :to) - (SELECT last_seq FROM sessions WHERE id = :source),
    {status}, {columns} FROM questions AS own WHERE session_id = :source
    AND checkpoint_id = (SELECT latest_checkpoint_id FROM sessions WHERE id = :to) {last}
"""
_LAST = """
    AND NOT EXISTS (SELECT 1 FROM questions AS next WHERE next.session_id = own.session_id AND next.seq > own.seq
    AND next.checkpoint_id = own.checkpoint_id AND next.checkpoint_ns = own.checkpoint_ns
    AND next.node = own.node AND next.run_id = own.answer_run_id)
"""
