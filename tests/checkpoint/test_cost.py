"""What one turn of an agent costs in statements and calls. A change that costs more has to change a number here."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.store.base import GetOp

import session_middleware
from session_middleware import Session, Sessions
from session_middleware.storage.executor import THREADS
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
    [("attached", 54, 1_450), ("checkpointer", 41, 892)],  # the least of a few turns, as threads group the writes
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
            turns = []
            for _ in range(4):
                statements.clear()
                calls = 0
                sys.setprofile(count)
                try:
                    graph.invoke(human("question"), sessions.config("t"))
                finally:
                    sys.setprofile(None)
                turns.append(([*statements], calls))
            assert 20 < min(len(executed) for executed, _ in turns) <= most_statements, "\n".join(statements)
            assert 200 < min(called for _, called in turns) <= most_calls
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]


def test_simultaneous_reads_use_the_same_connections_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **options: opened.append(args[0]) or connect(*args, **options)
    )
    together = threading.Barrier(THREADS)
    with Sessions(tmp_path / "sessions.db", sweep_interval=None) as sessions, ThreadPoolExecutor(THREADS) as pool:
        for _ in range(3):
            opened.clear()
            [*pool.map(lambda _: sessions._storage._read(lambda _: together.wait(60)), range(THREADS))]  # type: ignore[attr-defined]
    assert opened == []


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The round trips to PostgreSQL, as the names of their threads."""
    found: list[str] = []
    wait = psycopg.Connection.wait

    def counted(self: Any, generator: Any, *args: Any) -> Any:
        if (thread := threading.current_thread().name) != "session-notifier":  # notices are sent while the run goes on
            found.append(thread)
        return wait(self, generator, *args)

    monkeypatch.setattr(psycopg.Connection, "wait", counted)
    return found


