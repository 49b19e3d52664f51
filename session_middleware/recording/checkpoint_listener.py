"""Record entries from checkpoints and writes, with or without a recorder in the run.

The checkpointer finds most new messages: they are the list elements that the parent checkpoint does not
have. Two kinds are not found there: messages in LangGraph's delta channels, whose values are made from
writes, and the answer with which a person resumes an interrupted graph.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from langchain_core.messages import BaseMessage, RemoveMessage
from langgraph._internal._constants import PREVIOUS
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.constants import START

from session_middleware.checkpoint.checkpoint_diff import NewMessage
from session_middleware.checkpoint.langchain_messages import id_of, is_message
from session_middleware.checkpoint.parent_cache import Key
from session_middleware.recording.history_diff import align_state
from session_middleware.recording.messages import describe, lists_in, with_author
from session_middleware.recording.write_buffer import RecordBuffer, never_raise
from session_middleware.storage.record_entries import HistoryEntry, MessageEntry
from session_middleware.storage.run import RunContext

_SAVED = (PREVIOUS, "__root__")  # channels that hold the whole state of a graph without named channels
_MAX_SESSIONS = 256  # whose delta channels are remembered


@dataclass(slots=True)
class _DeltaChannels:
    """The delta channels of one session."""

    names: set[str] = field(default_factory=set)
    recorded_ids: set[str] = field(default_factory=set)  # of their messages
    unassigned: dict[str, list[Any]] = field(default_factory=dict)  # writes since the last checkpoint, by channel


class RecordingListener:
    def __init__(self, buffer: RecordBuffer) -> None:
        self.buffer = buffer
        buffer.on_forget.append(self.forget)
        self._lock = threading.Lock()  # runs of several sessions put checkpoints at the same time
        self._channels = lru_cache(_MAX_SESSIONS)(lambda _session_id: _DeltaChannels())

    @never_raise
    def begin(self, context: RunContext, inputs: Any) -> None:
        """Record a run's resume answer: its first checkpoint may come at its end."""
        self.buffer.add_resume_answer(context, inputs)

    def brought(
        self,
        context: RunContext,
        key: Key,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new: Sequence[NewMessage],
    ) -> list[MessageEntry]:
        context.record.on_fault = self.buffer.fault  # a message that cannot be recorded must not break a checkpoint
        try:
            counted = metadata.get("counters_since_delta_snapshot") or {}
            values = [v.value for v in checkpoint["channel_values"].values() if type(v) is _DeltaSnapshot]
            known = self._delta_channels(key[0])
            if counted or values:
                known.names.update(counted)
                written = [known.unassigned.get(name, ()) for name in counted]
                new = [*new, *_unrecorded(known, [*written, *values])]
            known.unassigned = {}
            entries = self._describe(context, key, new, checkpoint["versions_seen"]) if new else []
            if key[1]:  # the outermost graph may return the answer as well
                answers = (one for one in entries if one.minted and one.text and one.role == "assistant")
                context.record.unclaimed.update({one.claim: one.message_id for one in answers})
            else:
                self._add_whole_state(context, checkpoint["channel_values"], entries)
            return entries
        except Exception as error:  # noqa: BLE001  # a fault here must not break a checkpoint
            self.buffer.fault(error)
            return []

    def _add_whole_state(self, context: RunContext, values: dict[str, Any], entries: Sequence[MessageEntry]) -> None:
        """Record a state that is one value instead of named channels: the run's input, saved value and output."""
        if START in values and type(values[START]) is not dict:  # its messages may have other ids in the state
            inputs = (entry for entry in entries if entry.minted or entry.role == "user")
            context.record.unclaimed.update({entry.claim: entry.message_id for entry in inputs})
        for name in _SAVED:
            if (value := values.get(name)) is not None and type(value) is not list and not is_message(value):
                found = [m for messages in lists_in(value) for m in messages if is_message(m)]
                if found:
                    align = partial(align_state, run_id=context.run_id, goes_on=True)
                    self.buffer.add(context, [HistoryEntry(self.buffer.describe(found), align)])

    def _describe(
        self, context: RunContext, key: Key, new: Sequence[NewMessage], agents: Container[str]
    ) -> list[MessageEntry]:
        """Convert new messages. An id is generated from the position, so a second put has the same ids."""
        found: list[MessageEntry] = []
        for number, (message, following) in enumerate(new):
            if not isinstance(message, RemoveMessage):
                _, created_at = context.record.unidentified.get(id(message), (None, None))
                generated_id = f"{key[2]}-{number}".__str__
                changes = {"followed_by": following, "created_at": created_at}
                entry = describe(message, key[1], new_id=generated_id, **changes)
                found.append(with_author(entry, context.input_texts, agents))
        return self.buffer.redaction.messages(found)

    def _delta_channels(self, session_id: str) -> _DeltaChannels:
        with self._lock:
            return self._channels(session_id)

    @never_raise
    def wrote(self, context: RunContext, key: Key, writes: Sequence[tuple[str, Any]]) -> None:
        for channel, value in writes:
            if lists := lists_in(value):
                known = self._delta_channels(key[0])
                if channel in known.names:
                    found = [m for messages in lists for m in messages if isinstance(m, BaseMessage) and m.id]
                    known.recorded_ids.update(str(message.id) for message in found)
                    self.buffer.add(context, self.buffer.describe(found, key[1]))
                else:  # the next checkpoint may name it as a delta channel
                    known.unassigned.setdefault(channel, []).append(value)

    def forget(self, session_id: str) -> None:
        """Drop all cached facts about a session that was deleted."""
        known = self._delta_channels(session_id)
        known.names, known.recorded_ids, known.unassigned = set(), set(), {}


def _unrecorded(known: _DeltaChannels, values: Iterable[Any]) -> Iterator[NewMessage]:
    """Yield the unrecorded messages of delta channels, each with the id of its successor."""
    for messages in (messages for value in values for messages in lists_in(value)):
        for message, following in zip(messages, [*messages[1:], None], strict=True):
            if isinstance(message, BaseMessage) and message.id not in known.recorded_ids:
                known.recorded_ids.add(str(message.id))
                yield message, id_of(following)
