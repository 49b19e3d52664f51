"""Any compiled graph, attached or with the parts put in by hand, is recorded exactly once and in order."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents.structured_output import ToolStrategy
from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackHandler, CallbackManager
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import MessagesState, StateGraph
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command
from pydantic import BaseModel

from session_middleware import GraphHasPart, NotAGraph, Sessions
from tests.support import agents
from tests.support.agents import GRAPHS, ONE_CALL, RUNNERS, TURN, Runner, ainvoke, human, invoke, kinds, said

# Every graph, every way of running it


@pytest.mark.parametrize("runner", RUNNERS, ids=lambda runner: runner.__name__)
@pytest.mark.parametrize("kind", GRAPHS)
async def test_three_turns_are_recorded_exactly_once_and_in_order(
    kind: str, runner: Runner, sessions: Sessions
) -> None:
    graph = sessions.attach(GRAPHS[kind]())
    for _ in range(3):
        await runner(graph, human("look up tea"), sessions.config("t", user_id="alice"))
    session = sessions.get("t")
    assert kinds(session) == TURN[kind] * 3
    assert [run.outcome for run in session.runs()] == ["ok"] * 3
    assert [event.kind for event in session.events()] == ["opened", "resumed", "resumed"]
    assert {message.run_id for message in session.messages()} == {run.id for run in session.runs()}
    assert {call.status for call in session.tool_calls()} <= {"ok"}
    state = graph.get_state(sessions.config("t", user_id="alice"))
    by_id = {message.message_id: message for message in session.messages()}
    assert [by_id[message.id].text for message in state.values["messages"]] == [
        m.text for m in state.values["messages"]
    ]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("runner", [invoke, ainvoke], ids=lambda runner: runner.__name__)
async def test_the_record_is_the_same_whatever_the_durability(
    durability: str, runner: Runner, sessions: Sessions
) -> None:
    graph = sessions.attach(agents.tool_graph())
    for _ in range(2):
        await runner(graph, human("both tea"), sessions.config("t"), durability=durability)
    session = sessions.get("t")
    assert [role for role, _ in said(session)] == ["user", "assistant", "tool", "tool", "assistant"] * 2
    calls = [(call.name, call.result) for call in session.tool_calls()]  # in either order: they run side by side
    assert [sorted(calls[:2]), sorted(calls[2:])] == [[("look_up", "tea is nice"), ("price", "3")]] * 2
    assert all(call.duration_ms is not None and call.message_id for call in session.tool_calls())


def test_other_sessions_streaming_in_between_change_nothing(sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph())
    streams = [graph.stream(human("look up tea"), sessions.config(name)) for name in ("a", "b")]
    for _ in zip(*streams, strict=True):
        pass
    for session in (sessions.get("a"), sessions.get("b")):
        assert kinds(session) == ONE_CALL
        assert [event.kind for event in session.events()] == ["opened"]
        assert {message.run_id for message in session.messages()} == {session.runs()[0].id}


def test_a_batch_of_several_sessions_keeps_them_apart(sessions: Sessions) -> None:
    names = ["a", "b", "c", "d"]
    graph = sessions.attach(agents.tool_graph())
    graph.batch([human(f"look up {name}") for name in names], [sessions.config(name) for name in names])
    assert all(said(sessions.get(name))[2] == ("tool", f"{name} is nice") for name in names)


def test_a_graph_made_of_functions_is_a_graph(sessions: Sessions) -> None:
    @task
    def shout(text: str) -> str:
        return text.upper()

    @entrypoint()
    def loud(text: str, *, previous: Any = None) -> str:
        return (previous or "") + shout(text).result()

    graph = sessions.attach(loud)
    graph.invoke("a", sessions.config("t"))
    assert graph.invoke("b", sessions.config("t")) == "AB"
    assert [run.outcome for run in sessions.get("t").runs()] == ["ok", "ok"]


# Tools


def test_parallel_tool_calls_are_one_row_each(sessions: Sessions) -> None:
    graph = sessions.attach(agents.agent())
    graph.invoke(human("both tea"), sessions.config("t"))
    calls = sessions.get("t").tool_calls()
    assert sorted((call.name, call.status, call.attempt) for call in calls) == [
        ("look_up", "ok", 1),
        ("price", "ok", 1),
    ]
    assert sessions.get("t").stats().tools == {"look_up": 1, "price": 1}


async def test_a_tool_error_that_the_graph_handles_is_an_error_in_the_record(sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph())
    await graph.ainvoke(human("fail tea"), sessions.config("t"))
    graph.invoke(human("fail tea"), sessions.config("u"))
    for session in (sessions.get("t"), sessions.get("u")):
        (call,) = session.tool_calls()
        assert (call.status, call.arguments) == ("error", {"thing": "tea"})
        assert "no tea today" in str(call.error)
        assert [run.outcome for run in session.runs()] == ["ok"]


async def test_a_tool_error_that_ends_the_run_is_recorded_before_it_is_raised(sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph(handle_tool_errors=False))
    with pytest.raises(RuntimeError, match="no tea today"):
        await graph.ainvoke(human("break tea"), sessions.config("t"))
    with pytest.raises(RuntimeError, match="no tea today"):
        graph.invoke(human("break tea"), sessions.config("u"))
    for session in (sessions.get("t"), sessions.get("u")):
        assert kinds(session) == ["user", "assistant", "failing"]
        assert [call.status for call in session.tool_calls()] == ["error"]
        assert [(run.outcome, run.error) for run in session.runs()] == [("error", "RuntimeError: no tea today")]


async def test_tools_that_run_while_the_database_is_busy_are_one_row_each(sessions: Sessions, tmp_path: Path) -> None:
    busy = sqlite3.connect(tmp_path / "sessions.db", isolation_level=None, check_same_thread=False)
    names, turn = ["a", "b", "c"], threading.Lock()
    answered: list[str] = []

    class Asking(agents.Scripted):  # another process holds the write lock until every tool has answered
        def _reply(self, messages: list[Any]) -> AIMessage:
            with turn:
                if not busy.in_transaction and not answered:
                    busy.execute("BEGIN IMMEDIATE")
                elif messages[-1].type == "tool":
                    answered.append("tool")
                    if len(answered) == len(names):
                        busy.execute("ROLLBACK")
                        answered.clear()
            return super()._reply(messages)

    @tool
    async def look_up(thing: str) -> str:
        """Takes no time."""
        return f"{thing} is nice"

    graph = sessions.attach(agents.tool_graph(look_up, model=Asking()))
    for _ in range(5):
        runs = [graph.ainvoke(human("look up tea"), sessions.config(name), durability="async") for name in names]
        await asyncio.gather(*runs)
        await (
            sessions.asettle()
        )  # the next read of a session would wait for the end of its last run, and so for the lock
    busy.close()
    for name in names:
        assert kinds(sessions.get(name)) == ONE_CALL * 5
        assert {(call.attempt, call.status) for call in sessions.get(name).tool_calls()} == {(1, "ok")}


def test_an_interrupted_tool_is_a_second_attempt_when_it_goes_on(sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph())
    config = sessions.config("t")
    assert "__interrupt__" in graph.invoke(human("ask tea"), config)
    assert graph.invoke(Command(resume="yes"), config)["messages"][-1].text == "it said tea: yes"
    session = sessions.get("t")
    assert [(call.attempt, call.status) for call in session.tool_calls()] == [(1, "interrupted"), (2, "ok")]
    assert [run.outcome for run in session.runs()] == ["waiting", "ok"]
    assert [(one.node, one.value, one.answer) for one in session.questions()] == [("tools", "may I have tea?", "yes")]
    assert [role for role, _ in said(session)] == ["user", "assistant", "tool", "assistant"]


async def test_a_node_that_asks_a_person_goes_on_where_it_stopped(sessions: Sessions) -> None:
    graph = sessions.attach(agents.approval())
    config = sessions.config("t", user_id="alice")
    await graph.ainvoke(human("go"), config)
    await graph.ainvoke(Command(resume="yes"), config)
    session = sessions.get("t")
    assert said(session) == [("user", "go"), ("assistant", "approved: yes")]
    assert [(one.answer, one.answered_by) for one in session.questions()] == [("yes", "alice")]
    assert [run.outcome for run in session.runs()] == ["waiting", "ok"]


async def test_a_tools_artifact_is_kept_as_langgraphs_own_saver_keeps_it(sessions: Sessions) -> None:
    @tool(response_format="content_and_artifact")
    def look_up(thing: str) -> tuple[str, list[Document]]:
        """Finds documents."""
        return thing, [Document(thing, metadata={"page": 1})]

    theirs = agents.tool_graph(look_up, checkpointer=InMemorySaver())
    ours = sessions.attach(agents.tool_graph(look_up))
    kept = []
    for graph in (theirs, ours):
        await graph.ainvoke(human("look up tea"), sessions.config("t"))
        kept.append(graph.get_state(sessions.config("t")).values["messages"][2].artifact)
    assert kept[0] == kept[1]


def test_a_graph_run_by_a_tool_under_its_own_thread_id_is_its_own_session(sessions: Sessions) -> None:
    inner = sessions.attach(agents.chat())

    @tool
    def look_up(thing: str) -> str:
        """Asks a colleague."""
        return str(inner.invoke(human(thing), sessions.config("inner"))["messages"][-1].text)

    outer = sessions.attach(agents.tool_graph(look_up))
    outer.invoke(human("look up tea"), sessions.config("outer"))
    assert kinds(sessions.get("outer")) == ONE_CALL
    assert said(sessions.get("inner")) == [("user", "tea"), ("assistant", "you said tea")]
    for session in (sessions.get("inner"), sessions.get("outer")):
        assert [run.outcome for run in session.runs()] == ["ok"]
        assert [event.kind for event in session.events()] == ["opened"]


class Weather(BaseModel):
    sky: str


def test_an_agents_structured_response_is_kept_and_read_back(sessions: Sessions) -> None:
    class Answering(agents.Scripted):
        def _reply(self, messages: list[Any]) -> AIMessage:
            return AIMessage("", tool_calls=[{"name": "Weather", "args": {"sky": "blue"}, "id": "w"}])

    plain = agents.create_agent(Answering(), [], response_format=ToolStrategy(Weather))
    graph = sessions.attach(plain)
    assert graph.invoke(human("sky?"), sessions.config("t"))["structured_response"] == Weather(sky="blue")
    assert graph.get_state(sessions.config("t")).values["structured_response"] == Weather(sky="blue")


# Sessions


def test_a_number_as_thread_id_is_the_session_of_that_name(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    graph.invoke(human("hi"), {"configurable": {"thread_id": 42}})
    graph.invoke(human("hi"), sessions.config("42"))
    graph.invoke(human("hi"), sessions.config(42))
    assert [session.id for session in sessions.list()] == ["42"]
    assert len(sessions.get(42).runs()) == len(sessions.get("42").runs()) == 3


def test_a_config_without_an_id_is_a_new_session_each_time(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    for _ in range(2):
        graph.invoke(human("hi"), sessions.config())
    assert sorted(session.message_count for session in sessions.list()) == [2, 2]


def test_a_session_says_how_it_was_opened(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    graph.invoke(human("hi"), sessions.config("t"))
    assert sessions.get("t").opened_as == "opened"
    graph.invoke(human("hi"), sessions.config("t"))
    assert sessions.get("t").opened_as == "resumed"
    assert sessions.open("t").opened_as == "resumed"


# The parts


def test_attach_leaves_the_graph_as_it_was_and_runs_it_as_before(sessions: Sessions) -> None:
    graph = agents.tool_graph().with_config(tags=["mine"], recursion_limit=7)
    before = dict(vars(graph))
    attached = sessions.attach(graph)
    assert vars(graph) == before
    assert (attached.config["tags"], attached.config["recursion_limit"]) == (["mine"], 7)
    plain = graph.invoke(human("look up tea"))
    ours = attached.invoke(human("look up tea"), sessions.config("t"))
    assert [m.text for m in plain["messages"]] == [m.text for m in ours["messages"]]
    assert sessions.count() == 1


@pytest.mark.parametrize("part", [{"checkpointer": InMemorySaver()}, {"store": InMemoryStore()}])
def test_attach_does_not_take_the_place_of_a_part_unless_told_to(part: dict[str, Any], sessions: Sessions) -> None:
    (name,) = part
    graph = agents.tool_graph(**part)
    with pytest.raises(GraphHasPart, match=f"{name}=False.*replace=True"):
        sessions.attach(graph)
    kept = sessions.attach(graph, **{name: False})
    assert getattr(kept, name) is part[name]
    kept.invoke(human("hi"), sessions.config("kept"))
    sessions.attach(graph, replace=True).invoke(human("hi"), sessions.config("replaced"))
    assert [kinds(sessions.get(name)) for name in ("kept", "replaced")] == [["user", "assistant"]] * 2


@pytest.mark.parametrize(
    "thing", [StateGraph(MessagesState), len, None, agents.chat() | str], ids=["builder", "function", "none", "chain"]
)
def test_attach_says_what_it_takes(thing: Any, sessions: Sessions) -> None:
    with pytest.raises(NotAGraph, match="compiled graph"):
        sessions.attach(thing)


@pytest.mark.parametrize("build", [agents.tool_graph, agents.typed_graph])
def test_attaching_twice_is_attaching_once(build: Any, sessions: Sessions) -> None:
    graph = sessions.attach(sessions.attach(build()))
    graph.invoke(human("hi"), sessions.config("t"))
    assert (len(sessions.get("t").messages()), len(sessions.get("t").runs())) == (2, 1)


@pytest.mark.parametrize("runner", [invoke, ainvoke], ids=lambda runner: runner.__name__)
async def test_the_checkpointer_alone_keeps_sessions_messages_and_tool_results(
    runner: Runner, sessions: Sessions
) -> None:
    graph = agents.tool_graph(checkpointer=sessions.checkpointer, store=sessions.store)
    for _ in range(2):
        await runner(graph, human("look up tea"), sessions.config("t"))
    session = sessions.get("t")
    assert [role for role, _ in said(session)] == ["user", "assistant", "tool", "assistant"] * 2
    assert [(call.name, call.status, call.result) for call in session.tool_calls()] == [
        ("look_up", "ok", "tea is nice")
    ] * 2
    assert [event.kind for event in session.events()] == ["opened", "resumed"]


@pytest.mark.parametrize("kind", ["fan_out", "parallel"])
def test_the_checkpointer_alone_takes_parallel_branches_for_one_run(kind: str, sessions: Sessions) -> None:
    graph = GRAPHS[kind]()
    graph.checkpointer = sessions.checkpointer
    for _ in range(2):
        graph.invoke(human("look up tea"), sessions.config("t"))
    assert [event.kind for event in sessions.get("t").events()] == ["opened", "resumed"]


@pytest.mark.parametrize("runner", [invoke, ainvoke], ids=lambda runner: runner.__name__)
async def test_the_recorder_alone_records_a_graph_without_checkpoints(runner: Runner, sessions: Sessions) -> None:
    graph = agents.tool_graph()
    config = {**sessions.config("t", user_id="alice"), "callbacks": [sessions.recorder]}
    history = [HumanMessage("look up tea", id="h1")]
    await runner(graph, {"messages": history}, config)
    session = sessions.get("t")
    assert kinds(session) == ONE_CALL
    assert (session.user_id, session.runs()[0].outcome, session.stats().checkpoint_count) == ("alice", "ok", 0)


def test_the_recorder_alone_records_a_history_that_is_passed_again_once(sessions: Sessions) -> None:
    graph = agents.tool_graph()
    config = {**sessions.config("t"), "callbacks": [sessions.recorder]}
    history: list[Any] = []
    for turn in range(3):
        history = graph.invoke({"messages": [*history, HumanMessage("look up tea", id=f"h{turn}")]}, config)["messages"]
    assert kinds(sessions.get("t")) == ONE_CALL * 3


@pytest.mark.parametrize("runner", [invoke, ainvoke], ids=lambda runner: runner.__name__)
@pytest.mark.parametrize("given", [1, 2])
async def test_a_recorder_given_more_than_once_records_once(given: int, runner: Runner, sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph(), recorder=False)
    attached = sessions.attach(agents.tool_graph())
    config = {**sessions.config("t"), "callbacks": [sessions.recorder] * given}
    for each in (graph, attached):
        await runner(each, human("look up tea"), config)
    assert kinds(sessions.get("t")) == ONE_CALL * 2
    assert len(sessions.get("t").runs()) == 2


class CountingTools(BaseCallbackHandler):
    def __init__(self) -> None:
        self.count = 0

    def on_tool_end(self, *args: Any, **kwargs: Any) -> None:
        self.count += 1


def managed(kind: type[CallbackManager] | type[AsyncCallbackManager]) -> Callable[[CountingTools], Any]:
    return lambda handler: kind([], inheritable_handlers=[handler])


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize("given", [lambda handler: [handler], managed(CallbackManager), managed(AsyncCallbackManager)])
async def test_ones_own_callbacks_are_called_beside_the_recorder(given: Any, run: Runner, sessions: Sessions) -> None:
    before, bound, later = CountingTools(), CountingTools(), CountingTools()
    graph = sessions.attach(agents.tool_graph().with_config(callbacks=given(before)))
    config: Any = {**sessions.config("t"), "callbacks": given(later)}
    await run(graph.with_config(callbacks=given(bound)), human("look up tea"), config)
    assert (before.count, bound.count, later.count) == (1, 1, 1)
    found = sessions.get("t")
    assert ([run.outcome for run in found.runs()], found.message_count) == (["ok"], 4)
    assert [call.duration_ms is not None for call in found.tool_calls()] == [True]


@pytest.mark.parametrize("config", [{}, {"configurable": {}}])
def test_without_a_thread_id_langgraph_raises_before_it_asks_the_checkpointer(config: Any, sessions: Sessions) -> None:
    """The README quotes it."""
    graph: Any = agents.tool_graph(checkpointer=sessions.checkpointer)
    with pytest.raises(ValueError, match="Checkpointer requires one or more of the following"):
        graph.invoke(human("hi"), config)
    for read in (graph.get_state, lambda config: graph.update_state(config, human("hi"))):
        with pytest.raises(KeyError):
            read(config)
    assert sessions.count() == 0
