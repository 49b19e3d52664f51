"""Conversations that a run is given or holds as a whole, where no checkpointer of ours says what is new in them.

A graph whose state nobody keeps is called with all that was ever said, each time, and its state gives ids to the
messages that came without one. So the ids are new, and only the words and their order say what is known. With
another checkpointer a graph is called with what is new; that its first state holds more tells the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages

from session_middleware.checkpoint.langchain_messages import id_of
from session_middleware.models import NewId
from session_middleware.recording.active_run import ActiveRun
from session_middleware.recording.history_diff import add_given, add_state, go_back
from session_middleware.recording.messages import content_hash, describe, lists_in, without_ids
from session_middleware.recording.write_buffer import RecordBuffer
from session_middleware.storage.jsonable import is_a
from session_middleware.storage.record_entries import HistoryEntry


class Histories:
    def __init__(self, journal: RecordBuffer, *, new_id: NewId) -> None:
        self._journal = journal
        self._new_id = new_id

    def begin(self, trace: ActiveRun, inputs: Any) -> None:
        """What a run is called with, before its state puts ids into it."""
        trace.visit.given, trace.visit.goes_on = inputs, inputs is None
        trace.ids_given = _ids_in(inputs)

    def enter(self, trace: ActiveRun, state: Any, namespace: str) -> None:
        """The state as a node is given it: it may have gone back, or be what the graph was called with."""
        if trace.visit.checkpointed:
            return
        if trace.went_back_to is not None and (found := list(lists_in(state))):
            trace.went_back_to = None
            self._journal.keep(trace.visit, [HistoryEntry(describe(found[0], new_id=self._new_id), go_back)])
        self._recognise(trace, state, namespace)
        self.align(trace, state, namespace)

    def _recognise(self, trace: ActiveRun, state: Any, namespace: str) -> None:
        with trace.lock:
            given, trace.visit.given = trace.visit.given, None
            messages = _given_in(state, given) if given is not None else ()
            unnamed = {message.id for message in messages if message.id not in trace.ids_given}
            if None in unnamed or not unnamed:  # as any other state without ids; or known by its own
                return
            trace.given = {str(message.id): content_hash(message) for message in messages}
            seen = [
                message._replace(minted=message.message_id in unnamed)
                for message in describe(messages, namespace, new_id=self._new_id)
            ]
            self._journal.keep(trace.visit, [HistoryEntry(seen, partial(add_given, run_id=trace.visit.run_id))])

    def align(self, trace: ActiveRun, state: Any, namespace: str, *, is_end: bool = False) -> None:
        if not trace.visit.checkpointed:
            goes_on = trace.visit.goes_on or trace.is_resumed
            histories = without_ids(state)
            aligned = partial(add_state, run_id=trace.visit.run_id, goes_on=goes_on, is_first=is_end and not trace.held)
            trace.held = trace.held or bool(histories)
            for history in histories:
                seen = describe(history, namespace, new_id=self._new_id)
                self._journal.keep(trace.visit, [HistoryEntry(seen, aligned)])


def _ids_in(inputs: Any) -> frozenset[str]:
    found = (
        id_of(message)
        for part in _parts(inputs)
        for message in (part if len(part) and _may_be_message(part[-1]) else ())
    )
    return frozenset(str(message_id) for message_id in found if isinstance(message_id, (str, int)) and message_id)


def _may_be_message(value: Any) -> bool:
    return is_a(value, BaseMessage) or (is_a(value, dict) and "content" in value)


def _given_in(state: Any, inputs: Any) -> Sequence[BaseMessage]:
    """The messages of a state that are what its graph was called with and nothing else; none, if it holds more."""
    for messages in lists_in(state):
        for part in _parts(inputs):
            if len(part) == len(messages) and _same(part, messages):
                return messages
    return ()


def _parts(inputs: Any) -> Iterator[Sequence[Any]]:
    for part in inputs.values() if is_a(inputs, dict) else (inputs,):
        yield part if is_a(part, list) else (part,)


def _same(given: Sequence[Any], messages: Sequence[BaseMessage]) -> bool:
    try:
        converted = convert_to_messages(given)
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError):  # these are no messages
        return False
    return [(m.type, content_hash(m)) for m in converted] == [(m.type, content_hash(m)) for m in messages]
