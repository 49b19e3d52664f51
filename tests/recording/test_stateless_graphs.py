"""Graphs that nothing keeps the state of, watched by the recorder alone: what they are called with may be all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import Sessions
from session_middleware.integrations.langchain_agents import SessionMiddleware
from tests.support import agents
from tests.support.pairwise import ENGINES, pairwise

pytestmark = pytest.mark.usefixtures("each_engine")

Shape = Callable[[str, str], Any]


def config(sessions: Sessions, session_id: str = "t") -> Any:
    return sessions.config(session_id) | {"callbacks": [sessions.recorder]}


def as_dict(role: str, text: str) -> Any:
    return {"role": role, "content": text}


def as_pair(role: str, text: str) -> Any:
    return (role, text)


def as_message(role: str, text: str) -> Any:
    return HumanMessage(text) if role == "user" else AIMessage(text)


def talk(graph: Any, sessions: Sessions, texts: list[str], shape: Shape = as_dict) -> list[tuple[str, str]]:
    """A client that passes the whole conversation each time, and keeps what it shows: what people and models say."""
    shown: list[tuple[str, str]] = []
    for text in texts:
        shown.append(("user", text))
        answered = graph.invoke({"messages": [shape(*each) for each in shown]}, config(sessions))
        shown.append(("assistant", answered["messages"][-1].text))
    return shown


def recorded(sessions: Sessions, **which: Any) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in sessions.get("t").messages(**which)]


def shown_of(messages: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(role, text) for role, text in messages if role != "tool" and text]


@pairwise(
    graph=[agents.chat, agents.tool_graph, agents.agent], shape=[as_dict, as_pair, as_message], each_engine=ENGINES
)
def test_a_conversation_passed_whole_each_time_is_recorded_once(
    sessions: Sessions, graph: Callable[[], Any], shape: Shape
) -> None:
    said = talk(graph(), sessions, ["hi", "yes", "yes", "hi"], shape)
    assert recorded(sessions) == said
    assert sessions.get("t").branches() == []


@pytest.mark.parametrize("recorder", [True, False])
def test_an_agents_middleware_recognises_what_is_passed_whole(sessions: Sessions, recorder: bool) -> None:
    agent = create_agent(agents.Scripted(), agents.TOOLS, middleware=[SessionMiddleware(sessions)])
    watched = config(sessions) if recorder else sessions.config("t")
    said: list[Any] = []
    for text in ("hi", "look up tea", "yes", "yes"):
        said.append(as_dict("user", text))
        answered = agent.invoke({"messages": said}, watched)
        said.append(as_dict("assistant", answered["messages"][-1].text))
    expected = [(message["role"], message["content"]) for message in said]
    assert shown_of(recorded(sessions, branch="all")) == expected
    assert len(recorded(sessions)) == len(said) + 2
    agent.invoke({"messages": [as_dict("user", "hi")]}, watched)
    assert shown_of(recorded(sessions)) == [*expected, ("user", "hi"), ("assistant", "you said hi")]


@pytest.mark.parametrize("graph", [agents.tool_graph, agents.shared_subgraph])
def test_what_tools_and_subgraphs_said_between_need_not_be_passed(sessions: Sessions, graph: Callable[[], Any]) -> None:
    said = talk(graph(), sessions, ["look up tea", "both milk", "hi", "look up tea"])
    assert shown_of(recorded(sessions, branch="all")) == said
    assert len(sessions.get("t").tool_calls()) == 4
    assert len(recorded(sessions, branch="all")) == len(said) + 3 + 4


def test_other_instructions_each_time_are_all_that_is_new_of_the_beginning(sessions: Sessions) -> None:
    graph, said = agents.chat(), []
    for number, text in enumerate(["hi", "yes", "yes"]):
        said.append(as_dict("user", text))
        answered = graph.invoke({"messages": [as_dict("system", f"it is {number}"), *said]}, config(sessions))
        said.append(as_dict("assistant", answered["messages"][-1].text))
    found = recorded(sessions)
    assert [text for role, text in found if role != "system"] == [message["content"] for message in said]
    assert len(found) == len(said) + 3


@pytest.mark.parametrize("in_front", [[], [as_dict("system", "be nice")]])
def test_the_same_message_alone_each_time_is_said_each_time(sessions: Sessions, in_front: list[Any]) -> None:
    for _ in range(3):
        agents.chat().invoke({"messages": [*in_front, as_dict("user", "hi")]}, config(sessions))
    assert [text for role, text in recorded(sessions) if role == "user"] == ["hi"] * 3
    assert len(recorded(sessions)) == len(in_front) + 6


@pytest.mark.parametrize("ours", [True, False])
def test_what_a_graph_with_a_checkpointer_is_called_with_is_new_each_time(sessions: Sessions, ours: bool) -> None:
    graph = agents.chat()
    graph.checkpointer = sessions.checkpointer if ours else InMemorySaver()
    for _ in range(3):
        graph.invoke({"messages": [as_dict("user", "yes"), as_dict("user", "yes")]}, config(sessions))
    assert [text for _, text in recorded(sessions)] == ["yes", "yes", "you said yes"] * 3


def test_a_given_message_that_the_run_rewrites_is_another_version_of_the_recorded_one(sessions: Sessions) -> None:
    def censor(state: MessagesState) -> dict[str, Any]:
        first = state["messages"][0]
        return {"messages": [HumanMessage("***", id=first.id), AIMessage("ok")]}

    said = [as_dict("user", "secret"), as_dict("assistant", "you said secret"), as_dict("user", "more")]
    agents.chat().invoke({"messages": said[:1]}, config(sessions))
    StateGraph(MessagesState).add_node("censor", censor).add_edge(START, "censor").compile().invoke(
        {"messages": said}, config(sessions)
    )
    assert [text for _, text in recorded(sessions)] == ["***", "you said secret", "more", "ok"]
    versions = sessions.get("t").messages(all_versions=True)
    assert [(m.text, m.version) for m in versions if m.message_id == versions[0].message_id] == [
        ("secret", 1),
        ("***", 2),
    ]
