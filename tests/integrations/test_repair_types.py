"""Repairing a session whose state holds classes of the application's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from session_middleware import Sessions, UnserializableValue
from tests.integrations import agents

CALL = {"name": "look_up", "args": {"thing": "rome"}, "id": "call-1"}


def test_types_that_attaching_allowed_are_known_to_a_repair(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db") as sessions:
        graph, config = sessions.attach(agents.typed_graph()), sessions.config("t")
        said = [HumanMessage("rome"), AIMessage("", tool_calls=[CALL])]
        graph.update_state(config, {"messages": said, "place": agents.Place("rome", 1)})
        session = sessions.get("t")
        assert [call.name for call in session.repair(dry_run=True)] == ["look_up"]
        assert [call.name for call in session.repair()] == ["look_up"]
        values = graph.get_state(config).values
        assert ([m.type for m in values["messages"]], values["place"].visits) == (["human", "ai", "tool"], 1)
    with Sessions(tmp_path / "sessions.db") as sessions, pytest.raises(UnserializableValue, match="allowed_types"):
        sessions.get("t").repair()
