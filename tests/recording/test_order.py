"""What the record says of a conversation is in the order of its state, however parallel the run was."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Send

from session_middleware import Sessions
from tests.support import agents
from tests.support.pairwise import ENGINES, pairwise

pytestmark = pytest.mark.usefixtures("each_engine")

TEAM = 3


def spread(state: MessagesState) -> list[Send]:
    return [Send("team", {"messages": [HumanMessage(f"look up w{number}")]}) for number in range(TEAM)]


def team() -> Any:
    """Several agents at once, each a subgraph with messages of its own that are all its graph's in the end."""
    builder = StateGraph(MessagesState).add_node("plan", lambda _: {"messages": [AIMessage("planned")]})
    builder.add_node("team", agents.tool_graph()).add_edge(START, "plan")
    return builder.add_conditional_edges("plan", spread, ["team"]).compile()


def in_state(graph: Any, sessions: Sessions, session_id: str) -> list[str]:
    return [m.text for m in graph.get_state(sessions.config(session_id)).values["messages"]]


def in_record(sessions: Sessions, session_id: str) -> list[str]:
    return [m.text for m in sessions.get(session_id).messages()]


@pairwise(durability=["sync", "async", "exit"], recorder=[True, False], each_engine=ENGINES)
def test_what_parallel_subgraphs_say_is_in_the_order_of_their_graphs_state(
    sessions: Sessions, durability: Any, recorder: bool
) -> None:
    graph = sessions.attach(team(), recorder=recorder)
    graph.invoke({"messages": "go"}, sessions.config("sync"), durability=durability)
    asyncio.run(graph.ainvoke({"messages": "go"}, sessions.config("async"), durability=durability))
    for session_id in ("sync", "async"):
        assert len(in_state(graph, sessions, session_id)) == 2 + 4 * TEAM
        assert in_record(sessions, session_id) == in_state(graph, sessions, session_id)


def test_of_runs_at_once_the_record_shows_the_one_that_the_state_shows(sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph())
    inputs: list[Any] = [{"messages": f"look up m{number}"} for number in range(4)]

    async def play(session_id: str) -> None:
        config = sessions.config(session_id)
        await graph.abatch(inputs, [config] * len(inputs))
        assert in_record(sessions, session_id) == in_state(graph, sessions, session_id)
        await graph.ainvoke({"messages": "look up next"}, config)

    for number in range(2):
        asyncio.run(play(f"async-{number}"))
        graph.batch(inputs, [sessions.config(f"sync-{number}")] * len(inputs))
    for session in sessions.list(limit=None):
        assert in_record(sessions, session.id) == in_state(graph, sessions, session.id)
