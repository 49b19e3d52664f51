"""Writing the record in SQLite: what somebody saw of a context, in order, as one transaction.

What cannot be written must break nobody's run, least of all the checkpoint it came with. So a fault
undoes the whole transaction, and it is carried out again with more care: entry by entry, each undone
on its own, and told to whoever made the context. That costs nothing where there is no fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from datetime import datetime
from itertools import groupby, takewhile

from session_middleware.storage.checkpoint_types import CheckpointPut
from session_middleware.storage.record_entries import (
    ASIDE,
    SHARED,
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

_FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)


class RecordWriteError(Exception):
    """Something could not be written down; its transaction is to be carried out again, with care."""


class EntrySnapshot:
    """A context as it was before an operation, in case all of that is undone."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._flags = (context.admitted, context.announced, context.begun, context.refused)
        self._admission = (context.admission, context.incarnation)
        self._in_hand = None if context.hand is None else context.hand.incarnation
        self._number = None if context.lease is None else context.lease.number
        self._where = (context.branch, context.checkpoint_id)
        self._unclaimed = dict(context.unclaimed)
        self._taken: list[Entry] = []

    def take(self) -> list[Entry]:
        """What the context has kept for the record."""
        entries = self._context.entries
        while entries:
            self._taken.append(entries.popleft())
        return list(self._taken)

    def restore(self) -> None:
        context = self._context
        context.admitted, context.announced, context.begun, context.refused = self._flags
        context.admission, context.incarnation = self._admission
        if context.hand is not None and self._in_hand is not None:
            context.hand.incarnation = self._in_hand
        if context.lease is not None:
            context.lease.number = self._number
        context.branch, context.checkpoint_id = self._where
        context.unclaimed.update(self._unclaimed)
        context.entries.extendleft(reversed(self._taken))
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
    """Write the entries and the messages of a put; returns where its checkpoint is in the record.

    Raises `RecordWriteError` unless `careful`.
    """
    place, counters = BranchPoint(), write.counters
    if put is not None:
        place = branches.place_put(write, put, now)
        brought = _with_late(put)
        entries = _merged(entries, brought, put) if entries else brought
    faults: tuple[type[Exception], ...] = (*_FAULTS, *write.rejections)
    if careful:
        _append_each(write, context, entries, now, faults)
    else:
        try:
            _append(write, context, entries, now)
            write.flush()
        except faults as error:
            raise RecordWriteError from error
    if put is None:
        conversation = _conversation(e for e in entries if isinstance(e, MessageEntry) and not e.followed_by)
    else:
        conversation = [put.preceding, *_conversation(put.messages), *_heard_since(put)]
    message_rows.restore_conversation_order(write, context, conversation)
    if counters.replaced:
        own = (context.session_id, context.session_id)
        write.finish().execute(
            "UPDATE sessions SET cost = (SELECT SUM(cost) FROM model_calls WHERE session_id = ?) WHERE id = ?", own
        )
    if put is None or place.seq is None:
        return BranchPoint()
    return BranchPoint(place.branch, max([place.seq, *(counters.rows.get(m.message_id, 0) for m in put.messages)]))


def write_end(
    write_: SessionWrite | None,
    context: RunContext,
    before: EntrySnapshot,
    entries: Sequence[Entry],
    reason: str,
    now: datetime,
) -> RunEnd | None:
    """Write the end of a run that was refused while it was in progress, and nothing else of it.

    ``None`` if it has not ended, or had not begun.
    """
    end = next((entry for entry in (*context.entries, *entries) if isinstance(entry, RunEnd)), None)
    if end is None or not context.begun or write_ is None:
        return None
    before.take()
    end = end._replace(outcome="error", error=f"refused ({reason})")
    write(write_, context, [end], now, careful=True)
    write_.finish()
    return end


def _conversation(messages: Iterable[MessageEntry]) -> list[str | None]:
    """The order of what was said. What was seen in a subgraph and in the outermost state stands where that has it.

    What is put before another message has its place by that.
    """
    seen = [message for message in messages if ASIDE not in message.marks]
    outermost = {message.message_id for message in seen if not message.checkpoint_ns}
    return [m.message_id for m in seen if not m.checkpoint_ns or m.message_id not in outermost]


def _heard_since(put: CheckpointPut) -> list[str]:
    """What models were heard to say before this checkpoint was put, and in later steps than its own.

    Where messages have no ids, nothing else says that it comes after what the checkpoint brings.
    """
    if put.step is None or not put.messages:
        return []
    at = put.context.heard_at.copy().items()  # models say more meanwhile
    return [own for own, (graph, step) in at if graph == put.checkpoint_ns and step > put.step]


