"""Recording by hand: the messages, tool calls and model calls of a loop without a framework.

The application calls these functions itself, so they raise their errors. The exception is a tool: an error
of the recording is logged and counted, and the tool runs.

Each block of ``with session:`` is a run. A block inside a block of the same session, in the same task or in
one started there, is part of that run. Blocks in parallel tasks and threads are runs of their own, which
``on_busy`` queues or refuses.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from langchain_core.messages import BaseMessage, RemoveMessage

from session_middleware.errors import InvalidArgument
from session_middleware.models import CALL_STATUSES, Identity, Message
from session_middleware.recording.active_run import elapsed_ms
from session_middleware.recording.history_diff import diff_history
from session_middleware.recording.messages import Sayable, error_text, to_message
from session_middleware.recording.tool_execution import Outcome, ToolExecution, ended
from session_middleware.recording.usage import given_tokens, with_usage
from session_middleware.recording.write_buffer import RecordBuffer
from session_middleware.runtime.run_context import RunRegistry
from session_middleware.runtime.run_queue import RunQueue
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.jsonable import is_a, text_of
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import Entry, HistoryEntry, ModelCallEntry, RunEnd, ToolStart
from session_middleware.storage.run import RunContext, RunState, SessionHandle
from session_middleware.storage.validation import (
    check_callable,
    check_choice,
    check_kind,
    check_optional_text,
    check_text,
    checked_moment,
    milliseconds_of,
    signature_of,
)

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True, eq=False)
class _Run:
    context: RunContext
    buffer: RecordBuffer  # one for each `Sessions`
    started: float = field(default_factory=time.perf_counter)
    is_over: bool = False


_ANNOUNCED = RunState(announced=True)
_entered: ContextVar[tuple[_Run, ...]] = ContextVar("session_middleware_blocks", default=())  # one item per open block


class ManualRecorder:
    """Records what a loop reports about one session. Inside ``with session:`` the entries belong to that run."""

    def __init__(
        self,
        storage: Storage,
        buffer: RecordBuffer,
        registry: RunRegistry,
        queue: RunQueue,
        *,
        session_id: str,
        owner: Identity,
        handle: SessionHandle,
    ) -> None:
        self._storage = storage
        self._buffer = buffer
        self._registry = registry
        self._queue = queue
        self._new_id = buffer.new_id
        self.session_id = session_id
        self._owner = owner
        self._handle = handle
        self._open: list[_Run] = []  # the runs that this handle's blocks began

    def add(self, message: Sayable, at: datetime | None = None) -> Message:
        """Record a message of LangChain's, or a dict in OpenAI's format. `at` is its time, by default now.

        A message whose id is recorded already adds nothing, or a version if its text differs. Raises
        `InvalidArgument` for an unknown role, and for a time without a time zone.
        """
        if isinstance(message, RemoveMessage):
            raise InvalidArgument("message", message, wanted="a message that was said; delete_message(id) deletes one")
        (entry,) = self._buffer.describe([_checked(message)], created_at=checked_moment("at", at))
        self.write([entry])
        if (recorded := self._storage.find_message(self.session_id, entry.message_id)) is not None:
            return recorded
        return Message(  # the ``record`` setting excludes it
            session_id=self.session_id,
            seq=0,
            message_id=entry.message_id,
            role=entry.role,
            text="",
            flags=("withheld:message",),
            created_at=entry.created_at or datetime.min,
        )

    def add_history(self, messages: Sequence[Sayable]) -> None:
        """Record the new messages of a conversation, or of its latest part. Messages are compared by role and text.

        The same history adds nothing. A history that was trimmed or summarised adds its new messages. A different
        message of the same role at the same position is a new version of the recorded one, also if it was masked
        or shortened. A history that diverges begins a branch. A turn or a part of one without recorded messages
        is appended. System messages are compared with each other, so a prompt that contains the time is one
        message with versions.
        """
        if isinstance(messages, (str, Mapping)) or not isinstance(messages, Iterable):
            raise InvalidArgument("messages", messages, wanted="a list of messages")
        self.write([HistoryEntry(self._buffer.describe([*map(_checked, messages)]), diff_history)])

    def record_tool(
        self,
        name: str,
        arguments: Any = None,
        result: Any = None,
        *,
        error: str | BaseException | None = None,
        status: Outcome | None = None,
        tool_call_id: str | None = None,
        duration: timedelta | None = None,
    ) -> None:
        """Record a finished execution of a tool; the default `status` follows from `error` and `result`."""
        if status is not None:
            check_choice("status", status, CALL_STATUSES[1:])  # all but "running"
        start, duration_ms = self._tool_start(name, arguments, tool_call_id), milliseconds_of("duration", duration)
        self.write([start, ended(start.execution_id, name, duration_ms, result, error, status)])

    def tool_execution(self, name: str, arguments: Any = None, *, tool_call_id: str | None = None) -> ToolExecution:
        """A block around one execution of a tool, whose start is committed before the block begins.

        ``with session.tool_execution("search", {"q": "tea"}) as execution: execution.result = search("tea")``, or
        ``async with``. An exception of the block is recorded and raised. `tool` does the same for a function.

        The exceptions below are raised before the block. Any other error of the recording is logged and counted, and
        the block runs.

        Raises:
            SessionExpired: the session has expired, and ``on_resume`` is ``"reject"``.
            SessionClosed: the session has ended, and ``on_closed`` is ``"reject"``.
            SessionAccessDenied: the caller may only read the session, or is revoked.
            SessionNotFound: the session was deleted.
        """
        return ToolExecution(self, self._tool_start(name, arguments, tool_call_id))

    def _tool_start(self, name: str, arguments: Any, tool_call_id: object) -> ToolStart:
        check_text("name", name, at_least=1)
        return ToolStart(self._new_id(), None if tool_call_id is None else text_of(tool_call_id), name, arguments)

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
        """Record a model call without a callback, such as one through a provider's own client.

        A message with the same id or the same token counts, added before or after this, describes the same
        call and is not counted twice. A message with usage and no recorded call is a model call by itself.

        Args:
            provider: such as ``"openai"``, if the name of the model does not imply it.
            usage: LangChain's `usage_metadata`, or the usage from OpenAI's or Anthropic's API. The count arguments
                override it; cached tokens are part of the input, reasoning tokens of the output.
            cost: in US dollars, by default from the genai-prices package. None for a call that failed.
            message_id: of the answer.
            at: the time of the call's start, by default now.

        Raises:
            InvalidArgument: a count or a cost is invalid, or a time has no time zone.
        """
        for name, text in (("model", model), ("provider", provider), ("message_id", message_id)):
            check_optional_text(name, text)
        tokens = given_tokens(
            usage,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_tokens=cached_tokens,
            reasoning_tokens=reasoning_tokens,
        )
        is_number = isinstance(cost, (int, float)) and not isinstance(cost, bool)
        if cost is not None and not (is_number and 0 <= cost < math.inf):
            raise InvalidArgument("cost", cost, wanted="a number of US dollars")
        call = ModelCallEntry(
            self._new_id(),
            model or None,
            provider or None,
            duration_ms=milliseconds_of("duration", duration),
            error=_text_of_error(error),
            message_id=message_id or None,
            started_at=checked_moment("at", at),
            by_hand=True,
        )
        call = with_usage(call, tokens)
        if cost is not None or error is not None:
            call = call._replace(cost=None if cost is None else lambda: float(cost))
        self.write([call])

    def tool(self, function: F, name: str | None) -> F:
        """Wrap a function so that each of its executions is recorded."""
        check_callable("function", function, "a function, as by @session.tool over its def")
        check_optional_text("name", name)
        tool_name = name or str(getattr(function, "__name__", "tool"))
        signature = signature_of(function)

        def execution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> ToolExecution:
            return ToolExecution(self, self._start(tool_name, signature, args, kwargs), raises_denials=False)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def aexecute(*args: Any, **kwargs: Any) -> Any:
                async with execution(args, kwargs) as executed:
                    executed.result = await function(*args, **kwargs)
                return executed.result

            return cast("F", aexecute)

        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def agenerate(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
                async with execution(args, kwargs) as executed, aclosing(function(*args, **kwargs)) as items:
                    executed.result, sent = [], None
                    while True:
                        try:
                            item = await items.asend(sent)
                        except StopAsyncIteration:
                            return
                        executed.result.append(item)
                        sent = yield item

            return cast("F", agenerate)

        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                with execution(args, kwargs) as executed:
                    executed.result = []
                    return (yield from _Collected(function(*args, **kwargs), executed.result))

            return cast("F", generate)

        @functools.wraps(function)
        def execute(*args: Any, **kwargs: Any) -> Any:
            with execution(args, kwargs) as executed:
                executed.result = function(*args, **kwargs)
            return executed.result

        return cast("F", execute)

    def _start(
        self, name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ToolStart:
        """The start of an execution. Removes a ``tool_call_id`` that is not a parameter of the function."""
        takes_id = "tool_call_id" in signature.parameters
        call_id = None if takes_id else kwargs.pop("tool_call_id", None)
        try:
            arguments = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError:  # the call itself will raise it
            arguments = {"args": list(args), **kwargs}
        if takes_id:
            call_id = arguments.get("tool_call_id")
        if (first := next(iter(signature.parameters), "")) in ("self", "cls"):  # of a method
            arguments.pop(first, None)
        return ToolStart(self._new_id(), None if call_id is None else text_of(call_id), name, arguments)

    @property
    def executor(self) -> StorageExecutor:
        return self._buffer.executor

    def fault(self, error: Exception) -> None:
        self._buffer.fault(error)

    def write(self, entries: Sequence[Entry], context: RunContext | None = None) -> None:
        """Write entries of a context, by default that of the enclosing run."""
        context = context or self.context or self.new_context()
        self._storage.append(context, self._buffer.redacted(entries))

    def new_context(self, run_id: str | None = None) -> RunContext:
        # A run is admitted by the clock and the settings. Its session was announced when it was opened.
        return RunContext(self.session_id, self._owner, run_id=run_id, handle=self._handle, state=_ANNOUNCED)

    # Runs

    @property
    def context(self) -> RunContext | None:
        """The context of the enclosing run. A thread outside any block gets that of the only open run."""
        run = self._enclosing() or (self._open[0] if len(self._open) == 1 else None)
        return None if run is None else run.context

    def enter(self) -> None:
        if (run := self._enclosing()) is None:
            context = self._announce()
            try:
                self._queue.acquire(context)
                self._storage.append(context)
            except BaseException:
                self._registry.end(context)
                raise
            run = self._begin(context)
        _entered.set((*_entered.get(), run))

    async def aenter(self) -> None:
        if (run := self._enclosing()) is None:
            context = self._announce()
            has_turn = False
            try:
                await self._queue.aacquire(context)
                has_turn = True
                await self._buffer.executor.run(self._storage.append, context)
            except BaseException as error:
                self._registry.end(context)
                if has_turn and isinstance(error, asyncio.CancelledError):  # the executor may still begin the run
                    self._buffer.add(context, [RunEnd("interrupted", None, 0.0)])
                    self._buffer.flush(context)
                raise
            run = self._begin(context)
        _entered.set((*_entered.get(), run))

    def _announce(self) -> RunContext:
        context = self.new_context(self._new_id())
        self._registry.register(context)
        return context

    def _begin(self, context: RunContext) -> _Run:
        run = _Run(context, self._buffer)
        self._open.append(run)
        self._registry.enter_block(context)
        return run

    def exit(self, error: BaseException | None) -> None:
        if (run := self._exited()) is not None:
            self._end_run(run, error)

    async def aexit(self, error: BaseException | None) -> None:
        if (run := self._exited()) is not None:
            await asyncio.shield(self._buffer.executor.run(self._end_run, run, error))

    def _exited(self) -> _Run | None:
        """Remove the innermost block, and return its run if no other block is part of that.

        Some frameworks exit a block in another context than the one that entered it.
        """
        entered = list(_entered.get())
        place = next((n for n in reversed(range(len(entered))) if self._is_own(entered[n])), None)
        run = entered.pop(place) if place is not None else self._open[-1] if self._open else None
        _entered.set(tuple(entered))
        if run is None or run.is_over or run in entered:
            return None
        run.is_over = True
        self._open = [each for each in self._open if not each.is_over]
        return run

    def _end_run(self, run: _Run, error: BaseException | None) -> None:
        """End a run. A run that ends with an exception has failed; its entries stay."""
        self._registry.end(run.context)
        outcome = "ok" if error is None else "error" if isinstance(error, Exception) else "interrupted"
        text = error_text(error) if isinstance(error, Exception) else None
        self.write([RunEnd(outcome, text, elapsed_ms(run.started))], run.context)

    def _enclosing(self) -> _Run | None:
        return next((run for run in reversed(_entered.get()) if self._is_own(run) and not run.is_over), None)

    def _is_own(self, run: _Run) -> bool:
        of, own = run.context, (self.session_id, self._owner, self._handle.incarnation)
        return run.buffer is self._buffer and (of.session_id, of.identity, of.state.incarnation) == own


class _Collected(Generator[Any, Any, Any]):
    """A generator whose items are added to a list."""

    def __init__(self, items: Generator[Any, Any, Any], to: list[Any]) -> None:
        self._items, self._to = items, to

    def send(self, value: Any) -> Any:
        return self._add(self._items.send(value))

    def throw(self, *error: Any) -> Any:
        return self._add(self._items.throw(*error))

    def _add(self, item: Any) -> Any:
        self._to.append(item)
        return item


def _checked(given: Sayable) -> BaseMessage:
    """Return a LangChain message. Raises `InvalidArgument` for a dict that is no message, or has an id of no text."""
    message = to_message(given)
    if isinstance(given, Mapping):
        for name in ("id", "name", "tool_call_id"):
            check_kind(name, given.get(name), str | int | None, "a text")
    return message


def _text_of_error(error: Any) -> str | None:
    return error_text(error) if is_a(error, BaseException) else None if error is None else text_of(error)
