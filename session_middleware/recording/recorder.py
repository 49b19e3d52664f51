"""The recorder: a callback handler that writes a run down while it happens.

It sees what a checkpointer cannot: that a tool has started, how long it took, how a run ended. It
runs inline, in the thread or on the event loop of the run, because a handler that goes through an
executor costs milliseconds a call; on a loop it hands its writes to the storage's queue. Whatever
goes wrong in it is logged once, counted, and kept from the run; only a denial stops one.

Nothing of a run is written before its session admits it: a root's start comes before the
checkpointer's first look, so it is kept in memory until the graph's first node starts.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from uuid import UUID

from langchain_core.messages import BaseMessage, ToolMessage
from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent
from langgraph.errors import GraphBubbleUp

from session_middleware.errors import SessionAccessDenied, SessionExpired
from session_middleware.lifecycle import session_id_of
from session_middleware.model import NewId
from session_middleware.recording.messages import describe, unseen
from session_middleware.storage.offload import Offload
from session_middleware.storage.port import MessageSeen, Storage, ToolStart, Visit
from session_middleware.visits import Visits, identity_of

logger = logging.getLogger("session_middleware")

Method = TypeVar("Method", bound=Callable[..., None])

_WAIT_SECONDS = 0.005  # how long the start of a tool, or the end of a run, may hold up an event loop
_SESSIONS_REMEMBERED = 256  # sessions whose recorded message ids this process keeps in mind


@dataclass(slots=True)
class _Trace:
    """A run in progress."""

    visit: Visit
    started: float
    begun: bool = False
    interrupted: bool = False
    nodes: dict[UUID, str] = field(default_factory=dict)  # running nodes, and their graph's namespace
    tools: dict[UUID, float] = field(default_factory=dict)  # running tools, and when they started
    unwritten: list[MessageSeen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)  # tools and nodes may run side by side


def _harmless(method: Method) -> Method:
    """A handler's method that keeps its own faults from the run, and lets denials through."""

    @functools.wraps(method)
    def guarded(self: SessionRecorder, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except (SessionAccessDenied, SessionExpired):
            raise
        except Exception as error:  # noqa: BLE001  # the one place: a fault here must not break a run
            self.fault(error)

    return cast("Method", guarded)


class SessionRecorder(GraphCallbackHandler):
    """A callback handler for any LangGraph graph: ``config={"callbacks": [sessions.recorder]}``.

    It needs the run's thread id, and for an owned session its user, in the config's ``metadata``;
    `Sessions.config` puts them there. A handler given twice records once.
    """

    run_inline = True
    raise_error = True  # for denials; all else is caught here

    def __init__(
        self, storage: Storage, offload: Offload, visits: Visits, *, new_id: NewId, tracking: bool = True
    ) -> None:
        self._storage = storage
        self._offload = offload
        self._visits = visits
        self._new_id = new_id
        self._tracking = tracking
        self._traces: dict[UUID, _Trace] = {}  # of each run and all that runs inside it
        self._outside: set[UUID] = set()
        self._known: OrderedDict[str, set[str]] = OrderedDict()
        self._handed_over: dict[str, Future[None]] = {}  # the last write that was, by session
        self.faults = 0
        self.delays = 0  # waits on an event loop that were given up

    # Runs and nodes

    @_harmless
    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        metadata = metadata or {}
        name = str(kwargs.get("name"))
        if name.endswith("UpdateState") and name != metadata.get("langgraph_node"):
            self._outside.add(run_id)  # `update_state` runs a node's writers: a change from outside, and no run
            return
        if parent_run_id in self._outside:
            return
        trace = self._enter(run_id, parent_run_id, metadata)
        if trace is None or trace.visit.run_id == str(run_id):
            return
        self._begin(trace)
        if (node := metadata.get("langgraph_node")) and name == node and run_id not in trace.nodes:
            trace.nodes[run_id] = _graph_namespace(metadata)
            self._append(trace, inputs, trace.nodes[run_id])

    @_harmless
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        trace = self._traces.pop(run_id, None)
        if trace is None:
            self._outside.discard(run_id)
            return
        if trace.visit.run_id == str(run_id):
            self._begin(trace)
            self._append(trace, outputs, "")
            self._end(trace, "interrupted" if trace.interrupted else "ok", None)
        elif (namespace := trace.nodes.pop(run_id, None)) is not None:
            self._append(trace, outputs, namespace)

    @_harmless
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        trace = self._traces.pop(run_id, None)
        if trace is None:
            self._outside.discard(run_id)
            return
        trace.nodes.pop(run_id, None)
        if trace.visit.run_id == str(run_id):
            outcome = "error" if isinstance(error, Exception) else "interrupted"
            self._end(trace, outcome, _sentence(error) if outcome == "error" else None)

    @_harmless
    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        trace = self._traces.get(event.run_id) if event.run_id else None
        if trace is not None:
            trace.interrupted = True

    def _enter(self, run_id: UUID, parent_run_id: UUID | None, metadata: Mapping[str, Any]) -> _Trace | None:
        """The trace a run belongs to; a new one at a root, which is where the thread changes."""
        trace = self._traces.get(run_id)
        if trace is not None:
            return trace
        parent = self._traces.get(parent_run_id) if parent_run_id else None
        thread_id = metadata.get("thread_id")
        if parent is not None and (thread_id is None or str(thread_id) == parent.visit.session_id):
            trace = parent
        elif thread_id is not None:
            visit = Visit(session_id_of(thread_id), identity_of(metadata), run_id=str(run_id))
            trace = _Trace(visit, time.perf_counter())
            self._visits.begin(visit)
        else:
            return None
        self._traces[run_id] = trace
        return trace

    def _begin(self, trace: _Trace) -> None:
        if trace.begun:
            return
        trace.begun = True
        if not trace.visit.admitted:
            if trace.visit.admission is None:  # no checkpointer of ours has asked at the door
                self._storage.look(trace.visit)
            if trace.visit.admission in ("opened", "fresh"):
                self.forget(trace.visit.session_id)
            self._write(self._storage.begin_run, trace.visit)

    def _end(self, trace: _Trace, outcome: str, error: str | None) -> None:
        self._visits.end(trace.visit)
        for run_id in [run_id for run_id, other in list(self._traces.items()) if other is trace]:
            self._traces.pop(run_id, None)  # what was cancelled in it never said that it ended
        if trace.begun or trace.visit.admitted:
            self._flush(trace)
            milliseconds = _since(trace.started)
            self._write(
                self._storage.end_run,
                trace.visit,
                outcome=outcome,
                error=error,
                duration_ms=milliseconds,
                wait=_WAIT_SECONDS,
            )

    def _append(self, trace: _Trace, value: Any, namespace: str) -> None:
        """Take down the messages that are new here.

        Where a checkpointer of ours serves the run, its next checkpoint writes them as well; then
        they are written here only before something that must come after them: a tool, or the end.
        """
        known = self._known_ids(trace.visit.session_id)
        with trace.lock:
            messages = unseen(value, known)
            known.update(str(message.id) for message in messages)
            trace.unwritten += describe(messages, namespace, new_id=self._new_id)
        if not trace.visit.checkpointed:
            self._flush(trace)

    def _flush(self, trace: _Trace) -> None:
        """Write the messages taken down; whoever comes meanwhile waits, so as not to overtake them."""
        with trace.lock:
            messages, trace.unwritten = trace.unwritten, []
            if messages:
                self._write(self._storage.append_messages, trace.visit, messages)

    def _known_ids(self, session_id: str) -> set[str]:
        known = self._known.setdefault(session_id, set())
        self._known.move_to_end(session_id)
        while len(self._known) > _SESSIONS_REMEMBERED:
            self._known.popitem(last=False)
        return known

    def forget(self, session_id: str) -> None:
        """Keep nothing in mind of a session that was deleted."""
        self._known.pop(session_id, None)

    # Tools

    @_harmless
    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        metadata = metadata or {}
        trace = self._traces.get(parent_run_id) if parent_run_id else None
        if trace is None or run_id in trace.tools:
            return
        self._begin(trace)
        trace.tools[run_id] = time.perf_counter()
        self._traces[run_id] = trace
        call = ToolStart(
            execution_id=str(run_id),
            tool_call_id=str(kwargs.get("tool_call_id") or run_id),
            name=(serialized or {}).get("name") or kwargs.get("name") or "tool",
            arguments=inputs if inputs is not None else input_str,
            checkpoint_ns=_graph_namespace(metadata),
            node=metadata.get("langgraph_node"),
        )
        self._flush(trace)
        self._write(self._storage.start_tool_call, trace.visit, call, wait=_WAIT_SECONDS)

    @_harmless
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        if isinstance(output, ToolMessage):
            failed = output.status == "error"
            self._end_tool(run_id, "error" if failed else "ok", output.content, str(output.text) if failed else None)
        else:
            self._end_tool(run_id, "ok", output, None)

    @_harmless
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        cut_off = isinstance(error, GraphBubbleUp) or not isinstance(error, Exception)
        self._end_tool(run_id, "interrupted" if cut_off else "error", None, None if cut_off else _sentence(error))

    def _end_tool(self, run_id: UUID, status: str, result: Any, error: str | None) -> None:
        trace = self._traces.pop(run_id, None)
        started = trace.tools.pop(run_id, None) if trace else None
        if trace is not None and started is not None:
            self._write(
                self._storage.end_tool_call,
                trace.visit,
                str(run_id),
                status=status,
                result=result.model_dump() if isinstance(result, BaseMessage) else result,
                error=error,
                duration_ms=_since(started),
            )

    # Writing

    def _write(
        self, call: Callable[..., Any], visit: Visit, /, *args: Any, wait: float | None = None, **kwargs: Any
    ) -> None:
        """Write now; on an event loop hand over instead, and wait no longer than `wait` seconds."""
        if not self._tracking:
            return
        if not _on_a_loop():
            self.drain(visit.session_id)  # what was handed over before comes before
            call(visit, *args, **kwargs)
            return
        write = functools.partial(call, visit, *args, **kwargs)
        future = self._offload.submit(functools.partial(self._carry_out, write))
        self._handed_over[visit.session_id] = future
        if len(self._handed_over) > _SESSIONS_REMEMBERED:
            self._handed_over = {of: last for of, last in self._handed_over.items() if not last.done()}
        if wait is not None:
            try:
                future.result(wait)
            except FutureTimeoutError:
                self.delays += 1

    def _carry_out(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except (SessionAccessDenied, SessionExpired):
            pass  # an event says so, and the run is stopped by the checkpointer
        except Exception as error:  # noqa: BLE001  # as in `_harmless`: nobody waits for this
            self.fault(error)

    def drain(self, session_id: str | None = None) -> None:
        """Wait until all that was handed over, of one session or of all, is written, so that a reader sees it."""
        if self._offload.is_writing:  # in order: what was handed over before was written before
            return
        for of in [session_id] if session_id is not None else list(self._handed_over):
            if (future := self._handed_over.get(of)) is not None:
                future.result()

    def fault(self, error: Exception) -> None:
        self.faults += 1
        if self.faults == 1:
            logger.warning(
                "session_middleware could not record part of a run; the run goes on (%s). "
                "Further faults are counted in Session.stats(), not logged.",
                error,
                exc_info=error,
            )


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _graph_namespace(metadata: Mapping[str, Any]) -> str:
    """The namespace of the graph a node belongs to: its own without the last part."""
    namespace = str(metadata.get("langgraph_checkpoint_ns") or metadata.get("checkpoint_ns") or "")
    return namespace.rpartition("|")[0]


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
