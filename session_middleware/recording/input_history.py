"""Conversations that a run gets or holds completely, if no checkpointer of ours finds the new messages in them.

A graph without a checkpointer is called with the whole conversation each time, and its state gives new ids to
messages without one. So only the content and order of the messages show which of them are known. A graph with
another checkpointer is called with the new messages only; its first state then holds more than its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_messages
from langgraph.types import Command

from session_middleware.checkpoint.langchain_messages import id_of
from session_middleware.recording.active_run import ActiveRun
from session_middleware.recording.history_diff import align_input, align_state, rewind
from session_middleware.recording.messages import content_hash, lists_in, without_ids
from session_middleware.recording.write_buffer import RecordBuffer
from session_middleware.storage.record_entries import HistoryEntry

Lists = Sequence[Sequence[Any]]  # the lists of messages in a state


def note_input(run: ActiveRun, inputs: Any) -> None:
    """Note a run's input, before its state gives ids to the messages."""
    run.context.run_input, run.context.continues_without_input = inputs, inputs is None
    run.context.has_new_input = inputs is not None and not isinstance(inputs, Command)
    ids = (id_of(message) for messages in lists_in(inputs, 1) for message in messages)
    run.input_ids = frozenset(str(known) for known in ids if known is not None)


def add_state(buffer: RecordBuffer, run: ActiveRun, lists: Lists, namespace: str) -> None:
    """Record the state that a node gets. It may be an earlier one, or the graph's input with new ids."""
    if run.context.checkpointed:
        add_unidentified(buffer, run, lists, namespace)
        return
    identified = [messages for messages in lists if isinstance(messages[-1], BaseMessage)]
    if run.resumed_checkpoint_id is not None and identified:
        run.resumed_checkpoint_id = None
        buffer.add(run.context, [HistoryEntry(buffer.describe(identified[0]), rewind)])
    _add_input(buffer, run, identified, namespace)
    add_unidentified(buffer, run, lists, namespace)


def _add_input(buffer: RecordBuffer, run: ActiveRun, lists: Lists, namespace: str) -> None:
    """Record the run's input under the ids that its first state gives to the messages."""
    with run.lock:
        inputs, run.context.run_input = run.context.run_input, None
        messages = _input_in(lists, inputs) if inputs is not None else ()
        generated_ids = {message.id for message in messages if message.id not in run.input_ids}
        if None in generated_ids or not generated_ids:  # `add_unidentified` handles messages without ids
            return
        run.input_hashes = {str(message.id): content_hash(message) for message in messages}
        described = buffer.describe(messages, namespace)
        entries = [entry._replace(minted=entry.message_id in generated_ids) for entry in described]
        buffer.add(run.context, [HistoryEntry(entries, partial(align_input, run_id=run.context.run_id))])


def add_unidentified(
    buffer: RecordBuffer, run: ActiveRun, lists: Lists, namespace: str, *, is_end: bool = False
) -> None:
    """Record the messages without ids in a state, unless a checkpoint is put with them before the run ends."""
    is_put = run.context.checkpointed and (namespace or not run.context.puts_at_end)
    if is_put or not (histories := without_ids(lists)):
        return
    align = partial(
        align_state,
        run_id=run.context.run_id,
        goes_on=run.context.continues_without_input or run.is_resumed,
        is_first=is_end and not run.has_unidentified,
    )
    run.has_unidentified = run.context.has_unidentified = True
    buffer.add(run.context, [HistoryEntry(buffer.describe(history, namespace), align) for history in histories])


def _input_in(lists: Lists, inputs: Any) -> Sequence[BaseMessage]:
    """Return the messages of a state that equal a list of the input; none if the state holds more."""
    parts: Iterable[Any] = inputs.values() if isinstance(inputs, dict) else (inputs,)
    given = [part if isinstance(part, list) else [part] for part in parts]
    for messages in lists:
        if any(len(part) == len(messages) and _is_equal(part, messages) for part in given):
            return messages
    return ()


def _is_equal(given: Sequence[Any], messages: Sequence[Any]) -> bool:
    try:
        converted, messages = convert_to_messages(given), convert_to_messages(messages)
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError):  # these are no messages
        return False
    return [(m.type, content_hash(m)) for m in converted] == [(m.type, content_hash(m)) for m in messages]
