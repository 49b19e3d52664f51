"""Edited messages, new answers and branches: the conversation goes on from another version of a turn."""

from __future__ import annotations

import asyncio
from operator import add
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage
from langgraph.func import entrypoint
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from session_middleware import (
    InvalidArgument,
    Session,
    SessionAccessDenied,
    SessionBusy,
    SessionNotFound,
    Sessions,
)
from tests.checkpoint.test_delta_channels import State, answer
from tests.conftest import OpenSessions
from tests.support import agents
from tests.support.agents import human

pytestmark = pytest.mark.usefixtures("each_engine", "consistent")


def texts(session: Session, **options: Any) -> list[str]:
    return [message.text for message in session.messages(**options)]


def state(graph: Any, session: Session) -> list[str]:
    return [message.text for message in graph.get_state(session.config()).values["messages"]]


def versions(session: Session, message_id: str) -> tuple[str, list[str], tuple[str, ...]]:
    found = session.siblings(message_id)
    return str(found), [message.text for message in found.messages], found.branches


def asked(session: Session, place: int) -> str:
    """The id of a user's message on the current branch."""
    return [message for message in session.messages() if message.role == "user"][place].message_id


GRAPHS = ("chat", "tool_graph", "agent", "shared_subgraph", "own_subgraph", "fan_out", "parallel", "nested")


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_conversation_goes_on_from_an_edited_message_and_back(open_sessions: OpenSessions, kind: str) -> None:
    sessions, other = open_sessions(), open_sessions()
    built = getattr(agents, kind)()
    graph = sessions.attach(built.compile() if kind == "nested" else built)
    for session_id, said in {"a": ("one", "look up tea"), "twin": ("one", "look up milk")}.items():
        for text in said:
            graph.invoke(human(text), sessions.config(session_id, user_id="alice"))
    session, twin = sessions.for_user("alice").get("a"), sessions.get("twin")
    was, message_id = texts(session), asked(session, 1)

    config = session.edit(message_id, "look up milk")
    begin = was[: was.index("look up tea")]
    assert (texts(session), state(graph, session)) == ([*begin, "look up milk"], begin)
    graph.invoke(None, config)
    assert texts(session) == state(graph, session) == texts(twin)
    assert versions(session, message_id) == ("2 of 2", ["look up tea", "look up milk"], ("main", "branch-2"))

    graph.invoke(None, session.regenerate())
    assert texts(session) == state(graph, session) == texts(twin)
    answer = session.messages()[-1].message_id
    assert versions(session, answer)[::2] == ("2 of 2", ("branch-2", "branch-3"))
    assert versions(session, message_id)[::2] == ("2 of 2", ("main", "branch-3"))

    assert texts(other.get("a").switch("main")) == was  # another process would do no more
    assert state(graph, session) == was
    graph.invoke(human("three"), session.config())
    assert texts(session)[: len(was) + 1] == state(graph, session)[: len(was) + 1] == [*was, "three"]
    assert session.switch("branch-3").branch == "branch-3"
    assert texts(session) == state(graph, session) == texts(twin)
    assert len(session.branches()) == 2


def test_an_edit_is_there_after_a_crash_and_runs_later(open_sessions: OpenSessions) -> None:
    sessions = open_sessions()
    graph = sessions.attach(agents.chat())
    for text in ("one", "two"):
        graph.invoke(human(text), sessions.config("a"))
    first = asked(sessions.get("a"), 0)
    sessions.get("a").edit(first, "other")
    again = open_sessions()
    graph, session = again.attach(agents.chat()), again.get("a")
    assert texts(session) == ["other"]
    graph.invoke(None, session.config())
    assert texts(session) == state(graph, session) == ["other", "you said other"]
    assert texts(session, branch="main") == ["one", "you said one", "two", "you said two"]
    assert texts(session, branch="all").count("other") == 1
    graph.invoke(None, session.edit(first, "third"))
    assert versions(session, first) == ("3 of 3", ["one", "other", "third"], ("main", "branch-2", "branch-3"))
    session.edit(first, "fourth")
    graph.invoke(human("new"), session.config())  # discards the edit, which stays on its branch
    assert texts(session) == state(graph, session) == ["new", "you said new"]
    assert versions(session, first)[:2] == ("4 of 5", ["one", "other", "third", "fourth", "new"])
    graph.invoke(None, session.switch("branch-4").config())
    assert texts(session) == state(graph, session) == ["fourth", "you said fourth"]


