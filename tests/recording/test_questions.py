"""Questions: what a graph asks at its interrupts, the answers, and the sessions that wait for one."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from session_middleware import Sessions

pytestmark = pytest.mark.sessions(sweep_interval=None)

MODES = ("attached", "checkpointer", "recorder")


def asking(*questions: Any, name: str = "ask") -> StateGraph[MessagesState]:
    """A graph whose only node asks these questions, one after the other."""

    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(" ".join(str(interrupt(question)) for question in questions))]}

    return StateGraph(MessagesState).add_node(name, ask).add_edge(START, name)


def prepared(builder: StateGraph[Any], sessions: Sessions, mode: str = "attached", **config: Any) -> tuple[Any, Any]:
    """The compiled graph, and the config of its runs."""
    named = sessions.config("t", user_id="alice", **config)
    if mode == "attached":
        return sessions.attach(builder.compile()), named
    if mode == "checkpointer":
        return builder.compile(checkpointer=sessions.checkpointer), named
    return builder.compile(checkpointer=InMemorySaver()), {**named, "callbacks": [sessions.recorder]}


def asked(sessions: Sessions, session_id: str = "t") -> list[tuple[Any, ...]]:
    return [(one.value, one.status, one.answer) for one in sessions.get(session_id).questions()]


def as_json(graph: Any, config: RunnableConfig) -> list[str]:
    return [one.id for one in graph.get_state(config).interrupts]


@pytest.mark.parametrize("mode", MODES)
def test_a_question_waits_for_its_answer_which_is_no_message(mode: str, sessions: Sessions) -> None:
    graph, config = prepared(asking({"amount": 5}), sessions, mode)
    graph.invoke({"messages": [HumanMessage("pay")]}, config)

    session = sessions.get("t")
    [question] = session.waiting_for()
    assert (question.value, question.node, question.status, question.answer) == ({"amount": 5}, "ask", "open", None)
    assert [question.interrupt_id] == as_json(graph, config)
    assert [one.id for one in sessions.list(waiting=True)] == ["t"]
    assert (sessions.count(waiting=True), sessions.count(waiting=False), session.waiting_count) == (1, 0, 1)

    graph.invoke(Command(resume={"approved": True}), config)
    session = sessions.get("t")
    assert session.waiting_for() == []
    [question] = session.questions()
    assert (question.answer, question.answered_by) == ({"approved": True}, "alice")
    assert sessions.count(waiting=True) == 0
    assert [message.text for message in session.messages()] == ["pay", "{'approved': True}"]
    assert [message.text for message in session.history().messages] == ["pay", "{'approved': True}"]
    assert [one.outcome for one in session.runs()] == ([] if mode == "checkpointer" else ["waiting", "ok"])
    assert sessions.check(deep=True) == []
