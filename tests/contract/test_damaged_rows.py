"""Every row whose content is not what was written is found by a deep check, and named with its table and session."""

from __future__ import annotations

from typing import Any

import pytest

from session_middleware import Sessions
from tests.support import agents
from tests.support.agents import human

LONG = "milk and tea " * 500

DAMAGE = {
    "sessions": "UPDATE sessions SET metadata = '{bad' WHERE id = 't'",
    "runs": "UPDATE runs SET outcome = 'perhaps' WHERE session_id = 't'",
    "messages": "UPDATE messages SET content = '[1' WHERE session_id = 't' AND role = 'user'",
    "tool_calls": "UPDATE tool_calls SET arguments = '{bad' WHERE session_id = 't'",
    "events": "UPDATE events SET detail = '7' WHERE session_id = 't'",
    "checkpoints": "UPDATE checkpoints SET step = 77 WHERE session_id = 't'",
    "writes": "UPDATE writes SET channel = 'another' WHERE session_id = 't'",
    "list_items": "UPDATE list_items SET digest = ? WHERE home = (SELECT home FROM sessions WHERE id = 't')",
    "blobs": "UPDATE blobs SET data = ? WHERE home = (SELECT home FROM sessions WHERE id = 't')",
    "memories": "UPDATE memories SET value = '[1]' WHERE session_id = 't'",
}


@pytest.fixture
def sessions(each_engine: str) -> Any:
    with Sessions(each_engine, sweep_interval=None) as sessions:
        graph = sessions.attach(agents.tool_graph())
        for name in ("t", "whole"):
            graph.invoke(human(f"look up tea {LONG}"), sessions.config(name), durability="sync")
            sessions.get(name).memory.remember("a fact")
            config = graph.get_state(sessions.config(name)).config
            sessions.checkpointer.put_writes(config, [("messages", [LONG])], "task")
        yield sessions


def test_a_deep_check_names_what_was_changed(sessions: Sessions) -> None:
    database = sessions._storage._database  # type: ignore[attr-defined]
    assert sessions.check(deep=True) == []
    for statement in DAMAGE.values():
        values = (b"another",) * statement.count("?")
        changed = database.write(lambda connection, s=statement, v=values: connection.execute(s, v).rowcount)
        assert changed, statement
    found = [each for each in sessions.check(deep=True) if each.kind == "damage"]
    assert {each.table for each in found} >= DAMAGE.keys() - {"list_items"}  # what refers to these is named
    assert all(each.session_id == "t" for each in found if each.table != "memories")
    assert any("is not what was written" in each.text for each in found if each.table == "blobs")
