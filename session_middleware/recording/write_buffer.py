"""The record entries of runs in progress, buffered until a storage operation writes them.

The next operation of a run writes its buffered entries. This is often a checkpoint that would be put
anyway. Entries that must be stored before the run continues are flushed at once. On an event loop a
flush is submitted to the storage's writer thread, and only the start of a tool waits for it, for
`WAIT_SECONDS` at most. An entry that cannot be recorded is logged once and counted; the run continues.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial, wraps
from typing import Any, TypeVar, cast

from langchain_core.messages import RemoveMessage
from langgraph.types import Command

from session_middleware.errors import (
    SessionAccessDenied,
    SessionBusy,
    SessionClosed,
    SessionExpired,
    SessionLimitReached,
    StorageError,
)
from session_middleware.models import Clock, NewId
from session_middleware.recording.messages import Sayable, describe, texts_in
from session_middleware.recording.redaction import RedactionPolicy
from session_middleware.settings import SessionSettings
from session_middleware.storage.executor import StorageExecutor, is_on_a_loop
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import ASIDE, AnswerEntry, Entry, HistoryEntry, MessageEntry
from session_middleware.storage.run import RunContext

logger = logging.getLogger("session_middleware")

DENIALS = (SessionAccessDenied, SessionBusy, SessionClosed, SessionExpired, SessionLimitReached)
WAIT_SECONDS = 0.005  # the longest wait of a tool under asyncio for its start to be stored
_MAX_TRACKED = 256  # contexts with entries, and sessions with a submitted write


class RecordBuffer:
    def __init__(
        self,
        storage: Storage,
        executor: StorageExecutor,
        settings: SessionSettings,
        *,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self.storage = storage
        self.executor = executor
        self.clock = clock
        self.new_id = new_id
        self.redaction = RedactionPolicy(settings.redact, settings.record, on_error=self.fault)
        self.redacted: Callable[[Iterable[Any]], list[Any]] = list  # entries as they are recorded
        if self.redaction.changes_entries:
            self.redacted = self.redaction.entries
        self.on_forget: list[Callable[[str], None]] = []  # called with the id of a session that was deleted
        self.faults = 0  # errors of the recorder
        self._tracking = settings.tracking
        self._open: dict[int, RunContext] = {}  # contexts that may have entries
        self._submitted: dict[str, Future[None]] = {}  # the latest submitted write of each session
        self._has_warned = False

    def describe(self, messages: Iterable[Sayable], checkpoint_ns: str = "", **changes: Any) -> list[MessageEntry]:
        """Convert messages to entries with the present time: they may be written much later. Skips removals."""
        changes.setdefault("created_at", self.clock())
        return [
            describe(message, checkpoint_ns, new_id=self.new_id, **changes)
            for message in messages
            if not isinstance(message, RemoveMessage)
        ]

    def add_answer(self, context: RunContext, inputs: Any) -> bool:
        """Note the user's words in a run's input, and buffer the answer with which a person resumes a graph.

        Returns whether the input has such an answer.
        """
        context.input_texts = frozenset(texts_in(inputs))
        if not isinstance(inputs, Command) or inputs.resume is None:
            return False
        self.add(context, [AnswerEntry(inputs.resume, self.clock())])
        return True

    def add(self, context: RunContext, entries: Sequence[Entry]) -> None:
        """Buffer entries for the context's next operation, or for `drain`."""
        if not self._tracking or not entries:
            return
        context.notes.on_fault = self.fault
        if context.has_history:
            entries = [_aside(entry) for entry in entries]
        context.notes.add(self.redacted(entries))
        self._open[id(context)] = context
        if len(self._open) > _MAX_TRACKED:
            self._open = {key: each for key, each in list(self._open.items()) if each.notes.entries}

    def flush(self, context: RunContext) -> Future[None] | None:
        """Write the context's entries. On an event loop the write is submitted, and its future returned."""
        if not self._tracking:
            return None
        if is_on_a_loop():
            return self._submit(context, self._write)
        submitted = self._submitted.get(context.session_id)
        if submitted is not None and not self.executor.is_writing:
            wait([submitted])  # it may be an earlier run's, whose entries come first
        self.storage.append(context)
        return None

    def add_if_admitted(self, context: RunContext, entries: Sequence[Entry]) -> None:
        """Write entries after the writes that are under way, if these have admitted the context's run."""
        if self._tracking:
            context.notes.add(self.redacted(entries))
            with suppress(StorageError):  # it was closed, so no write is under way
                self._submit(context, self._write_if_admitted)

    def flush_sync(self, context: RunContext) -> None:
        """Write the context's entries and wait. Must not be called on an event loop."""
        if context.notes.entries:
            self._write(context)

    def _submit(self, context: RunContext, write: Callable[[RunContext], None]) -> Future[None]:
        future = self.executor.submit(partial(write, context))
        future.add_done_callback(self._check_commit)
        self._submitted[context.session_id] = future
        if len(self._submitted) > _MAX_TRACKED:
            self._submitted = {of: last for of, last in self._submitted.copy().items() if not last.done()}
        return future

    def _write(self, context: RunContext, *, if_admitted: bool = False) -> None:
        try:
            self.storage.append(context, if_admitted=if_admitted)
        except DENIALS:
            # an event records it, and the checkpointer stops the run
            if context.lease is not None and context.lease.is_over:
                context.notes.entries.clear()  # no later operation of the run writes them
        except Exception as error:  # noqa: BLE001  # no caller waits for this, and a fault here must not break a run
            self.fault(error)

    def _write_if_admitted(self, context: RunContext) -> None:
        if context.notes.entries:
            self._write(context, if_admitted=True)

    def _check_commit(self, written: Future[None]) -> None:
        if not written.cancelled() and isinstance(error := written.exception(), Exception):
            self.fault(error)

    def drain(self, session_id: str | None = None) -> None:
        """Write all buffered entries, of one session or of all, and wait for submitted writes."""
        if self.executor.is_writing:  # on the writer thread, earlier submitted writes are done
            return
        for of in [session_id] if session_id is not None else list(self._submitted):
            if (future := self._submitted.get(of)) is not None:
                wait([future])
        for context in list(self._open.values()):
            if session_id in (None, context.session_id) and context.notes.entries:
                is_active = context.lease is not None and not context.lease.is_over
                self._write(context, if_admitted=context.state.admission is None or not is_active)

    def forget(self, session_id: str) -> None:
        """Drop all cached facts about a session that was deleted or that starts again."""
        for forget in self.on_forget:
            forget(session_id)

    def warn_unnamed(self) -> None:
        """Log once that a run without a thread id is not recorded."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "session_middleware does not record a run without a thread id; "
                "pass sessions.config('thread-42') to it, or sessions.config() for a new session"
            )

    def fault(self, error: Exception) -> None:
        """Count an error of the recorder, and log the first one."""
        self.faults += 1
        if self.faults == 1:
            logger.warning(
                "session_middleware could not record part of a run; the run continues (%s). "
                "Further faults are counted in Session.stats(), not logged.",
                error,
                exc_info=error,
            )


def _aside(entry: Entry) -> Entry:
    """Return the entry with the flag `ASIDE` on its messages."""
    if isinstance(entry, HistoryEntry):
        return entry._replace(messages=[m._replace(flags=(*m.flags, ASIDE)) for m in entry.messages])
    if isinstance(entry, MessageEntry) and ASIDE not in entry.flags:
        return entry._replace(flags=(*entry.flags, ASIDE))
    return entry


Method = TypeVar("Method", bound=Callable[..., Any])


def never_raise(method: Method) -> Method:
    """Count and log the method's errors instead of raising them, except `DENIALS`. Its object has a `buffer`."""

    @wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except DENIALS:
            raise
        except Exception as error:  # noqa: BLE001  # a fault here must not break a run
            self.buffer.fault(error)
            return None

    return cast("Method", guarded)


