"""A run that may no longer write what it says ends all the same, and is refused once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from session_middleware import SessionAccessDenied, SessionNotFound, Sessions
from session_middleware.models import Identity
from session_middleware.session import Session
from session_middleware.storage.record_entries import MessageEntry, RunEnd
from session_middleware.storage.run import RunContext
from tests.conftest import OpenSessions
from tests.support.agents import asks, human

pytestmark = pytest.mark.usefixtures("each_engine", "consistent")

WITHDRAWALS: dict[str, Callable[[Sessions], Any]] = {
    "visibility": lambda sessions: sessions.get("t").update(visibility="private"),
    "revoked": lambda sessions: sessions.revoke("bob"),
}


@pytest.fixture
def sessions(open_sessions: OpenSessions) -> Sessions:
    sessions = open_sessions(sweep_interval=None)
    sessions.open("t", user_id="alice", group_id="team", visibility="group-write")
    return sessions


def graph_of(*steps: Callable[[], Any]) -> Any:
    builder = StateGraph(MessagesState)
    before = START
    for number, step in enumerate(steps):

        def node(state: MessagesState, step: Callable[[], Any] = step) -> dict[str, Any]:
            step()
            return {"messages": [("ai", "said after it")]}

        builder.add_node(f"n{number}", node)
        builder.add_edge(before, f"n{number}")
        before = f"n{number}"
    return builder.compile()


def refused_events(session: Session) -> list[dict[str, Any]]:
    return [event.detail for event in session.events() if event.kind == "denied"]


@pytest.mark.parametrize("by", WITHDRAWALS)
def test_a_run_that_is_refused_in_its_midst_ends_and_leaves_one_event(by: str, sessions: Sessions) -> None:
    graph = sessions.attach(graph_of(lambda: WITHDRAWALS[by](sessions), lambda: None))
    with pytest.raises(SessionAccessDenied):
        graph.invoke(human("hi"), sessions.config("t", user_id="bob", group_ids=["team"]))
    session = sessions.get("t")
    (run,) = session.runs()
    assert (run.outcome, run.error, run.user_id) == ("error", "refused (owner)", "bob")
    assert run.duration_ms is not None
    assert not session.is_running
    assert refused_events(session) == [{"user_id": "bob"}]
    assert "said after it" not in [message.text for message in session.messages()]
    assert session.stats().recorder_faults == 0


def test_a_tool_call_in_its_midst_is_interrupted(sessions: Sessions) -> None:
    @tool
    def withdraw() -> str:
        """Withdraw the right of the user."""
        WITHDRAWALS["revoked"](sessions)
        return "done"

    builder = StateGraph(MessagesState).add_node("ask", lambda state: {"messages": [asks(("withdraw", {}))]})
    builder.add_node("tools", ToolNode([withdraw])).add_edge(START, "ask").add_edge("ask", "tools")
    with pytest.raises(SessionAccessDenied):
        sessions.attach(builder.compile()).invoke(human("hi"), sessions.config("t", user_id="bob", group_ids=["team"]))
    assert [(call.name, call.status) for call in sessions.get("t").tool_calls()] == [("withdraw", "interrupted")]


async def test_it_ends_on_an_event_loop_as_well(sessions: Sessions) -> None:
    graph = sessions.attach(graph_of(lambda: WITHDRAWALS["visibility"](sessions), lambda: None))
    with pytest.raises(SessionAccessDenied):
        await graph.ainvoke(human("hi"), sessions.config("t", user_id="bob", group_ids=["team"]))
    sessions.settle()
    session = sessions.get("t")
    assert [run.outcome for run in session.runs()] == ["error"]
    assert refused_events(session) == [{"user_id": "bob"}]


def test_the_end_of_a_run_by_hand_is_written_too(sessions: Sessions) -> None:
    bobs = sessions.for_user("bob", group_ids=["team"])
    with pytest.raises(SessionNotFound), bobs.open("t"):
        WITHDRAWALS["visibility"](sessions)
    assert [(run.outcome, run.error) for run in sessions.get("t").runs()] == [("error", "refused (owner)")]


def test_a_run_that_is_let_in_again_before_it_ends_ends_as_it_did(sessions: Sessions) -> None:
    storage, session = sessions._storage, sessions.get("t")
    context = RunContext("t", Identity(user_id="bob", group_ids=("team",)), run_id="r")
    storage.append(context)
    session.update(visibility="private")
    with pytest.raises(SessionAccessDenied):
        storage.append(context, [MessageEntry("m", "user", "refused")])
    session.update(visibility="group-write")
    storage.append(context, [MessageEntry("n", "user", "let in")])
    storage.append(context, [RunEnd("ok", None, 1)])
    assert [run.outcome for run in session.runs()] == ["ok"]
    assert [message.text for message in session.messages()] == ["let in"]
