"""A session's conversation as LangChain's `BaseChatMessageHistory`, for `RunnableWithMessageHistory` and the like."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables.config import var_child_runnable_config

from session_middleware.models import Identity, Message, NewId
from session_middleware.recording.files import put_back
from session_middleware.recording.history_diff import add_behind, leave
from session_middleware.recording.messages import describe
from session_middleware.recording.recorder import SessionRecorder
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import ASIDE, RESUME, SHARED, Entry, HistoryEntry
from session_middleware.storage.run import RunContext, SessionHandle


class SessionHistory(BaseChatMessageHistory):
    """What was said in a session, as messages of LangChain's.

    They are as the record has them, so what is redacted there is redacted here. What the recorder has
    seen of a run is not added a second time. What a run that reads the history asks its models, and is
    told by them, is in the history only if it is added; until then the record has it as said ``aside``.
    Clearing begins another branch; nothing is deleted.
    """

    def __init__(
        self,
        storage: Storage,
        offload: StorageExecutor,
        recorder: SessionRecorder,
        *,
        session_id: str,
        owner: Identity,
        new_id: NewId,
        hand: SessionHandle,
    ) -> None:
        self._storage = storage
        self._offload = offload
        self._recorder = recorder
        self._session_id = session_id
        self._owner = owner
        self._new_id = new_id
        self._hand = hand

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        self._tell_run()
        return self._read()

    async def aget_messages(self) -> list[BaseMessage]:
        self._tell_run()
        return await self._offload.run(self._read)

    def _tell_run(self) -> None:
        """What this run says is of the history only as far as it is added: a prompt is not."""
        config = var_child_runnable_config.get() or {}
        trace = self._recorder.trace_of(getattr(config.get("callbacks"), "parent_run_id", None))
        if trace is not None and trace.visit.session_id == self._session_id and not trace.visit.checkpointed:
            trace.visit.has_history = True

    def _read(self) -> list[BaseMessage]:
        self._recorder.drain(self._session_id)
        return self.read()

    def read(self) -> list[BaseMessage]:
        """As it is written down by now."""
        recorded = self._storage.list_messages(self._session_id)
        return [self._message(message) for message in recorded if _is_of_history(message)]

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        self._recorder.drain(self._session_id)
        visit = self._recorder.visit_of(self._session_id) or self._visit()
        behind = partial(add_behind, run_id=visit.run_id)
        self._write(visit, HistoryEntry(describe(messages, new_id=self._new_id), behind, is_said=True))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        await self._offload.run(self.add_messages, messages)

    def add_among(self, visit: RunContext, messages: Sequence[BaseMessage], ids: Collection[str]) -> None:
        """Record those of the messages that have these ids, each where it stands among the others."""
        seen: list[Entry] = []
        following: str | None = None
        for message in reversed(messages):
            if message.id in ids:
                seen += describe([message], new_id=self._new_id, followed_by=following)
            else:
                following = message.id
        self._storage.append(visit, self._recorder.journal.keeping.entries(seen[::-1]))

    def clear(self) -> None:
        self._write(self._visit(), HistoryEntry((), leave))

    async def aclear(self) -> None:
        await self._offload.run(self.clear)

    def _visit(self) -> RunContext:
        return RunContext(self._session_id, self._owner, announced=True, hand=self._hand)

    def _write(self, visit: RunContext, history: HistoryEntry) -> None:
        self._storage.append(visit, self._recorder.journal.keeping.entries([history]))

    def _message(self, message: Message) -> BaseMessage:
        content, extra = put_back([message.content, message.extra], partial(self._storage.find_file, self._session_id))
        extra = dict(extra or {})
        told = _plain(message, message.text if content is None else content, extra.pop("type", None))
        return told.model_copy(update=extra) if extra else told  # as it is recorded, be it valid or not


def _is_of_history(message: Message) -> bool:
    """Whether it is in the state of the outermost graph, or of a history that was given or added."""
    is_outermost = not message.checkpoint_ns or SHARED in message.marks
    return is_outermost and ASIDE not in message.marks and RESUME not in message.marks


def _plain(message: Message, said: Any, kind: str | None) -> BaseMessage:
    """The message by what the record has columns for; of another `kind` than its role says, where that is known."""
    if kind == "human":
        return HumanMessage(said, id=message.message_id, name=message.name)
    if message.role == "assistant":
        valid = [call for call in message.tool_calls if call.get("type") != "invalid_tool_call"]
        invalid = [call for call in message.tool_calls if call.get("type") == "invalid_tool_call"]
        asking = AIMessage(said, id=message.message_id, name=message.name, tool_calls=valid)
        return asking.model_copy(update={"invalid_tool_calls": invalid}) if invalid else asking
    if message.role == "tool":
        call_id = message.tool_call_id or ""
        return ToolMessage(said, id=message.message_id, name=message.name, tool_call_id=call_id)
    speaker = SystemMessage if message.role == "system" else HumanMessage
    return speaker(said, id=message.message_id, name=message.name)
