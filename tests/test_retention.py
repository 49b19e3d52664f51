"""What becomes of sessions that have ended: pruned, deleted, remembered; and how many may be open."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from langchain_core.tools import tool

from session_middleware import SessionClosed, SessionExpired, SessionLimitReached
from session_middleware.models import Identity
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import RunContext
from tests.conftest import Clock, OpenSessions
from tests.support import agents
from tests.support.agents import human, said

pytestmark = [pytest.mark.sessions(idle_timeout="30m"), pytest.mark.usefixtures("clock", "each_engine")]


def kinds(session: Any) -> list[str]:
    return [event.kind for event in session.events()]


# Pruning and deleting


def test_prune_keeps_the_latest_checkpoint_and_the_record(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(on_expire="prune")
    graph, config = sessions.attach(agents.chat()), sessions.config("t")
    for text in ("one", "two"):
        graph.invoke(human(text), config)
    clock.advance(hours=1)
    (planned,) = sessions.sweep(dry_run=True)
    assert planned.bytes > 500
    assert [ended.action for ended in sessions.sweep()] == ["prune"]
    session = sessions.get("t")
    assert (session.status, session.stats().checkpoint_count, len(said(session))) == ("expired", 1, 4)
    assert len(graph.invoke(human("three"), config)["messages"]) == 6


def test_retention_deletes_what_has_ended_long_ago_and_remembers_the_id(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(retention="7d")
    sessions.open("t", user_id="alice").complete()
    sessions.open("short", retention="1d").abandon()
    sessions.open("kept", retention="never").complete()
    sessions.open("idle")
    clock.advance(days=1)
    assert [(e.session_id, e.reason, e.action) for e in sessions.sweep()] == [
        ("idle", "idle_timeout", "keep"),
        ("short", "retention", "delete"),
    ]
    clock.advance(days=6)
    assert {(e.session_id, e.reason) for e in sessions.sweep()} == {("t", "retention")}
    explained = sessions.explain("t")
    assert (explained.status, explained.reason, explained.since) == ("deleted", "retention", clock())
    assert {session.id for session in sessions.list()} == {"kept", "idle"}
    clock.advance(days=1)
    assert [e.session_id for e in sessions.sweep()] == ["idle"]


def test_one_sweep_ends_and_deletes_what_has_been_due_for_both(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(retention="1d")
    sessions.open("t")
    clock.advance(days=2)
    assert [(e.session_id, e.action) for e in sessions.sweep()] == [("t", "keep"), ("t", "delete")]
    assert sessions.find("t") is None


def test_older_than_cleans_by_age_and_status(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(idle_timeout=None)
    for name in ("a", "b"):
        sessions.open(name)
    sessions.get("b").complete()
    clock.advance(days=89)
    sessions.open("young")
    clock.advance(days=1, seconds=1)
    planned = sessions.sweep(older_than="90d", status="completed", dry_run=True)
    assert [(e.session_id, e.reason, e.action) for e in planned] == [("b", "older_than", "delete")]
    assert sessions.sweep(older_than="90d", status="completed") == [planned[0].model_copy(update={"bytes": None})]
    assert [e.session_id for e in sessions.sweep(older_than=timedelta(days=90))] == ["a"]
    assert [session.id for session in sessions.list()] == ["young"]
    with pytest.raises(ValueError, match="older_than"):
        sessions.sweep(status="idle")


# Tombstones


@pytest.mark.parametrize("part", ["attached", "checkpointer"])
@pytest.mark.parametrize("reopened", [False, True])
def test_a_run_that_is_slower_than_its_sessions_deletion_brings_nothing_back(
    reopened: bool, part: str, open_sessions: OpenSessions
) -> None:
    sessions, others = open_sessions(), open_sessions()

    @tool
    def look_up(thing: str) -> str:
        """The operator acts meanwhile."""
        others.delete("t")
        if reopened:
            others.attach(agents.chat()).invoke(human("anew"), others.config("t"))
        return thing

    if part == "attached":
        graph = sessions.attach(agents.tool_graph(look_up))
    else:
        graph = agents.tool_graph(look_up, checkpointer=sessions.checkpointer)
    graph.invoke(human("hi"), sessions.config("t"))
    with pytest.raises(SessionClosed, match="is deleted"):
        graph.invoke(human("look up tea"), sessions.config("t"))
    if reopened:
        assert said(sessions.get("t")) == [("user", "anew"), ("assistant", "you said anew")]
        assert sessions.get("t").incarnation == 2
    else:
        assert sessions.find("t") is None
    assert sessions.check() == []
    assert sessions.check(deep=True) == []


def test_a_deleted_id_is_resumed_as_on_resume_says(open_sessions: OpenSessions) -> None:
    strict, lenient = open_sessions(on_resume="reject"), open_sessions()
    strict.open("t")
    strict.delete("t")
    with pytest.raises(SessionExpired, match="was deleted"):
        strict.attach(agents.chat()).invoke(human("hi"), strict.config("t"))
    assert strict.find("t") is None
    lenient.attach(agents.chat()).invoke(human("hi"), lenient.config("t"))
    assert (lenient.get("t").incarnation, kinds(lenient.get("t"))) == (2, ["opened"])


def test_a_context_of_another_process_that_looked_before_the_deletion_is_refused(open_sessions: OpenSessions) -> None:
    sessions = open_sessions()
    storage = sessions._storage
    sessions.open("t")
    context = RunContext("t", Identity())
    assert storage.authorize(context) is not None
    sessions.delete("t")
    with pytest.raises(SessionClosed):
        storage.append(context, [MessageEntry("m", "user", "late")])
    assert sessions.find("t") is None


# Limits


def test_a_limit_refuses_one_more_and_counts_only_what_is_open(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(max_sessions=3, max_sessions_per_user=2)
    graph = sessions.attach(agents.chat())
    for name in ("a", "b"):
        graph.invoke(human("hi"), sessions.config(name, user_id="alice"))
    with pytest.raises(SessionLimitReached, match="limit of 2 open sessions for user 'alice'"):
        graph.invoke(human("hi"), sessions.config("c", user_id="alice"))
    assert sessions.find("c") is None
    graph.invoke(human("hi"), sessions.config("a", user_id="alice"))
    sessions.open("d", user_id="bob")
    with pytest.raises(SessionLimitReached, match="limit of 3 open sessions is"):
        sessions.open("e", user_id="eve")
    with pytest.raises(SessionLimitReached):
        sessions.checkpointer.copy_thread("d", "f")
    sessions.get("a").complete()
    graph.invoke(human("hi"), sessions.config("c", user_id="alice"))
    with pytest.raises(SessionLimitReached):
        graph.invoke(human("hi"), sessions.config("a", user_id="alice"))  # to reopen it would be one more
    clock.advance(hours=1)
    graph.invoke(human("hi"), sessions.config("a", user_id="alice"))


def test_expire_oldest_makes_room_of_what_was_used_least_recently(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(max_sessions=2, on_limit="expire_oldest")
    sessions.open("pinned").pin()
    clock.advance(minutes=1)
    sessions.open("old")
    clock.advance(minutes=1)
    sessions.open("new")
    old = sessions.get("old")
    assert (old.status, old.reason, kinds(old)) == ("expired", "limit", ["opened", "expired"])
    sessions.get("new").pin()
    with pytest.raises(SessionLimitReached):
        sessions.open("more")


# Sweeping


def test_one_process_sweeps_at_a_time(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions, others = open_sessions(), open_sessions()
    sessions.open("t")
    clock.advance(hours=1)
    duty = others._storage.acquire_duty("\0sweep")
    assert sessions.sweep() == []
    others._storage.release_leases([duty.lease])
    assert [ended.session_id for ended in sessions.sweep()] == ["t"]


def test_a_sweep_goes_on_beside_runs_by_itself(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(sweep_interval="1h")
    sessions.open("t")
    clock.advance(hours=1)
    sessions.open("u")
    for task in sessions._background._tasks:
        task.next_at = 0.0  # by the clock of the thread
    sessions._background.run_due_tasks()
    assert kinds(sessions.get("t")) == ["opened", "expired"]
