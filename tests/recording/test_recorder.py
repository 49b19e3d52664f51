"""What models, tools and people say in graphs, chains and alone, as the recorder sees it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from operator import add
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware, ToolCallLimitMiddleware
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

from session_middleware import Sessions
from session_middleware.storage.jsonable import plain
from tests.support import agents
from tests.support.agents import human, said
from tests.support.pairwise import pairwise
from tests.support.processes import Process

pytestmark = [pytest.mark.sessions(stream_flush="10ms"), pytest.mark.usefixtures("consistent")]


@pytest.fixture(autouse=True)
def _no_run_is_left(sessions: Sessions) -> Iterator[None]:
    yield
    assert sessions.recorder._runs == {}


class Plain(TypedDict):
    messages: Annotated[list[Any], add]  # which gives messages no ids


def one_node(function: Any, **compiled_with: Any) -> Any:
    return StateGraph(MessagesState).add_node("node", function).add_edge(START, "node").compile(**compiled_with)


class Priced(agents.Scripted):
    """Streams word by word, is of a known make, and may stop half-way."""

    _stop: Any = None  # called before the last word

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {"ls_provider": "openai", "ls_model_name": "gpt-4o-mini", "ls_model_type": "chat"}

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for word in ("one ", "two "):
            yield ChatGenerationChunk(message=AIMessageChunk(word))
        if self._stop is not None:
            self._stop()
        usage = {
            "input_tokens": 1000,
            "output_tokens": 100,
            "total_tokens": 1100,
            "input_token_details": {"cache_read": 600},
            "output_token_details": {"reasoning": 20},
        }
        yield ChatGenerationChunk(message=AIMessageChunk("three", usage_metadata=usage))  # type: ignore[arg-type]


# Models


def test_a_model_call_has_its_tokens_its_price_and_its_times(sessions: Sessions) -> None:
    model = Priced()
    graph = sessions.attach(one_node(lambda state: {"messages": [model.invoke(state["messages"])]}))
    assert list(graph.stream(human("count"), sessions.config("t"), stream_mode="messages"))
    session = sessions.get("t")
    (call,) = session.model_calls()
    assert (call.model, call.provider, call.node, call.error) == ("gpt-4o-mini", "openai", "node", None)
    tokens = (call.input_tokens, call.output_tokens, call.cached_tokens, call.reasoning_tokens)
    assert tokens == (1000, 100, 600, 20)
    assert call.cost
    assert 0 < call.cost < 0.001
    assert 0 <= call.first_token_ms <= call.duration_ms  # type: ignore[operator]
    assert call.message_id == session.messages()[1].message_id
    (run,) = session.runs()
    assert (run.input_tokens, run.output_tokens, run.cost) == (1000, 100, call.cost)
    assert (session.model_call_count, session.unpriced_count, session.cost) == (1, 0, call.cost)


def test_a_model_whose_price_is_not_known_costs_nothing_that_is_known(sessions: Sessions) -> None:
    sessions.attach(agents.chat()).invoke(human("hi"), sessions.config("t"))
    stats = sessions.get("t").stats()
    assert (stats.model_call_count, stats.unpriced_count, stats.cost) == (1, 1, None)
    assert sessions.get("t").model_calls()[0].cost is None
    assert sessions.get("t").runs()[0].cost is None


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("count", [-3, None, "many", 2**60, 1.5])
def test_token_counts_that_are_none_are_left_out_with_a_mark(count: Any, sessions: Sessions) -> None:
    message = AIMessage("hi").model_copy(
        update={"usage_metadata": {"input_tokens": count, "output_tokens": 2, "total_tokens": 2}}
    )
    sessions.attach(one_node(lambda state: {"messages": [message]})).invoke(human("hi"), sessions.config("t"))
    recorded = sessions.get("t").messages()[1]
    assert (recorded.output_tokens, recorded.input_tokens) == (2, None)
    assert recorded.flags == (() if count is None else ("invalid:tokens",))


def test_what_a_model_says_in_a_node_that_keeps_it_to_itself_is_said_aside(sessions: Sessions) -> None:
    model = agents.Scripted()

    def route(state: MessagesState) -> dict[str, Any]:
        model.invoke([HumanMessage("which way?")])
        return {"messages": [("ai", model.invoke(state["messages"]).text)]}  # the same words, another message

    sessions.attach(one_node(route)).invoke(human("hi"), sessions.config("t"))
    found = [(m.text, m.flags, bool(m.checkpoint_ns)) for m in sessions.get("t").messages()]
    assert found == [("hi", (), False), ("you said which way?", ("aside",), True), ("you said hi", (), False)]


def test_a_summary_that_a_node_puts_before_known_messages_stands_there_without_a_checkpointer(
    sessions: Sessions,
) -> None:
    def trim(state: MessagesState) -> dict[str, Any]:
        kept = state["messages"][-1:]
        return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), HumanMessage("so far: two left out"), *kept]}

    builder = StateGraph(MessagesState).add_node("trim", trim).add_node("bot", lambda _: {"messages": [("ai", "ok")]})
    graph = builder.add_edge(START, "trim").add_edge("trim", "bot").compile()
    given = [HumanMessage("one"), AIMessage("two"), HumanMessage("three")]
    graph.invoke({"messages": given}, sessions.config("t") | {"callbacks": [sessions.recorder]})
    texts = [m.text for m in sessions.get("t").messages()]
    assert texts == ["one", "two", "so far: two left out", "three", "ok"]


# Streams


def wait_until_stored(sessions: Sessions, text: str) -> None:
    """Until it is on disk: the session opens, and the text is flushed, in the background."""
    for _ in range(4000):
        session = sessions.find("t")
        if session is not None and any(m.text == text for m in session.messages(branch="all")):
            return
        threading.Event().wait(0.005)
    raise AssertionError(f"{text!r} was never stored")


def test_what_is_streamed_is_down_before_it_is_whole_and_is_one_message_then(sessions: Sessions) -> None:
    model, seen = Priced(), []

    def stop() -> None:
        wait_until_stored(sessions, "one two ")
        seen.extend((m.text, m.status) for m in sessions.get("t").messages())

    model._stop = stop
    graph = sessions.attach(one_node(lambda state: {"messages": [model.invoke(state["messages"])]}))
    assert list(graph.stream(human("count"), sessions.config("t"), stream_mode="messages"))
    assert seen == [("count", "complete"), ("one two ", "incomplete")]
    found = [(m.text, m.status, m.version, m.flags) for m in sessions.get("t").messages()]
    assert found == [("count", "complete", 1, ()), ("one two three", "complete", 1, ())]


def test_a_stream_that_breaks_leaves_what_it_said(sessions: Sessions) -> None:
    model = Priced()

    def stop() -> None:
        raise ConnectionError("gone")

    model._stop = stop
    graph = sessions.attach(one_node(lambda state: {"messages": [model.invoke(state["messages"])]}))
    with pytest.raises(ConnectionError):
        list(graph.stream(human("count"), sessions.config("t"), stream_mode="messages"))
    session = sessions.get("t")
    assert [(m.text, m.status) for m in session.messages()] == [("count", "complete"), ("one two ", "incomplete")]
    assert [call.error for call in session.model_calls()] == ["ConnectionError: gone"]
    model._stop = None
    graph.invoke(human("again"), sessions.config("t"))
    assert [m.text for m in session.messages()][2:] == ["again", "you said again"]


KILLED = """
import sys, time
from session_middleware import Sessions
from tests.support.agents import human
from tests.recording.test_recorder import Priced, one_node, wait_until_stored

