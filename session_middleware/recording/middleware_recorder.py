"""Recording from inside an agent: what a middleware sees around its model calls and tool calls.

Where the recorder watches the run, it has a `ActiveRun`, and these only add to that: a tool's start that
is written down already, and a refusal, which no callback tells of. Otherwise they record by
themselves. A fault of theirs is logged once and counted, and the agent goes on.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp

from session_middleware.models import Clock, NewId, RepairedCall
from session_middleware.recording.active_run import (
    ActiveRun,
    CallKey,
    KnownMessages,
    namespace_of,
    noted,
    sentence,
    since,
)
from session_middleware.recording.history_diff import add_given
from session_middleware.recording.messages import Outcome, content_hash, describe, outcome_of
from session_middleware.recording.prices import load
from session_middleware.recording.recorder import SessionRecorder
from session_middleware.recording.usage import is_cached, model_in, text_in, usage_of, with_usage
from session_middleware.recording.write_buffer import never_raise
from session_middleware.runtime.run_context import RunRegistry
from session_middleware.storage.jsonable import is_a, to_json
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import HistoryEntry, ModelCallEntry, ToolEnd, ToolStart
from session_middleware.storage.run import RunContext


class MiddlewareContext(NamedTuple):
    """Where in a run a hook is called."""

    visit: RunContext
    trace: ActiveRun | None  # the recorder's, where it watches the run
    is_checkpointed: bool  # a checkpointer of ours serves the run, and records its messages
    is_kept: bool  # some checkpointer keeps its state
    own_namespace: str
    node: str | None

    @property
    def namespace(self) -> str:
        """That of the graph."""
        return self.own_namespace.rpartition("|")[0]

    @property
    def is_alone(self) -> bool:
        return self.trace is None and not self.is_checkpointed


@dataclass(slots=True)
class ToolCallInProgress:
    """A tool call that passes by."""

    place: MiddlewareContext
    start: ToolStart
    exists: bool  # there is such a tool
    executed: dict[str, Any]  # the calls whose tool has begun, where nobody else knows, and its arguments
    begun: float = field(default_factory=time.perf_counter)
    written: bool = False  # its start is

    @property
    def key(self) -> CallKey:
        return self.place.own_namespace, str(self.start.tool_call_id)


@dataclass(slots=True)
class PendingModelCall:
    model: str | None
    provider: str | None
    started_at: datetime
    begun: float = field(default_factory=time.perf_counter)


class _Executions(BaseCallbackHandler):
    """Tells a tool that has run from one that somebody answered for, and what it was given."""

    run_inline = True

    def __init__(self, executed: dict[str, Any]) -> None:
        self._executed = executed

    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, inputs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self._executed[str(kwargs.get("tool_call_id"))] = inputs


class MiddlewareRecorder:
    def __init__(
        self,
        storage: Storage,
        recorder: SessionRecorder,
        visits: RunRegistry,
        *,
        is_ours: Callable[[object], bool],
        new_id: NewId,
        clock: Clock,
    ) -> None:
        self._storage = storage
        self._recorder = recorder
        self.journal = recorder.journal
        self._visits = visits
        self._is_ours = is_ours  # a checkpointer
        self._new_id = new_id
        self._clock = clock
        self._known = KnownMessages()
        self.journal.forgetting.append(self.forget)

    def forget(self, session_id: str) -> None:
        """Keep nothing in mind of a session that was deleted."""
        self._known.forget(session_id)

    def enter(self, config: RunnableConfig, *, begins: bool = False) -> MiddlewareContext | None:
        """Where this is called; ``None`` outside of any session. A run that `begins` alone is a visit of its own."""
        configurable = config.get("configurable") or {}
        if configurable.get("thread_id") is None:
            return None
        trace = self._recorder.trace_of(getattr(config.get("callbacks"), "parent_run_id", None))
        checkpointer = configurable.get("__pregel_checkpointer")
        checkpointed = self._is_ours(checkpointer)
        if trace is not None:
            visit = trace.visit
        elif checkpointed:
            visit = self._visits.present(configurable)
        else:
            visit = self._visits.alone(configurable, anew=begins)
        metadata = config.get("metadata") or {}
        is_kept = checkpointer is not None
        return MiddlewareContext(
            visit, trace, checkpointed, is_kept, namespace_of(metadata), noted(metadata, "langgraph_node")
        )

    def admit(self, place: MiddlewareContext) -> None:
        """Ask at the door, where nobody else has. Raises what the door does."""
        if place.is_alone and place.visit.admission is None:
            self._storage.authorize(place.visit)

    @never_raise
    def open(self, place: MiddlewareContext) -> None:
        """Have the session there, before anything else has been written of the run."""
        self._storage.append(place.visit)

    @never_raise
    def attempt(self, call: Callable[[], str | None]) -> str | None:
        """What `call` gives, which the agent can do without: nothing, where it fails."""
        return call()

    def write(self, place: MiddlewareContext) -> None:
        """Write down what was kept."""
        self.journal.write(place.visit)

    # Messages

    def keep(self, place: MiddlewareContext, messages: Sequence[BaseMessage], **fields: Any) -> None:
        self.journal.keep(place.visit, describe(messages, place.namespace, new_id=self._new_id, **fields))

    @never_raise
    def hear(self, place: MiddlewareContext, messages: Sequence[BaseMessage]) -> None:
        """Take down what is new in the agent's messages, where nobody else does."""
        if not place.is_alone:
            return
        self.admit(place)
        known = self._known.of(place.visit.session_id)
        for message, following in zip(messages, [*messages[1:], None], strict=True):
            if message.id is not None and known.get(message.id) != content_hash(message):
                known[message.id] = content_hash(message)
                self.keep(place, [message], followed_by=following and following.id)
        self.write(place)

    @never_raise
    def take_as_given(self, place: MiddlewareContext, messages: Sequence[BaseMessage]) -> None:
        """The failures that an agent begins with refuse nothing: whoever called it has carried them out.

        Where nothing keeps its state, that is all that was ever said, maybe under new ids.
        """
        known = self._known.of(place.visit.session_id)
        if not place.is_alone:
            known.update({str(message.id): content_hash(message) for message, _ in _failures(messages)})
        elif not place.is_kept:
            known.update({str(message.id): content_hash(message) for message in messages})
            seen = describe(messages, place.namespace, new_id=self._new_id)
            self.journal.keep(
                place.visit, [HistoryEntry(seen, functools.partial(add_given, run_id=place.visit.run_id))]
            )

    @never_raise
    def hear_before_model(self, place: MiddlewareContext, messages: Sequence[BaseMessage]) -> None:
        """As `hear`. Failures that no tool told of were said by a person or another middleware: they refuse."""
        known = self._known.of(place.visit.session_id)
        for message, following in _failures(messages):
            if message.id is not None and known.get(message.id) != content_hash(message):
                known[message.id] = content_hash(message)
                self.keep(place, [message], followed_by=following, refused=True)
        self.hear(place, messages)

    @never_raise
    def note_repair(self, place: MiddlewareContext, calls: Sequence[RepairedCall]) -> None:
        visit = place.visit
        self._storage.append_repair(
            visit.session_id, calls, run_id=visit.run_id, reason="new input", checkpoint_id=None
        )

    # Models

    def ask(self, model: Any) -> PendingModelCall:
        try:
            told = model._get_ls_params()
        except Exception as error:  # noqa: BLE001  # it is the user's own model class
            self.journal.fault(error)
            told = {}
        load()
        return PendingModelCall(text_in(told, "ls_model_name"), text_in(told, "ls_provider"), self._clock())

    @never_raise
    def answer(
        self, place: MiddlewareContext, asked: PendingModelCall, came: Sequence[BaseMessage] | BaseException
    ) -> None:
        """Take down what a model call took, and where nobody else does what it said."""
        failed = isinstance(came, BaseException)
        said = [] if isinstance(came, BaseException) else [m for m in came if is_a(m, AIMessage)]
        for message in said:
            message.id = message.id or self._new_id()  # as the state would, but before it is recorded
        message = said[0] if said else AIMessage("")
        tokens, marks = usage_of(message)
        call = ModelCallEntry(
            id=self._new_id(),
            model=model_in(message.response_metadata) or asked.model,
            provider=asked.provider,
            duration_ms=since(asked.begun),
            error=sentence(came) if isinstance(came, BaseException) else None,
            message_id=message.id,
            checkpoint_ns=place.own_namespace,
            node=place.node,
            marks=marks,
            started_at=asked.started_at,
        )
        if not failed:
            call = with_usage(call, tokens, cached=is_cached(message))
        self.journal.keep(place.visit, [call])
        if is_cached(message) and place.is_alone:
            self.keep(place, [message], message_id=self._new_id(), again=message.id, call=None)
        if said:
            self.hear(place, said)
        self.write(place)

    # Tools

    @never_raise
    def watch(
        self,
        place: MiddlewareContext,
        config: RunnableConfig,
        call: ToolCall,
        history: Sequence[BaseMessage],
        *,
        exists: bool,
    ) -> ToolCallInProgress:
        """A call that passes by, and the messages that led to it."""
        executed: dict[str, Any] = {}
        manager = config.get("callbacks")
        if place.trace is None and isinstance(manager, BaseCallbackManager):
            manager.add_handler(_Executions(executed))
        if place.trace is None:
            self._keep_request(place, call, history)
        start = ToolStart(self._new_id(), call["id"], call["name"], call["args"], place.namespace, place.node)
        return ToolCallInProgress(place, start, exists, executed)

    def _keep_request(self, place: MiddlewareContext, call: ToolCall, history: Sequence[BaseMessage]) -> None:
        """Who asked comes before what was asked for, and before them what led to that: its checkpoint may come late."""
        known = self._known.of(place.visit.session_id)
        found: list[tuple[BaseMessage, str | None]] = []
        is_asked = False
        following: str | None = None
        for message in reversed(history):
            is_asked = is_asked or any(asked["id"] == call["id"] for asked in getattr(message, "tool_calls", ()))
            if is_asked:
                found.append((message, following))
                following = message.id
                if isinstance(message, HumanMessage):
                    break
        for message, after in reversed(found):
            if message.id is not None and known.get(message.id) != content_hash(message):
                known[message.id] = content_hash(message)
                self.keep(place, [message], followed_by=after)

    @never_raise
    def start(self, watched: ToolCallInProgress) -> None:
        """Have the start of a call written down before its tool runs; the recorder goes on from there."""
        self.admit(watched.place)
        self.journal.keep(watched.place.visit, [watched.start])
        self.write(watched.place)
        watched.written = True
        if watched.place.trace is not None:
            watched.place.trace.foretold[watched.key] = watched.start

    @never_raise
    def end(self, watched: ToolCallInProgress, came: Any) -> None:
        """Close the call, unless the recorder has; a tool that did not run and is answered for was refused."""
        place, call_id = watched.place, str(watched.start.tool_call_id)
        executed = call_id in watched.executed if place.trace is None else place.trace.executed[watched.key] > 0
        if place.trace is not None:
            place.trace.foretold.pop(watched.key, None)
            if executed:
                return
        start = watched.start
        given = watched.executed.get(call_id)
        if given is not None and to_json(given) != to_json(start.arguments):  # somebody has changed them on the way
            self.journal.keep(place.visit, [start._replace(arguments=given, corrects=True)])
        outcome = _outcome(came)
        if outcome.status == "error" and not executed and watched.exists and not isinstance(came, BaseException):
            outcome = outcome._replace(status="refused", error=None)
        if watched.written or outcome.status == "refused":
            end = ToolEnd(
                execution_id=watched.start.execution_id,
                status=outcome.status,
                result=outcome.result,
                error=outcome.error,
                duration_ms=since(watched.begun) if executed else None,
                artifact=outcome.artifact,
                name=watched.start.name,
                files=outcome.files,
            )
            self.journal.keep(place.visit, [end] if watched.written else [start, end])
        if place.is_alone and is_a(came, ToolMessage):
            came.id = came.id or self._new_id()  # as the state would, but before it is recorded
            self.hear(place, [came])
        self.write(place)


def _failures(messages: Sequence[BaseMessage]) -> list[tuple[ToolMessage, str | None]]:
    """Of the answers to what was asked for last those that report one, and the id of what follows each."""
    found: list[tuple[ToolMessage, str | None]] = []
    following: str | None = None
    for message in reversed(messages):
        if isinstance(message, AIMessage):
            break
        if isinstance(message, ToolMessage) and message.status == "error":
            found.append((message, following))
        following = message.id
    return found


def _outcome(came: Any) -> Outcome:
    if not isinstance(came, BaseException):
        return outcome_of(came)
    is_failure = isinstance(came, Exception) and not isinstance(came, GraphBubbleUp)
    return Outcome("error", None, sentence(came)) if is_failure else Outcome("interrupted", None)