def test_the_connection_that_checks_the_tables_serves_the_first_thread(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    connect = psycopg.connect
    monkeypatch.setattr(
        psycopg, "connect", lambda *args, **kwargs: opened.append(connect(*args, **kwargs)) or opened[-1]
    )
    with Sessions(postgres_url, sweep_interval=None) as sessions:
        assert (sessions.find("t"), sessions.list()) == (None, [])
    assert [connection.closed for connection in opened] == [True]


@pytest.mark.parametrize(("part", "most"), [("attached", 8), ("checkpointer", 6)])
def test_the_round_trips_of_a_turn_with_a_tool_to_postgres(
    part: str, most: int, postgres_url: str, trips: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresWriter, "patience_seconds", 60)
    with Sessions(postgres_url, sweep_interval=None) as sessions:
        if part == "attached":
            graph = sessions.attach(builder().compile())
        else:
            graph = builder().compile(checkpointer=sessions.checkpointer)
        found = []
        for number in range(12):
            trips.clear()
            graph.invoke(human(f"question {number}"), sessions.config("t", user_id="alice"), durability="sync")
            found.append(len(trips))
    assert max(found) <= most + 3  # the first opens the session; a thread that runs late needs a trip of its own
    assert min(found[1:]) == most


ALICE, TURNS, FUTURE = {"user_id": "alice"}, 12, datetime(2100, 1, 1, tzinfo=UTC)
# The most round trips of each read. Of those of a `Session`, one is for the check of access after the read.
READS: dict[str, tuple[int, Callable[[Sessions, Session], Any]]] = {
    "list": (2, lambda sessions, _: sessions.list(limit=None)),
    "list active": (3, lambda sessions, _: sessions.list(limit=None, status="active")),
    "count": (1, lambda sessions, _: [sessions.count()]),
    "search": (9, lambda sessions, _: sessions.search("question", limit=1_000)),
    "search as written": (5, lambda sessions, _: sessions.search("the", limit=1_000)),
    "usage": (1, lambda sessions, _: sessions.usage("session")),
    "tool_calls of all": (1, lambda sessions, _: sessions.tool_calls(limit=None)),
    "explain": (2, lambda sessions, _: [sessions.explain("t")]),
    "messages": (3, lambda _, t: t.messages(branch="all")),
    "tool_calls": (2, lambda _, t: t.tool_calls()),
    "model_calls": (2, lambda _, t: t.model_calls()),
    "runs": (2, lambda _, t: t.runs()),
    "events": (2, lambda _, t: t.events()),
    "branches": (2, lambda _, t: t.branches()),
    "timeline": (3, lambda _, t: t.timeline()),
    "stats": (6, lambda _, t: [t.stats()]),
    "recall": (12, lambda _, t: t.memory.recall("question", k=60)),
    "recall with neighbours": (14, lambda _, t: t.memory.recall("question", k=60, window=1)),
    "memory.list": (2, lambda _, t: t.memory.list()),
    "get_tuple": (1, lambda sessions, _: [sessions.checkpointer.get_tuple(sessions.config("t", user_id="alice"))]),
    "checkpointer.list": (
        5,
        lambda sessions, _: list(sessions.checkpointer.list(sessions.config("t", user_id="alice"))),
    ),
    "checkpointer.list of all": (5, lambda sessions, _: list(sessions.checkpointer.list(None))),
    "checkpointer.list by owner": (5, lambda sessions, _: list(sessions.checkpointer.list(None, filter=ALICE))),
    "store.search": (6, lambda sessions, _: sessions.store.search(("notes",), query="question", limit=100)),
    "store.batch": (1, lambda sessions, _: sessions.store.batch([GetOp(("notes",), f"k{n}") for n in range(TURNS)])),
}


def test_the_round_trips_of_a_read_to_postgres_do_not_grow_with_its_results(
    postgres_url: str, trips: list[str]
) -> None:
    with Sessions(postgres_url, sweep_interval=None) as sessions:
        graph = sessions.attach(builder().compile())
        for number in range(TURNS):
            config = sessions.config("t", user_id="alice")
            graph.invoke(human(f"the question {number}"), config)
            first = list(graph.get_state_history(config))[-1].config
            graph.invoke(human(f"another question {number}"), first)
            graph.invoke(human(f"the question {number}"), sessions.config(f"t{number}", user_id="alice"))
            sessions.get("t").memory.remember(f"question {number}")
            sessions.store.put(("notes",), f"k{number}", {"text": f"question {number}"})
        sessions.settle()
        sessions.index_memory()
        session = sessions.get("t")
        for name, (most, read) in READS.items():
            trips.clear()
            size, taken = len(read(sessions, session)), trips.count(threading.current_thread().name)
            assert taken <= most, name
            assert size == 1 or size > most, name


OF_MANY: dict[str, Callable[[Sessions], Any]] = {
    "index_memory": lambda sessions: sessions.index_memory(),
    "keep": lambda sessions: sessions.sweep(FUTURE),
    "delete": lambda sessions: sessions.sweep(FUTURE),
    "prune": lambda sessions: sessions.sweep(FUTURE),
    "checkpointer.prune": lambda sessions: sessions.checkpointer.prune([each.id for each in sessions.list(limit=9)]),
    "forget_user": lambda sessions: sessions.forget_user("alice"),
}


@pytest.mark.parametrize("name", OF_MANY)
def test_the_round_trips_of_an_operation_on_many_sessions_do_not_grow_with_their_number(
    name: str, postgres_url: str, trips: list[str]
) -> None:
    on_expire = name if name in ("keep", "delete", "prune") else "keep"
    taken = []
    with Sessions(postgres_url, sweep_interval=None, idle_timeout="1h", on_expire=on_expire) as sessions:
        graph = sessions.attach(builder().compile())
        for count in (2, 2, 9):  # the first time statements are prepared
            for number in range(count):
                graph.invoke(human(f"question {number}"), sessions.config(f"{len(taken)}-{number}", user_id="alice"))
            sessions.settle()
            if name != "index_memory":
                sessions.index_memory()
            trips.clear()
            OF_MANY[name](sessions)
            taken.append(len(trips))
    assert taken[2] <= taken[1] + 1
