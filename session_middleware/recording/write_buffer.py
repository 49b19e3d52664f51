"""What is on its way into the record: kept with its visit, and written by whichever comes first.

A visit's entries are written by the next operation of it, often the checkpoint that would be put
anyway, or at once where something must not run before it is down. On an event loop that is handed
over to the storage's writer, and a tool waits for it a few milliseconds at most. What cannot be
recorded is logged once, counted, and kept from the run.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime
from functools import partial, wraps
from typing import Any, TypeVar, cast

from session_middleware.errors import (
    SessionAccessDenied,
    SessionBusy,
    SessionClosed,
    SessionExpired,
    SessionLimitReached,
    UserRevoked,
)
from session_middleware.models import Clock
from session_middleware.recording.redaction import RedactionPolicy
from session_middleware.settings import Record, Redact
from session_middleware.storage.executor import StorageExecutor, is_on_a_loop
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import ASIDE, Entry, HistoryEntry, MessageEntry
from session_middleware.storage.run import RunContext

logger = logging.getLogger("session_middleware")

DENIALS = (SessionAccessDenied, SessionBusy, SessionClosed, SessionExpired, SessionLimitReached)
_TOLD_BY = "SessionRecorder"


def _is_no_denial(record: logging.LogRecord) -> bool:
    """A denial reaches whoever started the run, and is an event. LangChain would log it as an error of ours, too."""
    told = record.args if isinstance(record.args, tuple) else ()
    names = (kind.__name__ for kind in (*DENIALS, UserRevoked))
    return not (len(told) == 3 and told[0] == _TOLD_BY and str(told[2]).startswith(tuple(f"{name}(" for name in names)))


logging.getLogger("langchain_core.callbacks.manager").addFilter(_is_no_denial)
WAIT_SECONDS = 0.005  # how long the start of a tool under asyncio may wait until it is down
_REMEMBERED = 256  # sessions whose last write that was handed over is kept in mind


class RecordBuffer:
    def __init__(
        self,
        storage: Storage,
        offload: StorageExecutor,
        *,
        clock: Clock,
        redact: Redact,
        record: Record,
        tracking: bool,
    ) -> None:
        self._storage = storage
        self._offload = offload
        self._clock = clock
        self._tracking = tracking
        self.keeping = RedactionPolicy(redact, record, tell=self.fault)
        self._open: dict[int, RunContext] = {}  # visits that may have entries
        self._handed_over: dict[str, Future[None]] = {}  # the last write that was, by session
        self.forgetting: list[Callable[[str], None]] = []  # those who keep something of sessions in mind
        self.faults = 0
        self._has_warned = False
        self.delays = 0  # tools that ran before their start was down

    def keep(self, visit: RunContext, entries: Sequence[Entry]) -> None:
        """Have these written by the next operation of the visit."""
        if not self._tracking or not entries:
            return
        self.leave(visit, entries)
        self._open[id(visit)] = visit
        if len(self._open) > _REMEMBERED:
            self._open = {key: each for key, each in list(self._open.items()) if each.entries}

    def leave(self, visit: RunContext, entries: Sequence[Entry]) -> None:
        """Have these written by an operation of the visit, if there is one still: nobody waits for it."""
        if self._tracking:
            visit.tell = self.fault
            if visit.has_history:
                entries = list(map(_aside, entries))
            now = self._clock()  # they may be written much later
            visit.entries.extend([_said_at(entry, now) for entry in self.keeping.entries(entries)])

    def flush(self, visit: RunContext) -> None:
        """Write what was kept; on an event loop hand it over, and do not wait for it."""
        if not self._tracking:
            return
        if is_on_a_loop():
            self._hand_over(visit)
            return
        handed_over = self._handed_over.get(visit.session_id)
        if handed_over is not None and not self._offload.is_writing:
            handed_over.result()  # an earlier run's, maybe: in order
        self._storage.append(visit)

    async def look(self, visit: RunContext) -> None:
        """Check access for a visit off the event loop, unless that was done. Raises one of `DENIALS`."""
        if visit.admission is None and not visit.admitted:
            await self._offload.run(self._storage.authorize, visit)

    async def aflush(self, visit: RunContext) -> None:
        """Write what was kept, and wait no longer for it than `WAIT_SECONDS`; the loop goes on meanwhile."""
        if self._tracking:
            done, _ = await asyncio.wait([asyncio.wrap_future(self._hand_over(visit))], timeout=WAIT_SECONDS)
            self.delays += not done

    def _hand_over(self, visit: RunContext) -> Future[None]:
        future = self._offload.submit(partial(self._carry_out, visit))
        self._handed_over[visit.session_id] = future
        if len(self._handed_over) > _REMEMBERED:
            self._handed_over = {of: last for of, last in self._handed_over.copy().items() if not last.done()}
        return future

    def write(self, visit: RunContext) -> None:
        """Write what was kept, and wait for it; not for an event loop."""
        if self._tracking and visit.entries:
            self._carry_out(visit)

    def _carry_out(self, visit: RunContext) -> None:
        try:
            self._storage.append(visit)
        except DENIALS:
            pass  # an event says so, and the run is stopped by the checkpointer
        except Exception as error:  # noqa: BLE001  # nobody waits for this, and a fault here must not break a run
            self.fault(error)

    def drain(self, session_id: str | None = None) -> None:
        """Have all written that was kept or handed over, of one session or of all, so that a reader sees it."""
        if self._offload.is_writing:  # in order: what was handed over before was written before
            return
        for of in [session_id] if session_id is not None else list(self._handed_over):
            if (future := self._handed_over.get(of)) is not None:
                future.result()
        for visit in list(self._open.values()):
            if visit.entries and visit.admitted and session_id in (None, visit.session_id):
                self._carry_out(visit)

    def forget(self, session_id: str) -> None:
        """A session was deleted, or begins anew."""
        for forget in self.forgetting:
            forget(session_id)

    def warn_unnamed(self) -> None:
        """Say once that a run names no session, and is not recorded."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "session_middleware does not record a run without a thread id; "
                "pass sessions.config('thread-42') to it, or sessions.config() for a new session"
            )

    def fault(self, error: Exception) -> None:
        self.faults += 1
        if self.faults == 1:
            logger.warning(
                "session_middleware could not record part of a run; the run goes on (%s). "
                "Further faults are counted in Session.stats(), not logged.",
                error,
                exc_info=error,
            )


