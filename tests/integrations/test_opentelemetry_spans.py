"""Spans of real graphs, collected by OpenTelemetry's own exporter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as names
from opentelemetry.trace import StatusCode

from session_middleware import Sessions
from session_middleware.integrations.opentelemetry_spans import SpanHandler
from tests.support import agents
from tests.support.agents import human


class Spans:
    """The spans that ended, in a provider of their own."""

    def __init__(self) -> None:
        self.exporter, self.provider = InMemorySpanExporter(), TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def handler(self, **options: Any) -> SpanHandler:
        return SpanHandler(self.provider, **options)

    def all(self) -> list[ReadableSpan]:
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def tree(self) -> list[tuple[str, str | None]]:
        """The name of each span and of its parent."""
        by_id = {span.context.span_id: span.name for span in self.all()}
        return [(span.name, by_id[span.parent.span_id] if span.parent else None) for span in self.all()]

    def named(self, beginning: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name.startswith(beginning)]


@pytest.fixture
def spans() -> Spans:
    return Spans()


def config(handler: SpanHandler, **configurable: Any) -> Any:
    return {"callbacks": [handler], "configurable": {"thread_id": "t", **configurable}}


LOOP = [
    ("invoke_agent LangGraph", None),
    ("chat", "invoke_agent LangGraph"),
    ("execute_tool look_up", "invoke_agent LangGraph"),
    ("chat", "invoke_agent LangGraph"),
]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_run_has_spans_of_its_models_and_tools_with_the_names_of_the_conventions(
    spans: Spans, is_async: bool
) -> None:
    graph, handler = agents.tool_graph(checkpointer=InMemorySaver()), spans.handler()
    if is_async:
        await graph.ainvoke(human("look up tea"), config(handler))
    else:
        graph.invoke(human("look up tea"), config(handler))
    assert [(name.split(" ScriptedModel")[0], parent) for name, parent in spans.tree()] == LOOP
    run, chat, tool_span, _ = spans.all()
    known = {value for name, value in vars(names).items() if name.startswith("GEN_AI_") and isinstance(value, str)}
    assert {key for span in spans.all() for key in span.attributes or {}} <= known
    for span in spans.all():
        assert span.attributes
        assert span.attributes[names.GEN_AI_CONVERSATION_ID] == "t"
        assert span.status.status_code is StatusCode.UNSET
        assert (run.start_time or 0) <= (span.start_time or 0) <= (span.end_time or 0) <= (run.end_time or 0)
    assert chat.attributes
    assert tool_span.attributes
    assert chat.attributes[names.GEN_AI_OPERATION_NAME] == "chat"
    assert tool_span.attributes[names.GEN_AI_TOOL_CALL_ID]
    assert "tea" not in str([dict(span.attributes or {}) for span in spans.all()])
    assert handler._open.values() == []


def test_content_is_recorded_when_it_is_asked_for(spans: Spans) -> None:
    agents.tool_graph().invoke(human("look up tea"), config(spans.handler(record_content=True)))
    (first, *_), (call,) = spans.named("chat"), spans.named("execute_tool")
    assert first.attributes
    assert call.attributes
    assert "look up tea" in str(first.attributes[names.GEN_AI_INPUT_MESSAGES])
    assert "tool_call" in str(first.attributes[names.GEN_AI_OUTPUT_MESSAGES])
    assert "tea" in str(call.attributes[names.GEN_AI_TOOL_CALL_ARGUMENTS])
    assert call.attributes[names.GEN_AI_TOOL_CALL_RESULT]


async def test_tools_in_parallel_and_the_code_inside_them_nest_rightly(spans: Spans) -> None:
    both = asyncio.Barrier(2)

    @tool
    async def look_up(thing: str) -> str:
        """Look up a thing."""
        with spans.tracer.start_as_current_span("inside look_up"):
            await both.wait()
        return thing

    @tool
    async def price(thing: str) -> str:
        """What a thing costs."""
        with spans.tracer.start_as_current_span("inside price"):
            await both.wait()
        return "3"

    with spans.tracer.start_as_current_span("request"):
        await agents.tool_graph(look_up, price).ainvoke(human("both tea"), config(spans.handler()))
        assert spans.tracer is not None
    parents = dict(spans.tree())
    assert parents["invoke_agent LangGraph"] == "request"
    for name in ("look_up", "price"):
        assert parents[f"execute_tool {name}"] == "invoke_agent LangGraph"
        assert parents[f"inside {name}"] == f"execute_tool {name}"


def test_spans_of_a_node_are_inside_the_run_and_around_its_models(spans: Spans) -> None:
    model = agents.Scripted()

    def answer(state: MessagesState) -> Any:
        with spans.tracer.start_as_current_span("step"):
            return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()
    graph.invoke(human("hi"), config(spans.handler()))
    assert [parent for _, parent in spans.tree()] == [None, "invoke_agent LangGraph", "step"]


def test_an_agent_within_a_tool_is_a_run_of_its_own(spans: Spans) -> None:
    inner = create_agent(agents.Scripted(), [], name="researcher")

    @tool
    def look_up(thing: str) -> str:
        """Ask a researcher."""
        return str(inner.invoke(human("hi"))["messages"][-1].text)

    outer = create_agent(agents.Scripted(), [look_up], name="assistant")
    outer.invoke(human("look up tea"), config(spans.handler()))
    assert ("invoke_agent assistant", None) in spans.tree()
    assert ("invoke_agent researcher", "execute_tool look_up") in spans.tree()
    assert {parent for name, parent in spans.tree() if name.startswith("chat")} == {
        "invoke_agent assistant",
        "invoke_agent researcher",
    }


class Unavailable(Exception): ...


def failing(error: BaseException) -> Callable[..., Any]:
    def answer(state: MessagesState) -> Any:
        raise error

    return answer


def test_an_error_ends_the_spans_with_its_type_and_without_its_text(spans: Spans) -> None:
    builder = StateGraph(MessagesState).add_node("answer", failing(Unavailable("the secret"))).add_edge(START, "answer")
    handler = spans.handler()
    with pytest.raises(Unavailable):
        builder.compile().invoke(human("hi"), config(handler))
    (run,) = spans.all()
    assert run.attributes
    assert str(run.attributes["error.type"]).endswith("test_opentelemetry_spans.Unavailable")
    assert run.status.status_code is StatusCode.ERROR
    assert "secret" not in run.to_json()
    agents.tool_graph().invoke(human("fail tea"), config(handler))
    assert handler._open.values() == []


def test_an_interrupt_is_no_error(spans: Spans) -> None:
    graph, handler = agents.tool_graph(checkpointer=InMemorySaver()), spans.handler()
    graph.invoke(human("ask tea"), config(handler))
    (call,) = spans.named("execute_tool")
    assert [span.status.status_code for span in spans.all()] == [StatusCode.UNSET] * len(spans.all())
    assert [event.name for event in spans.all()[0].events] == ["interrupt"]
    graph.invoke(Command(resume="yes"), config(handler))
    assert len(spans.named("invoke_agent")) == 2
    assert handler._open.values() == []
    assert call.name == "execute_tool asking"


async def test_a_cancelled_run_leaves_no_span_open(spans: Spans) -> None:
    started = asyncio.Event()

    class Slow(agents.Scripted):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
            started.set()
            await asyncio.Event().wait()

    async def answer(state: MessagesState) -> Any:
        return {"messages": [await Slow().ainvoke(state["messages"])]}

    graph, handler = StateGraph(MessagesState).add_node("a", answer).add_edge(START, "a").compile(), spans.handler()
    task = asyncio.create_task(graph.ainvoke(human("hi"), config(handler)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(span.attributes or {}).get("error.type") for span in spans.all()] == [
        "asyncio.exceptions.CancelledError"
    ] * 2
    assert handler._open.values() == []


def test_a_model_alone_has_its_answer_and_its_time_to_the_first_chunk(spans: Spans) -> None:
    class Counted(agents.Scripted):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            found = super()._generate(*args, **kwargs)
            answer = found.generations[0].message
            assert isinstance(answer, AIMessage)
            answer.usage_metadata = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
            answer.response_metadata = {"model_name": "scripted-1", "finish_reason": "stop"}
            return found

    Counted().invoke("hi", {"callbacks": [spans.handler()]})
    (chat,) = spans.all()
    assert chat.attributes
    assert chat.attributes[names.GEN_AI_USAGE_INPUT_TOKENS] == 3
    assert chat.attributes[names.GEN_AI_USAGE_OUTPUT_TOKENS] == 2
    assert chat.attributes[names.GEN_AI_RESPONSE_MODEL] == "scripted-1"
    assert chat.attributes[names.GEN_AI_RESPONSE_FINISH_REASONS] == ("stop",)


async def test_the_session_is_the_conversation_and_a_handler_given_twice_counts_once(
    sessions: Sessions, spans: Spans
) -> None:
    handler = spans.handler()
    graph = sessions.attach(agents.tool_graph()).with_config({"callbacks": [handler]})
    await graph.ainvoke(human("look up tea"), {**sessions.config("s", user_id="ada"), "callbacks": [handler]})
    assert {(span.attributes or {}).get(names.GEN_AI_CONVERSATION_ID) for span in spans.all()} == {"s"}
    assert len(spans.all()) == 4
    assert "ada" not in str([dict(span.attributes or {}) for span in spans.all()])
