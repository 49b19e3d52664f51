"""What is recorded by hand in a session that has ended is let in, or refused, as a run of a graph is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from session_middleware import Session, SessionClosed, SessionExpired, Sessions
from tests.conftest import Clock, OpenSessions

pytestmark = [pytest.mark.sessions(idle_timeout="1h", sweep_interval=None), pytest.mark.usefixtures("clock")]


def in_block(session: Session) -> None:
    with session:
        session.add({"role": "user", "content": "late"})


BY_HAND: dict[str, Callable[[Session], Any]] = {
    "add": lambda session: session.add({"role": "user", "content": "late"}),
    "add_history": lambda session: session.add_history([{"role": "user", "content": "late"}]),
    "record_tool": lambda session: session.record_tool("search"),
    "history": lambda session: session.history().add_messages([HumanMessage("late")]),
    "clear": lambda session: session.history().clear(),
    "block": in_block,
}
by_hand = pytest.mark.parametrize("act", BY_HAND.values(), ids=list(BY_HAND))
by_user = pytest.mark.parametrize("user", [None, "alice"], ids=["operator", "for_user"])


def got(sessions: Sessions, user: str | None) -> Session:
    return sessions.get("t") if user is None else sessions.for_user(user).get("t")


def events_of(session: Session) -> list[tuple[str, str | None]]:
    return [(event.kind, event.reason) for event in session.events()]


@by_user
@by_hand
def test_what_has_expired_by_the_clock_takes_nothing_by_hand_where_it_is_not_to_be_resumed(
    act: Callable[[Session], Any], user: str | None, open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(on_resume="reject")
    sessions.open("t", user_id="alice")
    clock.advance(hours=2)
    with pytest.raises(SessionExpired):
        act(got(sessions, user))
    session = sessions.get("t")
    assert (session.status, session.messages(), session.runs()) == ("expired", [], [])
    assert events_of(session) == [("opened", None), ("denied", "expired")]


@by_user
@by_hand
def test_what_is_recorded_by_hand_revives_with_an_event(
    act: Callable[[Session], Any], user: str | None, open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions()
    sessions.open("t", user_id="alice")
    clock.advance(hours=2)
    act(got(sessions, user))
    act(got(sessions, user))
    session = sessions.get("t")
    assert session.status == "active"
    assert events_of(session) == [("opened", None), ("revived", "idle_timeout")]


@by_hand
def test_a_completed_session_takes_nothing_by_hand_where_it_is_not_to_be_reopened(
    act: Callable[[Session], Any], open_sessions: OpenSessions
) -> None:
    sessions = open_sessions(on_closed="reject")
    sessions.open("t").complete()
    with pytest.raises(SessionClosed, match="completed"):
        act(sessions.get("t"))
    assert sessions.get("t").status == "completed"
    assert events_of(sessions.get("t")) == [("opened", None), ("completed", "by_user"), ("denied", "closed")]


@by_hand
def test_what_is_recorded_by_hand_reopens_with_an_event(
    act: Callable[[Session], Any], open_sessions: OpenSessions
) -> None:
    sessions = open_sessions()
    sessions.open("t").complete()
    act(sessions.get("t"))
    assert sessions.get("t").status == "active"
    assert events_of(sessions.get("t"))[1:] == [("completed", "by_user"), ("reopened", "by_user")]


@pytest.mark.parametrize(("user", "busy"), [(None, "allow"), ("alice", "reject")], ids=["operator", "for_user"])
@by_hand
def test_what_is_recorded_by_hand_starts_over_where_that_is_wanted_and_the_session_in_hand_goes_on_there(
    act: Callable[[Session], Any], user: str | None, busy: str, open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(on_resume="fresh", on_busy=busy)
    sessions.open("t", user_id="alice").add({"role": "user", "content": "old"})
    session = got(sessions, user)
    clock.advance(hours=2)
    act(session)
    act(session)
    session.add({"role": "user", "content": "again"})
    said = [message.text for message in session.messages()]
    assert "old" not in said
    assert said[-1] == "again"
    assert session.resource("tmp", open=lambda: "new") == "new"
    assert [message.text for message in sessions.get("t~1").messages()] == ["old"]
    assert events_of(session)[0] == ("opened", "fresh")
    assert sessions.check() == []


async def test_all_that_is_recorded_at_once_after_a_session_has_expired_goes_where_it_starts_over(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    session = open_sessions(on_resume="fresh").open("t")
    clock.advance(hours=2)
    await asyncio.gather(*(session.aadd({"role": "user", "content": str(number)}) for number in range(8)))
    assert sorted(message.text for message in session.messages()) == list("01234567")


@by_hand
def test_a_session_in_hand_never_becomes_the_next_one_of_its_id(
    act: Callable[[Session], Any], open_sessions: OpenSessions
) -> None:
    sessions = open_sessions(on_busy="reject")
    before = sessions.open("t")
    sessions.delete("t")
    with pytest.raises(SessionClosed, match="deleted"):
        act(before)
    sessions.open("t")
    with pytest.raises(SessionClosed, match="deleted"):
        act(before)
    assert (sessions.get("t").messages(), sessions.get("t").runs()) == ([], [])


def test_a_tool_runs_in_an_expired_session_and_revives_nothing_that_is_not_to_be(path: Path, clock: Clock) -> None:
    with Sessions(path, clock=clock, idle_timeout="1h", on_resume="reject", sweep_interval=None) as sessions:
        session = sessions.open("t")
        clock.advance(hours=2)
        assert session.tool(lambda: "done", name="work")() == "done"
        assert (sessions.get("t").status, session.tool_calls()) == ("expired", [])
        assert sessions.recorder.faults == 1


def test_what_is_added_beside_a_run_is_let_in_however_long_that_takes(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(on_resume="reject")
    session = sessions.open("t")
    with session:
        clock.advance(hours=2)
        sessions.get("t").history().add_messages([HumanMessage("meanwhile")])
        session.add({"role": "user", "content": "in it"})
    assert [message.text for message in session.messages()] == ["meanwhile", "in it"]
    assert events_of(session) == [("opened", None)]