class awaited:  # noqa: N801  # a decorator
    """`never_raise`, and turns a handler's method into a coroutine function under asyncio, where LangChain awaits it.

    The coroutine checks access on a storage thread first. If the method returns the future of a write, the
    coroutine waits for that, for `WAIT_SECONDS` at most.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = never_raise(method)
        # Models and tools may run without a chain around them, and then begin the run.
        self._may_begin_run = method.__name__ in {"on_llm_start", "on_chat_model_start", "on_tool_start"}

    def __get__(self, recorder: Any, owner: type) -> Callable[..., Any]:
        """LangChain reads the attribute in a coroutine if it awaits the result.

        A synchronous run on the thread of an event loop, as in a notebook, reads it in a function, which drops a
        coroutine's exception.
        """
        if recorder is None:
            return self._method
        call: Callable[..., Any] = partial(self._method, recorder)
        if not sys._getframe(1).f_code.co_flags & inspect.CO_COROUTINE:
            return call

        async def awaiting(*args: Any, **kwargs: Any) -> None:
            metadata = kwargs.get("metadata") if self._may_begin_run else None
            try:
                await recorder.authorize(kwargs["run_id"], kwargs.get("parent_run_id"), metadata)
            except DENIALS:
                raise
            except Exception as error:  # noqa: BLE001  # as in `never_raise`
                recorder.buffer.fault(error)
                return
            if (written := call(*args, **kwargs)) is not None:
                await asyncio.wait([asyncio.wrap_future(written)], timeout=WAIT_SECONDS)

        return awaiting