model = Priced()
sessions = Sessions(sys.argv[1], stream_flush="10ms")

def stop():
    wait_until_stored(sessions, "one two ")
    print("streaming", flush=True)
    time.sleep(60)

model._stop = stop
graph = sessions.attach(one_node(lambda state: {"messages": [model.invoke(state["messages"])]}))
list(graph.stream(human("count"), sessions.config("t"), stream_mode="messages"))
"""


def test_text_cut_off_by_a_crash_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with Process("-c", KILLED, path) as process:
        assert process.stdout.readline() == "streaming\n"
        process.kill()
    with Sessions(path) as sessions:
        found = [(m.text, m.status) for m in sessions.get("t").messages()]
        assert found == [("count", "complete"), ("one two ", "incomplete")]
        assert {problem.kind for problem in sessions.check(repair=True)} == {"dead_lease", "dead_run"}


# Tool calls with one id

PARTS = ["attach", "checkpointer", "recorder"]


def with_parts(sessions: Sessions, builder: StateGraph[Any], parts: str) -> tuple[Any, Any]:
    """A graph with some parts of ours, and the config of its runs."""
    if parts == "checkpointer":
        return builder.compile(checkpointer=sessions.checkpointer), sessions.config("t")
    if parts == "recorder":
        return builder.compile(), sessions.config("t") | {"callbacks": [sessions.recorder]}
    return sessions.attach(builder.compile()), sessions.config("t")


def executions(session: Any) -> list[Any]:
    return sorted((call.attempt, call.arguments["thing"], call.result, call.status) for call in session.tool_calls())


@pytest.mark.parametrize("runner", [agents.invoke, agents.ainvoke])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("is_agent", [False, True])
async def test_two_calls_of_one_message_with_one_id_are_two_executions(
    is_agent: bool, parts: str, runner: Any, sessions: Sessions
) -> None:
    model = agents.Saying(
        says=[agents.asks(("look_up", {"thing": "tea"}), ("look_up", {"thing": "milk"})), AIMessage("done")]
    )
    inner = create_agent(model, agents.TOOLS) if is_agent else agents.tool_graph(model=model)
    graph, config = with_parts(sessions, inner.builder, parts)
    await runner(graph, human("hi"), config)
    found = sessions.get("t").tool_calls()
    assert sorted((call.arguments["thing"], call.result) for call in found) == [
        ("milk", "milk is nice"),
        ("tea", "tea is nice"),
    ]
    assert {(call.tool_call_id, call.status) for call in found} == {("call_0", "ok")}
    assert sorted(call.attempt for call in found) == [1, 2]


@pytest.mark.parametrize("runner", [agents.invoke, agents.ainvoke])
@pytest.mark.parametrize("parts", PARTS)
async def test_agents_side_by_side_that_use_one_id_each_have_their_own_execution(
    parts: str, runner: Any, sessions: Sessions
) -> None:
    builder = StateGraph(MessagesState)
    for thing in ("tea", "milk"):
        model = agents.Saying(says=[agents.asks(("look_up", {"thing": thing})), AIMessage(f"{thing} done")])
        builder.add_node(thing, create_agent(model, agents.TOOLS)).add_edge(START, thing)
    graph, config = with_parts(sessions, builder, parts)
    await runner(graph, human("hi"), config)
    session = sessions.get("t")
    assert executions(session) == [(1, "milk", "milk is nice", "ok"), (1, "tea", "tea is nice", "ok")]
    asking = {m.message_id: m.tool_calls[0]["args"] for m in session.messages() if m.tool_calls}
    assert [asking[call.message_id] for call in session.tool_calls()] == [
        call.arguments for call in session.tool_calls()
    ]


@pytest.mark.parametrize("parts", PARTS)
def test_branches_of_one_graph_that_use_one_id_each_have_their_own_execution(parts: str, sessions: Sessions) -> None:
    builder = StateGraph(MessagesState)

    def use(thing: str) -> Any:
        model = agents.Saying(says=[agents.asks(("look_up", {"thing": thing}))])

        def node(state: MessagesState) -> dict[str, Any]:
            asked = model.invoke(state["messages"])
            return {"messages": [asked, agents.look_up.invoke(asked.tool_calls[0])]}  # type: ignore[arg-type]

        return node

    for thing in ("tea", "milk"):
        builder.add_node(thing, use(thing)).add_edge(START, thing)
    graph, config = with_parts(sessions, builder, parts)
    graph.invoke(human("hi"), config)
    assert executions(sessions.get("t")) == [(1, "milk", "milk is nice", "ok"), (1, "tea", "tea is nice", "ok")]


# Refusals and answers


def test_a_tool_that_a_person_refuses_is_refused_and_their_answer_is_recorded(sessions: Sessions) -> None:
    agent = create_agent(agents.Scripted(), agents.TOOLS, middleware=[HumanInTheLoopMiddleware({"look_up": True})])
    graph, config = sessions.attach(agent), sessions.config("t")
    for decision in ({"type": "reject", "message": "no!"}, {"type": "approve"}):
        graph.invoke(human("look up tea"), config)
        graph.invoke(Command(resume={"decisions": [decision]}), config)
    session = sessions.get("t")
    assert [(call.name, call.status) for call in session.tool_calls()] == [("look_up", "refused"), ("look_up", "ok")]
    asked = [(one.node, one.answer["decisions"][0]["type"]) for one in session.questions()]
    assert asked == [("HumanInTheLoopMiddleware.after_model", kind) for kind in ("reject", "approve")]
    assert session.error_count == 0


def test_a_tool_that_a_middleware_refuses_is_refused(sessions: Sessions) -> None:
    agent = create_agent(agents.Scripted(), agents.TOOLS, middleware=[ToolCallLimitMiddleware(run_limit=1)])
    sessions.attach(agent).invoke(human("both tea"), sessions.config("t"))
    assert sorted(call.status for call in sessions.get("t").tool_calls()) == ["ok", "refused"]


@pytest.mark.parametrize("recorder", [True, False])
def test_each_answer_of_a_person_is_that_of_one_question_and_no_message(recorder: bool, sessions: Sessions) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"{interrupt('first?')}, {interrupt('second?')}")]}

    graph, config = sessions.attach(one_node(ask), recorder=recorder), sessions.config("t")
    graph.invoke(human("go"), config)
    graph.invoke(Command(resume="yes"), config)
    graph.invoke(Command(resume="yes"), config)
    assert [text for _, text in said(sessions.get("t"))] == ["go", "yes, yes"]
    asked = [(one.value, one.answer) for one in sessions.get("t").questions()]
    assert asked == [("first?", "yes"), ("second?", "yes")]


class Decision(BaseModel):
    ok: bool


APPROVALS = [True, False, 0, 1.5, {"ok": True}, ["zebra", 1], [True], Decision(ok=True), "yes to the zebra"]


@pairwise(approval=APPROVALS, recorder=[True, False], runner=[agents.invoke, agents.ainvoke])
async def test_an_approval_is_neither_in_the_history_nor_in_memory(
    approval: Any, recorder: bool, runner: Any, tmp_path: Path
) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        interrupt("may I?")
        return {"messages": [AIMessage("done")]}

    with Sessions(tmp_path / "sessions.db", allowed_types=[Decision]) as sessions:
        graph, config = sessions.attach(one_node(ask), recorder=recorder), sessions.config("t", user_id="alice")
        await runner(graph, human("go"), config)
        await runner(graph, Command(resume=approval), config)
        session = sessions.get("t")
        assert session.history().messages == graph.get_state(config).values["messages"]
        assert await session.history().aget_messages() == session.history().messages
        words = str(approval)
        assert {memory.text for memory in session.memory.recall(words, k=10)} <= {"go", "done"}
        assert {found.text for found in sessions.search("zebra", user_id="alice")} == set()
        [question] = session.questions()
        assert (question.answer, question.answered_by) == (plain(approval), "alice")


@pytest.mark.parametrize("recorder", [True, False])
def test_several_interrupts_answered_by_their_ids_leave_a_history(recorder: bool, sessions: Sessions) -> None:
    def ask(name: str) -> Any:
        return lambda state: {"messages": [AIMessage(f"{name}: {interrupt(name)}")]}

    builder = StateGraph(MessagesState)
    for name in ("left", "right"):
        builder.add_node(name, ask(name)).add_edge(START, name)
    graph, config = sessions.attach(builder.compile(), recorder=recorder), sessions.config("t")
    graph.invoke(human("go"), config)
    graph.invoke(Command(resume={one.id: True for one in graph.get_state(config).interrupts}), config)
    assert sessions.get("t").history().messages == graph.get_state(config).values["messages"]


@pytest.mark.parametrize("durability", ["sync", "exit"])
@pytest.mark.parametrize("parts", ["attached", "checkpointer", "recorder"])
@pytest.mark.parametrize("runner", [agents.invoke, agents.ainvoke])
async def test_what_finished_beside_an_interrupt_is_recorded_once(
    runner: Any, parts: str, durability: Any, sessions: Sessions
) -> None:
    def ask(name: str) -> Any:
        return lambda state: {"messages": [AIMessage(f"{name}: {interrupt(name)}")]}

    builder = StateGraph(MessagesState).add_node("beside", lambda state: {"messages": [AIMessage("beside")]})
    for name in ("left", "right"):
        builder.add_node(name, ask(name)).add_edge(START, name)
    builder.add_edge(START, "beside")
    config: Any = sessions.config("t")
    if parts == "recorder":
        graph, config = builder.compile(checkpointer=InMemorySaver()), config | {"callbacks": [sessions.recorder]}
    else:
        graph = sessions.attach(builder.compile(), recorder=parts == "attached")
    await runner(graph, human("go"), config, durability=durability)
    for name, answer in (("left", True), ("right", "no")):
        one = next(each for each in graph.get_state(config).interrupts if each.value == name)
        await runner(graph, Command(resume={one.id: answer}), config, durability=durability)
    assert sessions.get("t").history().messages == graph.get_state(config).values["messages"]


# Tools


def test_what_a_tool_gives_back_beside_its_words_is_kept(sessions: Sessions) -> None:
    @tool(response_format="content_and_artifact")
    def look_up(thing: str) -> tuple[str, dict[str, Any]]:
        """Finds a thing."""
        return thing, {"pages": [1, 2]}

    @tool
    def price(thing: str) -> Command[Any]:
        """Says what it costs."""
        return Command(update={"messages": [ToolMessage("3", tool_call_id="call-2")]})

    sessions.attach(agents.tool_graph(look_up, price)).invoke(human("both tea"), sessions.config("t"))
    found = {call.name: call for call in sessions.get("t").tool_calls()}
    assert (found["look_up"].result, found["look_up"].artifact) == ("tea", {"pages": [1, 2]})
    assert found["price"].status == "ok"
    assert found["price"].result["__type__"] == "Command"
    assert found["price"].result["update"]["messages"][0]["content"] == "3"


def test_a_tool_called_by_hand_in_a_node_is_the_execution_of_the_request_it_answers(sessions: Sessions) -> None:
    def act(state: MessagesState) -> dict[str, Any]:
        asked = agents.Scripted().invoke(state["messages"])
        (call,) = asked.tool_calls
        result = agents.look_up.invoke(call["args"])
        return {"messages": [asked, ToolMessage(result, tool_call_id=call["id"])]}

    sessions.attach(one_node(act)).invoke(human("look up tea"), sessions.config("t"))
    session = sessions.get("t")
    (call,) = session.tool_calls()
    assert (call.tool_call_id, call.message_id) == ("call-1", session.messages()[1].message_id)
    assert [role for role, _ in said(session)] == ["user", "assistant", "tool"]


def test_a_tool_alone_is_a_run_of_its_own(sessions: Sessions) -> None:
    config: Any = {**sessions.config("t"), "callbacks": [sessions.recorder]}
    agents.look_up.invoke({"thing": "tea"}, config)
    with pytest.raises(RuntimeError):
        agents.failing.invoke({"thing": "tea"}, config)
    session = sessions.get("t")
    assert [(call.name, call.status) for call in session.tool_calls()] == [("look_up", "ok"), ("failing", "error")]
    assert [run.outcome for run in session.runs()] == ["ok", "error"]


# Chains


def test_a_chain_records_what_its_model_is_asked_and_says(sessions: Sessions) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "be nice"), ("human", "{question}")])
    chain = prompt | agents.Scripted() | StrOutputParser()
    config: Any = {**sessions.config("t"), "callbacks": [sessions.recorder]}
    for question in ("one", "two", "two"):
        chain.invoke({"question": question}, config)
    assert [text for _, text in said(sessions.get("t"))] == [
        *("be nice", "one", "you said one", "two", "you said two", "two", "you said two"),
    ]
    assert [run.outcome for run in sessions.get("t").runs()] == ["ok"] * 3


async def test_a_model_alone_that_is_passed_its_history_records_each_message_once(sessions: Sessions) -> None:
    model, history = agents.Scripted(), [HumanMessage("a")]
    config: Any = {**sessions.config("t"), "callbacks": [sessions.recorder]}
    for text in ("b", "c"):
        history += [await model.ainvoke(history, config), HumanMessage(text)]
    model.invoke(history, config)
    assert [text for _, text in said(sessions.get("t"))] == ["a", "you said a", "b", "you said b", "c", "you said c"]


def test_a_model_of_texts_is_a_model(sessions: Sessions) -> None:
    FakeListLLM(responses=["hello"]).invoke("hi", {**sessions.config("t"), "callbacks": [sessions.recorder]})
    assert said(sessions.get("t")) == [("user", "hi"), ("assistant", "hello")]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("recorder", [True, False])
@pytest.mark.parametrize("parser", [True, False])
def test_a_chain_with_message_history_records_each_message_once(
    recorder: bool, parser: bool, sessions: Sessions
) -> None:
    prompt = ChatPromptTemplate.from_messages([("placeholder", "{history}"), ("human", "{question}")])
    chain: Any = prompt | agents.Scripted()
    chain = RunnableWithMessageHistory(
        chain | StrOutputParser() if parser else chain,
        lambda session_id: sessions.open(session_id).history(),
        input_messages_key="question",
        history_messages_key="history",
    )
    config: Any = {"configurable": {"session_id": "t"}}
    if recorder:
        config |= {"metadata": {"thread_id": "t"}, "callbacks": [sessions.recorder]}
    for question in ("one", "two", "two"):
        chain.invoke({"question": question}, config)
    session = sessions.get("t")
    assert [text for _, text in said(session)] == [
        *("one", "you said one", "two", "you said two", "two", "you said two"),
    ]
    session.history().clear()
    assert (session.messages(), len(session.messages(branch="main"))) == ([], 6)


# Graphs with another checkpointer


def test_the_recorder_alone_follows_a_thread_back_in_time(sessions: Sessions) -> None:
    graph = agents.chat()
    graph.checkpointer = InMemorySaver()
    config: Any = {**sessions.config("t"), "callbacks": [sessions.recorder]}
    for text in ("a", "b"):
        graph.invoke(human(text), config)
    earlier = next(s for s in graph.get_state_history(config) if len(s.values["messages"]) == 2)
    graph.invoke(human("c"), {**earlier.config, "callbacks": [sessions.recorder]})
    session = sessions.get("t")
    assert [text for _, text in said(session)] == ["a", "you said a", "c", "you said c"]
    assert [text for _, text in said(session, branch="main")] == ["a", "you said a", "b", "you said b"]


@pytest.mark.parametrize("no_id", [None, ""])
def test_the_recorder_alone_aligns_a_state_whose_messages_have_no_ids(sessions: Sessions, no_id: str | None) -> None:
    def answer(state: Plain) -> dict[str, Any]:
        return {"messages": [AIMessage(f"you said {state['messages'][-1].content}", id=no_id)]}

    builder = StateGraph(Plain).add_node("answer", answer).add_edge(START, "answer")  # type: ignore[arg-type]
    graph = builder.compile(checkpointer=InMemorySaver())
    for text in ("yes", "no", "yes"):
        config: Any = {**sessions.config("t"), "callbacks": [sessions.recorder]}
        graph.invoke({"messages": [HumanMessage(text, id=no_id)]}, config)
    assert [text for _, text in said(sessions.get("t"))] == [
        *("yes", "you said yes", "no", "you said no", "yes", "you said yes"),
    ]


# Redaction, and faults


def test_redaction_is_of_the_record_and_not_of_the_state(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with Sessions(path, redact=["emails"], stream_flush="1ms") as sessions:
        graph = sessions.attach(agents.tool_graph())
        graph.invoke(human("look up bob@example.com"), sessions.config("t"))
        state = graph.get_state(sessions.config("t")).values["messages"]
        assert "bob@example.com" in state[0].text
        session = sessions.get("t")
        assert not any("bob@" in repr(entry) for entry in session.timeline())
        assert session.messages()[0].flags == ("redacted:emails",)
        (call,) = session.tool_calls()
        assert (call.arguments, call.flags) == ({"thing": "[redacted email]"}, ("redacted:emails",))


def test_what_cannot_be_recorded_breaks_neither_the_run_nor_its_checkpoints(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db", redact=lambda text: text[:3].encode()) as sessions:  # type: ignore[arg-type,return-value]
        graph = sessions.attach(agents.tool_graph())
        graph.invoke(human("look up tea"), sessions.config("t"))
        assert len(graph.get_state(sessions.config("t")).values["messages"]) == 4
        assert sessions.get("t").stats().recorder_faults > 0
        assert [run.outcome for run in sessions.get("t").runs()] == ["ok"]
