"""The recorder: a callback handler that writes a run down while it happens.

It sees what a checkpointer cannot: that a tool has started, how long it took, what a model was asked
and is saying, how a run ended. It runs inline, in the thread or on the event loop of the run, because
a handler that goes through an executor costs milliseconds a call. Whatever goes wrong in it is logged
once, counted, and kept from the run; only a denial stops one.

Nothing of a run is written before its session admits it: a root's start comes before the
checkpointer's first look, so it is kept in memory until the graph's first node starts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from langchain_core.messages import BaseMessage, HumanMessage
from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent
from langgraph.constants import START
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command

from session_middleware.checkpoint.answers import without_tasks
from session_middleware.checkpoint.langchain_messages import id_of, is_message
from session_middleware.lifecycle import session_id_of
from session_middleware.models import Clock, NewId
from session_middleware.recording.active_run import ActiveRun, KnownMessages, Node, namespace_of, noted, sentence, since
from session_middleware.recording.history_diff import add_asked
from session_middleware.recording.input_history import Histories
from session_middleware.recording.messages import (
    Outcome,
    answer_of,
    content_hash,
    describe,
    lists_in,
    outcome_of,
    removes,
    texts_in,
    unseen,
)
from session_middleware.recording.model_calls import Models
from session_middleware.recording.tool_calls import Tools
from session_middleware.recording.write_buffer import DENIALS, RecordBuffer, awaited, is_awaited, never_raise
from session_middleware.runtime.run_context import RunRegistry, identity_of
from session_middleware.runtime.run_ends import call_when_over
from session_middleware.storage.jsonable import is_a, is_nothing, text_of
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import HistoryEntry, MessageEntry, RunEnd
from session_middleware.storage.run import RunContext


class SessionRecorder(GraphCallbackHandler):
    """A callback handler for graphs, chains, models and tools: ``config={"callbacks": [sessions.recorder]}``.

    It needs the run's thread id, and for an owned session its user, in the config's ``metadata``;
    `Sessions.config` puts them there. A handler given twice records once.
    """

    run_inline = True
    raise_error = True  # for denials; all else is caught here

    def __init__(
        self,
        storage: Storage,
        journal: RecordBuffer,
        visits: RunRegistry,
        *,
        new_id: NewId,
        clock: Clock,
        stream_flush: float,
    ) -> None:
        self._storage = storage
        self.journal = journal
        self.drain = journal.drain
        self._visits = visits
        self._new_id = new_id
        self._clock = clock
        self._histories = Histories(journal, new_id=new_id)
        self._tools = Tools(journal)
        self._models = Models(journal, new_id=new_id, clock=clock, flush_seconds=stream_flush)
        self._traces: dict[UUID, ActiveRun] = {}  # of each run and all that runs inside it
        self._outside: set[UUID] = set()
        self._known = KnownMessages()

    @property
    def faults(self) -> int:
        return self.journal.faults  # how much this process could not record

    @property
    def delays(self) -> int:
        return self.journal.delays  # how many tools ran under asyncio before their start was down

    # Runs and nodes

    @awaited
    @never_raise
    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        metadata = metadata or {}
        name = text_of(kwargs.get("name"))
        if name.endswith("UpdateState") and name != noted(metadata, "langgraph_node"):
            self._outside.add(run_id)  # `update_state` runs a node's writers: a change from outside, and no run
            return
        if parent_run_id in self._outside:
            return
        trace = self._enter(run_id, parent_run_id, metadata)
        if trace is None:
            return
        if trace.visit.run_id == str(run_id):
            trace.visit.users_words = frozenset(texts_in(inputs))
            self._histories.begin(trace, inputs)
            self._date(trace.visit, inputs)
            self._resume(trace, inputs)
            return
        self._begin(trace)
        if trace.visit.checkpointed:  # it may be a graph that keeps its state, and is about to read it
            trace.visit.inside[without_tasks(namespace_of(metadata))] = inputs
        if (node := noted(metadata, "langgraph_node")) and name == node and run_id not in trace.nodes:
            trace.nodes[run_id] = begun = trace.node_of(metadata)
            if parent_run_id is not None and begun.graph_namespace:
                trace.graphs[parent_run_id] = begun.graph_namespace
            if node != START:  # which is given what the graph was called with, and no state
                self._append_input(trace, inputs, begun)

    @awaited
    @never_raise
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        trace = self._traces.pop(run_id, None)
        if trace is None:
            self._outside.discard(run_id)
            return
        if trace.visit.run_id == str(run_id):
            self._begin(trace)
            self._hear(trace, None, outputs)
            if trace.first_step is not None:  # a graph's: its whole state, as far as it is given out
                self._histories.align(trace, outputs, "", is_end=True)
            self._append(trace, outputs, "")
            self._end(trace, "interrupted" if trace.interrupted else "ok", None)
        elif (node := trace.take_node(run_id)) is not None:
            self._hear(trace, node, outputs)
            if trace.visit.checkpointed:
                self._date(trace.visit, outputs)
            self._append(trace, outputs, node.graph_namespace, node, node.step)
        elif (namespace := trace.graphs.pop(run_id, None)) is not None:
            self._append(trace, outputs, namespace)

    @never_raise
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        trace = self._traces.pop(run_id, None)
        if trace is None:
            self._outside.discard(run_id)
            return
        node = trace.take_node(run_id)
        trace.graphs.pop(run_id, None)
        if trace.visit.run_id == str(run_id):
            call_when_over(error, lambda: self._fail(trace, error))
        elif node is not None:
            self._hear(trace, node, None)

    @never_raise
    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        if (trace := self.trace_of(event.run_id)) is not None:
            trace.interrupted = True

    def _enter(self, run_id: UUID, parent_run_id: UUID | None, metadata: Mapping[str, Any]) -> ActiveRun | None:
        """The trace a run belongs to; a new one at a root, which is where the thread changes."""
        trace = self._traces.get(run_id)
        if trace is not None:
            return trace
        parent = self._traces.get(parent_run_id) if parent_run_id else None
        thread_id = metadata.get("thread_id")
        if parent is not None and (thread_id is None or str(thread_id) == parent.visit.session_id):
            trace = parent
        elif thread_id is not None:  # LangGraph makes a text of any
            trace = ActiveRun(RunContext(session_id_of(str(thread_id)), identity_of(metadata), run_id=str(run_id)))
            trace.went_back_to = noted(metadata, "checkpoint_id")
            self._visits.begin(trace.visit)
        else:
            if parent_run_id is None:
                self.journal.warn_unnamed()
            return None
        self._traces[run_id] = trace
        return trace

    async def look(self, run_id: UUID, parent_run_id: UUID | None, metadata: Mapping[str, Any] | None) -> None:
        """Check access off the event loop, where no checkpointer of ours has: `_begin` would do it on the loop."""
        trace = self._traces.get(run_id) or self._traces.get(parent_run_id or run_id)
        if trace is None and metadata is not None:
            trace = self._enter(run_id, parent_run_id, metadata)
        if trace is not None and not trace.begun:
            await self.journal.look(trace.visit)

    def _resume(self, trace: ActiveRun, inputs: Any) -> None:
        """What a person answers a graph that stopped to ask is something said."""
        if is_a(inputs, Command) and inputs.resume is not None and not trace.is_resumed:
            trace.is_resumed = True
            self.journal.keep(trace.visit, [answer_of(inputs.resume, f"resume-{trace.visit.run_id}")])

    def _begin(self, trace: ActiveRun) -> None:
        if trace.begun:
            return
        trace.begun = True
        visit = trace.visit
        if visit.admitted:
            return
        try:
            if visit.admission is None:  # no checkpointer of ours has asked at the door
                self._storage.authorize(visit)
            if visit.admission in ("opened", "fresh"):
                self.forget(visit.session_id)
            self.journal.flush(visit)
        except DENIALS:
            trace.begun = False  # there is nothing to end
            raise

    @never_raise
    def _fail(self, trace: ActiveRun, error: BaseException) -> None:
        outcome = "error" if isinstance(error, Exception) else "interrupted"
        self._end(trace, outcome, sentence(error) if outcome == "error" else None)

    def _end(self, trace: ActiveRun, outcome: str, error: str | None) -> None:
        self._visits.end(trace.visit)
        for run_id in [run_id for run_id, other in list(self._traces.items()) if other is trace]:
            self._traces.pop(run_id, None)  # what was cancelled in it never said that it ended
        trace.visit.said_at.clear()
        visit, end = trace.visit, RunEnd(outcome, error, since(trace.started), cut_off=bool(trace.tools))
        if trace.begun or visit.admitted:
            self._models.cut_off(trace)
            self.journal.keep(visit, [*trace.take_said(None), end])
            self.journal.flush(visit)
            return
        self.journal.leave(visit, [end])  # it was cancelled, and what a thread still writes of it may let it in
        if visit.admitted:
            self.journal.flush(visit)

    # Messages

    def describe(self, messages: Iterable[BaseMessage], namespace: str = "", **fields: Any) -> list[MessageEntry]:
        return describe(messages, namespace, new_id=self._new_id, **fields)

    def _append_input(self, trace: ActiveRun, inputs: Any, node: Node) -> None:
        """What a node is given is the state."""
        self._histories.enter(trace, inputs, node.graph_namespace)
        self._append(trace, inputs, node.graph_namespace, step=None if node.step is None else node.step - 1)

    def _append(
        self, trace: ActiveRun, value: Any, namespace: str, node: Node | None = None, step: int | None = None
    ) -> None:
        """Take down the messages that are new here; where no checkpointer of ours writes them, write them."""
        known = self._known.to(trace, namespace)
        with trace.lock:
            found = unseen(value, known, whole=node is None and trace.rewritten)
            if node is not None and not trace.visit.checkpointed and removes(value):
                trace.rewritten = True
            known.update({str(message.id): content_hash(message) for message, _ in found})
            described = [one for m, after in found for one in self.describe([m], namespace, followed_by=after)]
            seen = [trace.judged(message, node) for message in described]
            trace.note_asking(seen)
            steps = {namespace: step} | ({"": trace.outer_step(namespace)} if namespace else {})
            for message in seen:
                trace.visit.seen_at.update({(of, message.message_id): at for of, at in steps.items() if at is not None})
            self.journal.keep(trace.visit, seen)
        if not trace.visit.checkpointed and trace.visit.entries:
            self.journal.flush(trace.visit)

    def _date(self, visit: RunContext, value: Any) -> None:
        """Note when messages without ids were said, for the checkpoint that brings them, maybe much later."""
        now = self._clock()
        for message in (m for messages in lists_in(value, is_one=is_message) for m in messages if id_of(m) is None):
            visit.said_at.setdefault(id(message), (message, now))

    def _hear(self, trace: ActiveRun, node: Node | None, outputs: Any) -> None:
        """What models said in a node that has ended, and the node does not pass on, was said all the same."""
        if trace.said:
            told = [str(m.id) for messages in lists_in(outputs) for m in messages if is_a(m, BaseMessage)]
            said = trace.take_said(node.namespace if node else None, told)
            if node is not None and node.step is not None:
                trace.visit.heard_at.update({m.message_id: (node.graph_namespace, node.step) for m in said})
            self.journal.keep(trace.visit, said)

    def forget(self, session_id: str) -> None:
        """Keep nothing in mind of a session that was deleted."""
        self._known.forget(session_id)
        self.journal.forget(session_id)

    def visit_of(self, session_id: str) -> RunContext | None:
        """The run of a session that is in progress here, if there is one."""
        return next((t.visit for t in list(self._traces.values()) if t.visit.session_id == session_id), None)

    def trace_of(self, run_id: UUID | None) -> ActiveRun | None:
        """What is followed of the run that this one is, or is a part of."""
        return None if run_id is None else self._traces.get(run_id)

    # Tools

    @property
    def on_tool_start(self) -> Callable[..., Any]:
        """Under asyncio a coroutine function, which LangChain awaits: no other task waits for this one's start."""
        return self._astart_tool if is_awaited() else self._start_tool

    @never_raise
    def _start_tool(self, *args: Any, **kwargs: Any) -> None:
        visit = self._see_tool(*args, **kwargs)
        if visit is not None:
            self.journal.flush(visit)

    async def _astart_tool(self, *args: Any, **kwargs: Any) -> None:
        try:
            await self.look(kwargs["run_id"], kwargs.get("parent_run_id"), kwargs.get("metadata"))
            visit = self._see_tool(*args, **kwargs)
            if visit is not None:
                await self.journal.aflush(visit)
        except DENIALS:
            raise
        except Exception as error:  # noqa: BLE001  # as in `harmless`
            self.journal.fault(error)

    def _see_tool(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> RunContext | None:
        """The visit a tool is started in; ``None`` if that is known already, or nobody's."""
        trace = self._enter(run_id, parent_run_id, metadata := metadata or {})
        if trace is None or run_id in trace.tools:
            return None
        self._begin(trace)
        call_id = kwargs.get("tool_call_id")
        name = str((serialized or {}).get("name") or kwargs.get("name") or "tool")
        arguments = inputs if inputs is not None else input_str
        self._tools.start(trace, run_id, name, arguments, None if is_nothing(call_id) else text_of(call_id), metadata)
        return trace.visit if trace.visit.entries else None

    @never_raise
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        if (trace := self._traces.pop(run_id, None)) is not None:
            self._tools.end(trace, run_id, outcome_of(output))
            if trace.visit.run_id == str(run_id):
                self._end(trace, "ok", None)

    @never_raise
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        trace = self._traces.pop(run_id, None)
        if trace is None:
            return
        if isinstance(error, GraphBubbleUp) or not isinstance(error, Exception):
            self._tools.end(trace, run_id, Outcome("interrupted", None))
        else:
            self._tools.end(trace, run_id, Outcome("error", None, sentence(error)))
        if trace.visit.run_id == str(run_id):
            self._fail(trace, error)

    # Models

    @awaited
    @never_raise
    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._ask(run_id, parent_run_id, metadata or {}, kwargs, messages[0] if messages else ())

    @awaited
    @never_raise
    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._ask(run_id, parent_run_id, metadata or {}, kwargs, [HumanMessage(prompt) for prompt in prompts])

    def _ask(
        self,
        run_id: UUID,
        parent_run_id: UUID | None,
        metadata: Mapping[str, Any],
        options: Mapping[str, Any],
        messages: Sequence[BaseMessage],
    ) -> None:
        if (trace := self._enter(run_id, parent_run_id, metadata)) is None or run_id in trace.models:
            return
        self._begin(trace)
        if "langgraph_node" not in metadata:  # a chain, or a model alone: what it is asked is the conversation
            asked = functools.partial(add_asked, run_id=trace.visit.run_id)
            self.journal.keep(trace.visit, [HistoryEntry(self.describe(messages), asked)])
        self._models.start(trace, run_id, metadata, options)

    @never_raise
    def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **kwargs: Any) -> None:
        trace = self._traces.get(run_id)
        if trace is not None:
            self._models.hear(trace, run_id, token, chunk)

    @never_raise
    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        trace = self._traces.pop(run_id, None)
        if trace is not None and self._models.end(trace, run_id, response) and trace.visit.run_id == str(run_id):
            self._end(trace, "ok", None)

    @never_raise
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        trace = self._traces.pop(run_id, None)
        if trace is None:
            return
        self._models.fail(trace, run_id, sentence(error))
        if trace.visit.run_id == str(run_id):
            self._fail(trace, error)
