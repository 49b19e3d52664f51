"""What is stored grows with what is said, however the graph is built and called."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import Sessions

TURNS, TEXT = 40, "lorem ipsum dolor sit amet " * 8


def echo() -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("bot", lambda state: {"messages": [("ai", f"{TEXT} {len(state['messages'])}")]})
    builder.add_edge(START, "bot")
    return builder.compile()


def nested() -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("inner", echo())
    builder.add_edge(START, "inner")
    return builder.compile()


def stored(path: Path, session_id: str) -> int:
    """The bytes of all list elements, blobs and references of a session."""
    connection = sqlite3.connect(path)
    own = "WHERE home = (SELECT home FROM sessions WHERE id = ?)"
    [blobs] = connection.execute(f"SELECT TOTAL(LENGTH(data)) FROM blobs {own}", (session_id,)).fetchone()
    items, data = connection.execute(
        f"SELECT COUNT(*), TOTAL(LENGTH(data)) FROM list_items {own}", (session_id,)
    ).fetchone()
    connection.close()
    return int(blobs + data) + 20 * int(items)


@pytest.mark.slow
@pytest.mark.parametrize("sends_history", [False, True], ids=["new message only", "whole history"])
@pytest.mark.parametrize("make", [echo, nested])
def test_twice_the_turns_are_twice_the_bytes(make: Any, sends_history: bool, tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with Sessions(path, synchronous="normal") as sessions:
        graph = sessions.attach(make())
        for name, turns in (("half", TURNS // 2), ("whole", TURNS)):
            history: list[Any] = []
            for turn in range(turns):
                said = [*(history if sends_history else []), ("user", f"{TEXT} {turn}")]
                history = graph.invoke({"messages": said}, sessions.config(name))["messages"]
            assert sessions.get(name).message_count == 2 * turns
            assert len(history) == 2 * turns
        assert stored(path, "whole") < 2.4 * stored(path, "half")
