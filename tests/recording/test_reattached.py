"""What a notebook's cell does when it is run again: another `Sessions` of the same file, attached to the same graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManager
from langgraph.graph.state import CompiledStateGraph

from session_middleware import GraphHasPart, Session, Sessions
from tests.support import agents
from tests.support.agents import human


def recorded(session: Session) -> dict[str, Any]:
    stats = session.stats()
    return {
        "model calls": (len(session.model_calls()), stats.model_call_count),
        "tool calls": (len(session.tool_calls()), stats.tool_call_count),
        "errors": stats.error_count,
        "tokens": session.runs()[-1].input_tokens,
        "faults": stats.recorder_faults,
    }


def test_a_cell_that_attaches_again_records_each_run_once(tmp_path: Path) -> None:
    agent: CompiledStateGraph[Any, Any, Any, Any] = agents.tool_graph()
    for turn in (1, 2, 3):
        with Sessions(tmp_path / "sessions.db") as sessions:
            agent = sessions.attach(agent, replace=True)
            agent.invoke(human("fail tea"), sessions.config("t"))
            counts = recorded(sessions.get("t"))
        assert counts == {
            "model calls": (2 * turn, 2 * turn),
            "tool calls": (turn, turn),
            "errors": turn,
            "tokens": 6,
            "faults": 0,
        }


def test_what_the_newer_sessions_redacts_the_older_does_not_store(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db") as plain, Sessions(tmp_path / "sessions.db", redact=["emails"]) as careful:
        agent = careful.attach(plain.attach(agents.tool_graph()), replace=True)
        agent.invoke(human("look up z@example.com"), careful.config("t"))
        session = careful.get("t")
        assert "z@example.com" not in str([session.messages(branch="all", all_versions=True), session.tool_calls()])


def test_a_graph_that_another_sessions_records_is_refused_unless_told_to_replace(tmp_path: Path) -> None:
    with Sessions(tmp_path / "a.db") as first, Sessions(tmp_path / "b.db") as second:
        recorded_by_first = first.attach(agents.tool_graph(), checkpointer=False, store=False)
        with pytest.raises(GraphHasPart, match=r"recorder=False.*replace=True"):
            second.attach(recorded_by_first)
        agent = second.attach(recorded_by_first, replace=True)
        agent.invoke(human("hi"), second.config("t"))
        assert (first.count(), second.count()) == (0, 1)
        assert first.recorder in recorded_by_first.config["callbacks"]


def test_a_recorder_in_a_callback_manager_is_replaced_as_well(tmp_path: Path) -> None:
    with Sessions(tmp_path / "a.db") as first, Sessions(tmp_path / "b.db") as second:
        manager = CallbackManager([first.recorder], [first.recorder])
        agent = second.attach(agents.tool_graph().with_config(callbacks=manager), replace=True)
        agent.invoke(human("look up tea"), second.config("t"))
        assert (first.count(), len(second.get("t").tool_calls())) == (0, 1)
        assert manager.handlers == [first.recorder]


def test_two_recorders_of_one_file_record_once(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db") as first, Sessions(tmp_path / "sessions.db") as second:
        agent = first.attach(agents.tool_graph()).with_config(callbacks=[second.recorder])
        agent.invoke(human("fail tea"), first.config("t"))
        assert recorded(first.get("t")) == {
            "model calls": (2, 2),
            "tool calls": (1, 1),
            "errors": 1,
            "tokens": 6,
            "faults": 0,
        }
        assert second.recorder.faults == 0
        assert first.check() == []
