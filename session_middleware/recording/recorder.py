"""The recorder: a callback handler that records a run while it is in progress.

Callbacks report facts that a checkpointer cannot see: the start and duration of a tool, the prompt, usage
and streamed text of a model call, and the outcome of a run. The handler runs inline, in the run's thread
or on its event loop, because a handler on an executor costs milliseconds per call. Its own errors are
logged once, counted, and not raised. Only a denial of access stops a run.

No entry of a run is written before the session has admitted the run. The root's start callback comes
before the checkpointer's first read, so it is buffered until the first node of the graph starts.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import BaseMessage, HumanMessage, RemoveMessage
from langgraph import errors
from langgraph._internal._constants import PUSH
from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent
from langgraph.constants import START
from langgraph.errors import GraphInterrupt

from session_middleware.checkpoint.answers import without_tasks
from session_middleware.checkpoint.langchain_messages import id_of
from session_middleware.lifecycle import session_id_of
from session_middleware.models import plain_text
from session_middleware.recording.active_run import HOOKS, ActiveRun, KnownMessages, Node, Tool, elapsed_ms, node_of
from session_middleware.recording.history_diff import align_prompt
from session_middleware.recording.input_history import Lists, add_state, add_unidentified, note_input
from session_middleware.recording.messages import (
    content_hash,
    describe,
    error_text,
    lists_in,
    saved_state,
    tool_end,
    unseen,
    with_author,
)
from session_middleware.recording.model_calls import ModelCallRecorder
from session_middleware.recording.usage import text_in
from session_middleware.recording.write_buffer import DENIALS, RecordBuffer, awaited, never_raise
from session_middleware.runtime.run_context import RunRegistry, identity_of
from session_middleware.runtime.run_ends import Loop
from session_middleware.storage.jsonable import is_nothing, text_of, to_json
from session_middleware.storage.record_entries import HistoryEntry, MessageEntry, QuestionEntry, RunEnd, ToolStart
from session_middleware.storage.run import RunContext

# Earlier releases do not compare an answer with a schema.
_is_invalid_resume: Callable[[BaseException], bool] = getattr(errors, "is_invalid_resume", lambda _: False)
# Prefixes of the keys in a run's metadata that the caller did not write as labels: those of `Sessions.config`, of
# LangGraph, of its server and of LangChain.
_NOT_LABELS = (
    *("thread_id", "user_id", "group_id", "checkpoint_", "run_id", "langgraph_", "ls_", "lc_", "__"),
    *("assistant_id", "graph_id", "created_by", "run_attempt", "on_busy", "busy_timeout"),
)


class SessionRecorder(GraphCallbackHandler):
    """A callback handler for graphs, chains, models and tools: ``config={"callbacks": [sessions.recorder]}``.

    It needs the run's thread id, and for an owned session its user, in the config's ``metadata``;
    `Sessions.config` puts them there. A handler given twice records once.
    """

    run_inline = True
    raise_error = True  # for denials; `never_raise` catches all other errors

    def __init__(self, buffer: RecordBuffer, registry: RunRegistry, *, stream_flush: float) -> None:
        self.buffer = buffer
        self.drain = buffer.drain
        self.forget = buffer.forget
        self._registry = registry
        self._model_calls = ModelCallRecorder(buffer, flush_seconds=stream_flush)
        self._runs: dict[UUID, ActiveRun] = {}  # by the callback id of the run, and of all calls inside it
        self._updates: set[UUID] = set()  # callback ids of `update_state` calls
        self._observing = threading.Lock()
        self._known = KnownMessages()
        buffer.on_forget.append(self._known.forget)
        # Called before a run's access is checked; it waits for the end of a run that is over, or raises `SessionBusy`.
        self.acquire: Callable[[RunContext], object] = lambda _: None

    @property
    def faults(self) -> int:
        return self.buffer.faults  # errors of the recorder in this process

    # Runs and nodes

    @awaited
    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        metadata = kwargs.get("metadata") or {}
        name = text_of(kwargs.get("name"))
        if name.endswith("UpdateState") and name != node_of(metadata).name:
            self._updates.add(run_id)  # `update_state` executes a node's writers, and is not a run
            return
        if parent_run_id in self._updates:
            return
        run = self._run_for(run_id, parent_run_id, metadata)
        if run is None:
            return
        context = run.context
        if context.run_id == str(run_id):
            if not run.is_resumed:  # a handler given twice is called twice
                run.is_resumed = self.buffer.add_answer(context, inputs)
                self._label(context, kwargs.get("tags"), metadata)
            note_input(run, inputs)
            self._note_times(context, lists_in(inputs))
            return
        if not run.has_begun:
            self._begin(run)
        node = node_of(metadata, run)
        caller = run.callers.get(parent_run_id) if parent_run_id is not None else None
        if caller and caller != node.namespace and "|" not in node.namespace:
            run.outer_namespaces[node.namespace] = caller
            node = node_of(metadata, run)
        run.callers[run_id] = node.namespace
        if context.checkpointed:  # this may be a subgraph that is about to read its own state
            context.subgraph_inputs[without_tasks(node.namespace)] = inputs
        if node.name and name == node.name and run_id not in run.nodes:
            node = run.add_node(run_id, node)
            if parent_run_id is not None and node.graph_namespace:
                run.graphs[parent_run_id] = node.graph_namespace
            if name != START:  # START gets the graph's input, any other node gets the state
                lists = lists_in(inputs)
                is_sent = PUSH in (metadata.get("langgraph_triggers") or ())
                if not is_sent:  # the input of a `Send` or a task is no state
                    add_state(self.buffer, run, lists, node.graph_namespace)
                before = None if node.step is None else node.step - 1
                self._add_messages(run, lists, node.graph_namespace, step=before)

    @awaited
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        run = self._runs.pop(run_id, None)
        if run is None:
            self._updates.discard(run_id)
            return
        if run.context.run_id == str(run_id):
            if not run.has_begun:
                self._begin(run)
            # After an interrupt, the output has other ids than the state will give to the results of finished tasks.
            lists = () if run.waits else lists_in(outputs)
            self.add_unreturned_output(run, None, lists)
            if run.first_step is not None:  # the output of a graph is its state, or a part of it
                add_unidentified(self.buffer, run, lists, "", is_end=True)
            self._add_messages(run, lists, "")
            self._end(run, "waiting" if run.interrupted else "ok", None)
            return
        run.callers.pop(run_id, None)
        if (node := run.pop_node(run_id)) is not None:
            lists = lists_in(outputs)
            self.add_unreturned_output(run, node, lists)
            if run.context.checkpointed:
                self._note_times(run.context, lists)
            elif (saved := saved_state(outputs)) is not None:
                add_unidentified(self.buffer, run, lists_in(saved), node.graph_namespace)
            self._add_messages(run, lists, node.graph_namespace, node, node.step)
        elif (namespace := run.graphs.pop(run_id, None)) is not None:
            self._add_messages(run, lists_in(outputs), namespace)

    @never_raise
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        run = self._runs.pop(run_id, None)
        if run is None:
            self._updates.discard(run_id)
            return
        node = run.pop_node(run_id)
        run.graphs.pop(run_id, None)
        run.callers.pop(run_id, None)
        if node is not None and isinstance(error, GraphInterrupt):
            for one in error.args[0] if error.args else ():  # that of a subgraph came before
                run.context.notes.askers.setdefault(one.id, (node.name, node.graph_namespace))
        if run.context.run_id == str(run_id):
            self._fail(run, error)
        elif node is not None:
            self.add_unreturned_output(run, node, ())

    @never_raise
    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        if (run := self.find_run(event.run_id)) is not None:
            run.interrupted = True
            run.waits |= bool(event.interrupts)
            if not event.interrupts:
                self.buffer.add(run.context, [QuestionEntry(None, checkpoint_id=event.checkpoint_id)])
            elif not run.context.checkpointed:
                askers = run.context.notes.askers
                for one in event.interrupts:
                    asker = askers.get(one.id, (None, ""))
                    self.buffer.add(run.context, [QuestionEntry(one.id, one.value, *asker, event.checkpoint_id)])

    @never_raise
    def begin_called_graph(self, loop: Loop, context: RunContext) -> None:
        """Move a graph that a run has called with a thread id to the run of this context, for which it reads its state.

        LangGraph passes the metadata of the calling run on, so the callbacks name that run's session.
        """
        manager, run_id = loop.manager, loop.manager.run_id
        caller = self.find_run(run_id)
        if caller is None or caller.context.run_id == str(run_id):
            return
        caller.callers.pop(run_id, None)
        own = next((run for run in list(self._runs.values()) if run.context is context), None)
        if own is not None:  # the graph has the state of the outermost graph of this run
            own.callers[run_id] = ""
            self._runs[run_id] = own
            return
        metadata = manager.metadata or {}
        context.run_id = str(run_id)
        self._runs[run_id] = ActiveRun(context, plain_text(metadata.get("thread_id")), node_of(metadata).namespace)
        self._registry.announce(context)
        self.on_chain_start(None, loop.input, run_id=run_id, metadata=metadata, tags=manager.tags)

    def _label(self, context: RunContext, tags: Any, metadata: Mapping[str, Any]) -> None:
        """Note the caller's tags and metadata, without the keys that a config has for other purposes.

        LangGraph's server adds the name of the user under a key that its app chooses.
        """
        user = context.identity.user_id
        own = {
            key: value
            for key, value in metadata.items()
            if not str(key).startswith(_NOT_LABELS) and not (type(value) is str and value == user)
        }
        context.tags, context.metadata = self.buffer.redaction.plain([[*map(text_of, tags or ())], own])

    def _run_for(self, run_id: UUID, parent_run_id: UUID | None, metadata: Mapping[str, Any]) -> ActiveRun | None:
        """Return the run that a call belongs to. A call without a parent, or in another thread, begins one."""
        run = self._runs.get(run_id)
        if run is not None:
            return run
        parent = self._runs.get(parent_run_id) if parent_run_id else None
        thread_id = metadata.get("thread_id")
        if parent is not None and (
            thread_id is None
            or plain_text(thread_id) in (parent.context.session_id, parent.context.named_id, parent.thread_id)
        ):
            run = parent
        elif thread_id is not None:
            run = ActiveRun(RunContext(session_id_of(thread_id), identity_of(metadata), run_id=str(run_id)))
            if parent_run_id is not None:
                run.root_namespace = node_of(metadata).namespace
            run.resumed_checkpoint_id = text_in(metadata, "checkpoint_id")
            self._registry.announce(run.context)
        else:
            if parent_run_id is None:
                self.buffer.warn_unnamed()
            return None
        self._runs[run_id] = run
        return run

    async def authorize(self, run_id: UUID, parent_run_id: UUID | None, metadata: Mapping[str, Any] | None) -> None:
        """Check access on a storage thread, if no checkpointer of ours did. `_begin` would check it on the loop."""
        run = self._runs.get(run_id) or self._runs.get(parent_run_id or run_id)
        if run is None and metadata is not None:
            run = self._run_for(run_id, parent_run_id, metadata)
        if run is not None and not run.has_begun and run.context.state.admission is None:
            await self.buffer.executor.run(self._authorize, run)

    def _authorize(self, run: ActiveRun) -> None:
        """Check access, unless it was checked. Raises one of `DENIALS`."""
        with run.admission:
            state = run.context.state
            if state.admission is None and not state.admitted:  # no checkpointer of ours has asked for it
                self.drain(run.context.session_id)  # an earlier run's end, which is also that of its lease
                self.acquire(run.context)
                self.buffer.storage.authorize(run.context)

    def _begin(self, run: ActiveRun) -> None:
        """Have the session admit the run, unless the checkpoint of the input does, which is being put."""
        run.has_begun = True
        context = run.context
        if context.state.admitted:
            return
        try:
            self._authorize(run)
            if context.state.admission in ("opened", "fresh"):
                self.forget(context.session_id)
            elif context.checkpointed and context.has_new_input and not context.puts_at_end:
                return
            self.buffer.flush(context)
        except DENIALS:
            run.has_begun = False  # so `_end` has no run to close
            raise

    @never_raise
    def _fail(self, run: ActiveRun, error: BaseException) -> None:
        run.has_begun &= not isinstance(error, DENIALS)
        if isinstance(error, Exception):
            self._end(run, "error", error_text(error), rejects_answers=run.is_resumed and _is_invalid_resume(error))
            if isinstance(error, DENIALS) and not (run.context.state.admitted or run.context.shared_with):
                run.context.notes.entries.clear()  # no later operation of the run writes them
        else:
            self._end(run, "interrupted", None)

    def _end(self, run: ActiveRun, outcome: str, error: str | None, *, rejects_answers: bool = False) -> None:
        self._registry.end(run.context)
        self._drop(run)
        run.context.notes.unidentified.clear()
        context = run.context
        is_finished = outcome == "ok" and run.first_step is not None
        end = RunEnd(outcome, error, elapsed_ms(run.started), bool(run.tools), rejects_answers, is_finished)
        if run.has_begun or context.state.admitted:
            self._model_calls.cut_off(run)
            self.buffer.add(context, [*run.pop_model_output(None), end])
            self.buffer.flush(context)
            return
        self.buffer.add_if_admitted(context, [end])  # by a write that is under way

    def _drop(self, run: ActiveRun) -> None:
        for run_id in [run_id for run_id, other in list(self._runs.items()) if other is run]:
            self._runs.pop(run_id, None)  # a cancelled call has no end callback

    @contextmanager
    def observe(self, context: RunContext, manager: object, *, inherit: bool) -> Iterator[ActiveRun]:
        """Record the calls made with a node's callback manager, if no callback reports the run itself.

        Calls inside these calls are recorded with `inherit` only: a tool may run graphs of other sessions. The blocks
        of calls that the node makes in parallel share one `ActiveRun`.
        """
        run = ActiveRun(context, has_begun=True)
        if not isinstance(manager, BaseCallbackManager) or manager.parent_run_id is None:
            yield run
            return
        with self._observing:
            run = self._runs.setdefault(manager.parent_run_id, run)
            run.observers += 1
            manager.add_handler(self, inherit)
        try:
            yield run
        finally:
            with self._observing:
                run.observers -= 1
                if not run.observers:
                    manager.remove_handler(self)
                    self._drop(run)

    # Messages

    def _add_messages(
        self, run: ActiveRun, lists: Lists, namespace: str, node: Node | None = None, step: int | None = None
    ) -> None:
        """Record the new messages of a value. Write them now, unless a checkpoint is put with them."""
        context = run.context
        if lists:
            with run.lock:
                known = self._known.for_graph(run, namespace)
                found = unseen(lists, known, whole=node is None and run.prefix_changed)
                now = self.buffer.clock()
                if not context.checkpointed:  # a subgraph with a state of its own may bring messages of earlier runs
                    removes = node is not None and any(isinstance(messages[0], RemoveMessage) for messages in lists)
                    run.prefix_changed |= removes or bool(namespace)
                entries: list[MessageEntry] = []
                may_refuse = node is not None and (node.is_resumed or str(node.name).endswith(HOOKS))
                for message, following in found:
                    known[str(message.id)] = content_hash(message)
                    if isinstance(message, RemoveMessage):
                        continue
                    changes = {"followed_by": following, "created_at": now}
                    entry = describe(message, namespace, new_id=self.buffer.new_id, **changes)
                    if entry.role == "user":
                        entry = with_author(entry, context.input_texts, run.agents)
                    entries.append(entry._replace(refused=True) if may_refuse and entry.tool_error else entry)
                if entries:
                    run.index_requests(entries)
                    outer_step = run.outer_step(namespace) if namespace else None
                    for graph, at in ((namespace, step), ("", outer_step)):
                        if at is not None:
                            for entry in entries:
                                context.notes.message_steps[graph, entry.message_id] = at
                    self.buffer.add(context, entries)
        if context.notes.entries and (not context.checkpointed or context.puts_at_end):
            self.buffer.flush(context)

    def _note_times(self, context: RunContext, lists: Lists) -> None:
        """Note the present time for messages without ids: the checkpoint that contains them may come much later."""
        for messages in lists:
            for message in messages:
                if id_of(message) is None:
                    context.notes.unidentified.setdefault(id(message), (message, self.buffer.clock()))

    def add_unreturned_output(self, run: ActiveRun, node: Node | None, lists: Lists) -> None:
        """Record model output that its node, which has ended, does not return."""
        if run.pending_output:
            returned = [str(m.id) for messages in lists for m in messages if isinstance(m, BaseMessage)]
            output = run.pop_model_output(node.namespace if node else None, returned)
            if node is not None and node.step is not None:
                run.context.notes.output_steps.update({m.message_id: (node.graph_namespace, node.step) for m in output})
            self.buffer.add(run.context, output)

    def context_of(self, session_id: str) -> RunContext | None:
        """Return the context of a run of the session that is in progress in this process."""
        runs = (run for run in list(self._runs.values()) if not run.observers)
        return next((run.context for run in runs if run.context.is_of(session_id)), None)

    def find_run(self, run_id: UUID | None) -> ActiveRun | None:
        """Return the run that a callback id belongs to, unless only some of its calls are observed."""
        run = None if run_id is None else self._runs.get(run_id)
        return None if run is None or run.observers else run

    # Tools

    @awaited
    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> Future[None] | None:
        """Record the start of an execution before the tool runs, unless the middleware has recorded it."""
        run = self._run_for(run_id, parent_run_id, metadata := kwargs.get("metadata") or {})
        if run is None or run_id in run.tools:
            return None
        if not run.has_begun:
            self._begin(run)
        given_id = kwargs.get("tool_call_id")
        call_id = None if is_nothing(given_id) else text_of(given_id)
        arguments = input_str if (inputs := kwargs.get("inputs")) is None else inputs
        node = node_of(metadata, run)
        prerecorded = run.prerecorded.pop((node.namespace, call_id or ""), None)
        name = str((serialized or {}).get("name") or kwargs.get("name") or "tool")
        run.tools[run_id] = tool = Tool(name, prerecorded.execution_id if prerecorded else str(run_id))
        if call_id:
            run.executed.add((node.namespace, call_id))
        if prerecorded is None or to_json(prerecorded.arguments) != to_json(arguments):
            start = ToolStart(
                execution_id=tool.execution_id,
                tool_call_id=call_id,
                name=name,
                arguments=arguments,
                checkpoint_ns=node.graph_namespace,
                node=node.name,
                message_id=run.find_request(node.namespace, call_id, arguments) if call_id else None,
                corrects=prerecorded is not None,
            )
            self.buffer.add(run.context, [*run.pop_model_output(None), start])
        return self.buffer.flush(run.context) if run.context.notes.entries else None

    @never_raise
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._end_tool(run_id, output)

    @never_raise
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._end_tool(run_id, None, error)

    def _end_tool(self, run_id: UUID, output: Any, error: BaseException | None = None) -> None:
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        is_root = run.context.run_id == str(run_id)
        if (tool := run.tools.pop(run_id, None)) is not None:
            end = tool_end(tool.execution_id, tool.name, elapsed_ms(tool.started), output, error=error)
            self.buffer.add(run.context, [end])
            if not is_root and (not run.context.has_checkpoint or run.tools):
                self.buffer.flush(run.context)  # else the writes of its node are stored next, and the end with them
        if is_root:
            self._fail(run, error) if error is not None else self._end(run, "ok", None)

    # Models

    @awaited
    def on_chat_model_start(self, serialized: Any, messages: list[list[BaseMessage]], **kwargs: Any) -> None:
        self._start_model(serialized, messages[0] if messages else (), **kwargs)

    @awaited
    def on_llm_start(self, serialized: Any, prompts: list[str], **kwargs: Any) -> None:
        self._start_model(serialized, [HumanMessage(prompt) for prompt in prompts], **kwargs)

    def _start_model(
        self,
        serialized: Any,
        messages: Sequence[BaseMessage],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        run = self._run_for(run_id, parent_run_id, metadata := kwargs.get("metadata") or {})
        if run is None or run_id in run.models:
            return
        if not run.has_begun:
            self._begin(run)
        if "langgraph_node" not in metadata:  # in a chain, or alone, the prompt is the conversation
            align = functools.partial(align_prompt, run_id=run.context.run_id)
            self.buffer.add(run.context, [HistoryEntry(self.buffer.describe(messages), align)])
        class_name = text_in(serialized, "name") or ""
        self._model_calls.start(run, run_id, class_name, metadata, kwargs)

    @never_raise
    def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **kwargs: Any) -> None:
        run = self._runs.get(run_id)
        if run is not None:
            self._model_calls.add_token(run, run_id, token, chunk)

    @never_raise
    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        run = self._runs.pop(run_id, None)
        if run is not None and self._model_calls.end(run, run_id, response) and run.context.run_id == str(run_id):
            self._end(run, "ok", None)

    @never_raise
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        if (run := self._runs.pop(run_id, None)) is not None:
            self._model_calls.fail(run, run_id, error_text(error))
            if run.context.run_id == str(run_id):
                self._fail(run, error)
