"""Writing entries to the record, in the transaction of the operation that brings them.

An entry that cannot be written must not fail a run or the checkpoint that comes with it. An error raises
`RecordWriteError`, which rolls back the transaction. The operation is then carried out again with `careful`: each
entry has a savepoint, and its error is reported to the context. Without errors there are no savepoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from datetime import datetime
from operator import attrgetter

from session_middleware.storage.checkpoint_types import CheckpointPut
from session_middleware.storage.record_entries import (
    ASIDE,
    Entry,
    HistoryEntry,
    MessageEntry,
    ModelCallEntry,
    RunEnd,
    ToolEnd,
    ToolStart,
)
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.record import branches, histories, message_rows, runs, tool_call_rows
from session_middleware.storage.sql.record.branches import BranchPoint
from session_middleware.storage.sql.session_state import SessionWrite

_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)
_RESTORED = ("admitted", "announced", "has_row", "refused", "admission", "incarnation", "checkpoint_id")

_values_of = attrgetter(*_RESTORED)


class RecordWriteError(Exception):
    """An entry could not be written; the transaction is to be carried out again with `careful`."""


class EntrySnapshot:
    """The fields of a context before an operation, restored when the operation is rolled back."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._values = _values_of(context)
        self._branch, self._unclaimed = context.record.branch, dict(context.record.unclaimed)
        self._handle_incarnation = None if context.handle is None else context.handle.incarnation
        self._lease_number = None if context.lease is None else context.lease.number
        self._taken: list[Entry] = []

    def take(self) -> list[Entry]:
        """Remove and return the buffered entries of the context, with those that were taken before."""
        entries = self._context.record.entries
        while entries:  # other threads append meanwhile
            self._taken.append(entries.popleft())
        return list(self._taken)

    def restore(self) -> None:
        context = self._context
        for name, value in zip(_RESTORED, self._values, strict=True):
            setattr(context, name, value)
        if context.handle is not None and self._handle_incarnation is not None:
            context.handle.incarnation = self._handle_incarnation
        if context.lease is not None:
            context.lease.number = self._lease_number
        context.record.branch = self._branch
        context.record.unclaimed.update(self._unclaimed)  # other threads add some meanwhile
        context.record.entries.extendleft(reversed(self._taken))
        self._taken.clear()


def write(
    write: SessionWrite,
    context: RunContext,
    entries: Sequence[Entry],
    now: datetime,
    *,
    careful: bool,
    put: CheckpointPut | None = None,
) -> BranchPoint:
    """Write entries and then the messages of a put; returns the point in the record of its checkpoint.

    Raises `RecordWriteError` unless `careful`.
    """
    point, counters = BranchPoint(), write.counters
    if put is not None:
        point = branches.place_put(write, put, now)
        entries = [*entries, *put.histories, *_with_late(put)]
    if entries:
        _append_all(write, context, entries, now, careful=careful)
    if len(context.record.written) > 1 and entries:
        if put is None:
            conversation = _conversation(e for e in entries if isinstance(e, MessageEntry) and not e.followed_by)
        else:
            conversation = [put.preceding, *_conversation(put.messages), *_later_model_output(put)]
        message_rows.restore_conversation_order(write, context, conversation)
    if counters.replaced:
        own = (context.session_id, context.session_id)
        write.finish().execute(
            "UPDATE sessions SET cost = (SELECT SUM(cost) FROM model_calls WHERE session_id = ?) WHERE id = ?", own
        )
    if put is None or point.seq is None:
        return BranchPoint()
    last = point.seq
    for message in itertools.chain(put.messages, *map(attrgetter("messages"), put.histories)):
        last = max(last, counters.rows.get(message.message_id, 0))
    return point._replace(seq=last)


def write_end(
    write_: SessionWrite | None,
    context: RunContext,
    before: EntrySnapshot,
    entries: Sequence[Entry],
    reason: str,
    now: datetime,
) -> RunEnd | None:
    """Write only the end of a run that was refused while it was in progress; ``None`` if it did not begin or end."""
    end = next((entry for entry in (*context.record.entries, *entries) if isinstance(entry, RunEnd)), None)
    if end is None or not context.has_row or write_ is None:
        return None
    before.take()
    end = end._replace(outcome="error", error=f"refused ({reason})")
    write(write_, context, [end], now, careful=True)
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
    outputs = put.context.record.output_steps.copy().items()  # other threads add some meanwhile
    return [message_id for message_id, (graph, step) in outputs if graph == put.checkpoint_ns and step > put.step]


def _with_late(put: CheckpointPut) -> Sequence[MessageEntry]:
    """The messages of a put. Those that the run has shown in a later step than the checkpoint's are `late`."""
    steps = put.context.record.message_steps
    if put.step is None or not steps:
        return put.messages
    late = {m.message_id for m in put.messages if steps.get((put.checkpoint_ns, m.message_id), put.step) > put.step}
    return [m._replace(late=m.message_id in late) for m in put.messages] if late else put.messages


def _append_all(
    write: SessionWrite, context: RunContext, entries: Sequence[Entry], now: datetime, *, careful: bool
) -> None:
    errors: tuple[type[Exception], ...] = (*_ERRORS, *write.rejections)
    if careful:
        for entry in entries:
            _append_careful(write, context, entry, now, errors)
        return
    try:
        _append(write, context, entries, now)
        write.flush()
    except errors as error:
        raise RecordWriteError from error


def _append(write: SessionWrite, context: RunContext, entries: Iterable[Entry], now: datetime) -> None:
    for kind, some in itertools.groupby(entries, type):
        if kind is MessageEntry:  # successive messages are one batch
            message_rows.append(write, context, [entry for entry in some if isinstance(entry, MessageEntry)], now)
            continue
        for entry in some:
            if isinstance(entry, HistoryEntry):
                histories.append(write, context, entry, now)
            elif isinstance(entry, ToolStart):
                tool_call_rows.start(write, context, entry, now)
            elif isinstance(entry, ToolEnd):
                tool_call_rows.end(write, context, entry)
            elif isinstance(entry, ModelCallEntry):
                tool_call_rows.add_model_call(write, context, entry, now)
            elif isinstance(entry, RunEnd):
                runs.end_run(write, context, entry)


def _append_careful(
    write: SessionWrite, context: RunContext, entry: Entry, now: datetime, errors: tuple[type[Exception], ...]
) -> None:
    try:
        with write.savepoint(errors):
            _append(write, context, [entry], now)
    except errors as error:
        if context.record.on_fault is None:  # the caller gets the exception
            raise
        context.record.on_fault(error)
