"""`Session`: one session in hand, its fields as of when it was read and its record at a call."""

from __future__ import annotations

import builtins
from datetime import timedelta
from typing import Any

from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict, PrivateAttr

from session_middleware.memory.session_memory import SessionMemory
from session_middleware.model import Branch, Event, Message, ModelCall, NewId, Run, SessionInfo, Stats, ToolCall
from session_middleware.recording.recorder import SessionRecorder
from session_middleware.storage.offload import Offload
from session_middleware.storage.port import Deleted, SessionDetails, Storage

Entry = Message | ToolCall | Run | Event


class Session(SessionInfo):
    """A session: the fields of `SessionInfo` as they were when it was read, and what can be asked of it.

    Reading one neither revives it nor counts as activity. The methods with the prefix ``a`` are the
    same for asyncio.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, defer_build=True)

    _storage: Storage = PrivateAttr()
    _offload: Offload = PrivateAttr()
    _recorder: SessionRecorder = PrivateAttr()
    _new_id: NewId = PrivateAttr()

    @classmethod
    def of(
        cls, info: SessionInfo, storage: Storage, offload: Offload, recorder: SessionRecorder, new_id: NewId
    ) -> Session:
        session = cls.model_construct(**dict(info))
        session._storage, session._offload = storage, offload
        session._recorder, session._new_id = recorder, new_id
        return session

    # The record

    def messages(
        self, *, after: int = 0, limit: int | None = None, all_versions: bool = False, branch: str | None = None
    ) -> builtins.list[Message]:
        """What was said, in the order of the conversation; of an edited message the latest version, in its own place.

        Args:
            after: the `seq` of the last message had.
            limit: at most so many.
            all_versions: each version of an edited message, too.
            branch: one of `branches`, or ``"main"``; by default where the session is now, without what
                was left behind by going back. ``"all"``: everything, by `seq`.
        """
        self._recorder.drain(self.id)
        return self._storage.list_messages(self.id, after=after, limit=limit, all_versions=all_versions, branch=branch)

    async def amessages(self, **options: Any) -> builtins.list[Message]:
        return await self._offload.run(self.messages, **options)

    def tool_calls(self, *, after: int = 0, limit: int | None = None) -> builtins.list[ToolCall]:
        """Each execution of a tool, in order."""
        self._recorder.drain(self.id)
        return self._storage.list_tool_calls(self.id, after=after, limit=limit)

    async def atool_calls(self, **options: Any) -> builtins.list[ToolCall]:
        return await self._offload.run(self.tool_calls, **options)

    def model_calls(self, *, after: int = 0, limit: int | None = None) -> builtins.list[ModelCall]:
        """Each call of a model, in order: what it took and what it cost."""
        self._recorder.drain(self.id)
        return self._storage.list_model_calls(self.id, after=after, limit=limit)

    async def amodel_calls(self, **options: Any) -> builtins.list[ModelCall]:
        return await self._offload.run(self.model_calls, **options)

    def branches(self) -> builtins.list[Branch]:
        """The lines of conversation that left another one; ``"main"`` is the first, and not among them."""
        self._recorder.drain(self.id)
        return self._storage.list_branches(self.id)

    async def abranches(self) -> builtins.list[Branch]:
        return await self._offload.run(self.branches)

    def runs(self, *, after: int = 0, limit: int | None = None) -> builtins.list[Run]:
        """Each invocation of the graph, in order."""
        self._recorder.drain(self.id)
        return self._storage.list_runs(self.id, after=after, limit=limit)

    async def aruns(self, **options: Any) -> builtins.list[Run]:
        return await self._offload.run(self.runs, **options)

    def events(self, *, after: int = 0, limit: int | None = None) -> builtins.list[Event]:
        """What happened to the session itself, and why, in order."""
        self._recorder.drain(self.id)
        return self._storage.list_events(self.id, after=after, limit=limit)

    async def aevents(self, **options: Any) -> builtins.list[Event]:
        return await self._offload.run(self.events, **options)

    def timeline(self, *, after: int = 0, limit: int | None = None) -> builtins.list[Entry]:
        """All of the record in one order: runs, messages, tool calls and events, by `seq`."""
        entries: builtins.list[Entry] = [
            *self.messages(after=after, limit=limit, branch="all"),
            *self.tool_calls(after=after, limit=limit),
            *self.runs(after=after, limit=limit),
            *self.events(after=after, limit=limit),
        ]
        entries.sort(key=lambda entry: entry.seq)
        return entries[:limit]

    async def atimeline(self, **options: Any) -> builtins.list[Entry]:
        return await self._offload.run(self.timeline, **options)

    def stats(self) -> Stats:
        """The session in numbers, as of now."""
        runs, calls = self.runs(), self.tool_calls()
        info = self._storage.find_session(self.id) or self
        tools: dict[str, int] = {}
        for call in calls:
            tools[call.name] = tools.get(call.name, 0) + 1
        return Stats(
            run_count=info.run_count,
            message_count=info.message_count,
            tool_call_count=info.tool_call_count,
            model_call_count=info.model_call_count,
            unpriced_count=info.unpriced_count,
            error_count=info.error_count,
            input_tokens=info.input_tokens,
            output_tokens=info.output_tokens,
            cost=info.cost,
            tools=tools,
            duration=timedelta(milliseconds=sum(run.duration_ms or 0 for run in runs)),
            checkpoint_count=self._storage.count_checkpoints(self.id),
            recorder_faults=self._recorder.faults,
        )

    async def astats(self) -> Stats:
        return await self._offload.run(self.stats)

    # Memory

    @property
    def memory(self) -> SessionMemory:
        """What this session remembers, and what it may recall of its user's and its group's."""
        return SessionMemory(
            self._storage,
            self._offload,
            session_id=self.id,
            user_id=self.user_id,
            group_id=self.group_id,
            new_id=self._new_id,
        )

    # Changing

    def config(self, **configurable: Any) -> RunnableConfig:
        """The config of a run in this session, as its owner."""
        given = {"thread_id": self.id, "user_id": self.user_id, "group_id": self.group_id}
        identity = {name: value for name, value in given.items() if value is not None}
        return {"configurable": {**configurable, **identity}, "metadata": identity}

    def update(
        self,
        *,
        title: str | None = None,
        purpose: str | None = None,
        tags: builtins.list[str] | tuple[str, ...] | None = None,
        metadata: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None,
        client: dict[str, Any] | None = None,
    ) -> Session:
        """The session with what is given replaced; `metadata`, `context` and `client` merge by key.

        Raises:
            SessionNotFound: it was deleted meanwhile.
        """
        details = SessionDetails(title, purpose, tags, metadata, context, client)
        info = self._storage.update_session(self.id, details)
        kept = info.model_copy(update={"status": self.status, "expires_at": self.expires_at})
        return Session.of(kept, self._storage, self._offload, self._recorder, self._new_id)

    async def aupdate(self, **details: Any) -> Session:
        return await self._offload.run(self.update, **details)

    def delete(self) -> Deleted:
        """Delete everything of it, and say how much that was."""
        self._recorder.drain(self.id)
        self._recorder.forget(self.id)
        return self._storage.delete_session(self.id)

    async def adelete(self) -> Deleted:
        return await self._offload.run(self.delete)
