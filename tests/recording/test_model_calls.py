"""What models took and cost: of their calls, each once, whoever tells of it. One sum for session, run and usage."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import InvalidArgument, Sessions
from session_middleware.integrations.langchain_agents import SessionMiddleware
from session_middleware.session import Session
from tests.support import agents
from tests.support.agents import human
from tests.support.pairwise import ENGINES, pairwise

pytestmark = pytest.mark.usefixtures("consistent")

USAGE: Any = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
PRICE = pytest.approx(0.00021)  # of that, with gpt-4o-mini
MADE_BY = {"model_name": "gpt-4o-mini"}
MODES = ["attach", "checkpointer", "recorder"]


class Model(BaseChatModel):
    """Says another thing at each call, and tells its usage in one of the places where models do."""

    told_in: str = "message"
    calls: int = 0
    inner: Any = None

    @property
    def _llm_type(self) -> str:
        return "counting"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {"ls_provider": "openai", "ls_model_name": "gpt-4o-mini", "ls_model_type": "chat"}

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.calls += 1
        text = f"answer {self.calls}"
        if self.inner is not None:
            return ChatResult(generations=[ChatGeneration(message=self.inner.invoke(messages))])
        if self.told_in == "message":
            message = AIMessage(text, usage_metadata=USAGE, response_metadata=MADE_BY)
            return ChatResult(generations=[ChatGeneration(message=message)])
        raw = {"prompt_tokens": 1000, "completion_tokens": 100}
        generation = ChatGeneration(message=AIMessage(text))
        return ChatResult(generations=[generation], llm_output={self.told_in: raw, "model_name": "gpt-4o-mini"})


class Streaming(Model):
    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        yield ChatGenerationChunk(message=AIMessageChunk("one "))
        yield ChatGenerationChunk(message=AIMessageChunk("two", usage_metadata=USAGE, response_metadata=MADE_BY))


@pytest.fixture(params=["invoke", "ainvoke"])
def invoke(request: pytest.FixtureRequest) -> Callable[..., Any]:
    def call(graph: Any, *given: Any) -> Any:
        return graph.invoke(*given) if request.param == "invoke" else asyncio.run(graph.ainvoke(*given))

    return call


def watched(sessions: Sessions, mode: str, *nodes: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A graph of these nodes with the parts that the mode says, and its config."""
    builder = StateGraph(MessagesState)
    builder.add_sequence([(f"node{number}", node) for number, node in enumerate(nodes)])
    builder.add_edge(START, "node0")
    config: Any = sessions.config("t", user_id="ada")
    if mode == "attach":
        return sessions.attach(builder.compile()), config
    if mode == "checkpointer":
        return builder.compile(checkpointer=sessions.checkpointer), config
    return builder.compile(), {**config, "callbacks": [sessions.recorder]}


def took(session: Session) -> tuple[Any, ...]:
    return session.model_call_count, session.input_tokens, session.output_tokens, session.cost


def told(message: BaseMessage, text: str | None = None) -> AIMessage:
    """A tidied copy of it, without its id."""
    usage = message.usage_metadata if isinstance(message, AIMessage) else None
    return AIMessage(text or message.text.title(), usage_metadata=usage, response_metadata=message.response_metadata)


NODES: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda said: said,
    "a copy with its id": lambda said: said.model_copy(update={"content": said.text.title()}),
    "a copy without": told,
    "a copy with the counts only": lambda said: AIMessage("tidy", usage_metadata=said.usage_metadata),
    "only its words": lambda said: ("ai", said.text),
}


@pairwise(
    mode=["attach", "recorder"],
    node=NODES,
    told_in=["message", "token_usage", "usage"],
    invoke=["invoke", "ainvoke"],
    each_engine=ENGINES,
)
def test_a_call_counts_once_whatever_its_node_makes_of_the_message(
    sessions: Sessions, mode: str, node: str, told_in: str, invoke: Callable[..., Any]
) -> None:
    tidy = NODES[node]
    model = Model(told_in=told_in)
    graph, config = watched(sessions, mode, lambda state: {"messages": [tidy(model.invoke(state["messages"]))]})
    for _ in range(2):
        invoke(graph, human("hi"), config)
    session = sessions.get("t")
    assert took(session) == (2, 2000, 200, pytest.approx(0.00042))
    assert [(run.input_tokens, run.output_tokens, run.cost) for run in session.runs()] == [(1000, 100, PRICE)] * 2
    (used,) = sessions.usage("user")
    assert (used.key, used.calls, used.input_tokens, used.cost) == ("ada", 2, 2000, session.cost)
    assert session.stats().cost == session.cost


