"""A session's conversation as LangChain's `BaseChatMessageHistory`, for `RunnableWithMessageHistory` and similar."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables.config import var_child_runnable_config

from session_middleware.models import Message
from session_middleware.recording.files import restore_files
from session_middleware.recording.history_diff import align_appended, rewind
from session_middleware.recording.manual import ManualRecorder
from session_middleware.recording.recorder import SessionRecorder
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import ASIDE, SHARED, Entry, HistoryEntry
from session_middleware.storage.run import RunContext


class SessionHistory(BaseChatMessageHistory):
    """The recorded conversation of a session, as LangChain messages.

    A redacted text is redacted here, too. Appending a message that the recorder has recorded in the present run
    adds no second one. After a run has read the history, its prompts and model output belong to the history only
    if they are appended; until then they are recorded with the flag ``aside``. Clearing begins a new branch and
    deletes nothing.
    """

    def __init__(self, storage: Storage, recorder: SessionRecorder, manual: ManualRecorder) -> None:
        self._storage = storage
        self._recorder = recorder
        self._manual = manual
        self._session_id = manual.session_id
        self._run = recorder.buffer.executor.run

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        return self._read_in_run()

    async def aget_messages(self) -> list[BaseMessage]:
        return await self._run(self._read_in_run)

    def _read_in_run(self) -> list[BaseMessage]:
        """Read the history. The enclosing run's prompts are recorded aside from then on."""
        config = var_child_runnable_config.get() or {}
        run = self._recorder.find_run(getattr(config.get("callbacks"), "parent_run_id", None))
        if run is not None and run.context.session_id == self._session_id and not run.context.checkpointed:
            run.context.has_history = True
        self._recorder.drain(self._session_id)
        return self.read()

    def read(self) -> list[BaseMessage]:
        """Return the stored messages, without draining the recorder first."""
        recorded = self._storage.list_messages(self._session_id)
        return [
            self.to_message(message)
            for message in recorded  # of the outermost graph's state, or of a history that was given or appended
            if (not message.checkpoint_ns or SHARED in message.flags) and ASIDE not in message.flags
        ]

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        self._recorder.drain(self._session_id)
        context = self._recorder.context_of(self._session_id) or self._manual.new_context()
        align = partial(align_appended, run_id=context.run_id)
        entry = HistoryEntry(self._recorder.buffer.describe(messages), align, is_said=True)
        self._manual.write([entry], context)

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        await self._run(self.add_messages, messages)

    def add_among(self, context: RunContext, messages: Sequence[BaseMessage], ids: Collection[str]) -> None:
        """Record the messages with these ids, each before its successor among the others. Recorded ones are moved."""
        entries: list[Entry] = []
        following: str | None = None
        for message in reversed(messages):
            if message.id in ids:
                entries += self._recorder.buffer.describe([message], followed_by=following, moved=True)
            else:
                following = message.id
        self._manual.write(entries[::-1], context)

    def clear(self) -> None:
        self._manual.write([HistoryEntry((), rewind)], self._manual.new_context())

    async def aclear(self) -> None:
        await self._run(self.clear)

    def to_message(self, message: Message) -> BaseMessage:
        """Convert a recorded message to LangChain's."""
        read_file = partial(self._storage.find_file, self._session_id)
        content, extra = restore_files([message.content, message.extra], read_file)
        text = message.text if content is None else content
        fields: dict[str, Any] = {"content": text, "id": message.message_id, "name": message.name}
        extra = dict(extra or {})
        converted: BaseMessage
        if extra.pop("type", None) == "human" or message.role == "user":  # with another role: a summary, or by an agent
            converted = HumanMessage(**fields)
        elif message.role == "assistant":
            invalid = [call for call in message.tool_calls if call.get("type") == "invalid_tool_call"]
            converted = AIMessage(**fields, tool_calls=[call for call in message.tool_calls if call not in invalid])
            extra |= {"invalid_tool_calls": invalid} if invalid else {}
        elif message.role == "tool":
            converted = ToolMessage(**fields, tool_call_id=message.tool_call_id or "")
        else:
            converted = SystemMessage(**fields)
        return converted.model_copy(update=extra) if extra else converted  # without validation, as it was recorded
