"""What one turn of an agent costs in statements and calls. A change that costs more has to change a number here."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

import session_middleware
from session_middleware import Sessions
from session_middleware.storage.postgres.writer import PostgresWriter
from session_middleware.storage.sql.writer import Writer
from tests.support.agents import human

PACKAGE = str(Path(session_middleware.__file__).parent)


@tool
def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


def answers() -> Iterator[AIMessage]:
    number = 0
    while True:
        number += 1
        yield AIMessage("", tool_calls=[{"name": "add", "args": {"a": number, "b": 2}, "id": f"call-{number}"}])
        yield AIMessage(f"the sum is {number + 2}")


def builder() -> Any:
    model = GenericFakeChatModel(messages=answers())

    def call_model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("model", call_model).add_node("tools", ToolNode([add]))
    graph.add_edge(START, "model").add_conditional_edges("model", tools_condition).add_edge("tools", "model")
    return graph


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements of all connections, with those that begin and end transactions."""
    found: list[str] = []
    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.set_trace_callback(found.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    return found


@pytest.mark.parametrize(
    ("part", "most_statements", "most_calls"),
    [("attached", 56, 1_520), ("checkpointer", 43, 985)],  # attached, how writes are grouped depends on the threads
)
def test_a_turn_with_a_tool_on_an_existing_thread(
    part: str,
    most_statements: int,
    most_calls: int,
    statements: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Writer, "patience_seconds", 60)  # pending writes share the next commit on a busy machine too
    calls = 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    threading.setprofile(count)  # for the threads that begin from now on
    try:
        with Sessions(tmp_path / "sessions.db") as sessions:
            if part == "attached":
                graph = sessions.attach(builder().compile())
            else:
                graph = builder().compile(checkpointer=sessions.checkpointer)
            for number in range(3):
                graph.invoke(human(f"question {number}"), sessions.config("t"))
            statements.clear()
            calls = 0
            sys.setprofile(count)
            try:
                graph.invoke(human("question"), sessions.config("t"))
            finally:
                sys.setprofile(None)
            assert 20 < len(statements) <= most_statements, "\n".join(statements)
            assert 200 < calls <= most_calls
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("part", "most"), [("attached", 8), ("checkpointer", 6)])
def test_the_round_trips_of_a_turn_with_a_tool_to_postgres(
    part: str, most: int, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresWriter, "patience_seconds", 60)
    trips, wait = 0, psycopg.Connection.wait

    def counted(self: Any, generator: Any, *args: Any) -> Any:
        nonlocal trips
        trips += threading.current_thread().name != "session-notifier"  # notices are sent while the run goes on
        return wait(self, generator, *args)

    monkeypatch.setattr(psycopg.Connection, "wait", counted)
    with Sessions(postgres_url, sweep_interval=None) as sessions:
        if part == "attached":
            graph = sessions.attach(builder().compile())
        else:
            graph = builder().compile(checkpointer=sessions.checkpointer)
        found = []
        for number in range(4):
            before = trips
            graph.invoke(human(f"question {number}"), sessions.config("t", user_id="alice"), durability="sync")
            found.append(trips - before)
    assert found[0] <= most + 3  # it opens the session
    assert set(found[1:]) == {most}
