"""Record entries from checkpoints and writes, with or without a recorder in the run.

The checkpointer finds most new messages: they are the list elements that the parent checkpoint does not
have. Those in LangGraph's delta channels are not found there, because their values are made from writes.
The questions that a graph asks at interrupts are writes too, and the answer is the input of a later run.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from langchain_core.messages import BaseMessage, RemoveMessage
from langgraph._internal._constants import PREVIOUS, PULL
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata
from langgraph.checkpoint.serde.types import INTERRUPT, RESUME, _DeltaSnapshot
from langgraph.constants import END, START
from langgraph.types import Command

from session_middleware.checkpoint.checkpoint_diff import NewMessage
from session_middleware.checkpoint.langchain_messages import id_of, is_message
from session_middleware.checkpoint.parent_cache import Key
from session_middleware.recording.history_diff import align_own, align_state
from session_middleware.recording.messages import describe, lists_in, with_author
from session_middleware.recording.write_buffer import RecordBuffer, never_raise
from session_middleware.runtime.run_ends import ROOT
from session_middleware.storage.record_entries import HistoryEntry, MessageEntry, QuestionEntry
from session_middleware.storage.run import RunContext

_WHOLE = (PREVIOUS, ROOT, END)  # channels that hold the whole state of a graph without named channels
_PULL = f"~{PULL}, "  # before the name of a node in a task's path
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
        """Record a run's answer: its first checkpoint may come at its end."""
        self.buffer.add_answer(context, inputs)
        context.has_new_input = inputs is not None and not isinstance(inputs, Command)

    def brought(
        self,
        context: RunContext,
        key: Key,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new: Sequence[NewMessage],
    ) -> tuple[list[MessageEntry], list[HistoryEntry]]:
        context.notes.on_fault = self.buffer.fault  # a message that cannot be recorded must not break a checkpoint
        try:
            counted = metadata.get("counters_since_delta_snapshot") or {}
            values = checkpoint["channel_values"]
            with self._lock:
                known = self._channels(key[0])
            if counted or _DeltaSnapshot in map(type, values.values()):
                snapshots = {name: value.value for name, value in values.items() if type(value) is _DeltaSnapshot}
                names = {**counted, **snapshots}
                known.names.update(names)
                written = _unrecorded(known, [known.unassigned.get(name, ()) for name in names])
                unwritten = _unrecorded(known, snapshots.values())  # messages without ids come from the writes
                new = [*new, *written, *(each for each in unwritten if id_of(each[0]))]
            known.unassigned = {}
            agents = checkpoint["versions_seen"]
            if not key[1] and context.has_one_value:
                is_replayed = metadata.get("source") == "fork"  # a copy, whose input is recorded
                wholes = {k: v for k, v in checkpoint["channel_values"].items() if k != START or not is_replayed}
                return self._describe_whole(context, key, wholes, new, agents)
            entries = self._describe(context, key, new, agents) if new else []
            if key[1]:  # the outermost graph may return the answer as well
                answers = (one for one in entries if one.minted and one.text and one.role == "assistant")
                context.notes.unclaimed.update({one.claim: one.message_id for one in answers})
            elif context.has_unidentified:
                return [], _of_run(context, entries)
            return entries, []
        except Exception as error:  # noqa: BLE001  # a fault here must not break a checkpoint
            self.buffer.fault(error)
            return [], []

    def _describe_whole(
        self,
        context: RunContext,
        key: Key,
        values: dict[str, Any],
        new: Sequence[NewMessage],
        agents: Container[str],
    ) -> tuple[list[MessageEntry], list[HistoryEntry]]:
        """Describe a state that is one value instead of named channels: the run's input, saved value and output.

        The input may be the whole history. Lists and single messages were compared with the parent checkpoint; any
        other value may hold the whole conversation or a part of it.
        """
        count, histories = itertools.count(), list[HistoryEntry]()
        given, context.whole_input = context.whole_input, None
        if START in values or given is not None:
            entries = self._describe(context, key, _messages_in(values.get(START, given)), agents, count)
            if START in values and _is_new(entries):  # they may have other ids in the state
                context.notes.unclaimed.update({entry.claim: entry.message_id for entry in entries})
                return entries, []
            histories += _aligned(context, entries, goes_on=False)
            if START in values:
                return [], histories
        wholes: list[Any] = []
        for name in _WHOLE:
            value = values.get(name)
            is_compared = type(value) is list or is_message(value)
            if not is_compared and not any(value is other for other in wholes):
                wholes.append(value)
                entries = self._describe(context, key, _messages_in(value), agents, count)
                histories += _aligned(context, entries, goes_on=True)
        entries = self._describe(context, key, new, agents, count)
        if context.has_unidentified:
            return [], [*histories, *_of_run(context, entries)]
        return entries, histories

    def _describe(
        self,
        context: RunContext,
        key: Key,
        new: Sequence[NewMessage],
        agents: Container[str],
        numbers: Iterator[int] | None = None,
    ) -> list[MessageEntry]:
        """Convert new messages. An id is generated from the position, so a second put has the same ids."""
        found: list[MessageEntry] = []
        for number, (message, following) in zip(numbers or itertools.count(), new, strict=False):
            if not isinstance(message, RemoveMessage):
                _, created_at = context.notes.unidentified.get(id(message), (None, None))
                generated_id = f"{key[2]}-{number}".__str__
                changes = {"followed_by": following, "created_at": created_at}
                entry = describe(message, key[1], new_id=generated_id, **changes)
                found.append(with_author(entry, context.input_texts, agents) if entry.role == "user" else entry)
        return self.buffer.redacted(found)

    @never_raise
    def wrote(
        self, context: RunContext, key: Key, writes: Sequence[tuple[str, Any]], *, path: str, outermost_id: str | None
    ) -> Sequence[QuestionEntry]:
        questions: list[QuestionEntry] = []
        for channel, value in writes:
            if channel == INTERRUPT:
                context.notes.on_fault = self.buffer.fault
                if all(name in (INTERRUPT, RESUME) for name, _ in writes):  # else an importer brings a finished task
                    questions += _questions_in(value, context, path.removeprefix(_PULL), key[1], outermost_id)
            elif value is not None and (lists := lists_in(value)):
                with self._lock:
                    known = self._channels(key[0])
                if channel in known.names:
                    found = [m for messages in lists for m in messages if isinstance(m, BaseMessage)]
                    known.recorded_ids.update(str(message.id) for message in found if message.id)
                    entries = self.buffer.describe(found, key[1])
                    self.buffer.add(context, _of_run(context, entries) if context.has_unidentified else entries)
                else:  # the next checkpoint may name it as a delta channel
                    known.unassigned.setdefault(channel, []).append(value)
        return self.buffer.redacted(questions)

    def forget(self, session_id: str) -> None:
        """Drop all cached facts about a session that was deleted."""
        with self._lock:
            known = self._channels(session_id)
        known.names, known.recorded_ids, known.unassigned = set(), set(), {}


