"""States that keep the latest messages only, without ids: what left them, and what is said again, is in the record."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from session_middleware import Sessions
from tests.support import agents
from tests.support.pairwise import ENGINES, pairwise

pytestmark = pytest.mark.usefixtures("each_engine")


def window(size: int) -> Any:
    """A graph that answers ``ok``, and remembers so many messages."""

    def latest(left: list[AnyMessage], right: list[AnyMessage]) -> list[AnyMessage]:
        return (left + right)[-size:]

    state: Any = TypedDict("state", {"chat": Annotated[list[AnyMessage], latest]})  # type: ignore[misc]
    builder = StateGraph(state).add_node("answer", lambda _: {"chat": [AIMessage("ok")]})
    return builder.add_edge(START, "answer").compile()


@pairwise(size=[2, 3, 4, 99], recorder=[True, False], each_engine=ENGINES)
def test_a_word_said_again_in_a_sliding_window_is_recorded_again(sessions: Sessions, size: int, recorder: bool) -> None:
    graph = sessions.attach(window(size), recorder=recorder)
    said = ["yes", "yes", "no", "yes", "no"]
    for text in said:
        graph.invoke({"chat": [HumanMessage(text)]}, sessions.config("t"))
    recorded = sessions.get("t").messages()
    assert [message.text for message in recorded] == [word for text in said for word in (text, "ok")]


def answering(answers: list[str], *, in_two_steps: bool) -> Any:
    """A graph that is given a text, and whose messages are those of its latest turn."""
    told = iter(answers)
    builder = StateGraph(TypedDict("state", {"question": str, "messages": list[AnyMessage]}))  # type: ignore[misc]
    if in_two_steps:
        builder.add_node("ask", lambda state: {"messages": [HumanMessage(state["question"])]})
        builder.add_node("answer", lambda state: {"messages": [*state["messages"], AIMessage(next(told))]})
        builder.add_edge("ask", "answer")
    else:
        turn: Any = lambda state: {"messages": [HumanMessage(state["question"]), AIMessage(next(told))]}  # noqa: E731
        builder.add_node("ask", turn)
    return builder.add_edge(START, "ask").compile()


@pairwise(
    answers=[["1", "2", "3", "4"], ["ok"] * 4],
    in_two_steps=[True, False],
    runner=[agents.invoke, agents.ainvoke],
    each_engine=ENGINES,
)
async def test_a_question_repeated_to_a_graph_that_is_given_texts_is_recorded_again(
    sessions: Sessions, answers: list[str], in_two_steps: bool, runner: agents.Runner
) -> None:
    graph = answering(answers, in_two_steps=in_two_steps)
    questions = ["next", "next", "why?", "next"]
    for question in questions:
        await runner(graph, {"question": question}, sessions.config("t") | {"callbacks": [sessions.recorder]})
    session = sessions.get("t")
    assert [m.text for m in session.messages()] == [
        text for turn in zip(questions, answers, strict=True) for text in turn
    ]
    assert session.branches() == []
