"""Conversations that a run gets or holds completely, if no checkpointer of ours finds the new messages in them.

A graph without a checkpointer is called with the whole conversation each time, and its state gives new ids to
messages without one. So only the content and order of the messages show which of them are known. A graph with
another checkpointer is called with the new messages only; its first state then holds more than its input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages

from session_middleware.checkpoint.langchain_messages import id_of
from session_middleware.recording.active_run import ActiveRun
from session_middleware.recording.history_diff import align_input, align_state, rewind
from session_middleware.recording.messages import content_hash, lists_in, without_ids
from session_middleware.recording.write_buffer import RecordBuffer
from session_middleware.storage.jsonable import is_a
from session_middleware.storage.record_entries import HistoryEntry


class InputHistoryRecorder:
    def __init__(self, buffer: RecordBuffer) -> None:
        self._buffer = buffer

    def begin(self, run: ActiveRun, inputs: Any) -> None:
        """Note a run's input, before its state gives ids to the messages."""
        run.context.given, run.context.goes_on = inputs, inputs is None
        run.input_ids = _ids_in(inputs)

    def add_state(self, run: ActiveRun, state: Any, namespace: str) -> None:
        """Record the state that a node gets. It may be an earlier one, or the graph's input with new ids."""
        if run.context.checkpointed:
            return
        if run.resumed_checkpoint_id is not None and (found := list(lists_in(state))):
            run.resumed_checkpoint_id = None
            self._buffer.add(run.context, [HistoryEntry(self._buffer.describe(found[0]), rewind)])
        self._add_input(run, state, namespace)
        self.align(run, state, namespace)

    def _add_input(self, run: ActiveRun, state: Any, namespace: str) -> None:
        """Record the run's input under the ids that its first state gives to the messages."""
        with run.lock:
            inputs, run.context.given = run.context.given, None
            messages = _input_in(state, inputs) if inputs is not None else ()
            generated_ids = {message.id for message in messages if message.id not in run.input_ids}
            if None in generated_ids or not generated_ids:  # `align` handles messages without ids
                return
            run.input_hashes = {str(message.id): content_hash(message) for message in messages}
            entries = [
                entry._replace(minted=entry.message_id in generated_ids)
                for entry in self._buffer.describe(messages, namespace)
            ]
            align = partial(align_input, run_id=run.context.run_id)
            self._buffer.add(run.context, [HistoryEntry(entries, align)])

    def align(self, run: ActiveRun, state: Any, namespace: str, *, is_end: bool = False) -> None:
        """Record the messages without ids in a state."""
        if run.context.checkpointed:
            return
        align = partial(
            align_state,
            run_id=run.context.run_id,
            goes_on=run.context.goes_on or run.is_resumed,
            is_first=is_end and not run.has_unidentified,
        )
        histories = without_ids(state)
        run.has_unidentified = run.has_unidentified or bool(histories)
        entries = [HistoryEntry(self._buffer.describe(history, namespace), align) for history in histories]
        self._buffer.add(run.context, entries)


def _ids_in(inputs: Any) -> frozenset[str]:
    messages = (
        message for part in _parts(inputs) for message in (part if len(part) and _may_be_message(part[-1]) else ())
    )
    return frozenset(str(found) for message in messages if (found := id_of(message)) is not None)


def _may_be_message(value: Any) -> bool:
    return is_a(value, BaseMessage) or (is_a(value, dict) and "content" in value)


def _input_in(state: Any, inputs: Any) -> Sequence[BaseMessage]:
    """Return the messages of a state that equal a list of the input; none if the state holds more."""
    for messages in lists_in(state):
        for part in _parts(inputs):
            if len(part) == len(messages) and _is_equal(part, messages):
                return messages
    return ()


def _parts(inputs: Any) -> Iterator[Sequence[Any]]:
    for part in inputs.values() if is_a(inputs, dict) else (inputs,):
        yield part if is_a(part, list) else (part,)


def _is_equal(given: Sequence[Any], messages: Sequence[BaseMessage]) -> bool:
    try:
        converted = convert_to_messages(given)
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError):  # these are no messages
        return False
    return [(m.type, content_hash(m)) for m in converted] == [(m.type, content_hash(m)) for m in messages]
