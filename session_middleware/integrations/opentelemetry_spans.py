"""Spans of OpenTelemetry for runs, model calls and tools, with the names of its conventions for generative AI.

`SpanHandler` is a LangChain callback handler and needs no `Sessions`: ``config={"callbacks": [SpanHandler()]}``. A run
is ``invoke_agent``, in it are ``chat`` and ``execute_tool``, and ``gen_ai.conversation.id`` is the session's id. Spans
that the code of a node or a tool opens are inside of these. No content is in a span unless it is asked for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from langchain_core.messages import BaseMessage
from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent
from langgraph.errors import GraphBubbleUp
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider

from session_middleware import __version__
from session_middleware.integrations.open_runs import OpenRuns
from session_middleware.recording.usage import model_in, text_in, usage_of

_CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_PROVIDERS = {  # LangChain's names, where they are not those of the conventions
    "amazon_bedrock": "aws.bedrock",
    "azure": "azure.ai.openai",
    "google_genai": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}
_REQUEST = {  # of LangChain's metadata, and of a call's parameters
    "gen_ai.request.temperature": ("ls_temperature", "temperature"),
    "gen_ai.request.max_tokens": ("ls_max_tokens", "max_tokens"),
    "gen_ai.request.top_p": ("", "top_p"),
    "gen_ai.request.seed": ("", "seed"),
}
_ROLES = {"human": "user", "ai": "assistant"}


@dataclass
class _Open:
    """A callback run that has begun. One without a span of its own has that of the run around it."""

    span: Span
    outer: Span  # that was current when the outermost run began
    conversation_id: str | None
    agent_name: str | None  # of LangChain's agent that it is a part of
    is_own: bool = True
    before: otel_context.Context | None = None  # that was current, if the span was made current
    begun_ns: int = 0
    has_token: bool = False


class SpanHandler(GraphCallbackHandler):
    """Makes a span of each run of a graph or chain, each model call and each tool.

    Args:
        tracer_provider: by default the global one.
        record_content: put messages, arguments and results into spans. By default the environment says so, by
            ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true``.
    """

    run_inline = True  # so that times are right, and the span of a tool is current while it runs

    def __init__(self, tracer_provider: TracerProvider | None = None, *, record_content: bool | None = None) -> None:
        self._tracer = trace.get_tracer("session_middleware", __version__, tracer_provider)
        from_environment = os.environ.get(_CAPTURE, "").lower() in ("true", "span_only", "span_and_event")
        self._with_content = from_environment if record_content is None else record_content
        self._open = OpenRuns[_Open]()

    # Runs

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        parent, metadata = self._open.find(parent_run_id), kwargs.get("metadata") or {}
        if self._open.find(run_id) is not None:
            return
        agent_name = text_in(metadata, "lc_agent_name")  # LangChain's agents name themselves to all that is inside
        if parent is not None and agent_name in (None, parent.agent_name):
            self._add(run_id, parent_run_id, replace(parent, is_own=False))
            return
        name = agent_name or str(kwargs.get("name") or "chain")
        attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name}
        self._start(f"invoke_agent {name}", run_id, parent_run_id, metadata, attributes)

    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        if (found := self._open.find(event.run_id)) is not None:
            found.span.add_event("interrupt")

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, error)

    # Models

    def on_chat_model_start(self, serialized: Any, messages: list[list[BaseMessage]], **kwargs: Any) -> None:
        found = self._start_model("chat", serialized, **kwargs)
        if found is not None and self._with_content and messages:
            system = [message for message in messages[0] if message.type == "system"]
            rest = [message for message in messages[0] if message.type != "system"]
            found.set_attribute("gen_ai.input.messages", _json([_message(each) for each in rest]))
            if system:
                parts = [part for each in system for part in _message(each)["parts"]]
                found.set_attribute("gen_ai.system_instructions", _json(parts))

    def on_llm_start(self, serialized: Any, prompts: list[str], **kwargs: Any) -> None:
        found = self._start_model("text_completion", serialized, **kwargs)
        if found is not None and self._with_content:
            texts = [{"role": "user", "parts": [{"type": "text", "content": prompt}]} for prompt in prompts]
            found.set_attribute("gen_ai.input.messages", _json(texts))

    def _start_model(
        self, operation: str, serialized: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> Span | None:
        metadata, given = kwargs.get("metadata") or {}, kwargs.get("invocation_params") or {}
        model = text_in(metadata, "ls_model_name") or text_in(given, "model", "model_name")
        provider = text_in(metadata, "ls_provider") or "unknown"
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _PROVIDERS.get(provider, provider),
        }
        if model:
            attributes["gen_ai.request.model"] = model
        for attribute, (in_metadata, in_call) in _REQUEST.items():
            value = metadata.get(in_metadata, given.get(in_call))
            if type(value) in (int, float):
                attributes[attribute] = value
        stop = metadata.get("ls_stop") or given.get("stop")
        if isinstance(stop, list) and all(isinstance(each, str) for each in stop):
            attributes["gen_ai.request.stop_sequences"] = stop
        name = f"{operation} {model}" if model else operation
        return self._start(name, run_id, parent_run_id, metadata, attributes, kind=SpanKind.CLIENT)

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kwargs: Any) -> None:
        found = self._open.find(run_id)
        if found is not None and not found.has_token:
            found.has_token = True
            seconds = (time.time_ns() - found.begun_ns) / 1e9
            found.span.set_attribute("gen_ai.request.stream", True)
            found.span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)

    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        found = self._open.find(run_id)
        if found is not None:
            messages = [m for some in response.generations for each in some if (m := getattr(each, "message", None))]
            for name, value in _answer(messages, response.llm_output).items():
                found.span.set_attribute(name, value)
            if self._with_content:
                found.span.set_attribute("gen_ai.output.messages", _json([_message(each) for each in messages]))
        self._end(run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, error)

    # Tools

    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        name = str((serialized or {}).get("name") or kwargs.get("name") or "tool")
        attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name, "gen_ai.tool.type": "function"}
        if call_id := kwargs.get("tool_call_id"):
            attributes["gen_ai.tool.call.id"] = str(call_id)
        if description := text_in(serialized, "description"):
            attributes["gen_ai.tool.description"] = description
        if self._with_content:
            attributes["gen_ai.tool.call.arguments"] = _json(kwargs.get("inputs") or input_str)
        self._start(f"execute_tool {name}", run_id, parent_run_id, kwargs.get("metadata") or {}, attributes)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        found = self._open.find(run_id)
        if found is not None:
            if self._with_content:
                found.span.set_attribute("gen_ai.tool.call.result", _json(getattr(output, "content", output)))
            if getattr(output, "status", None) == "error":  # a failure that is reported to the model
                found.span.set_attribute("error.type", "tool_error")
                found.span.set_status(StatusCode.ERROR)
        self._end(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, error)

    # Spans

    def _start(
        self,
        name: str,
        run_id: UUID,
        parent_run_id: UUID | None,
        metadata: Mapping[str, Any],
        attributes: dict[str, Any],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Span | None:
        if self._open.find(run_id) is not None:  # a handler given twice is called twice
            return None
        parent, current = self._open.find(parent_run_id), trace.get_current_span()
        own_id = None if parent is None else parent.conversation_id
        conversation_id = own_id or text_in(metadata, "thread_id", "session_id")
        if conversation_id:
            attributes["gen_ai.conversation.id"] = conversation_id
        around = current if parent is None or self._is_opened_inside(current, parent) else parent.span
        begun_ns = time.time_ns()
        context = trace.set_span_in_context(around)
        span = self._tracer.start_span(name, context, kind, attributes, start_time=begun_ns)
        outer = current if parent is None else parent.outer
        agent_name = text_in(metadata, "lc_agent_name") or (parent.agent_name if parent else None)
        opened = _Open(span, outer, conversation_id, agent_name, begun_ns=begun_ns)
        self._add(run_id, None if parent is None else parent_run_id, opened)
        return span

    def _is_opened_inside(self, current: Span, parent: _Open) -> bool:
        """Whether the current span was opened by the code of a node or a tool in the parent."""
        one, other = current.get_span_context(), parent.span.get_span_context()
        if not current.is_recording() or one.trace_id != other.trace_id:
            return False
        ours = {each.span.get_span_context().span_id for each in self._open.values()}
        return one.span_id not in ours | {parent.outer.get_span_context().span_id}

    def _add(self, run_id: UUID, parent_run_id: UUID | None, opened: _Open) -> None:
        """Only inside of a run the span is made current: the context there is a copy, and not that of the caller."""
        self._open.begin(run_id, parent_run_id, opened)
        if parent_run_id is not None:
            opened.before = otel_context.get_current()
            otel_context.attach(trace.set_span_in_context(opened.span))

    def _end(self, run_id: UUID, error: BaseException | None = None) -> None:
        *left, found = self._open.end(run_id) or (None,)
        if found is None:
            return
        if found.before is not None and trace.get_current_span() is found.span:
            otel_context.attach(found.before)
        for each in (*left, found):
            if each is not None and each.is_own:
                _finish(each.span, error)


def _finish(span: Span, error: BaseException | None) -> None:
    """End a span. An interrupt is no error; of an error only the type is content-free."""
    if error is not None and not isinstance(error, GraphBubbleUp):
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        span.set_attribute("error.type", name)
        span.set_status(StatusCode.ERROR)
    span.end()


def _answer(messages: Sequence[BaseMessage], output: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    reasons: list[str] = []
    for message in messages:
        told = message.response_metadata
        reasons += filter(None, [text_in(told, "finish_reason", "stop_reason", "done_reason")])
        found["gen_ai.response.model"] = model_in(told) or model_in(output)
        found["gen_ai.response.id"] = text_in(told, "id") or message.id
        tokens, _ = usage_of(message)
        found["gen_ai.usage.input_tokens"] = tokens.input
        found["gen_ai.usage.output_tokens"] = tokens.output
        found["gen_ai.usage.cache_read.input_tokens"] = tokens.cached
        found["gen_ai.usage.cache_creation.input_tokens"] = tokens.written
        found["gen_ai.usage.reasoning.output_tokens"] = tokens.reasoning
    found["gen_ai.response.finish_reasons"] = reasons or None
    return {name: value for name, value in found.items() if value is not None}


def _message(message: BaseMessage) -> dict[str, Any]:
    """A message in the shape of the conventions."""
    if message.type == "tool":
        call_id = getattr(message, "tool_call_id", None)
        return {
            "role": "tool",
            "parts": [{"type": "tool_call_response", "id": call_id, "response": message.content}],
        }
    parts: list[dict[str, Any]] = [{"type": "text", "content": str(message.text)}] if message.text else []
    parts += [
        {"type": "tool_call", "id": call.get("id"), "name": call["name"], "arguments": call["args"]}
        for call in getattr(message, "tool_calls", None) or ()
    ]
    return {"role": _ROLES.get(message.type, message.type), "parts": parts}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
