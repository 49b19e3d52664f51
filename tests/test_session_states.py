"""Ending, keeping alive and explaining sessions, through `Sessions` and with graphs running in them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from session_middleware import InvalidTransition, SessionClosed, SessionExists, SessionNotFound
from session_middleware.errors import InvalidSettings, UnknownStatus
from tests.conftest import Clock, OpenSessions
from tests.support import agents
from tests.support.agents import human, said

pytestmark = [pytest.mark.sessions(idle_timeout="30m"), pytest.mark.usefixtures("each_engine", "clock")]


def events(session: Any) -> list[tuple[str, str | None]]:
    return [(event.kind, event.reason) for event in session.events()]


# Ending


@pytest.mark.parametrize("end", ["complete", "fail", "abandon", "expire"])
def test_a_session_is_ended_with_a_reason_and_reopened_by_the_next_run(end: str, open_sessions: OpenSessions) -> None:
    sessions = open_sessions()
    graph = sessions.attach(agents.chat())
    graph.invoke(human("hi"), sessions.config("t"))
    ended = getattr(sessions.get("t"), end)(reason="ticket_solved", detail={"ticket": 7})
    statuses = {"complete": "completed", "fail": "failed", "abandon": "abandoned", "expire": "expired"}
    assert ended.status == statuses[end]
    assert (ended.reason, ended.ended_at) == ("ticket_solved", sessions.get("t").ended_at)
    assert sessions.get("t").events()[-1].detail["ticket"] == 7
    assert [session.id for session in sessions.list(status=ended.status)] == ["t"]
    assert graph.get_state(sessions.config("t")).values["messages"]  # reading it does not reopen it
    assert sessions.get("t").status == ended.status
    graph.invoke(human("one more thing"), sessions.config("t"))
    again = sessions.get("t")
    opened_as = "revived" if end == "expire" else "reopened"
    assert (again.status, again.opened_as, again.ended_at) == ("active", opened_as, None)
    assert events(again) == [("opened", None), (ended.status, "ticket_solved"), (opened_as, "ticket_solved")]
    assert len(said(again)) == 4


async def test_an_ended_session_refuses_runs_where_on_closed_says_so_and_may_still_be_read(
    open_sessions: OpenSessions,
) -> None:
    sessions = open_sessions(on_closed="reject")
    graph = sessions.attach(agents.chat())
    graph.invoke(human("hi"), sessions.config("t"))
    await (await sessions.aget("t")).acomplete()
    with pytest.raises(SessionClosed, match="completed"):
        graph.invoke(human("more"), sessions.config("t"))
    with pytest.raises(SessionClosed):
        await graph.ainvoke(human("more"), sessions.config("t"))
    with pytest.raises(SessionClosed):
        graph.update_state(sessions.config("t"), human("more"))
    with pytest.raises(SessionClosed):
        sessions.open("t")
    assert len(graph.get_state(sessions.config("t")).values["messages"]) == 2
    assert len(list(graph.get_state_history(sessions.config("t")))) == 3
    session = sessions.get("t")
    assert (session.status, said(session)[-1]) == ("completed", ("assistant", "you said hi"))
    assert events(session)[-1] == ("denied", "closed")


@pytest.mark.sessions(on_expire="delete")
def test_an_expired_session_is_deleted_by_the_next_sweep_where_on_expire_says_so(open_sessions: OpenSessions) -> None:
    sessions = open_sessions()
    expired = sessions.open("t").expire()
    assert (expired.status, expired.reason, expired.expires_at) == ("expired", "by_user", expired.ended_at)
    assert [due.session_id for due in sessions.sweep()] == ["t"]
    assert sessions.find("t") is None


def test_what_cannot_follow_is_refused_naming_both_states(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions()
    session = sessions.open("t")
    session.complete()
    for act, to in ((session.fail, "failed"), (session.complete, "completed"), (session.ping, "active")):
        with pytest.raises(InvalidTransition, match=f"is completed and cannot become {to}"):
            act()
    expired = sessions.open("u")
    clock.advance(hours=1)
    with pytest.raises(InvalidTransition, match="is expired and cannot become abandoned"):
        expired.abandon()
    with pytest.raises(InvalidTransition, match="is expired and cannot become active"):
        expired.ping()
    with pytest.raises(InvalidTransition, match="is expired and cannot become expired"):
        expired.expire()
    assert sessions.get("u").status == "expired"
    sessions.delete("t")
    with pytest.raises(SessionNotFound):
        session.ping()


@pytest.mark.parametrize("swept", [True, False])
def test_one_that_has_expired_is_not_revived_by_a_pin(open_sessions: OpenSessions, clock: Clock, swept: bool) -> None:
    sessions = open_sessions(on_expire="prune")
    session = sessions.open("t")
    clock.advance(hours=1)
    if swept:
        sessions.sweep()
    session.pin("hold")
    assert sessions.get("t").status == "expired"
    session.unpin()
    assert sessions.get("t").status == "expired"
    assert [event.kind for event in session.events()] == ["opened", "expired", "pinned", "unpinned"]


def test_a_session_that_is_ended_by_its_own_run_stays_ended(open_sessions: OpenSessions) -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    sessions = open_sessions()

    def node(state: MessagesState) -> dict[str, Any]:
        sessions.get("t").complete(reason="done")
        return {"messages": [("ai", "bye")]}

    graph = sessions.attach(StateGraph(MessagesState).add_node("node", node).add_edge(START, "node").compile())
    graph.invoke(human("finish"), sessions.config("t"))
    session = sessions.get("t")
    assert (session.status, session.reason, len(said(session))) == ("completed", "done", 2)
    assert session.runs()[-1].outcome == "ok"


def test_a_failure_keeps_its_error(open_sessions: OpenSessions) -> None:
    session = open_sessions().open("t")
    session.fail(ValueError("no more tea"))
    assert session.events()[-1].detail == {"error": "ValueError: no more tea"}


# Keeping alive


def test_a_ping_keeps_alive_and_tells_until_when(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions()
    session = sessions.open("t")
    for _ in range(3):
        clock.advance(minutes=29)
        assert session.ping() == clock() + timedelta(minutes=30)
    assert sessions.get("t").status == "active"
    assert open_sessions(idle_timeout=None).get("t").ping() is None


def test_a_pin_exempts_from_expiry_and_cleaning_until_it_is_taken_away(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(on_expire="delete", retention="1h")
    pinned = sessions.open("t").pin("lawsuit 12/4", by="legal@example.com")
    assert (pinned.pinned.why, pinned.pinned.by, pinned.pinned.at) == ("lawsuit 12/4", "legal@example.com", clock())
    sessions.open("ended").pin("the same", by="legal").complete()
    clock.advance(days=400)
    assert sessions.get("t").status == "idle"
    assert sessions.sweep() == sessions.sweep(older_than="1d") == []
    assert "pinned by legal@example.com (lawsuit 12/4)" in str(sessions.explain("t"))
    sessions.get("t").unpin()
    assert sessions.get("t").expires_at == clock() + timedelta(minutes=30)
    assert events(sessions.get("t"))[1:] == [("pinned", "lawsuit 12/4"), ("unpinned", None)]
    clock.advance(minutes=30)
    assert [ended.session_id for ended in sessions.sweep()] == ["t"]


# Terms of its own


def test_a_session_may_have_terms_of_its_own(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions()
    sessions.open("short", idle_timeout="1m")
    sessions.open("never", idle_timeout="never")
    sessions.open("gone", idle_timeout="1m", on_expire="delete")
    sessions.open("strict", idle_timeout="1m", on_resume="reject")
    clock.advance(minutes=1)
    assert sessions.get("short").status == "expired"
    assert {session.id for session in sessions.list(status="expired")} == {"short", "gone", "strict"}
    with pytest.raises(Exception, match="on_resume"):
        sessions.open("strict")
    assert {(e.session_id, e.action) for e in sessions.sweep()} == {
        ("short", "keep"),
        ("gone", "delete"),
        ("strict", "keep"),
    }
    assert sessions.find("gone") is None
    clock.advance(days=900)
    assert sessions.get("never").status == "idle"
    sessions.get("never").update(idle_timeout="1d")
    assert sessions.get("never").status == "expired"
    with pytest.raises(InvalidSettings, match="idle_timeout"):
        sessions.open("x", idle_timeout="soon")


def test_a_session_expires_by_its_age_however_active_but_not_in_a_run(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    from langchain_core.tools import tool

    sessions = open_sessions(max_age="2h")

    @tool
    def look_up(thing: str) -> str:
        """Takes its time."""
        clock.advance(hours=3)
        assert sessions.get("t").status == "active"
        assert sessions.sweep() == []
        return thing

    graph = sessions.attach(agents.tool_graph(look_up))
    graph.invoke(human("look up tea"), sessions.config("t"))
    session = sessions.get("t")
    assert (session.status, session.reason) == ("expired", "max_age")
    assert [(ended.session_id, ended.reason) for ended in sessions.sweep()] == [("t", "max_age")]
    graph.invoke(human("hi"), sessions.config("t"))
    assert (sessions.get("t").status, sessions.get("t").expires_at) == ("active", clock() + timedelta(minutes=30))
    sessions.open("young")
    for _ in range(6):
        clock.advance(minutes=20)
        sessions.get("young").status == "active" and sessions.get("young").ping()
    assert sessions.get("young").status == "expired"


def test_settings_hold_for_sessions_that_were_there_before(open_sessions: OpenSessions, clock: Clock) -> None:
    open_sessions(idle_timeout=None).open("t")
    clock.advance(days=3)
    later = open_sessions(idle_timeout="1d")
    assert later.get("t").status == "expired"
    assert [session.id for session in later.list(status="expired")] == ["t"]
    assert [ended.session_id for ended in later.sweep(dry_run=True)] == ["t"]
    assert open_sessions(idle_timeout=None, max_age="2d").get("t").reason == "max_age"


def test_a_copy_begins_its_time_when_it_is_made(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(max_age="1h")
    graph = sessions.attach(agents.chat())
    graph.invoke(human("hi"), sessions.config("t"))
    clock.advance(hours=5)
    sessions.checkpointer.copy_thread("t", "u")
    assert (sessions.get("t").status, sessions.get("u").status) == ("expired", "active")


# Knowing about it


def test_explain_says_why_and_what_comes_next(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(retention="1d")
    session = sessions.open("t")
    due = clock() + timedelta(minutes=30)
    explained = sessions.explain("t")
    assert (explained.status, explained.next_status, explained.next_at) == ("active", "expired", due)
    assert explained.next_reason == "idle_timeout"
    clock.advance(minutes=31)
    explained = sessions.explain("t")
    assert (explained.status, explained.reason, explained.since) == ("expired", "idle_timeout", due)
    assert (explained.next_status, explained.next_reason) == ("deleted", "retention")
    assert "revives it" in str(explained)
    clock.advance(days=2)
    sessions.sweep()
    explained = sessions.explain("t")
    assert (explained.status, explained.reason) == ("deleted", "retention")
    assert "opens a new session" in explained.text
    assert sessions.explain("nobody").status == "unknown"
    assert session.id == "t"


def test_context_and_metadata_merge_at_every_depth_and_none_takes_away(open_sessions: OpenSessions) -> None:
    sessions = open_sessions()
    session = sessions.open("t", context={"units": {"length": "m", "mass": "kg"}, "language": "de"})
    session = session.update(context={"units": {"mass": "lb"}, "language": None, "tone": "short"})
    assert session.context == sessions.get("t").context == {"units": {"length": "m", "mass": "lb"}, "tone": "short"}


def test_a_session_knows_its_client_and_when_it_changes(open_sessions: OpenSessions) -> None:
    session = open_sessions().open("t", client={"name": "web", "version": "2.1"})
    session = session.update(client={"name": "phone", "capabilities": ["images"]})
    assert session.client == {"name": "phone", "version": "2.1", "capabilities": ["images"]}
    assert events(session) == [("opened", None), ("connected", None), ("connected", None)]


def test_stats_count_what_went_in_and_out(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions()
    graph = sessions.attach(agents.tool_graph())
    graph.invoke(human("look up tea"), sessions.config("t"))
    stats = sessions.get("t").stats()
    assert (stats.messages_in, stats.messages_out, stats.tool_call_count, stats.tools) == (1, 2, 1, {"look_up": 1})
    assert (stats.created_at, stats.last_active_at) == (clock(), clock())
    assert stats.bytes > 500


def test_a_status_nobody_knows_is_refused_and_a_name_that_is_nearly_right(open_sessions: OpenSessions) -> None:
    sessions = open_sessions()
    for ask in (lambda: sessions.list(status="done"), lambda: sessions.count(status="foo")):
        with pytest.raises(UnknownStatus, match="completed"):
            ask()
    for wrong, right in (
        ("user", "user_id"),
        ("thread_id", "session_id"),
        ("usr_id", "user_id"),
        ("userid", "user_id"),
    ):
        with pytest.raises(TypeError, match=f"{wrong}.*{right}"):
            sessions.config("t", **{wrong: "alice"})
    assert sessions.config("t", model="large", checkpoint_id="1")["configurable"]["model"] == "large"


def test_an_empty_title_takes_it_away_and_none_leaves_it(open_sessions: OpenSessions) -> None:
    session = open_sessions().open("t", title="Tea", purpose="support", tags=["x"])
    assert session.update(title=None).title == "Tea"
    cleared = session.update(title="", purpose="", tags=[])
    assert (cleared.title, cleared.purpose, cleared.tags) == (None, None, ())


async def test_a_copy_keeps_title_tags_and_metadata_and_is_its_owners(open_sessions: OpenSessions) -> None:
    sessions = open_sessions()
    details: dict[str, Any] = {"title": "Tea", "purpose": "support", "tags": ["x"], "metadata": {"a": {"b": 1}}}
    graph = sessions.attach(agents.chat())
    sessions.open("t", user_id="alice", **details)
    graph.invoke(human("hi"), sessions.config("t", user_id="alice"))
    for copy in (
        sessions.get("t").fork(),
        await sessions.get("t").afork(id="named"),
        sessions.for_user("alice").get("t").fork(),
    ):
        assert (copy.user_id, copy.parent_id, copy.opened_as) == ("alice", "t", "forked")
        assert dict(copy).items() >= (details | {"tags": ("x",)}).items()
        assert len(graph.get_state(copy.config()).values["messages"]) == 2
        assert [message.text for message in copy.messages()] == ["hi", "you said hi"]
    assert sessions.find("named") is not None
    with pytest.raises(SessionExists):
        sessions.get("t").fork(id="named")
    with pytest.raises(SessionNotFound):
        sessions.get("nowhere").fork()