def _said_at(entry: Entry, now: datetime) -> Entry:
    if isinstance(entry, MessageEntry):
        return entry if entry.created_at is not None else entry._replace(created_at=now)
    if isinstance(entry, HistoryEntry):
        return entry._replace(messages=[m if m.created_at else m._replace(created_at=now) for m in entry.messages])
    return entry


def _aside(entry: Entry) -> Entry:
    if isinstance(entry, MessageEntry) and ASIDE not in entry.marks:
        return entry._replace(marks=(*entry.marks, ASIDE))
    if isinstance(entry, HistoryEntry):
        return entry._replace(messages=[m._replace(marks=(*m.marks, ASIDE)) for m in entry.messages])
    return entry


Method = TypeVar("Method", bound=Callable[..., Any])


def never_raise(method: Method) -> Method:
    """A method of somebody with a `journal` that keeps its own faults from the run, and lets denials through."""

    @wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except DENIALS:
            raise
        except Exception as error:  # noqa: BLE001  # a fault here must not break a run
            self.journal.fault(error)
            return None

    return cast("Method", guarded)


def is_awaited() -> bool:
    """Whether the caller of the calling function is a coroutine, which awaits what it is given.

    LangChain looks a handler's method up in a coroutine where it will await it. A synchronous run on the thread of
    an event loop, as in a notebook, looks it up in a function, and would drop what a coroutine raises.
    """
    return bool(sys._getframe(2).f_code.co_flags & inspect.CO_COROUTINE)


class awaited:  # noqa: N801  # a decorator
    """A handler's method that may check access first: under asyncio a coroutine function, which LangChain awaits."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self._may_enter = method.__name__.endswith(("llm_start", "model_start"))  # a model may run alone

    def __get__(self, recorder: Any, owner: type) -> Callable[..., Any]:
        if recorder is None:
            return self._method
        call: Callable[..., Any] = partial(self._method, recorder)
        if not is_awaited():
            return call

        async def awaiting(*args: Any, **kwargs: Any) -> None:
            metadata = kwargs.get("metadata") if self._may_enter else None
            try:
                await recorder.look(kwargs["run_id"], kwargs.get("parent_run_id"), metadata)
            except DENIALS:
                raise
            except Exception as error:  # noqa: BLE001  # as in `harmless`
                recorder.journal.fault(error)
            else:
                call(*args, **kwargs)

        return awaiting
