"""`Session`: one session in hand, its fields as of when it was read and its record at a call."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, overload

from pydantic import PrivateAttr

from session_middleware import lifecycle
from session_middleware.display.html import Rows
from session_middleware.living import LivingSession
from session_middleware.memory.session_memory import SessionMemory
from session_middleware.models import Branch, Event, Message, ModelCall, RepairedCall, Run, SessionInfo, Stats, ToolCall
from session_middleware.recording.chat_message_history import SessionHistory
from session_middleware.recording.follow import Following, afollow, follow
from session_middleware.recording.manual import F, ManualRecorder, Sayable
from session_middleware.services import Services
from session_middleware.settings import duration_of
from session_middleware.storage.executor import async_twin
from session_middleware.storage.run import RunContext
from session_middleware.storage.timeline import Timeline
from session_middleware.storage.types import Record
from session_middleware.storage.validation import check_choice, check_seq, checked_limit, suggesting


@suggesting
class Session(LivingSession):
    """A session: the fields of `SessionInfo` as they were when it was read, and what can be asked of it.

    Reading one neither revives it nor counts as activity. The methods with the prefix ``a`` are the
    same for asyncio.
    """

    _loop: ManualRecorder = PrivateAttr()

    @classmethod
    def of(cls, info: SessionInfo, parts: Services) -> Self:
        session = super().of(info, parts)
        session._loop = ManualRecorder(
            *(parts.storage, parts.recorder.buffer, parts.visits, parts.turns),
            session_id=info.id,
            owner=session.acting,
            hand=session._hand,
        )
        return session

    # The record

    def _settle(self, after: int, limit: int | None) -> None:
        """What is under way is in the database before a page of it is read."""
        check_seq(after)
        checked_limit(limit)
        self._recorder.drain(self.id)

    def messages(
        self, *, after: int = 0, limit: int | None = None, all_versions: bool = False, branch: str | None = None
    ) -> builtins.list[Message]:
        """What was said, in the order of the conversation; of an edited message the latest version, in its own place.

        Args:
            after: the `seq` of the last message had; it may have been edited, deleted or left behind since.
            limit: at most so many.
            all_versions: each version of an edited message, too.
            branch: one of `branches`, or ``"main"``; by default where the session is now, without what
                was left behind by going back. ``"all"``: everything, by `seq`.
        """
        self._settle(after, limit)
        if branch not in (None, "main", "all"):
            check_choice("branch", branch, ("main", "all", *(each.id for each in self.branches())))
        return Rows(
            self._storage.list_messages(self.id, after=after, limit=limit, all_versions=all_versions, branch=branch)
        )

    amessages = async_twin(messages)

    def delete_message(self, message_id: str) -> int:
        """Delete a message from the record: all its versions, and how many these were; 0 if there is no such message.

        Its files go with it, unless others use them, and so do its words in the index, its vectors, what
        was remembered with this `message_id`, and its item of another SDK's conversation. Nothing of them
        is left in the database's file. An event says that it was deleted, and it is not recorded again:
        its id is known, and for histories without ids its place and four hexadecimal digits of a digest of its
        words. Who says the same again, later in the conversation, has said it again.

        A graph's state is not touched, nor are the arguments and results of tool calls. Take the message
        out of the state with LangGraph's ``RemoveMessage``, and older checkpoints away with `prune`.
        """
        self._recorder.drain(self.id)
        return self._storage.delete_message(self.id, message_id)

    adelete_message = async_twin(delete_message)

    def tool_calls(self, *, after: int = 0, limit: int | None = None) -> builtins.list[ToolCall]:
        """Each execution of a tool, in order."""
        self._settle(after, limit)
        return Rows(self._storage.list_records(ToolCall, self.id, after=after, limit=limit))

    atool_calls = async_twin(tool_calls)

    def model_calls(self, *, after: int = 0, limit: int | None = None) -> builtins.list[ModelCall]:
        """Each call of a model, in order: what it took and what it cost."""
        self._settle(after, limit)
        return Rows(self._storage.list_records(ModelCall, self.id, after=after, limit=limit))

    amodel_calls = async_twin(model_calls)

    def branches(self) -> builtins.list[Branch]:
        """The lines of conversation that left another one; ``"main"`` is the first, and not among them."""
        self._recorder.drain(self.id)
        return self._storage.list_branches(self.id)

    abranches = async_twin(branches)

    def runs(self, *, after: int = 0, limit: int | None = None) -> builtins.list[Run]:
        """Each invocation of the graph, in order."""
        self._settle(after, limit)
        return Rows(self._storage.list_records(Run, self.id, after=after, limit=limit))

    aruns = async_twin(runs)

    def events(self, *, after: int = 0, limit: int | None = None) -> builtins.list[Event]:
        """What happened to the session itself, and why, in order."""
        self._settle(after, limit)
        return Rows(self._storage.list_records(Event, self.id, after=after, limit=limit))

    aevents = async_twin(events)

    def timeline(self, *, after: int = 0, limit: int | None = None) -> Timeline:
        """All of the record in one order, by `seq`; its ``tree`` is the same by run and namespace.

        `after` is the `seq` of the last one had: with it and `limit`, page by page. A page costs what it shows.
        """
        self._settle(after, limit)
        return Timeline(*self._storage.list_timeline(self.id, after=after, limit=limit))

    atimeline = async_twin(timeline)

    def follow(
        self,
        *,
        after: int = 0,
        timeout: Any = None,
        until: Callable[[Record], bool] | None = None,
    ) -> Iterator[Record]:
        """What is recorded, as it is committed, also by another process: first what is there, then what comes.

        A run, a tool call or a message that was going on when it was told is told again when it has
        changed; `seq` says that it is the same. It ends when the session has ended or was deleted.

        Args:
            after: The `seq` of the last one had, to go on from there. What was going on then and has
                ended meanwhile is not told again.
            timeout: A duration, such as ``"30s"``: end when nothing has come for so long. None: never.
            until: End after the first record for which it is true.
        """
        return follow(self._following(after), timeout=duration_of("timeout", timeout), until=until)

    def afollow(
        self, *, after: int = 0, timeout: Any = None, until: Callable[[Record], bool] | None = None
    ) -> AsyncIterator[Record]:
        """`follow`, for asyncio."""
        return afollow(self._following(after), self._offload, timeout=duration_of("timeout", timeout), until=until)

    def _following(self, after: int) -> Following:
        check_seq(after)
        check = partial(self._check, reading=True)
        return Following(self._parts.storage, self.id, after=after, has_ended=self._has_ended, check=check)

    def _has_ended(self) -> bool:
        info = self._parts.storage.find_session(self.id)
        parts = self._parts
        return info is None or lifecycle.status_at(info, parts.settings, parts.clock()) not in lifecycle.OPEN

    def stats(self) -> Stats:
        """The session in numbers, as of now."""
        runs, calls, said = self.runs(), self.tool_calls(), self.messages()
        info, size = self._check(reading=True), self._storage.measure_session(self.id)
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
            checkpoint_count=size.checkpoints,
            created_at=info.created_at,
            last_active_at=info.last_active_at,
            messages_in=sum(message.role == "user" for message in said),
            messages_out=sum(message.role == "assistant" for message in said),
            bytes=size.bytes,
            recorder_faults=self._recorder.faults,
            hook_faults=self._parts.hooks.faults,
        )

    astats = async_twin(stats)

    def file(self, hash: str) -> bytes | None:
        """An image or a file of a message's content, by the ``"sha256:…"`` that stands for it there."""
        return self._storage.find_file(self.id, hash)

    afile = async_twin(file)

    # Recording by hand

    def __enter__(self) -> Self:
        """Begin a run; it ends with the block, and has failed if that raises. All that was recorded stays.

        A block inside it is part of the run. One that another task or thread enters beside it is a run
        of its own, as `on_busy` allows.

        Raises:
            SessionBusy: another run is in progress, and the setting ``on_busy`` is not ``"allow"``.
            SessionExpired: it has expired, and ``on_resume`` is ``"reject"``. So raises whatever records here.
            SessionClosed: it has ended, and ``on_closed`` is ``"reject"``; or it was deleted.
        """
        self._loop.runs.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.runs.exit(error)

    async def __aenter__(self) -> Self:
        await self._loop.runs.aenter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._loop.runs.aexit(error)

    def add(self, message: Sayable, at: datetime | None = None) -> Message:
        """Record a message: LangChain's, or a dict in OpenAI's format. `at` is when it was said, if not now.

        One with an id that is recorded adds nothing, or a version if its words differ. Raises
        `InvalidArgument` for a role that nobody knows, and for a moment without a time zone.
        """
        return self._loop.add(message, at)

    aadd = async_twin(add)

    def add_history(self, messages: Sequence[Sayable]) -> None:
        """Record what is new in a whole conversation or in its latest messages, compared by role and text, in order.

        The same again adds nothing; one that was trimmed, summarised or left something out adds what is new in
        it; a message that differs, in the place of one of the same role, is a new version of the recorded one,
        and so is one that was masked or cut short; one that goes another way begins a branch. A single turn, or
        a part of one, that nothing shows to be recorded is appended. System messages are compared with each
        other, so a prompt that tells the time is one message with versions.
        """
        self._loop.add_history(messages)

    aadd_history = async_twin(add_history)

    @overload
    def tool(self, function: F) -> F: ...

    @overload
    def tool(self, *, name: str | None = None) -> Callable[[F], F]: ...

    def tool(self, function: F | None = None, *, name: str | None = None) -> F | Callable[[F], F]:
        """A decorator: each execution of the function, sync or async, is a tool call of this session.

        Called with ``tool_call_id=…`` it is the execution of that request; without one, of the latest
        message's request for this tool and these arguments, if there is one.
        """
        if function is not None:
            return self._loop.tool(function, name)
        return lambda decorated: self._loop.tool(decorated, name)

    def record_tool(
        self,
        name: str,
        arguments: Any = None,
        result: Any = None,
        *,
        error: str | BaseException | None = None,
        status: Literal["ok", "error", "refused", "interrupted"] | None = None,
        tool_call_id: str | None = None,
        duration: timedelta | None = None,
    ) -> None:
        """Record an execution of a tool that is over; `status` is by default what `error` and `result` say."""
        self._loop.record_tool(
            name, arguments, result, error=error, status=status, tool_call_id=tool_call_id, duration=duration
        )

    arecord_tool = async_twin(record_tool)

    def record_model_call(
        self,
        model: str | None = None,
        *,
        provider: str | None = None,
        usage: Any = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cached_tokens: int | None = None,
        reasoning_tokens: int | None = None,
        cost: float | None = None,
        error: str | BaseException | None = None,
        message_id: str | None = None,
        duration: timedelta | None = None,
        at: datetime | None = None,
    ) -> None:
        """Record a call of a model that no callback has seen: through a provider's own client, say.

        A message that tells of the same call, by its id or by the same tokens, before or after this, adds
        nothing to it. One with usage that nothing is recorded of is a model call by itself.

        Args:
            provider: such as ``"openai"``, where the name of the model does not say it.
            usage: what it took: LangChain's `usage_metadata`, or what OpenAI's or Anthropic's API sent. Counts
                given beside it replace those in it; the cached ones are of the input, reasoning is of the output.
            cost: in US dollars, where it is not what the genai-prices package says. None for a call that failed.
            message_id: of the message it answered with.
            at: when it began, if not now.

        Raises:
            InvalidArgument: for a count or a cost that is none, and for a moment without a time zone.
        """
        self._loop.record_model_call(
            model,
            provider=provider,
            usage=usage,
            counts={
                "input_tokens": input_tokens,
                "output_tokens": output_tokens,
                "cached_tokens": cached_tokens,
                "reasoning_tokens": reasoning_tokens,
            },
            cost=cost,
            error=error,
            message_id=message_id,
            duration=duration,
            at=at,
        )

    arecord_model_call = async_twin(record_model_call)

    def history(self) -> SessionHistory:
        """The conversation as LangChain's `BaseChatMessageHistory`, for `RunnableWithMessageHistory`."""
        return SessionHistory(self._storage, self._recorder, session_id=self.id, owner=self.acting, hand=self._hand)

    # Memory

    @property
    def memory(self) -> SessionMemory:
        """What this session remembers, and what it may recall of its user's and its group's."""
        return SessionMemory(
            self._parts.memory,
            self._storage,
            RunContext(self.id, self.acting, is_run=False, incarnation=self.incarnation),
            owner_id=self.user_id,
            group_id=self._parts.group_of(self),
        )

    def repair(self, *, dry_run: bool = False) -> builtins.list[RepairedCall]:
        """Answer the tool calls that were cut off, so that a model takes the history again; `dry_run` only says which.

        New input does this by itself, unless the setting ``repair`` is ``"off"``. Nothing while the
        graph waits for a person, who may yet approve the call. A session without checkpoints, such as
        that of a loop recorded by hand, is repaired in its record.

        Raises:
            SessionBusy: another run than the block this is called in is in progress, and may give the answers.
        """
        self._recorder.drain(self.id)
        self._check(reading=False)
        block = self._loop.runs.context
        return self._parts.repair(self.config(), self.history(), block=block, dry_run=dry_run)

    arepair = async_twin(repair)
