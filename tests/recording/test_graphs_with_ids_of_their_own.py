"""A graph that a node or a tool calls with a thread id of its own is no part of the calling run's conversation."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph._internal import _config
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import SessionAccessDenied, Sessions
from session_middleware.integrations.langchain_agents import SessionMiddleware
from tests.support import agents
from tests.support.agents import TOOLS, Scripted, human, said
from tests.support.pairwise import pairwise

pytestmark = pytest.mark.skipif(
    not hasattr(_config, "_CHECKPOINT_COORDINATE_KEYS"),
    reason="earlier releases of LangGraph pass on the namespace and the checkpointer of the calling graph",
)
ALICE = {"user_id": "alice"}


def with_id(session_id: str, identity: dict[str, str]) -> Any:
    return {"configurable": {"thread_id": session_id, **identity}}


def answering(sessions: Sessions, part: str) -> Any:
    """The graph that is called, with or without a part of ours."""
    graph = agents.chat()
    savers = {"checkpointer": sessions.checkpointer, "another saver": InMemorySaver(), "no saver": False}
    return sessions.attach(graph) if part == "attached" else graph.copy({"checkpointer": savers[part]})


def calling(sessions: Sessions, inner: Any, config: Any, place: str, question: str = "") -> Any:
    """An attached graph with a node or a tool that calls the graph `inner`."""

    def ask(thing: str) -> str:
        """Asks a colleague."""
        return str(inner.invoke(human(question or thing), config)["messages"][-1].text)

    async def aask(thing: str) -> str:
        return str((await inner.ainvoke(human(question or thing), config))["messages"][-1].text)

    if place == "tool":
        look_up = tool("look_up")(ask)
        look_up.coroutine = aask  # type: ignore[attr-defined]
        return sessions.attach(agents.tool_graph(look_up))

    def node(state: MessagesState) -> Any:
        return {"messages": [AIMessage(f"they said: {ask('tea')}")]}

    async def anode(state: MessagesState) -> Any:
        return {"messages": [AIMessage(f"they said: {await aask('tea')}")]}

    builder = StateGraph(MessagesState).add_node("caller", RunnableLambda(node, anode)).add_edge(START, "caller")
    return sessions.attach(builder.compile())


async def run(graph: Any, config: Any, mode: str) -> Any:
    value = human("look up tea")
    return graph.invoke(value, config) if mode == "sync" else await graph.ainvoke(value, config)


OUTER = {
    "node": [("user", "look up tea"), ("assistant", "they said: you said tea")],
    "tool": [
        ("user", "look up tea"),
        ("assistant", ""),
        ("tool", "you said tea"),
        ("assistant", "it said you said tea"),
    ],
}


@pairwise(
    part=["attached", "checkpointer"],
    place=["node", "tool"],
    mode=["sync", "async"],
    identity=[ALICE, {}, {"user_id": "bob"}],
)
async def test_with_our_checkpointer_it_is_a_run_of_its_own_session(
    part: str, place: str, mode: str, identity: dict[str, str], sessions: Sessions
) -> None:
    graph = calling(sessions, answering(sessions, part), with_id("inner", identity), place)
    for turn in (1, 2):
        await run(graph, sessions.config("outer", **ALICE), mode)
        inner, outer = sessions.get("inner"), sessions.get("outer")
        assert said(inner, branch="all") == [("user", "tea"), ("assistant", "you said tea")] * turn
        assert said(outer, branch="all") == OUTER[place] * turn
        assert (inner.user_id, outer.user_id) == (identity.get("user_id"), "alice")
        for session in (inner, outer):
            assert [run.outcome for run in session.runs()] == ["ok"] * turn
            assert {message.checkpoint_ns for message in session.messages()} == {""}
            assert {message.run_id for message in session.messages()} == {run.id for run in session.runs()}
            assert session.stats().recorder_faults == 0
    assert [len(sessions.get(each).model_calls()) for each in ("inner", "outer")] == [2, {"node": 0, "tool": 4}[place]]


@pairwise(
    part=["another saver", "no saver"],
    place=["node", "tool"],
    mode=["sync", "async"],
    session_id=["inner", "outer"],
)
async def test_without_our_checkpointer_it_is_recorded_as_a_subgraph_of_its_caller(
    part: str, place: str, mode: str, session_id: str, sessions: Sessions
) -> None:
    graph = calling(sessions, answering(sessions, part), with_id(session_id, ALICE), place)
    await run(graph, sessions.config("outer", **ALICE), mode)
    assert [session.id for session in sessions.list()] == ["outer"]
    outer = sessions.get("outer")
    assert said(outer, subgraphs=False) == OUTER[place]
    inside = [message for message in outer.messages() if message.checkpoint_ns]
    assert [(message.role, message.text) for message in inside] == [("assistant", "tea"), ("assistant", "you said tea")]
    caller = {"node": "caller:", "tool": "tools:"}[place]
    assert all(message.checkpoint_ns.startswith(caller) and "|" not in message.checkpoint_ns for message in inside)
    assert len(outer.runs()) == 1


@pairwise(part=["attached", "checkpointer"], place=["node", "tool"], mode=["sync", "async"], identity=[ALICE, {}])
async def test_the_session_of_another_user_is_refused_to_it(
    part: str, place: str, mode: str, identity: dict[str, str], sessions: Sessions
) -> None:
    sessions.attach(agents.chat()).invoke(human("mine"), sessions.config("inner", user_id="bob"))
    graph = calling(sessions, answering(sessions, part), with_id("inner", identity), place)
    if place == "tool":  # the error is the tool's answer
        await run(graph, sessions.config("outer", **ALICE), mode)
        assert "owned by another user" in str(sessions.get("outer").tool_calls()[0].error)
    else:
        with pytest.raises(SessionAccessDenied):
            await run(graph, sessions.config("outer", **ALICE), mode)
    inner = sessions.get("inner")
    assert said(inner, branch="all") == [("user", "mine"), ("assistant", "you said mine")]
    assert [event.kind for event in inner.events()] == ["opened", "denied"]
    assert [len(inner.runs()), len(sessions.get("outer").runs())] == [1, 1]
    assert ("user", "tea") not in said(sessions.get("outer"), branch="all")
    assert sessions.recorder.faults == 0


@pairwise(middle=["checkpointer", "no saver"], place=["node", "tool"], mode=["sync", "async"])
async def test_a_graph_that_it_calls_is_recorded_below_it(
    middle: str, place: str, mode: str, sessions: Sessions
) -> None:
    called = calling(sessions, answering(sessions, "no saver"), with_id("third", {}), place)
    called = called.copy({"checkpointer": sessions.checkpointer if middle == "checkpointer" else False})
    graph = calling(sessions, called, with_id("middle", {}), "tool", "look up tea")
    await run(graph, sessions.config("outer"), mode)
    found = sessions.get("middle" if middle == "checkpointer" else "outer")
    (answer,) = [m for m in found.messages() if m.role == "assistant" and m.text == "you said tea" and m.checkpoint_ns]
    nodes = [part.partition(":")[0] for part in answer.checkpoint_ns.split("|")]
    callers = ["caller" if place == "node" else "tools"]
    assert nodes == (callers if middle == "checkpointer" else ["tools", *callers])
    assert ("user", "tea") not in said(found, subgraphs=False)


@pairwise(saver=["ours", "another"], place=["node", "tool"], mode=["sync", "async"])
async def test_an_agent_with_the_middleware_follows_the_same_rule(
    saver: str, place: str, mode: str, sessions: Sessions
) -> None:
    checkpointer = sessions.checkpointer if saver == "ours" else InMemorySaver()
    inner = create_agent(Scripted(), TOOLS, middleware=[SessionMiddleware(sessions)], checkpointer=checkpointer)
    graph = calling(sessions, inner, with_id("inner", {}), place, "look up cake")
    await run(graph, sessions.config("outer"), mode)
    found = sessions.get("inner" if saver == "ours" else "outer")
    own = [message for message in found.messages() if saver == "ours" or message.checkpoint_ns]
    assert [message.text for message in own] == ["look up cake", "", "cake is nice", "it said cake is nice"]
    namespaces = {message.checkpoint_ns.partition(":")[0] for message in own}
    assert namespaces == {"" if saver == "ours" else {"node": "caller", "tool": "tools"}[place]}
    (call,) = [call for call in found.tool_calls() if call.result == "cake is nice"]
    assert (call.checkpoint_ns, call.message_id) == (own[1].checkpoint_ns, own[1].message_id)
    assert ("user", "look up cake") not in said(sessions.get("outer"))
