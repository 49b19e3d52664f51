"""`Job`: one run of the API in the process that runs it; and what a client gets that waits for its result."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import orjson
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig

from session_middleware.errors import SessionBusy, SessionError
from session_middleware.integrations.fastapi_errors import body_of
from session_middleware.integrations.server.runs.events import Graph, events_of
from session_middleware.integrations.server.runs.log import EventLog
from session_middleware.integrations.server.runs.notes import DIED, Batch, RunNote, RunStatus
from session_middleware.integrations.server.runs.request import Action, RunCreate
from session_middleware.integrations.server.serialization import error_json, json_bytes
from session_middleware.models import utc_now

logger = logging.getLogger("session_middleware")

INTERRUPT = "__interrupt__"


class RunResult:
    """The result of a run, from its events: the last values, what it asks a person, or its error."""

    def __init__(self) -> None:
        self._latest: bytes | None = None
        self._asked: list[bytes] = []
        self._failed = False

    def add(self, name: str, payload: Any, data: bytes) -> None:
        """Take the next event of the run into account."""
        if name == "error":
            self._latest, self._failed = b'{"__error__":' + data + b"}", True
        elif name in ("values", "updates"):
            asks = isinstance(payload, dict) and payload.get(INTERRUPT)
            if asks:
                self._asked.append(data)
            if asks or name == "values":
                self._latest = data

    def body(self) -> bytes | None:
        """The result as JSON; ``None`` if the run's stream modes have none."""
        if self._failed or len(self._asked) < 2:
            return self._latest
        asked = [each for data in self._asked for each in orjson.loads(data)[INTERRUPT]]
        return orjson.dumps({INTERRUPT: asked})


def error_of(error: BaseException) -> dict[str, str]:
    """An exception of a run, for its client: nothing that names a path, a process or another user."""
    if isinstance(error, SessionError):
        return {"error": type(error).__name__, "message": body_of(error)["detail"]}
    return error_json(error)


class _Entry(BaseCallbackHandler):
    """Sets an event when the first node of a graph begins, which is after its session has admitted the run."""

    run_inline = True

    def __init__(self, entered: asyncio.Event) -> None:
        self._entered = entered

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        if parent_run_id is not None:
            self._entered.set()


@dataclass(eq=False)
class Job:
    """A run that this process has begun."""

    note: RunNote
    asked: RunCreate
    graph: Graph
    config: RunnableConfig
    on_change: Callable[[Job], object]  # called when others should learn about it
    before: Callable[[], Awaitable[None]]  # awaited before the graph runs
    after: Callable[[Job], Awaitable[None]]  # awaited when it has ended, before anybody learns that
    is_temporary: bool = False
    is_queued: bool = False  # another run has the session
    log: EventLog = field(default_factory=EventLog)
    result: RunResult = field(default_factory=RunResult)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    action: Action | None = None  # of the caller who cancelled it
    shares_events: bool = False  # other processes read its events
    task: asyncio.Task[None] | None = None
    _entered: asyncio.Event = field(default_factory=asyncio.Event)
    _is_refused: bool = False  # because another run has the session
    _shared: int = 0  # the seq of the last event that others have
    _batches: int = 0
    _is_over: bool = False  # the graph has ended, and what follows is not cancelled

    def start(self) -> None:
        self.shares_events |= self.asked.stream_resumable
        self.config["callbacks"] = [_Entry(self._entered)]
        self.task = asyncio.create_task(self._run(), name=f"run {self.note.run_id}")

    def cancel(self, action: Action | None) -> None:
        """Cancel it, unless it has ended. The first action counts, and a rollback more than an interruption."""
        if self.task is None or self._is_over:
            return
        is_first, self.action = self.action is None, "rollback" if "rollback" in (self.action, action) else action
        if is_first:
            self.task.cancel()

    async def is_refused(self) -> bool:
        """Whether another run has the session. Waits until the graph's first node begins, or the run has ended."""
        await self._entered.wait()
        return self._is_refused

    def next_batch(self) -> Batch | None:
        """The events that others do not have yet, if they want them."""
        events = self.log.since(self._shared) if self.shares_events else []
        if not events:
            return None
        self._shared, self._batches = events[-1].seq, self._batches + 1
        return Batch(self.note.thread_id, self.note.run_id, self._batches - 1, events)

    async def _run(self) -> None:
        status, error = await self._outcome()
        self._is_over = True
        if error is not None:
            await self._emit("error", error)
        self.note = self.note.ended(status, utc_now(), error)
        try:
            await self.after(self)
        except SessionError:
            logger.exception("run %s could not be ended as it should", self.note.run_id)
        self.log.close()
        self.done.set()
        self._entered.set()
        self.on_change(self)

    async def _outcome(self) -> tuple[RunStatus, dict[str, str] | None]:
        """Run the graph to its end. A cancellation ends here: what follows it is done completely."""
        try:
            await self.before()
            if not self.is_queued:
                self._note_running()
            await self._emit("metadata", {"run_id": self.note.run_id, "attempt": 1})
            async with aclosing(events_of(self.graph, self.asked, self.config)) as events:
                async for name, payload in events:
                    if self.note.status == "pending":
                        self._note_running()
                    await self._emit(name, payload)
        except asyncio.CancelledError:
            if self.action is None:  # the server ends
                return "error", {"error": "ServerEnded", "message": DIED}
            return "interrupted", None
        except Exception as error:  # whatever a graph raises is the end of its run
            if not isinstance(error, SessionError):
                logger.warning("run %s failed", self.note.run_id, exc_info=error)
            self._is_refused = isinstance(error, SessionBusy)
            return "error", error_of(error)
        return "success", None

    def _note_running(self) -> None:
        self.note = replace(self.note, status="running", updated_at=utc_now().isoformat())
        self.on_change(self)

    async def _emit(self, name: str, payload: Any) -> None:
        data = json_bytes(payload)
        self.result.add(name, payload, data)
        await self.log.append(name, data)
        if self.shares_events:
            self.on_change(self)
