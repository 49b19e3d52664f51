"""States that keep the latest messages only, without ids: what left them, and what is said again, is in the record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from session_middleware import Sessions


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    with Sessions(tmp_path / "sessions.db") as sessions:
        yield sessions
        assert sessions.recorder.faults == 0


def window(size: int) -> Any:
    """A graph that answers ``ok``, and remembers so many messages."""

    def latest(left: list[AnyMessage], right: list[AnyMessage]) -> list[AnyMessage]:
        return (left + right)[-size:]

    state: Any = TypedDict("state", {"chat": Annotated[list[AnyMessage], latest]})  # type: ignore[misc]
    builder = StateGraph(state).add_node("answer", lambda _: {"chat": [AIMessage("ok")]})
    return builder.add_edge(START, "answer").compile()


@pytest.mark.parametrize("recorder", [True, False])
@pytest.mark.parametrize("size", [2, 3, 4, 99])
def test_a_word_said_again_in_a_sliding_window_is_recorded_again(sessions: Sessions, size: int, recorder: bool) -> None:
    graph = sessions.attach(window(size), recorder=recorder)
    said = ["yes", "yes", "no", "yes", "no"]
    for text in said:
        graph.invoke({"chat": [HumanMessage(text)]}, sessions.config("t"))
    recorded = sessions.get("t").messages()
    assert [message.text for message in recorded] == [word for text in said for word in (text, "ok")]
