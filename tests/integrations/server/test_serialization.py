"""Any state as JSON, and snapshots in the shape that LangGraph's own clients read."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Send, interrupt
from pydantic import BaseModel

from session_middleware import Sessions
from session_middleware.integrations.server.serialization import json_bytes, state_json


class Color(Enum):
    red = "r"


class Point(NamedTuple):
    x: int


class Model(BaseModel):
    a: int = 1


@dataclass
class Data:
    b: int = 2


def read(value: Any) -> Any:
    return json.loads(json_bytes(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Model(), {"a": 1}),
        (Data(), {"b": 2}),
        (Point(3), {"x": 3}),
        (Color.red, "r"),
        ({1: {2}}, {"1": [2]}),
        (deque([1]), [1]),
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00+00:00"),
        (timedelta(seconds=1.5), 1.5),
        (Decimal("1.0"), 1),
        (Decimal("0.5"), 0.5),
        (Decimal("NaN"), None),
        (UUID(int=1), str(UUID(int=1))),
        (Path("/a"), "/a"),
        (re.compile("a+"), "a+"),
        (b"ab", "YWI="),
        (Send("node", {"a": 1}), {"node": "node", "args": {"a": 1}}),
        (ValueError("no tea"), {"error": "ValueError", "message": "no tea"}),
        (OSError("/etc/secret"), {"error": "OSError", "message": "An internal error occurred"}),
        (object(), None),
        (Model, None),
        (math.nan, None),
        ("half \ud83d", "half �"),
        (2**70, 2**70),
    ],
)
def test_a_value_of_any_class_is_json(value: Any, expected: Any) -> None:
    assert read({"value": [value]}) == {"value": [expected]}


def test_a_value_that_contains_itself_is_json_too() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert "value" in json.dumps(read({"value": circle}))


def test_a_message_has_the_fields_that_clients_read() -> None:
    message = AIMessage("tea?", id="a", tool_calls=[{"name": "look", "args": {}, "id": "c"}])
    assert read(message) == {
        "type": "ai",
        "content": "tea?",
        "id": "a",
        "name": None,
        "tool_calls": [{"name": "look", "args": {}, "id": "c", "type": "tool_call"}],
        "invalid_tool_calls": [],
        "usage_metadata": None,
        "additional_kwargs": {},
        "response_metadata": {},
    }


def test_a_snapshot_has_the_state_of_its_subgraph_and_no_identity(sessions: Sessions) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(interrupt("sure?"), id="answer")]}

    inner = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile()
    graph = sessions.attach(StateGraph(MessagesState).add_node("inner", inner).add_edge(START, "inner").compile())
    config = sessions.config("t", user_id="alice", group_ids=["g"])
    graph.invoke({"messages": [HumanMessage("hi", id="h")]}, config)

    found = read(state_json(graph.get_state(config, subgraphs=True)))
    assert found["next"] == ["inner"]
    (task,) = found["tasks"]
    assert [each["value"] for each in (*task["interrupts"], *found["interrupts"])] == ["sure?", "sure?"]
    nested = task["state"]
    assert nested["next"] == ["ask"]
    assert nested["checkpoint"]["checkpoint_ns"].startswith("inner:")
    assert set(found["checkpoint"]) == {"thread_id", "checkpoint_ns", "checkpoint_id"}
    assert found["checkpoint_id"] == found["checkpoint"]["checkpoint_id"]
    assert "alice" not in json.dumps(found)

    without = read(state_json(graph.get_state(config)))
    assert without["tasks"][0]["state"] is None
    assert set(without["tasks"][0]["checkpoint"]) == {"thread_id", "checkpoint_ns"}