def _questions_in(
    interrupts: Any, context: RunContext, node: str, namespace: str, outermost_id: str | None
) -> Iterator[QuestionEntry]:
    """The questions among a task's writes. The recorder knows where they were asked; a path may name the node."""
    for one in interrupts if isinstance(interrupts, (list, tuple)) else [interrupts]:
        asker = context.notes.askers.get(one.id, (None if node.startswith("~") else node or None, namespace))
        yield QuestionEntry(one.id, one.value, *asker, outermost_id)


def _messages_in(value: Any) -> list[NewMessage]:
    return [(message, None) for messages in lists_in(value) for message in messages if is_message(message)]


def _aligned(context: RunContext, entries: Sequence[MessageEntry], *, goes_on: bool) -> list[HistoryEntry]:
    if not goes_on and _is_new(entries):
        return _of_run(context, entries)
    return (
        [HistoryEntry(entries, partial(align_state, run_id=context.run_id or "", goes_on=goes_on))] if entries else []
    )


def _of_run(context: RunContext, entries: Sequence[MessageEntry]) -> list[HistoryEntry]:
    return [HistoryEntry(entries, partial(align_own, run_id=context.run_id or ""))] if entries else []


def _is_new(entries: Sequence[MessageEntry]) -> bool:
    """Return whether an input contains only new user messages; a history contains answers."""
    return all(entry.role == "user" for entry in entries)


def _unrecorded(known: _DeltaChannels, values: Iterable[Any]) -> Iterator[NewMessage]:
    """Yield the unrecorded messages of delta channels, each with the id of its successor."""
    for messages in (messages for value in values for messages in lists_in(value)):
        for message, following in zip(messages, [*messages[1:], None], strict=True):
            if isinstance(message, BaseMessage) and message.id not in known.recorded_ids:
                if message.id:
                    known.recorded_ids.add(message.id)
                yield message, id_of(following)
