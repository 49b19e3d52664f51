"""Repairing a session whose state holds classes of the application's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from session_middleware import Sessions, UnserializableValue
from tests.support import agents

CALL = {"name": "look_up", "args": {"thing": "rome"}, "id": "call-1"}


def test_types_that_attaching_allowed_are_known_to_a_repair(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db", strict_types=True) as sessions:
        graph, config = sessions.attach(agents.typed_graph()), sessions.config("t")
        said = [HumanMessage("rome"), AIMessage("", tool_calls=[CALL])]
        graph.update_state(config, {"messages": said, "place": agents.Place("rome", 1)})
        session = sessions.get("t")
        assert [call.name for call in session.repair(dry_run=True)] == ["look_up"]
        assert [call.name for call in session.repair()] == ["look_up"]
        values = graph.get_state(config).values
        assert ([m.type for m in values["messages"]], values["place"].contexts) == (["human", "ai", "tool"], 1)
    again = Sessions(tmp_path / "sessions.db", strict_types=True)
    with again as sessions, pytest.raises(UnserializableValue, match="allowed_types"):
        sessions.get("t").repair()


def test_a_repair_without_the_graph_leaves_values_of_classes_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sessions(tmp_path / "sessions.db") as sessions:
        graph, config = sessions.attach(agents.typed_graph()), sessions.config("t")
        said = [HumanMessage("rome"), AIMessage("", tool_calls=[CALL])]
        plans = [agents.Plan(steps=["rome"])]
        graph.update_state(config, {"messages": said, "place": agents.Place("rome", 1), "plans": plans})
    with Sessions(tmp_path / "sessions.db") as sessions:
        with monkeypatch.context() as elsewhere:  # in a process that has not imported the application
            elsewhere.delitem(sys.modules, agents.__name__)
            assert [call.name for call in sessions.get("t").repair()] == ["look_up"]
        values = agents.typed_graph(checkpointer=sessions.checkpointer).get_state(config).values
        assert (values["place"], values["plans"]) == (agents.Place("rome", 1), plans)
