"""What the record learns from checkpoints and writes, whether or not a recorder watches the run.

Most messages are found by the checkpointer as the elements of a list that the parent checkpoint did
not have. Two things are not in such a list: the messages of LangGraph's delta channels, whose values
are made from the writes; and what a person answers a graph that has stopped to ask.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph._internal._constants import PREVIOUS
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.constants import START
from langgraph.types import Command

from session_middleware.checkpoint.codec import NewMessage
from session_middleware.checkpoint.langchain_messages import id_of, is_message
from session_middleware.checkpoint.parent_cache import Key
from session_middleware.models import NewId
from session_middleware.recording.history_diff import add_state
from session_middleware.recording.messages import answer_of, by_whom, describe, lists_in, texts_in, to_message
from session_middleware.recording.write_buffer import RecordBuffer
from session_middleware.storage.jsonable import is_a
from session_middleware.storage.record_entries import HistoryEntry, MessageEntry
from session_middleware.storage.run import RunContext

_SAVED = (PREVIOUS, "__root__")
_REMEMBERED = 256  # sessions with delta channels


class RecordingListener:
    def __init__(self, journal: RecordBuffer, *, new_id: NewId) -> None:
        self._journal = journal
        self._new_id = new_id
        journal.forgetting.append(self.forget)
        self._lock = threading.Lock()  # runs of several sessions put at once, and forget
        self._delta: OrderedDict[str, set[str]] = OrderedDict()  # the delta channels of a session
        self._told: dict[str, set[str]] = {}  # ids of their messages
        self._held: dict[str, dict[str, list[Any]]] = {}  # what was written since the last checkpoint, by channel

    def begin(self, visit: RunContext, given: Any) -> None:
        """A run was called with this; its first checkpoint may come at its end. Never raises."""
        try:
            visit.users_words = frozenset(texts_in(given))
            if is_a(given, Command) and given.resume is not None:
                self._journal.keep(visit, [answer_of(given.resume, f"resume-{self._new_id()}")])
        except Exception as error:  # noqa: BLE001  # as in `brought`
            self._journal.fault(error)

    def brought(
        self,
        visit: RunContext,
        key: Key,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new: Sequence[NewMessage],
    ) -> list[MessageEntry]:
        try:
            held = self._held.pop(key[0], {})
            if counted := metadata.get("counters_since_delta_snapshot"):
                self._remember(key[0], counted)
                new = [*new, *self._untold(key[0], [held.get(name, ()) for name in counted])]
            if snapshots := [v.value for v in checkpoint["channel_values"].values() if is_a(v, _DeltaSnapshot)]:
                new = [*new, *self._untold(key[0], snapshots)]
            described = self._describe(visit, key, new, checkpoint["versions_seen"])
            if key[1]:  # the outermost graph may give it out as well
                answers = (one for one in described if one.minted and one.text and one.role == "assistant")
                visit.unclaimed.update({one.claim: one.message_id for one in answers})
            else:
                self._take_whole(visit, checkpoint, described)
            return described
        except Exception as error:  # noqa: BLE001  # a fault here must not break a checkpoint
            self._journal.fault(error)
            return []

    def _take_whole(self, visit: RunContext, checkpoint: Checkpoint, described: Sequence[MessageEntry]) -> None:
        """Of a graph whose state is no dict of lists: one value, which it is given, and saves and gives back."""
        values = checkpoint["channel_values"]
        if START in values and type(values[START]) is not dict:  # its messages may get other ids in the state
            given = (message for message in described if message.minted or message.role == "user")
            visit.unclaimed.update({message.claim: message.message_id for message in given})
        for name in _SAVED:
            if (value := values.get(name)) is not None and type(value) is not list and not is_message(value):
                found = [m for messages in lists_in(value, is_one=is_message) for m in messages if is_message(m)]
                if found:
                    seen = describe(map(to_message, found), new_id=self._new_id)
                    self._journal.keep(
                        visit, [HistoryEntry(seen, partial(add_state, run_id=visit.run_id, goes_on=True))]
                    )

    def _describe(
        self, visit: RunContext, key: Key, new: Sequence[NewMessage], agents: Container[str]
    ) -> list[MessageEntry]:
        """One without an id gets one by its place, so that a checkpoint put again brings the same."""
        found: list[MessageEntry] = []
        for number, (message, following) in enumerate(new):
            by_place = f"{key[2]}-{number}".__str__
            _, said_at = visit.said_at.get(id(message), (None, None))
            described = describe(
                [to_message(message)], key[1], new_id=by_place, followed_by=following, created_at=said_at
            )
            found += self._journal.keeping.messages([by_whom(one, visit.users_words, agents) for one in described])
        return found

    def _remember(self, session_id: str, channels: Any) -> None:
        with self._lock:
            self._delta.setdefault(session_id, set()).update(channels)
            self._delta.move_to_end(session_id)
            while len(self._delta) > _REMEMBERED:
                gone, _ = self._delta.popitem(last=False)
                self._told.pop(gone, None)

    def _untold(self, session_id: str, values: Iterable[Any]) -> Iterator[NewMessage]:
        """The messages of delta channels that have not been told yet, each with the id of what follows it."""
        told = self._told.setdefault(session_id, set())
        for messages in (messages for value in values for messages in lists_in(value)):
            for message, following in zip(messages, [*messages[1:], None], strict=True):
                if is_a(message, BaseMessage) and message.id not in told:
                    told.add(str(message.id))
                    yield message, id_of(following)

    def wrote(self, visit: RunContext, key: Key, writes: Sequence[tuple[str, Any]]) -> None:
        try:
            for channel, value in writes:
                if channel in self._delta.get(key[0], ()):
                    self._tell(visit, key, value)
                elif any(True for _ in lists_in(value)):  # until a checkpoint says that it is a delta channel's
                    self._held.setdefault(key[0], {}).setdefault(channel, []).append(value)
        except Exception as error:  # noqa: BLE001  # as in `brought`
            self._journal.fault(error)

    def _tell(self, visit: RunContext, key: Key, value: Any) -> None:
        found = [m for messages in lists_in(value) for m in messages if is_a(m, BaseMessage) and m.id]
        self._told.setdefault(key[0], set()).update(str(message.id) for message in found)
        self._journal.keep(visit, describe(found, key[1], new_id=self._new_id))

    def forget(self, session_id: str) -> None:
        """Keep nothing in mind of a session that was deleted."""
        with self._lock:
            self._delta.pop(session_id, None)
            self._told.pop(session_id, None)
            self._held.pop(session_id, None)
