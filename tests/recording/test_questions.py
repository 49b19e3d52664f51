"""Questions: what a graph asks at its interrupts, the answers, and the sessions that wait for one."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel

from session_middleware import Sessions

pytestmark = pytest.mark.sessions(sweep_interval=None)


class Count(BaseModel):
    count: int


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


@pytest.mark.usefixtures("each_engine")
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


def test_the_question_of_a_subgraph_is_recorded_once_and_with_its_place(sessions: Sessions) -> None:
    for number, mode in enumerate(MODES):
        inner = asking("one?", "two?").compile()
        builder = StateGraph(MessagesState).add_node("inner", inner).add_edge(START, "inner")
        graph, config = prepared(builder, sessions, mode)
        config["configurable"]["thread_id"] = config["metadata"]["thread_id"] = thread = f"t{number}"
        graph.invoke({"messages": "hi"}, config)
        graph.invoke(Command(resume=1), config)
        graph.invoke(Command(resume=2), config)
        questions = sessions.get(thread).questions()
        assert [(one.value, one.answer, one.node) for one in questions] == [("one?", 1, "ask"), ("two?", 2, "ask")]
        assert {one.checkpoint_ns.partition(":")[0] for one in questions} == {"inner"}


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("mode", MODES)
def test_several_questions_wait_together_and_are_answered_one_by_one(
    mode: str, durability: Any, sessions: Sessions
) -> None:
    def ask(state: Any) -> dict[str, Any]:
        return {"messages": [AIMessage(f"{state}: {interrupt(state)}")]}

    builder = StateGraph(MessagesState).add_node("ask", ask)
    builder.add_conditional_edges(START, lambda _: [Send("ask", name) for name in ("left", "right")])
    graph, config = prepared(builder, sessions, mode)
    graph.invoke({"messages": "go"}, config, durability=durability)
    session = sessions.get("t")
    assert sorted(one.value for one in session.waiting_for()) == ["left", "right"]
    assert session.waiting_count == 2
    assert {one.node for one in session.waiting_for()} == {None if mode == "checkpointer" else "ask"}

    [right] = [one for one in session.waiting_for() if one.value == "right"]
    graph.invoke(Command(resume={right.interrupt_id: "R"}), config, durability=durability)
    assert [one.value for one in sessions.get("t").waiting_for()] == ["left"]
    graph.invoke(Command(resume="L"), config, durability=durability)
    assert sorted(asked(sessions)) == [("left", "answered", "L"), ("right", "answered", "R")]
    assert sessions.get("t").waiting_count == 0


@pytest.mark.parametrize("mode", MODES)
def test_new_input_drops_the_question(mode: str, sessions: Sessions) -> None:
    graph, config = prepared(asking("may I?"), sessions, mode)
    for text in ("one", "two"):
        graph.invoke({"messages": [HumanMessage(text)]}, config)
    assert asked(sessions) == [("may I?", "dropped", None), ("may I?", "open", None)]
    graph.invoke(Command(resume="yes"), config)
    assert asked(sessions) == [("may I?", "dropped", None), ("may I?", "answered", "yes")]


@pytest.mark.usefixtures("each_engine")
def test_a_run_from_an_earlier_checkpoint_drops_the_question_and_asks_anew(sessions: Sessions) -> None:
    graph, config = prepared(asking("may I?"), sessions)
    graph.invoke({"messages": "hi"}, config)
    history = list(graph.get_state_history(config))
    graph.invoke(None, history[-1].config)
    assert asked(sessions) == [("may I?", "dropped", None), ("may I?", "open", None)]
    graph.invoke(Command(resume="yes"), config)
    assert asked(sessions)[1] == ("may I?", "answered", "yes")
    for answer in ("no", "perhaps"):  # to the first question, after all
        graph.invoke(Command(resume=answer), history[0].config)
    assert [answer for _, _, answer in asked(sessions)] == [None, "yes", "no", "perhaps"]
    assert sessions.check(deep=True) == []


def test_a_change_of_the_state_leaves_the_question_open(sessions: Sessions) -> None:
    graph, config = prepared(asking("may I?"), sessions)
    graph.invoke({"messages": "hi"}, config)
    graph.update_state(config, {"messages": [HumanMessage("by the way")]})
    assert asked(sessions) == [("may I?", "open", None)]
    graph.invoke(None, config)
    assert asked(sessions) == [("may I?", "dropped", None), ("may I?", "open", None)]
    graph.update_state(config, {"messages": [HumanMessage("once more")]})
    graph.invoke(Command(resume="yes"), config)
    assert asked(sessions) == [("may I?", "dropped", None), ("may I?", "answered", "yes")]
    assert sessions.get("t").messages()[-1].text == "yes"


def test_a_model_that_is_called_beside_the_graph_drops_nothing(sessions: Sessions) -> None:
    graph, config = prepared(asking("may I?"), sessions, "recorder")
    graph.invoke({"messages": "hi"}, config)
    FakeListChatModel(responses=["a title"]).invoke("a title, please", config)
    assert asked(sessions) == [("may I?", "open", None)]
    graph.invoke(Command(resume="yes"), config)
    assert asked(sessions) == [("may I?", "answered", "yes")]


@pytest.mark.parametrize("mode", ["attached", "recorder"])
def test_a_breakpoint_waits_until_a_run_goes_on(mode: str, sessions: Sessions) -> None:
    builder = StateGraph(MessagesState).add_node("pay", lambda _: {"messages": [AIMessage("paid")]})
    builder.add_edge(START, "pay")
    saver = InMemorySaver() if mode == "recorder" else sessions.checkpointer
    graph = builder.compile(checkpointer=saver, interrupt_before=["pay"])
    config = {**sessions.config("t", user_id="alice"), "callbacks": [sessions.recorder]}
    graph.invoke({"messages": "hi"}, config)
    [question] = sessions.get("t").waiting_for()
    assert (question.interrupt_id, question.value) == (None, None)
    assert sessions.get("t").runs()[0].outcome == "waiting"
    assert sessions.count(waiting=True) == 1
    graph.invoke(None, config)
    [question] = sessions.get("t").questions()
    assert (question.status, question.answered_by) == ("answered", "alice")
    assert sessions.count(waiting=True) == 0


@pytest.mark.skipif("response_schema" not in signature(interrupt).parameters, reason="LangGraph has no such schema yet")
def test_an_answer_that_the_graph_refuses_leaves_the_question_open(sessions: Sessions) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(str(interrupt("how many?", response_schema=Count)))]}

    graph, config = prepared(StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask"), sessions)
    graph.invoke({"messages": "hi"}, config)
    with pytest.raises(ValueError, match="validation error"):
        graph.invoke(Command(resume="many"), config)
    assert asked(sessions) == [("how many?", "open", None)]
    graph.invoke(Command(resume={"count": 3}), config)
    assert asked(sessions) == [("how many?", "answered", {"count": 3})]


def test_a_task_of_a_flow_asks(sessions: Sessions) -> None:
    @task
    def approve(text: str) -> str:
        return str(interrupt(f"{text}?"))

    @entrypoint(checkpointer=sessions.checkpointer)
    def flow(text: str) -> str:
        return approve(text).result() + approve("sure").result()

    config: Any = {**sessions.config("t"), "callbacks": [sessions.recorder]}
    flow.invoke("pay", config)
    flow.invoke(Command(resume="yes"), config)
    flow.invoke(Command(resume="no"), config)
    assert asked(sessions) == [("pay?", "answered", "yes"), ("sure?", "answered", "no")]
    assert {one.node for one in sessions.get("t").questions()} == {"approve"}


def test_an_answer_that_the_graph_adds_to_its_messages_is_a_message(sessions: Sessions) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [interrupt("what else?")]}

    graph, config = prepared(StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask"), sessions)
    graph.invoke({"messages": "hi"}, config)
    graph.invoke(Command(resume=HumanMessage("tea")), config)
    assert [(one.role, one.text) for one in sessions.get("t").messages()] == [("user", "hi"), ("user", "tea")]
    assert asked(sessions)[0][2]["content"] == "tea"


@pytest.mark.sessions(sweep_interval=None, redact=["emails"])
def test_questions_and_answers_are_redacted(sessions: Sessions) -> None:
    graph, config = prepared(asking({"to": "ann@example.org", "at": {1, 2}, "bytes": b"\xff"}), sessions)
    graph.invoke({"messages": "hi"}, config)
    graph.invoke(Command(resume="ask bob@example.org"), config)
    [question] = sessions.get("t").questions()
    assert (question.value["to"], question.answer) == ("[redacted email]", "ask [redacted email]")
    assert question.flags == ("redacted:emails",)
    assert question.value["at"] == [1, 2]


@pytest.mark.sessions(sweep_interval=None, record=["messages"])
def test_what_may_quote_a_tools_arguments_is_withheld_with_them(sessions: Sessions) -> None:
    graph, config = prepared(asking({"args": "secret"}), sessions)
    graph.invoke({"messages": "hi"}, config)
    [question] = sessions.get("t").waiting_for()
    assert (question.value, question.flags, question.node) == (None, ("withheld:value",), "ask")
