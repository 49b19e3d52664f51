"""Writing entries to the record, in the transaction of the operation that brings them.

An entry that cannot be written must not fail a run or the checkpoint that comes with it. An error raises
`RecordWriteError`, which rolls back the transaction. The operation is then carried out again carefully: each
entry has a savepoint, and its error is reported to the context. Without errors there are no savepoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

from session_middleware.storage.checkpoint_types import CheckpointPut
from session_middleware.storage.jsonable import stored_id
from session_middleware.storage.record_entries import (
    ASIDE,
    AnswerEntry,
    Entry,
    HistoryEntry,
    MessageEntry,
    ModelCallEntry,
    QuestionEntry,
    RunEnd,
    ToolEnd,
    ToolStart,
)
from session_middleware.storage.sql.record import branches, histories, message_rows, questions, runs, tool_call_rows
from session_middleware.storage.sql.record.branches import BranchPoint
from session_middleware.storage.sql.run_write import RunWrite
from session_middleware.storage.sql.session_state import SessionWrite

_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)


class RecordWriteError(Exception):
    """An entry could not be written; the transaction is to be carried out again carefully."""


def write(
    write: SessionWrite,
    run: RunWrite,
    entries: Sequence[Entry],
    now: datetime,
    *,
    put: CheckpointPut | None = None,
) -> BranchPoint:
    """Write entries and then the messages of a put; returns the point in the record of its checkpoint.

    Raises `RecordWriteError`, unless the operation is carried out carefully.
    """
    run.begin_recording()
    point, counters = BranchPoint(), write.counters
    if entries:
        entries = [message_rows.cleaned(each) if isinstance(each, MessageEntry) else each for each in entries]
    messages: list[MessageEntry] = []
    if put is not None:
        point = branches.place_put(write, run, put, now)
        messages = [*map(message_rows.cleaned, put.messages)]
        entries = [*entries, *put.histories, *_with_late(put, messages)]
    if entries:
        _append_all(write, run, entries, now)
    if put is not None and write.state.is_waiting and not put.checkpoint_ns and put.source != "update":
        questions.drop(write, run, before=put.checkpoint_id)
    if len(run.record.written) > 1 and entries:
        if put is None:
            conversation = _conversation(e for e in entries if isinstance(e, MessageEntry) and not e.followed_by)
        else:
            conversation = [
                put.preceding and stored_id(str(put.preceding)),
                *_conversation(messages),
                *_later_model_output(put),
            ]
        message_rows.restore_conversation_order(write, run, conversation)
    if counters.replaced:
        own = (run.session_id, run.session_id)
        write.finish().execute(
            "UPDATE sessions SET cost = (SELECT SUM(cost) FROM model_calls WHERE session_id = ?) WHERE id = ?", own
        )
    if put is None or point.seq is None:
        return BranchPoint()
    last = point.seq
    for message in itertools.chain(messages, *map(attrgetter("messages"), put.histories)):
        last = max(last, counters.rows.get(message.message_id, 0))
    if put.replayed:  # the messages of such channels come with writes
        last = max(last, *_written_by(run, put))
    return BranchPoint(point.branch, last)


def _written_by(run: RunWrite, put: CheckpointPut) -> Iterable[int]:
    """The seqs of messages that the run has recorded, without those of steps after the checkpoint's."""
    yield 0
    steps, step = put.context.notes.message_steps, put.step or 0
    for message_id, seq in run.record.written.items():
        if steps.get((put.checkpoint_ns, message_id), step) <= step:
            yield seq


def write_end(
    write_: SessionWrite | None,
    run: RunWrite,
    entries: Sequence[Entry],
    reason: str,
    now: datetime,
) -> RunEnd | None:
    """Write only the end of a run that was refused while it was in progress; ``None`` if it did not begin or end."""
    end = next((entry for entry in (*run.pending(), *entries) if isinstance(entry, RunEnd)), None)
    if end is None or not run.state.has_row or write_ is None:
        return None
    run.take()
    run.is_careful = True
    end = end._replace(outcome="error", error=f"refused ({reason})", cut_off=True)  # its tools' ends are refused too
    write(write_, run, [end], now)
    write_.finish()
    return end


def _conversation(messages: Iterable[MessageEntry]) -> list[str | None]:
    """The ids of messages in the order of the conversation, which is that of the outermost graph's state.

    A message that has a successor is positioned by that.
    """
    found: dict[tuple[str, bool], None] = {}
    for message in messages:
        if ASIDE not in message.flags:
            found.setdefault((message.message_id, not message.checkpoint_ns))
    return [own for (own, is_outermost) in found if is_outermost or (own, True) not in found]


def _later_model_output(put: CheckpointPut) -> list[str]:
    """The ids of model output that was seen before this checkpoint was put, and belongs to later steps."""
    if put.step is None or not put.messages:
        return []
    outputs = put.context.notes.output_steps.copy().items()  # other threads add some meanwhile
    return [message_id for message_id, (graph, step) in outputs if graph == put.checkpoint_ns and step > put.step]


def _with_late(put: CheckpointPut, messages: Sequence[MessageEntry]) -> Sequence[MessageEntry]:
    """The messages of a put, with its step. Those that the run has shown in a later step are `late`."""
    steps = put.context.notes.message_steps
    if put.step is None or not steps:
        return messages
    late = {m.message_id for m in messages if steps.get((put.checkpoint_ns, m.message_id), put.step) > put.step}
    return [m._replace(late=m.message_id in late, step=put.step) for m in messages]


def _append_all(write: SessionWrite, run: RunWrite, entries: Sequence[Entry], now: datetime) -> None:
    errors: tuple[type[Exception], ...] = (*_ERRORS, *write.rejections)
    if run.is_careful:
        for entry in entries:
            _append_careful(write, run, entry, now, errors)
        return
    try:
        _append(write, run, entries, now)
        write.flush()
    except errors as error:
        raise RecordWriteError from error


def _append(write: SessionWrite, run: RunWrite, entries: Iterable[Entry], now: datetime) -> None:
    for kind, some in itertools.groupby(entries, type):
        if kind is MessageEntry:  # successive messages are one batch
            messages: Iterable[Any] = some
            message_rows.Appender(write, run, now).append([*messages])
            continue
        for entry in some:
            if isinstance(entry, HistoryEntry):
                histories.append(write, run, entry, now)
            elif isinstance(entry, ToolStart):
                tool_call_rows.start(write, run, entry, now)
            elif isinstance(entry, ToolEnd):
                tool_call_rows.end(write, run, entry)
            elif isinstance(entry, ModelCallEntry):
                tool_call_rows.add_model_call(write, run, entry, now)
            elif isinstance(entry, QuestionEntry):
                questions.ask(write, run, [entry], now)
            elif isinstance(entry, AnswerEntry):
                questions.answer(write, run, entry)
            elif isinstance(entry, RunEnd):
                runs.end_run(write, run, entry)


def _append_careful(
    write: SessionWrite, run: RunWrite, entry: Entry, now: datetime, errors: tuple[type[Exception], ...]
) -> None:
    try:
        with write.savepoint(errors):
            _append(write, run, [entry], now)
    except errors as error:
        if run.context.notes.on_fault is None:  # the caller gets the exception
            raise
        run.context.notes.on_fault(error)
