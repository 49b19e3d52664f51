"""Recording from inside an agent: the model calls and tool calls that pass through a middleware.

If the recorder tracks the run, the middleware adds only two facts: the start of a tool before the tool runs,
and refusals, which no callback reports. Otherwise it records messages itself, and has the recorder observe the
calls of models and tools. Its own errors are logged once and counted, and the agent continues.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig

from session_middleware.recording.active_run import ActiveRun, CallKey, KnownMessages, Node, node_of
from session_middleware.recording.history_diff import align_input
from session_middleware.recording.messages import content_hash, tool_end
from session_middleware.recording.recorder import SessionRecorder
from session_middleware.recording.write_buffer import never_raise
from session_middleware.runtime.run_context import RunRegistry
from session_middleware.storage.record_entries import HistoryEntry, ToolStart
from session_middleware.storage.run import RunContext

P = ParamSpec("P")
T = TypeVar("T")
Followed: TypeAlias = tuple[BaseMessage, str | None]  # a message, and the id of its successor


class MiddlewareContext(NamedTuple):
    """The run and the node in which a hook of the middleware is called."""

    context: RunContext
    run: ActiveRun | None  # if the recorder tracks the run
    is_checkpointed: bool  # our checkpointer serves the run, and records its messages
    has_checkpointer: bool  # ours or another
    node: Node

    @property
    def is_alone(self) -> bool:
        """True if neither our recorder nor our checkpointer serves the run."""
        return self.run is None and not self.is_checkpointed


@dataclass(slots=True)
class ToolCallInProgress:
    hook: MiddlewareContext
    run: ActiveRun
    key: CallKey
    start: ToolStart
    exists: bool  # whether the tool exists
    is_recorded: bool = False  # whether the start is recorded


class MiddlewareRecorder:
    def __init__(self, recorder: SessionRecorder, registry: RunRegistry, *, is_ours: Callable[[object], bool]) -> None:
        self._recorder = recorder
        self.buffer = recorder.buffer
        self._storage = recorder.buffer.storage
        self._registry = registry
        self._is_ours = is_ours  # of a checkpointer
        self._known = KnownMessages()
        self.buffer.on_forget.append(self._known.forget)

    def find_context(self, config: RunnableConfig, *, begins: bool = False) -> MiddlewareContext | None:
        """Return the context of a hook, ``None`` without a thread id. A run that `begins` alone gets a new one."""
        configurable = config.get("configurable") or {}
        if configurable.get("thread_id") is None:
            return None
        run = self._recorder.find_run(getattr(config.get("callbacks"), "parent_run_id", None))
        checkpointer = configurable.get("__pregel_checkpointer")
        is_checkpointed = self._is_ours(checkpointer)
        if run is not None:
            context = run.context
        elif is_checkpointed:
            context = self._registry.context_for_write(configurable)
        else:
            context = self._registry.standalone_context(configurable, anew=begins)
        node = node_of(config.get("metadata") or {}, run)
        return MiddlewareContext(context, run, is_checkpointed, checkpointer is not None, node)

    def authorize(self, hook: MiddlewareContext) -> None:
        """Check access, unless the recorder or the checkpointer does. Raises what `Storage.authorize` raises."""
        if hook.is_alone and hook.context.state.admission is None:
            self._storage.authorize(hook.context)

    @never_raise
    def attempt(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return the result of an optional `call`, ``None`` if it fails."""
        return call(*args, **kwargs)

    # Messages

    def add(self, hook: MiddlewareContext, messages: Sequence[BaseMessage], **fields: Any) -> None:
        self.buffer.add(hook.context, self.buffer.describe(messages, hook.node.graph_namespace, **fields))

    def _add_unknown(self, hook: MiddlewareContext, messages: Iterable[Followed], **fields: Any) -> None:
        """Buffer the new messages among these, each with the id of its successor."""
        known = self._known.outermost(hook.context.session_id)
        for message, following in messages:
            if message.id is not None and known.get(message.id) != content_hash(message):
                known[message.id] = content_hash(message)
                self.add(hook, [message], followed_by=following, **fields)

    @never_raise
    def add_new_messages(self, hook: MiddlewareContext, messages: Sequence[BaseMessage]) -> None:
        """Record the agent's new messages, unless the recorder or the checkpointer does."""
        if hook.is_alone:
            self.authorize(hook)
            self._add_unknown(hook, _followed(messages))
            self.buffer.flush_sync(hook.context)

    @never_raise
    def add_input(self, hook: MiddlewareContext, messages: Sequence[BaseMessage]) -> None:
        """Note the messages that an agent begins with. Error answers among them are no refusals.

        Without a checkpointer they are the whole conversation, which may have new ids.
        """
        known = self._known.outermost(hook.context.session_id)
        if not hook.is_alone:
            known.update({str(message.id): content_hash(message) for message, _ in _error_answers(messages)})
        elif not hook.has_checkpointer:
            known.update({str(message.id): content_hash(message) for message in messages})
            align = functools.partial(align_input, run_id=hook.context.run_id)
            entry = HistoryEntry(self.buffer.describe(messages, hook.node.graph_namespace), align)
            self.buffer.add(hook.context, [entry])

    @never_raise
    def add_before_model(self, hook: MiddlewareContext, messages: Sequence[BaseMessage]) -> None:
        """As `add_new_messages`. An error answer that no tool made is a refusal by a person or a middleware."""
        self._add_unknown(hook, _error_answers(messages), refused=True)
        self.add_new_messages(hook, messages)

    # Models and tools

    def observe(
        self, hook: MiddlewareContext, config: RunnableConfig, *, inherit: bool
    ) -> AbstractContextManager[ActiveRun]:
        """Have the recorder record the calls in this block. If it tracks the run, it does so already."""
        if hook.run is not None:
            return nullcontext(hook.run)
        return self._recorder.observe(hook.context, config.get("callbacks"), inherit=inherit)

    @never_raise
    def add_output(self, hook: MiddlewareContext, run: ActiveRun, result: Sequence[BaseMessage]) -> None:
        """Record the messages of a model call, unless the checkpointer does."""
        output = [message for message in result if isinstance(message, AIMessage)]
        for message in output:
            message.id = message.id or self.buffer.new_id()  # the state would generate one later
        self._recorder.add_unreturned_output(run, hook.node, [output])
        self.add_new_messages(hook, output)
        self.buffer.flush_sync(hook.context)

    @never_raise
    def track_tool_call(
        self, hook: MiddlewareContext, run: ActiveRun, call: ToolCall, history: Sequence[BaseMessage], *, exists: bool
    ) -> ToolCallInProgress:
        if hook.run is None:
            self._add_request(hook, call, history)
        graph, node = hook.node.graph_namespace, hook.node
        start = ToolStart(self.buffer.new_id(), call["id"], call["name"], call["args"], graph, node.name)
        return ToolCallInProgress(hook, run, (node.namespace, str(call["id"])), start, exists)

    def _add_request(self, hook: MiddlewareContext, call: ToolCall, history: Sequence[BaseMessage]) -> None:
        """Buffer the message that requests the call, and its turn up to there; their checkpoint may be put later."""
        places = range(len(history))
        asking = (n for n in reversed(places) if any(one["id"] == call["id"] for one in _requests(history[n])))
        if (last := next(asking, None)) is not None:
            first = next((n for n in reversed(places[:last]) if isinstance(history[n], HumanMessage)), 0)
            self._add_unknown(hook, _followed(history[first : last + 1]))

    @never_raise
    def start_tool_call(self, call: ToolCallInProgress) -> None:
        """Store the start of a call before its tool runs. The recorder's own callback then adds none."""
        self.authorize(call.hook)
        self.buffer.add(call.hook.context, [call.start])
        self.buffer.flush_sync(call.hook.context)
        call.is_recorded = True
        call.run.prerecorded[call.key] = call.start

    @never_raise
    def end_tool_call(self, call: ToolCallInProgress, result: Any) -> None:
        """Record that a call was answered without an execution. An error answer is a refusal."""
        hook, start = call.hook, call.start
        call.run.prerecorded.pop(call.key, None)
        if call.key not in call.run.executed:
            error = result if isinstance(result, BaseException) else None
            end = tool_end(start.execution_id, start.name, None, result, error=error)
            if end.status == "error" and error is None and call.exists:
                end = end._replace(status="refused", error=None)
            if call.is_recorded or end.status == "refused" or hook.run is None:  # else the answer itself is recorded
                self.buffer.add(hook.context, [end] if call.is_recorded else [start, end])
        elif hook.run is not None:
            return
        if hook.run is None:
            self._recorder.add_unreturned_output(call.run, hook.node, ())
        if hook.is_alone and isinstance(result, ToolMessage):
            result.id = result.id or self.buffer.new_id()  # the state would generate one later
            self.add_new_messages(hook, [result])
        self.buffer.flush_sync(hook.context)


def _requests(message: BaseMessage) -> Sequence[ToolCall]:
    return message.tool_calls if isinstance(message, AIMessage) else ()


def _followed(messages: Sequence[BaseMessage]) -> list[Followed]:
    return list(zip(messages, [*(message.id for message in messages[1:]), None], strict=False))


def _error_answers(messages: Sequence[BaseMessage]) -> list[Followed]:
    """Return the error answers to the latest requests, from last to first."""
    latest = takewhile(lambda each: not isinstance(each[0], AIMessage), reversed(_followed(messages)))
    return [each for each in latest if isinstance(each[0], ToolMessage) and each[0].status == "error"]
