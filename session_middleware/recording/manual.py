"""Recording by hand: what a loop that no framework runs says and does in a session.

Whoever writes the loop calls these on purpose, so an error is raised to them, except around a tool:
there a fault is logged and counted, and the tool runs.
"""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from session_middleware.errors import InvalidArgument
from session_middleware.models import CALL_STATUSES, Identity, Message, NewId
from session_middleware.recording.active_run import sentence, since
from session_middleware.recording.history_diff import diff_history
from session_middleware.recording.manual_run import Blocks
from session_middleware.recording.messages import describe, outcome_of, to_message
from session_middleware.recording.usage import count_tokens, is_count, with_usage
from session_middleware.recording.write_buffer import RecordBuffer
from session_middleware.runtime.run_context import RunRegistry
from session_middleware.runtime.run_queue import RunQueue
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.jsonable import is_a, text_of
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import Entry, HistoryEntry, ModelCallEntry, ToolEnd, ToolStart
from session_middleware.storage.run import RunContext, SessionHandle
from session_middleware.storage.validation import check_choice, checked_moment

Sayable: TypeAlias = BaseMessage | Mapping[str, Any]
F = TypeVar("F", bound=Callable[..., Any])


class Loop:
    """One session, as a hand-written loop records it; inside of one of its `blocks` that is a run."""

    def __init__(
        self,
        storage: Storage,
        offload: StorageExecutor,
        journal: RecordBuffer,
        visits: RunRegistry,
        turns: RunQueue,
        *,
        session_id: str,
        owner: Identity,
        new_id: NewId,
        hand: SessionHandle,
    ) -> None:
        self._storage = storage
        self._offload = offload
        self._journal = journal
        self._session_id = session_id
        self._owner = owner
        self._new_id = new_id
        self._hand = hand
        new_visit = partial(self._visit, is_run=True)
        self.blocks = Blocks(storage, offload, journal, visits, turns, outside=self._visit(), new_visit=new_visit)

    def add(self, message: Sayable, at: datetime | None) -> Message:
        said_at = checked_moment("at", at)
        (seen,) = describe([to_message(message)], new_id=self._new_id, created_at=said_at)
        self._write([seen])
        return self._storage.find_message(self._session_id, seen.message_id) or _unkept(self._session_id, seen)

    def add_history(self, messages: Sequence[Sayable]) -> None:
        seen = describe(map(to_message, messages), new_id=self._new_id)
        self._write([HistoryEntry(seen, diff_history)])

    def record_tool(
        self,
        name: str,
        arguments: Any,
        result: Any,
        *,
        error: str | BaseException | None,
        status: str | None,
        tool_call_id: str | None,
        duration: timedelta | None,
    ) -> None:
        if status is not None:
            check_choice("status", status, CALL_STATUSES[1:])  # it is over
        execution_id, name = self._new_id(), str(name)
        told, call_id = _said(error), tool_call_id if tool_call_id is None else text_of(tool_call_id)
        found = outcome_of(result)
        end = ToolEnd(
            execution_id=execution_id,
            status=status or ("error" if told else found.status),
            result=found.result,
            error=told or found.error,
            duration_ms=None if duration is None else duration / timedelta(milliseconds=1),
            artifact=found.artifact,
            name=name,
            files=found.files,
        )
        self._write([ToolStart(execution_id, call_id, name, arguments), end])

    def record_model_call(
        self,
        model: str | None,
        *,
        provider: str | None,
        usage: Any,
        counts: Mapping[str, int | None],
        cost: float | None,
        error: str | BaseException | None,
        message_id: str | None,
        duration: timedelta | None,
        at: datetime | None,
    ) -> None:
        for name, count in counts.items():
            if count is not None and not is_count(count):
                raise InvalidArgument(name, count, wanted="a number of tokens")
        if cost is not None and not (isinstance(cost, (int, float)) and 0 <= cost < math.inf):
            raise InvalidArgument("cost", cost, wanted="a number of US dollars")
        tokens, marks = count_tokens(usage.model_dump() if isinstance(usage, BaseModel) else usage)
        given = {name.removesuffix("_tokens"): count for name, count in counts.items() if count is not None}
        call = ModelCallEntry(
            self._new_id(),
            model and str(model),
            provider and str(provider),
            duration_ms=None if duration is None else duration / timedelta(milliseconds=1),
            error=_said(error),
            message_id=message_id and str(message_id),
            marks=marks,
            started_at=checked_moment("at", at),
            by_hand=True,
        )
        call = with_usage(call, tokens._replace(**given))
        price = call.cost if error is None else None
        self._write([call._replace(cost=price if cost is None else lambda: float(cost))])

    def tool(self, function: F, name: str | None) -> F:
        """The function, which records each of its executions."""
        called = name or str(getattr(function, "__name__", "tool"))
        signature = inspect.signature(function)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def aexecute(*args: Any, **kwargs: Any) -> Any:
                start = self._start(called, signature, args, kwargs)
                await self._offload.run(self._write_anyhow, [start])
                ends: list[Entry] = []
                try:
                    with self._closing(start, ends) as execution:
                        execution.append(result := await function(*args, **kwargs))
                        return result
                finally:
                    await self._offload.run(self._write_anyhow, ends)

            return cast("F", aexecute)

        @functools.wraps(function)
        def execute(*args: Any, **kwargs: Any) -> Any:
            start = self._start(called, signature, args, kwargs)
            self._write_anyhow([start])
            ends: list[Entry] = []
            try:
                with self._closing(start, ends) as execution:
                    execution.append(result := function(*args, **kwargs))
                    return result
            finally:
                self._write_anyhow(ends)

        return cast("F", execute)

    def _start(
        self, name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ToolStart:
        """`tool_call_id`, where the function does not take one itself, is for the record."""
        takes_id = "tool_call_id" in signature.parameters
        call_id = kwargs.get("tool_call_id") if takes_id else kwargs.pop("tool_call_id", None)
        try:
            arguments = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError:  # calling it will say what is wrong
            arguments = {"args": list(args), **kwargs}
        return ToolStart(self._new_id(), None if call_id is None else text_of(call_id), name, arguments)

    @contextmanager
    def _closing(self, start: ToolStart, ends: list[Entry]) -> Iterator[list[Any]]:
        """Tells what came of the block: what was put into the list, or the exception it ended with."""
        execution: list[Any] = []
        started = time.perf_counter()
        try:
            yield execution
        except BaseException as error:
            failed = isinstance(error, Exception)
            status, told = ("error", sentence(error)) if failed else ("interrupted", None)
            ends.append(ToolEnd(start.execution_id, status, None, told, since(started), name=start.name))
            raise
        found = outcome_of(execution[0])
        ends.append(
            ToolEnd(start.execution_id, found.status, found.result, found.error, since(started), found.artifact)
            ._replace(name=start.name, files=found.files)
        )  # fmt: skip

    def _visit(self, *, is_run: bool = False) -> RunContext:
        """Let in by the clock and the settings, as any run is; that it was resumed was said when it was opened."""
        run_id = self._new_id() if is_run else None
        return RunContext(self._session_id, self._owner, run_id=run_id, announced=True, hand=self._hand)

    def _write(self, entries: Sequence[Entry]) -> None:
        self._storage.append(self.blocks.visit or self._visit(), self._journal.keeping.entries(entries))

    def _write_anyhow(self, entries: Sequence[Entry]) -> None:
        try:
            self._write(entries)
        except Exception as error:  # noqa: BLE001  # a fault here must not keep a tool from running
            self._journal.fault(error)


def _said(error: Any) -> str | None:
    return sentence(error) if is_a(error, BaseException) else None if error is None else text_of(error)


def _unkept(session_id: str, seen: Any) -> Message:
    """A message as it would be, where the settings say that it is not kept."""
    return Message(
        session_id=session_id,
        seq=0,
        message_id=seen.message_id,
        role=seen.role,
        text="",
        marks=("withheld:message",),
        created_at=seen.created_at or datetime.min,
    )