@pytest.mark.parametrize("mode", ["attach", "recorder"])
def test_a_copy_in_another_node_and_a_sum_of_several_calls_are_no_calls(
    sessions: Sessions, mode: str, invoke: Callable[..., Any]
) -> None:
    model = Model()

    def draft_and_refine(state: MessagesState) -> Any:
        draft = model.invoke(state["messages"])
        model.invoke([draft])
        both = {"input_tokens": 2000, "output_tokens": 200, "total_tokens": 2200}
        return {"messages": [AIMessage("refined", usage_metadata=both, response_metadata=MADE_BY)]}

    def answer(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    def tidy(state: MessagesState) -> Any:
        return {"messages": [told(state["messages"][-1])]}

    graph, config = watched(sessions, mode, draft_and_refine, answer, tidy)
    invoke(graph, human("hi"), config)
    assert took(sessions.get("t"))[:3] == (3, 3000, 300)


@pytest.mark.parametrize("mode", MODES)
def test_a_message_with_usage_tells_of_a_call_that_nobody_saw(
    sessions: Sessions, mode: str, invoke: Callable[..., Any]
) -> None:
    def by_a_client_of_its_own(state: MessagesState) -> Any:
        made_by = {**MADE_BY, "model_provider": "openai"}
        return {"messages": [AIMessage("hello", usage_metadata=USAGE, response_metadata=made_by)]}

    graph, config = watched(sessions, mode, by_a_client_of_its_own)
    for _ in range(2):
        invoke(graph, human("hi"), config)
    session = sessions.get("t")
    assert took(session) == (2, 2000, 200, pytest.approx(0.00042))
    answers = [message.message_id for message in session.messages() if message.role == "assistant"]
    calls = session.model_calls()
    assert [(call.message_id, call.model, call.provider, call.flags) for call in calls] == [
        (answer, "gpt-4o-mini", "openai", ("told",)) for answer in answers
    ]
    assert all(call.started_at for call in calls)
    assert [run.cost for run in session.runs()] == [PRICE] * (2 if mode != "checkpointer" else 0)
    assert [used.cost for used in sessions.usage("model")] == [session.cost]


def test_with_the_checkpointer_alone_each_message_of_a_model_is_priced_and_copies_of_one_answer_are_one(
    sessions: Sessions, invoke: Callable[..., Any]
) -> None:
    model = Model()

    def answer(state: MessagesState) -> Any:
        said = model.invoke(state["messages"])
        said.response_metadata["id"] = f"resp_{model.calls}"  # the provider's own
        return {"messages": [said]}

    graph, config = watched(sessions, "checkpointer", answer, lambda state: {"messages": [told(state["messages"][-1])]})
    for _ in range(2):
        invoke(graph, human("hi"), config)
    assert took(sessions.get("t")) == (2, 2000, 200, pytest.approx(0.00042))


@pytest.mark.parametrize("mode", MODES)
def test_a_streamed_answer_counts_once(sessions: Sessions, mode: str) -> None:
    model = Streaming()
    graph, config = watched(sessions, mode, lambda state: {"messages": [model.invoke(state["messages"])]})
    assert list(graph.stream(human("hi"), config, stream_mode="messages"))
    assert took(sessions.get("t")) == (1, 1000, 100, PRICE)


@pytest.mark.parametrize("mode", ["attach", "recorder"])
def test_a_model_whose_name_is_no_text_is_asked_nothing_and_its_call_is_kept(
    sessions: Sessions, mode: str, invoke: Callable[..., Any]
) -> None:
    name = MagicMock()

    class Nameless(Model):
        def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
            return {"ls_provider": name, "ls_model_name": name, "ls_model_type": "chat"}

    model = Nameless(told_in="message")
    graph, config = watched(sessions, mode, lambda state: {"messages": [model.invoke(state["messages"])]})
    invoke(graph, human("hi"), config)
    (call,) = sessions.get("t").model_calls()
    assert (call.model, call.provider, call.input_tokens) == ("gpt-4o-mini", None, 1000)
    assert not [each for each in name.mock_calls if "lower" in str(each)]  # which is what a table of prices asks


def test_a_model_that_asks_another_one_counts_once(sessions: Sessions, invoke: Callable[..., Any]) -> None:
    model = Model(inner=Model())
    graph, config = watched(sessions, "attach", lambda state: {"messages": [model.invoke(state["messages"])]})
    invoke(graph, human("hi"), config)
    assert took(sessions.get("t")) == (1, 1000, 100, PRICE)


@pytest.mark.parametrize("mode", ["attach", "recorder"])
def test_a_cached_answer_is_said_again_and_costs_nothing(
    sessions: Sessions, mode: str, invoke: Callable[..., Any]
) -> None:
    model = Model(cache=InMemoryCache())
    graph, config = watched(sessions, mode, lambda state: {"messages": [model.invoke(state["messages"][-1].text)]})
    for _ in range(3):
        invoke(graph, human("hi"), config)
    invoke(graph, human("hi"), config | {"configurable": {"thread_id": "u"}, "metadata": {"thread_id": "u"}})
    session = sessions.get("t")
    assert [(m.role, m.text, m.flags) for m in session.messages()] == [
        *[("user", "hi", ()), ("assistant", "answer 1", ())] * 3
    ]
    assert [(call.cost, call.input_tokens, call.flags) for call in session.model_calls()] == [
        (PRICE, 1000, ()),
        *[(0.0, 0, ("cached",))] * 2,
    ]
    assert took(session) == (3, 1000, 100, PRICE)
    assert [run.cost for run in session.runs()] == [PRICE, 0.0, 0.0]
    other = sessions.get("u")
    assert [message.text for message in other.messages()] == ["hi", "answer 1"]
    assert (other.cost, other.unpriced_count, other.input_tokens) == (0.0, 0, 0)


def test_a_cached_answer_costs_nothing_with_the_checkpointer_alone(sessions: Sessions) -> None:
    model = Model(cache=InMemoryCache())
    graph, _ = watched(sessions, "checkpointer", lambda state: {"messages": [model.invoke(state["messages"][-1].text)]})
    for thread_id in ("t", "u"):
        graph.invoke(human("hi"), sessions.config(thread_id))
    assert [sessions.get(each).cost for each in ("t", "u")] == [PRICE, 0.0]


def test_a_chain_says_a_cached_answer_again(sessions: Sessions) -> None:
    model = Model(cache=InMemoryCache())
    for _ in range(2):
        model.invoke("hi", {**sessions.config("t"), "callbacks": [sessions.recorder]})
    session = sessions.get("t")
    assert [message.text for message in session.messages()].count("answer 1") == 2
    assert took(session) == (2, 1000, 100, PRICE)


def test_a_cached_answer_that_a_node_only_quotes_is_one_message(sessions: Sessions) -> None:
    model = Model(cache=InMemoryCache())
    graph, config = watched(sessions, "attach", lambda state: {"messages": [("ai", model.invoke("x").text)]})
    for _ in range(2):
        graph.invoke(human("hi"), config)
    assert [m.text for m in sessions.get("t").messages()] == ["hi", "answer 1"] * 2


# By hand


def test_messages_with_usage_that_a_loop_adds_are_priced(sessions: Sessions) -> None:
    session = sessions.open("t")
    answer = AIMessage("hello", usage_metadata=USAGE, response_metadata=MADE_BY)
    with session:
        session.add(answer)
        session.add(answer)  # without an id: said again
    session.add({"role": "assistant", "content": "ho", "model": "gpt-4o-mini"} | {"usage": {"prompt_tokens": 1000}})
    assert took(sessions.get("t")) == (3, 3000, 200, pytest.approx(0.00042))
    assert sessions.get("t").unpriced_count == 1  # half of its tokens are not known
    (run,) = session.runs()
    assert (run.input_tokens, run.output_tokens, run.cost) == (2000, 200, pytest.approx(0.00042))


def test_a_history_that_is_passed_whole_is_priced_once(sessions: Sessions) -> None:
    session = sessions.open("t")
    history: list[BaseMessage] = []
    for turn in range(3):
        history += [HumanMessage(f"question {turn}"), told(AIMessage("", usage_metadata=USAGE), f"answer {turn}")]
        session.add_history(history)
    assert took(sessions.get("t"))[:3] == (3, 3000, 300)


BY_HAND: dict[str, Any] = {
    "counts": {"input_tokens": 1000, "output_tokens": 100},
    "langchain": {"usage": USAGE},
    "openai": {"usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}},
    "responses": {"usage": {"input_tokens": 1000, "output_tokens": 100, "input_tokens_details": {"cached_tokens": 0}}},
}


@pytest.mark.parametrize("given", BY_HAND.values(), ids=BY_HAND)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_is_recorded_by_hand(sessions: Sessions, given: Any, is_async: bool) -> None:
    session = sessions.for_user("ada").open("t")
    at = datetime(2026, 1, 2, tzinfo=UTC)
    options = {"provider": "openai", "duration": timedelta(milliseconds=5), "at": at, **given}
    if is_async:
        asyncio.run(session.arecord_model_call("gpt-4o-mini", **options))
    else:
        session.record_model_call("gpt-4o-mini", **options)
    (call,) = session.model_calls()
    assert (call.model, call.provider, call.input_tokens, call.output_tokens) == ("gpt-4o-mini", "openai", 1000, 100)
    assert (call.cost, call.duration_ms, call.started_at, call.flags) == (PRICE, 5.0, at, ())
    assert took(sessions.get("t")) == (1, 1000, 100, PRICE)
    assert [(used.key, used.cost) for used in sessions.usage("user")] == [("ada", PRICE)]
    assert inspect.signature(Session.arecord_model_call) == inspect.signature(Session.record_model_call)


@pytest.mark.parametrize("in_a_block", [False, True])
@pytest.mark.parametrize("message_first", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_a_call_and_the_message_that_tells_of_it_are_one(
    sessions: Sessions, in_a_block: bool, message_first: bool, named: bool
) -> None:
    session = sessions.open("t")

    def turn(number: int) -> None:
        usage = {"input_tokens": 2000, "output_tokens": 200} if named else {"usage": USAGE}
        steps = [
            lambda: session.record_model_call("gpt-4o-mini", message_id=f"m{number}" if named else None, **usage),
            lambda: session.add(AIMessage("hi", id=f"m{number}", usage_metadata=USAGE, response_metadata=MADE_BY)),
        ]
        for step in reversed(steps) if message_first else steps:
            step()

    for number in range(3):
        if in_a_block:
            with session:
                turn(number)
        else:
            turn(number)
    factor = 2 if named else 1  # what is told by hand is what counts
    assert took(sessions.get("t")) == (3, 3000 * factor, 300 * factor, pytest.approx(0.00063 * factor))
    assert [(call.message_id, call.flags) for call in session.model_calls()] == [("m0", ()), ("m1", ()), ("m2", ())]
    assert sum(run.cost or 0 for run in session.runs()) == (sessions.get("t").cost if in_a_block else 0)


def test_a_call_that_a_node_records_by_hand_is_not_told_again_by_its_message(sessions: Sessions) -> None:
    def answer(state: MessagesState) -> Any:
        sessions.open("t", user_id="ada").record_model_call("gpt-4o-mini", usage=USAGE)
        return {"messages": [AIMessage("hi", usage_metadata=USAGE, response_metadata=MADE_BY)]}

    graph, config = watched(sessions, "checkpointer", answer)
    graph.invoke(human("hi"), config)
    assert took(sessions.get("t")) == (1, 1000, 100, PRICE)


def test_no_price_is_none_and_never_0(sessions: Sessions) -> None:
    session = sessions.open("t")
    assert (sessions.get("t").cost, session.stats().cost) == (None, None)
    with session:
        session.record_model_call("a model of ours", usage=USAGE)
        session.record_model_call("gpt-4o-mini", error=TimeoutError("slow"))
    assert [(call.cost, call.error) for call in session.model_calls()] == [(None, None), (None, "TimeoutError: slow")]
    assert (sessions.get("t").cost, session.stats().cost, session.runs()[0].cost) == (None, None, None)
    for by in ("user", "session", "model", "day"):
        assert {used.cost for used in sessions.usage(by)} == {None}
    assert sessions.get("t").unpriced_count == 1
    session.record_model_call("a model of ours", cost=0.5)
    session.record_model_call("a free model", cost=0)
    assert (sessions.get("t").cost, session.stats().cost) == (0.5, 0.5)
    assert [used.cost for used in sessions.usage("model")] == [0.5, 0.0, None]


@pytest.mark.parametrize("given", [{"input_tokens": -1}, {"output_tokens": 1.5}, {"cost": -1}, {"cost": float("nan")}])
def test_what_is_no_count_and_no_cost_is_refused(sessions: Sessions, given: Any) -> None:
    session = sessions.open("t")
    with pytest.raises(InvalidArgument, match=next(iter(given))):
        session.record_model_call("m", **given)
    assert session.model_calls() == []


WRITTEN = {"input_tokens": 1_000_000, "output_tokens": 0, "total_tokens": 1_000_000}


class Gateway(BaseChatModel):
    """States no provider, so LangChain states the name of the class. Its answer may state one."""

    metadata_of_answer: dict[str, Any]

    @property
    def _llm_type(self) -> str:
        return "gateway"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        message = AIMessage("hi", usage_metadata=USAGE, response_metadata=self.metadata_of_answer)
        return ChatResult(generations=[ChatGeneration(message=message)])


class Declared(Gateway):
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {"ls_provider": "our gateway", "ls_model_type": "chat"}


@pairwise(
    mode=[*MODES, "middleware"],
    case=[(Gateway, "openai", PRICE), (Gateway, None, PRICE), (Gateway, "unknown", None), (Declared, "openai", PRICE)],
    runner=[agents.invoke, agents.ainvoke],
    each_engine=ENGINES,
)
async def test_a_model_of_an_own_class_is_priced_by_what_its_answer_states(
    sessions: Sessions, mode: str, case: tuple[type[Gateway], str | None, Any], runner: agents.Runner
) -> None:
    kind, provider, price = case
    model = kind(metadata_of_answer={**MADE_BY, **({} if provider is None else {"model_provider": provider})})
    if mode == "middleware":
        graph: Any = create_agent(model, middleware=[SessionMiddleware(sessions)])
        config: Any = sessions.config("t", user_id="ada")
    else:
        graph, config = watched(sessions, mode, lambda state: {"messages": [model.invoke(state["messages"])]})
    await runner(graph, human("hi"), config)
    session = sessions.get("t")
    assert took(session) == (1, 1000, 100, price)
    assert session.unpriced_count == (1 if price is None else 0)
    if kind is Gateway and provider is not None:
        assert [call.provider for call in session.model_calls()] == [provider]


CACHES: dict[str, tuple[Any, float]] = {
    "for an hour": ({"cache_creation": 0, "ephemeral_1h_input_tokens": 1_000_000}, 12.0),
    "for five minutes": ({"cache_creation": 0, "ephemeral_5m_input_tokens": 1_000_000}, 7.5),
    "for both": ({"ephemeral_5m_input_tokens": 500_000, "ephemeral_1h_input_tokens": 500_000}, 9.75),
    "for as long as usual": ({"cache_creation": 1_000_000}, 7.5),
}


@pytest.mark.parametrize("mode", [*MODES, "by hand"])
@pytest.mark.parametrize(("details", "price"), CACHES.values(), ids=CACHES)
def test_what_is_written_to_the_providers_cache_has_its_own_price(
    sessions: Sessions, mode: str, details: Any, price: float
) -> None:
    usage: Any = {**WRITTEN, "input_token_details": details}
    made_by = {"model_name": "claude-sonnet-4-5-20250929", "model_provider": "anthropic"}
    if mode == "by hand":
        sessions.open("t").record_model_call(made_by["model_name"], usage=usage)
    else:
        message = AIMessage("hi", usage_metadata=usage, response_metadata=made_by)
        graph, config = watched(sessions, mode, lambda state: {"messages": [message]})
        graph.invoke(human("hi"), config)
    assert sessions.get("t").cost == pytest.approx(price)
    assert sessions.get("t").input_tokens == 1_000_000


def test_the_tables_say_the_same(sessions: Sessions, tmp_path: Path) -> None:
    model = Model()
    graph, config = watched(sessions, "attach", lambda state: {"messages": [told(model.invoke(state["messages"]))]})
    for _ in range(3):
        graph.invoke(human("hi"), config)
    sessions.get("t").messages()
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        sums = [
            connection.execute(f"SELECT SUM(input_tokens), SUM(output_tokens), SUM(cost) FROM {table}").fetchone()
            for table in ("sessions", "runs", "model_calls")
        ]
    assert sums == [(3000, 300, pytest.approx(0.00063))] * 3
