"""The record where runs are cut off, not tracked, or seen by the checkpointer alone."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import Sessions
from tests.conftest import Clock
from tests.support import agents


def tables(path: Path) -> dict[str, int]:
    connection = sqlite3.connect(path)
    names = ("runs", "messages", "tool_calls", "model_calls")
    counts = {name: connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in names}
    connection.close()
    return counts


@pytest.mark.parametrize("recorder", [True, False])
async def test_without_tracking_nothing_of_a_run_is_kept_but_its_owner_still_counts(
    recorder: bool, tmp_path: Path
) -> None:
    path = tmp_path / "sessions.db"
    with Sessions(path, tracking=False) as sessions:
        graph = sessions.attach(agents.tool_graph(), recorder=recorder)
        graph.invoke({"messages": [HumanMessage("look up tea")]}, sessions.config("t", user_id="alice"))
        await graph.ainvoke({"messages": [HumanMessage("look up tea")]}, sessions.config("t", user_id="alice"))
        assert set(tables(path).values()) == {0}
        assert len(graph.get_state(sessions.config("t", user_id="alice")).values["messages"]) == 8
        with pytest.raises(PermissionError):
            graph.invoke({"messages": [HumanMessage("hi")]}, sessions.config("t"))


async def test_a_cancelled_tool_is_interrupted_and_nothing_is_kept_in_mind(tmp_path: Path) -> None:
    started = asyncio.Event()

    @tool
    async def look_up(thing: str) -> str:
        """Waits for ever."""
        started.set()
        await asyncio.Event().wait()
        return thing

    with Sessions(tmp_path / "sessions.db") as sessions:
        graph = sessions.attach(agents.tool_graph(look_up))
        run = asyncio.ensure_future(graph.ainvoke({"messages": [HumanMessage("look up tea")]}, sessions.config("t")))
        await started.wait()
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        session = sessions.get("t")
        assert [(call.status, call.result) for call in session.tool_calls()] == [("interrupted", None)]
        assert [run.outcome for run in session.runs()] == ["interrupted"]
        assert sessions.recorder._runs == {}


def repeating() -> Any:
    """A model that uses the same tool call id in every turn, as small models do."""

    def answer(state: MessagesState) -> dict[str, Any]:
        if isinstance(state["messages"][-1], HumanMessage):
            return {"messages": [AIMessage("", tool_calls=[{"name": "look_up", "args": {}, "id": "call_0"}])]}
        return {"messages": [AIMessage("so it is")]}

    def tools(state: MessagesState) -> dict[str, Any]:
        return {"messages": [ToolMessage("nice", tool_call_id="call_0", name="look_up")]}

    builder = StateGraph(MessagesState)
    builder.add_node("model", answer)
    builder.add_node("tools", tools)
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", lambda state: "tools" if state["messages"][-1].tool_calls else "__end__")
    builder.add_edge("tools", "model")
    return builder


def test_a_tool_call_id_used_again_is_another_call_in_every_turn_and_session(tmp_path: Path, clock: Clock) -> None:
    with Sessions(tmp_path / "sessions.db", clock=clock, idle_timeout="1h", on_resume="fresh") as sessions:
        graph = repeating().compile(checkpointer=sessions.checkpointer)
        for thread in ("a", "a", "b"):
            graph.invoke({"messages": "look"}, sessions.config(thread))
        clock.advance(hours=2)
        graph.invoke({"messages": "look"}, sessions.config("a"))  # the old session is renamed
        found = {name: [(c.attempt, c.status) for c in sessions.get(name).tool_calls()] for name in ("a", "a~1", "b")}
        assert found == {"a": [(1, "ok")], "a~1": [(1, "ok"), (1, "ok")], "b": [(1, "ok")]}


@pytest.mark.parametrize("on_expire", ["keep", "delete"])
def test_a_sweep_by_another_program_leaves_a_live_run_alone(on_expire: str, tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "sessions.db"
    settings: dict[str, Any] = {"clock": clock, "idle_timeout": "1h", "on_expire": on_expire}
    with Sessions(path, **settings) as sessions, Sessions(path, **settings) as others:

        @tool
        def look_up(thing: str) -> str:
            """Takes longer than the timeout."""
            clock.advance(hours=2)
            assert others.sweep() == []
            return thing

        graph = sessions.attach(agents.tool_graph(look_up))
        graph.invoke({"messages": [HumanMessage("look up tea")]}, sessions.config("t"))
        session = sessions.get("t")
        assert (session.status, session.message_count) == ("active", 4)
        assert [event.kind for event in session.events()] == ["opened"]


@pytest.mark.timeout(20)
def test_deleting_does_not_wait_for_a_foreign_reader(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with Sessions(path) as sessions:
        sessions.open("t")
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM sessions").fetchone()
        assert sessions.delete("t").sessions == 1
        sessions.open("u")
        reader.execute("ROLLBACK")
        reader.close()