def test_images_and_other_messages_of_the_call_stay(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    image = {"type": "image", "base64": "aGk=", "mime_type": "image/png"}
    content: list[Any] = [{"type": "text", "text": "what"}, image, {"type": "text", "text": " is this"}]
    given = [SystemMessage("be kind"), HumanMessage("hello"), HumanMessage(content)]
    graph.invoke({"messages": given}, sessions.config("a"))
    session = sessions.get("a")
    graph.invoke(None, session.edit(asked(session, 1), "and this?"))
    found = graph.get_state(session.config()).values["messages"]
    assert found[2].content == [{"type": "text", "text": "and this?"}, image]
    assert texts(session) == state(graph, session) == ["be kind", "hello", "and this?", "you said and this?"]
    graph.invoke(None, session.edit(asked(session, 0), "hi"))
    assert texts(session)[:2] == ["be kind", "hi"]


@entrypoint()
def whole(messages: list[AnyMessage], *, previous: Any = None) -> Any:
    said = AIMessage(f"you said {messages[-1].text}")
    return entrypoint.final(value=said, save=[*(previous or []), *messages, said])


class Listed(TypedDict):
    messages: list[Any]


def append(state: Listed) -> dict[str, Any]:
    said = {"role": "assistant", "content": f"you said {state['messages'][-1]['content']}"}
    return {"messages": [*state["messages"], said]}


def two_users(first: str, second: str) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": text}]} for text in (first, second)]


OTHER_STATES: dict[str, tuple[Any, Any]] = {
    "functional": (whole, [[HumanMessage("one")], [HumanMessage("two")]]),
    "delta": (StateGraph(State).add_node(answer).add_edge(START, "answer").compile(), [human("one"), human("two")]),
    "dicts": (StateGraph(Listed).add_node(append).add_edge(START, "append").compile(), two_users("zero", "two")[1:]),
}


@pytest.mark.parametrize("name", OTHER_STATES)
def test_a_message_that_is_in_no_list_of_the_state_is_edited_in_the_input(sessions: Sessions, name: str) -> None:
    built, inputs = OTHER_STATES[name]
    graph = sessions.attach(built)
    for each in inputs:
        graph.invoke(each, sessions.config("a"))
    session = sessions.get("a")
    was = texts(session)
    graph.invoke(None, session.edit(asked(session, -1), "other"))
    assert texts(session) == [*was[:-2], "other", "you said other"]
    graph.invoke(None, session.regenerate())
    assert texts(session) == [*was[:-2], "other", "you said other"]
    assert texts(session.switch("main")) == was


class Notes(TypedDict):
    messages: Annotated[list[AnyMessage], add]
    seen: Annotated[list[str], add]


def remember(state: Notes) -> dict[str, Any]:
    text = state["messages"][-1].text
    return {"seen": [text], "messages": [AIMessage(" ".join([*state.get("seen", []), text]))]}


def test_a_subgraph_with_a_state_of_its_own_is_on_the_branch_too(sessions: Sessions) -> None:
    inner = StateGraph(Notes).add_node(remember).add_edge(START, "remember").compile(checkpointer=True)
    builder = StateGraph(MessagesState)
    builder.add_node(
        "ask", lambda state: {"messages": [inner.invoke({"messages": state["messages"][-1:]})["messages"][-1]]}
    )
    graph = sessions.attach(builder.add_edge(START, "ask").compile())
    for text in ("a", "b"):
        graph.invoke(human(text), sessions.config("a"))
    session = sessions.get("a")
    graph.invoke(None, session.edit(asked(session, 1), "c"))
    assert texts(session) == ["a", "a", "c", "a c"]
    for branch, said in (("main", "a b"), ("branch-2", "a c"), ("main", "a b d"), ("branch-2", "a c d")):
        session.switch(branch)
        graph.invoke(human("d"), session.config())
        assert texts(session)[-1] == f"{said} d"


def test_a_question_waits_on_its_branch(sessions: Sessions) -> None:
    graph = sessions.attach(agents.approval())
    graph.invoke(human("pay"), sessions.config("a"))
    session = sessions.get("a")
    graph.invoke(None, session.edit(asked(session, 0), "pay less"))
    graph.invoke(Command(resume="yes"), session.config())
    assert state(graph, session) == ["pay less", "approved: yes"]
    session.switch("main")
    assert [len(task.interrupts) for task in graph.get_state(session.config()).tasks] == [1]
    graph.invoke(Command(resume="no"), session.config())
    assert state(graph, session) == ["pay", "approved: no"]


def test_what_cannot_be_done_is_said_and_changes_nothing(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    graph.invoke(human("one"), sessions.config("a"))
    graph.invoke(human("two"), sessions.config("a"), durability="exit")
    sessions.open("hand").add({"role": "user", "content": "x"})
    session, by_hand = sessions.get("a"), sessions.get("hand")
    before = session.messages(branch="all"), state(graph, session), session.branches()
    message_id, reply = asked(session, 1), session.messages()[-1].message_id
    refused = {
        "give the id of a message": lambda: session.edit("unknown", "x"),
        "regenerate": lambda: session.edit(reply, "x"),
        "own step is stored": lambda: session.edit(message_id, "x"),
        "before which a checkpoint": session.regenerate,
        "only in the record": lambda: by_hand.edit(by_hand.messages()[0].message_id, "x"),
        "of this session": lambda: session.siblings("\x00"),
        "one of: 'main'": lambda: session.switch("'; DROP"),
        "text cannot be": lambda: session.edit(message_id, 5),  # type: ignore[arg-type]
        "session cannot be 'empty'; give one that has messages": sessions.open("empty").regenerate,
    }
    for problem, call in refused.items():
        with pytest.raises(InvalidArgument, match=problem):
            call()
    with sessions.get("a"):
        for call in (lambda: session.edit(asked(session, 0), "x"), lambda: session.switch("main")):
            with pytest.raises(SessionBusy):
                call()
    assert (session.messages(branch="all"), state(graph, session), session.branches()) == before
    session.edit(asked(session, 0), "x")
    sessions.checkpointer.prune(["a"])
    with pytest.raises(InvalidArgument, match="were not deleted"):
        session.switch("main")
    graph.invoke(None, session.config())
    sessions.checkpointer.prune(["a"])
    with pytest.raises(InvalidArgument, match="own step is stored"):
        session.edit(asked(session, 0), "y")
    assert texts(session) == state(graph, session) == ["x", "you said x"]
    session.delete()
    for call in (lambda: session.edit(message_id, "x"), session.regenerate, lambda: session.switch("main")):
        with pytest.raises(SessionNotFound):
            call()


def test_only_those_who_may_write_edit_and_switch(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    sessions.open("a", user_id="alice", group_id="team", visibility="group")
    graph.invoke(human("one"), sessions.config("a", user_id="alice"))
    reader = sessions.for_user("bob", ["team"]).get("a")
    message_id = asked(reader, 0)
    assert str(reader.siblings(message_id)) == "1 of 1"
    calls = (lambda: reader.edit(message_id, "x"), lambda: reader.switch("main"), reader.regenerate, reader.fork)
    for call in calls:
        with pytest.raises(SessionAccessDenied):
            call()
    assert sessions.for_user("mallory").find("a") is None
    sessions.get("a").update(visibility="group-write")
    graph.invoke(None, reader.edit(message_id, "by bob"))
    assert texts(sessions.get("a")) == ["by bob", "you said by bob"]
    assert sessions.get("a").runs()[-1].user_id == "bob"


async def test_each_has_an_asynchronous_version(sessions: Sessions) -> None:
    graph = sessions.attach(agents.agent())
    await graph.ainvoke(human("look up tea"), sessions.config("a"))
    session = await sessions.aget("a")
    await graph.ainvoke(None, await session.aedit(asked(session, 0), "look up milk"))
    await graph.ainvoke(None, await session.aregenerate())
    assert texts(session) == ["look up milk", "", "milk is nice", "it said milk is nice"]
    assert str(await session.asiblings(session.messages()[-1].message_id)) == "2 of 2"
    assert texts(await session.aswitch("main"))[0] == "look up tea"
    forks = await asyncio.gather(*(session.afork(id=f"fork-{number}") for number in range(4)))
    assert [texts(fork)[0] for fork in forks] == ["look up tea"] * 4