def _with_late(put: CheckpointPut) -> Sequence[MessageEntry]:
    """A checkpoint is put while its run goes on, and what that has been seen to say since is not taken back."""
    steps = put.context.seen_at
    if put.step is None or not steps:
        return put.messages
    late = {m.message_id for m in put.messages if steps.get((put.checkpoint_ns, m.message_id), put.step) > put.step}
    return [m._replace(late=m.message_id in late) for m in put.messages] if late else put.messages


def _merged(entries: Sequence[Entry], brought: Sequence[MessageEntry], put: CheckpointPut) -> list[Entry]:
    """The entries and what a checkpoint brings; what both have is one, as the entries have it.

    What both have goes where the entries have it, in the checkpoint's order, and what only the checkpoint
    has before the next of those.
    """
    seen, slots = _seen_of(entries, brought)
    both = [message for message in brought if message.message_id in seen]
    ids = set(seen)
    ordered: Iterator[MessageEntry] = iter([_both(seen[m.message_id], m) for m in both])
    rest = iter(brought)
    merged: list[Entry] = []
    for entry in entries:
        own = next(ordered, None) if id(entry) in slots else None  # it may have been seen twice
        if own is not None:
            before: list[MessageEntry] = list(takewhile(lambda message: message.message_id not in ids, rest))
            merged += before
        merged.append(own or entry)
    end = _end_of(merged, brought, ids, put)
    merged[end:end] = [message for message in rest if message.message_id not in ids]
    return merged


def _seen_of(entries: Sequence[Entry], brought: Sequence[MessageEntry]) -> tuple[dict[str, MessageEntry], set[int]]:
    """The entries that say what is brought, by their messages' ids; and where that goes, by Python's ids of entries.

    Of a message that was edited in between, that is the first sighting since the last edit.
    """
    words = {message.message_id: message_rows.comparison_key(message) for message in brought}
    seen: dict[str, MessageEntry] = {}
    places: dict[str, int] = {}  # by the id of a message, Python's of the entry: the first one since an edit
    edited: set[str] = set()
    for entry in entries:
        if not isinstance(entry, MessageEntry) or (own_id := entry.message_id) not in words:
            continue
        if message_rows.comparison_key(entry) != words[own_id]:
            edited.add(own_id)
            continue
        seen[own_id] = entry
        if own_id not in places or own_id in edited:
            places[own_id] = id(entry)
            edited.discard(own_id)
    return seen, set(places.values())


def _end_of(merged: Sequence[Entry], brought: Sequence[MessageEntry], ids: Set[str], put: CheckpointPut) -> int:
    """Where a checkpoint's last messages go: it may come late, after what followed from it has been seen.

    So they go before the answers at the end of what was seen, but for those that are known to be of its step
    or an earlier one, and after one that may be the same under another id.
    """
    steps, namespace = {} if put.step is None else put.context.seen_at, put.checkpoint_ns
    claims = {message.claim for message in brought}
    end = len(merged)
    while end and isinstance(last := merged[end - 1], MessageEntry) and last.message_id not in ids:
        is_earlier = put.step is not None and steps.get((namespace, last.message_id), put.step + 1) <= put.step
        if is_earlier or last.role == "user" or (last.text and last.claim in claims):
            break
        end -= 1
    return end


def _both(entry: MessageEntry, brought: MessageEntry) -> MessageEntry:
    """As the entry has it; what was said in a subgraph, or aside, and is in the outermost state says so."""
    if entry.checkpoint_ns and not brought.checkpoint_ns:
        if ASIDE in entry.marks:
            return brought
        entry = entry._replace(marks=(*entry.marks, SHARED))
    return entry._replace(followed_by=brought.followed_by)


def _append(write: SessionWrite, context: RunContext, entries: Iterable[Entry], now: datetime) -> None:
    """Messages that stand together are one batch."""
    for kind, some in groupby(entries, type):
        if kind is MessageEntry:
            message_rows.append(write, context, [entry for entry in some if isinstance(entry, MessageEntry)], now)
            continue
        for entry in some:
            _append_one(write, context, entry, now)


def _append_one(write: SessionWrite, context: RunContext, entry: Entry, now: datetime) -> None:
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


def _append_each(
    write: SessionWrite,
    context: RunContext,
    entries: Iterable[Entry],
    now: datetime,
    faults: tuple[type[Exception], ...],
) -> None:
    for entry in entries:
        try:
            with write.savepoint(faults):
                _append(write, context, [entry], now)
        except faults as error:
            if context.tell is None:  # the caller gets the exception
                raise
            context.tell(error)
