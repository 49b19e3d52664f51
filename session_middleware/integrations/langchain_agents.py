"""A middleware for LangChain's `create_agent`.

It does what callbacks cannot do: it records refused tool calls, records a tool's start before the tool runs without
blocking the event loop, answers interrupted tool calls before the agent starts, and adds text to the model's input
without adding it to the state. With `Sessions.attach`, the recorder and the checkpointer record everything else.
Without them the middleware records messages, tool calls and model calls, but no runs, because no hook reports a
run's end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import AgentState, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.config import get_config
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from session_middleware import Session, Sessions
from session_middleware.checkpoint.answers import UnansweredCall, recorded_answers
from session_middleware.checkpoint.repair import mend, unanswered
from session_middleware.memory.query_rewriting import complete
from session_middleware.memory.scopes import SCOPES
from session_middleware.memory.session_recall import KINDS, ROLES, SPEAKERS, Kind
from session_middleware.models import Role, Scope
from session_middleware.recording.middleware_recorder import MiddlewareContext, MiddlewareRecorder, ToolCallInProgress
from session_middleware.storage.validation import check_always, check_count, check_members

ToolResult: TypeAlias = ToolMessage | Command[Any]
Context: TypeAlias = Callable[[Session, str], str | None]
Update: TypeAlias = dict[str, Any] | None


@dataclass(frozen=True)
class Recall:
    """The memories that the model is given: at most `k`, and about `budget_tokens`; see `SessionMemory.context_for`.

    By default these are items, and messages of users and assistants. `roles` selects the messages. With `always`,
    items remembered with ``always=True`` come first, in addition to the `k`.

    Raises `InvalidMemoryArgument` for an invalid value.
    """

    k: int = 8
    scopes: Sequence[Scope] = SCOPES
    kinds: Sequence[Kind] = KINDS
    budget_tokens: int = 1_000
    roles: Sequence[Role] = SPEAKERS
    always: bool = True

    def __post_init__(self) -> None:
        check_count("k", self.k)
        check_count("budget_tokens", self.budget_tokens)
        check_members("scopes", self.scopes, SCOPES)
        check_members("kinds", self.kinds, KINDS)
        check_members("roles", self.roles, ROLES)
        check_always(self.always)


class SessionMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """``create_agent(model, tools, middleware=[SessionMiddleware(sessions), …])``; place it first in the list.

    An agent that runs without a thread id is not changed.

    Args:
        sessions: The storage of the record, with its checkpointer and recorder, or alone.
        context: A function of the session and of the user's last text. It returns text for the system message of
            each model call, which is not stored. Under asyncio it is called off the loop.
        recall: Selects memories that match the user's last text, except messages that are in the model's input. They
            are data, so they are a message of their own before the user's, between marks, each line with its source
            and date. ``True`` is ``Recall()``. A failure is logged once and counted among the recorder's faults, and
            the agent continues without them.

    Raises:
        TypeError: An argument has another type.
    """

    def __init__(
        self, sessions: Sessions, *, context: Context | None = None, recall: Recall | bool | None = None
    ) -> None:
        super().__init__()
        _check_givens(sessions, context, recall)
        self._sessions = sessions
        self._hooks = MiddlewareRecorder(sessions.recorder, sessions._runs, is_ours=sessions.checkpointer.serves_with)
        self._off_loop = sessions._offload.run
        self._context = context
        self._recall = Recall() if recall is True else recall or None

    # Before the agent starts

    def before_agent(self, state: AgentState[Any], runtime: Any) -> Update:
        """Check access, and add the missing answers of interrupted tool calls.

        Raises:
            SessionAccessDenied: The session has another owner.
            SessionExpired: It has expired and ``on_resume`` is ``"reject"``.
        """
        hook = self._hooks.find_context(get_config(), begins=True)
        if hook is None:
            return None
        self._hooks.authorize(hook)
        self._hooks.add_input(hook, state["messages"])
        return self._begin(hook, state["messages"])

    async def abefore_agent(self, state: AgentState[Any], runtime: Any) -> Update:
        hook = self._hooks.find_context(get_config(), begins=True)
        if hook is None:
            return None
        await self._off_loop(self._hooks.authorize, hook)
        self._hooks.add_input(hook, state["messages"])
        if hook.is_alone or self._missing(state["messages"]):
            return await self._off_loop(self._begin, hook, state["messages"])
        return None

    def _begin(self, hook: MiddlewareContext, messages: Sequence[BaseMessage]) -> Update:
        self._hooks.add_new_messages(hook, messages)
        missing = self._missing(messages)
        if not missing:
            return None
        missing = recorded_answers(self._sessions._storage, hook.context.session_id, missing)
        mended = mend(messages, missing, new_id=self._sessions.new_id, namespace=hook.node.graph_namespace)
        added = {call.answer_id for call in mended.calls}
        following = {str(m.id): after.id for m, after in zip(mended.messages, mended.messages[1:], strict=False)}
        for message in reversed(mended.messages):
            if message.id in added:
                self._hooks.add(hook, [message], followed_by=following.get(str(message.id)))
        self._hooks.buffer.flush_sync(hook.context)
        self._hooks.attempt(
            self._sessions._storage.append_repair,
            hook.context.session_id,
            mended.calls,
            run_id=hook.context.run_id,
            reason="new input",
            checkpoint_id=None,
        )
        return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), *mended.messages]}

    def _missing(self, messages: Sequence[BaseMessage]) -> list[UnansweredCall]:
        return unanswered(messages) if self._sessions.settings.repair == "auto" else []

    # Model calls

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        hook = self._hooks.find_context(get_config())
        if hook is None:
            return handler(request)
        request = self._with_context(hook, request)
        if hook.run is not None:
            return handler(request)
        self._hooks.add_before_model(hook, request.state["messages"])
        with self._hooks.observe(hook, get_config(), inherit=True) as run:
            response = handler(request)
            self._hooks.add_output(hook, run, response.result)
        return response

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        hook = self._hooks.find_context(get_config())
        if hook is None:
            return await handler(request)
        if self._context is not None or self._recall is not None:
            request = await self._off_loop(self._with_context, hook, request)
        if hook.run is not None:
            return await handler(request)
        await self._off_loop(self._hooks.add_before_model, hook, request.state["messages"])
        with self._hooks.observe(hook, get_config(), inherit=True) as run:
            response = await handler(request)
            await self._off_loop(self._hooks.add_output, hook, run, response.result)
        return response

    def _with_context(self, hook: MiddlewareContext, request: ModelRequest[Any]) -> ModelRequest[Any]:
        """The request with `context` in its system message, and with recalled memories before the user's message."""
        messages = request.messages
        last = next((n for n in reversed(range(len(messages))) if isinstance(messages[n], HumanMessage)), None)
        if last is None or (self._context is None and self._recall is None):
            return request
        session = self._sessions.find(hook.context.session_id)
        if session is None:
            self._hooks.attempt(self._sessions._storage.append, hook.context)
            session = self._sessions.find(hook.context.session_id)
        if session is None:
            return request
        text = messages[last].text
        if self._context is not None and text and (context := self._context(session, text)):
            own = request.system_message.content_blocks if request.system_message else []
            added: Any = {"type": "text", "text": context}
            system = SystemMessage(content_blocks=[*own, added]) if own else SystemMessage(context)
            request = request.override(system_message=system)
        if self._recall is not None and (
            recalled := self._hooks.attempt(_recalled, self._recall, session, messages, last)
        ):
            request = request.override(messages=[*messages[:last], HumanMessage(recalled), *messages[last:]])
        return request

    # Tools

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolResult]) -> ToolResult:
        with self._track(request) as call:
            if call is None:
                return handler(request)
            try:
                result = handler(request)
            except BaseException as error:
                self._hooks.end_tool_call(call, error)
                raise
            self._hooks.end_tool_call(call, result)
            return result

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolResult]]
    ) -> ToolResult:
        with self._track(request) as call:
            if call is None:
                return await handler(request)
            await self._off_loop(self._hooks.start_tool_call, call)
            try:
                result = await handler(request)
            except BaseException as error:
                await self._off_loop(self._hooks.end_tool_call, call, error)
                raise
            await self._off_loop(self._hooks.end_tool_call, call, result)
            return result

    @contextmanager
    def _track(self, request: ToolCallRequest) -> Iterator[ToolCallInProgress | None]:
        hook = self._hooks.find_context(request.runtime.config)
        if hook is None:
            yield None
            return
        state = request.state
        history = state["messages"] if isinstance(state, dict) else getattr(state, "messages", ())
        with self._hooks.observe(hook, request.runtime.config, inherit=False) as run:
            yield self._hooks.track_tool_call(hook, run, request.tool_call, history, exists=request.tool is not None)


def _check_givens(sessions: object, context: object, recall: object) -> None:
    if not isinstance(sessions, Sessions):
        raise TypeError(f"SessionMiddleware() takes a Sessions and was given {sessions!r}; make one: Sessions('x.db')")
    if context is not None and not callable(context):
        raise TypeError(f"context={context!r} cannot be called; give a function of the session and of what was said")
    if recall is not None and not isinstance(recall, (Recall, bool)):
        raise TypeError(f"recall={recall!r} is no Recall; give Recall(k=…, scopes=…), or True")


def _recalled(recall: Recall, session: Session, messages: Sequence[BaseMessage], last: int) -> str | None:
    """The memories that match the message at `last`, whose text may refer to earlier messages."""
    before = [message.text for message in messages[:last] if isinstance(message, HumanMessage | AIMessage)]
    known = {each for message in messages for each in (message.id, message.text) if each}
    return session.memory.context_for(complete(messages[last].text, before), unless_in=known, **vars(recall))
