"""An archived id is refused with the way to bring it back, unless a fresh start is asked for; nothing is lost by it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from session_middleware import (
    Session,
    SessionAccessDenied,
    SessionExists,
    SessionExpired,
    SessionLimitReached,
    SessionNotFound,
    Sessions,
)
from tests.conftest import Clock, OpenSessions
from tests.support import agents
from tests.support.agents import human, said

Gone = Callable[..., Sessions]
BACK = r"was archived at .*; bring it back with sessions\.restore\('t'\)"


pytestmark = pytest.mark.sessions(idle_timeout="30m", sweep_interval=None, on_expire="archive")


@pytest.fixture
def gone(open_sessions: OpenSessions, path: Path, clock: Clock) -> Gone:
    """Sessions with one, alice's "t", of the given terms, that a sweep has archived or deleted."""

    def gone(settings: dict[str, Any] | None = None, **terms: Any) -> Sessions:
        sessions = open_sessions(path, **(settings or {}))
        sessions.open("t", user_id="alice", **terms)
        sessions.attach(agents.chat()).invoke(human("hi"), sessions.config("t", user_id="alice"))
        sessions.get("t").memory.remember("alice likes tea", "k")
        clock.advance(hours=1)
        assert len(sessions.sweep()) == 1
        return sessions

    return gone


def is_archived(sessions: Sessions) -> bool:
    return sessions.find("t") is None and [one.session_id for one in sessions.list_archived()] == ["t"]


@pytest.mark.parametrize(
    ("on_resume", "parts"),
    [("revive", "attached"), ("reject", "attached"), ("revive", "checkpointer"), ("revive", "recorder")],
)
async def test_a_run_of_an_archived_id_is_refused_and_told_how_to_bring_it_back(
    gone: Gone, on_resume: str, parts: str
) -> None:
    sessions = gone({"on_resume": on_resume})
    config: Any = sessions.config("t", user_id="alice")
    if parts == "attached":
        graph = sessions.attach(agents.chat())
    elif parts == "checkpointer":
        graph = agents.chat()
        graph.checkpointer = sessions.checkpointer
    else:
        graph, config = agents.chat(), config | {"callbacks": [sessions.recorder]}
    with pytest.raises(SessionExpired, match=BACK):
        graph.invoke(human("hi"), config)
    with pytest.raises(SessionExpired, match=BACK):
        await graph.ainvoke(human("hi"), config)
    assert is_archived(sessions)
    sessions.restore("t")
    if on_resume == "revive":
        await graph.ainvoke(human("again"), config)
        assert said(sessions.get("t"))[:3] == [("user", "hi"), ("assistant", "you said hi"), ("user", "again")]


def test_whatever_asks_for_an_archived_id_is_told_how_to_bring_it_back(gone: Gone) -> None:
    sessions = gone()
    graph, config = sessions.attach(agents.chat()), sessions.config("t", user_id="alice")
    alice = sessions.for_user("alice")
    for refused in (
        lambda: graph.get_state(config),
        lambda: graph.update_state(config, human("more")),
        lambda: sessions.open("t", user_id="alice"),
        lambda: alice.open("t"),
    ):
        with pytest.raises(SessionExpired, match=BACK):
            refused()
    for door in (sessions, alice):
        assert "is refused (on_resume); it can be restored" in door.explain("t").text
        with pytest.raises(SessionNotFound, match=r"is archived; bring it back with sessions\.restore") as refusal:
            door.get("t")
        assert refusal.value.archived
    assert is_archived(sessions)
    assert said(alice.restore("t")) == [("user", "hi"), ("assistant", "you said hi")]


def test_another_user_is_denied_and_brings_nothing_back(gone: Gone) -> None:
    sessions = gone({}, group_id="team", visibility="group-write")
    with pytest.raises(SessionAccessDenied, match="owned by another user"):
        sessions.attach(agents.chat()).invoke(human("mine"), sessions.config("t", user_id="mallory"))
    for user, groups in (("mallory", []), ("bob", ["team"])):
        for refused in (sessions.for_user(user, groups).open, sessions.for_user(user, groups).restore):
            with pytest.raises(SessionNotFound, match="there is no session"):
                refused("t")
    sessions.revoke("alice")
    with pytest.raises(SessionAccessDenied, match="revoked"):
        sessions.for_user("alice").restore("t")
    assert is_archived(sessions)
    sessions.revoke("alice", lift=True)
    assert sessions.for_user("alice").restore("t").visibility == "group-write"
    assert sessions.for_user("bob", ["team"]).open("t").user_id == "alice"


def test_its_own_terms_hold_while_it_is_archived(gone: Gone) -> None:
    sessions = gone({"on_resume": "fresh"}, on_resume="revive")
    with pytest.raises(SessionExpired, match=BACK):
        sessions.open("t", user_id="alice")


def test_its_own_reject_holds_when_it_was_deleted(gone: Gone) -> None:
    sessions = gone({"on_expire": "delete"}, on_resume="reject")
    with pytest.raises(SessionExpired, match="refuses to resume it"):
        sessions.open("t", user_id="alice")


def test_an_id_that_must_be_new_is_taken_while_it_is_archived(gone: Gone) -> None:
    sessions = gone()
    with pytest.raises(SessionExists, match=r"in its archive; .*sessions\.restore\('t'\)"):
        sessions.open("t", user_id="alice", if_exists="raise")
    sessions.open("a", user_id="alice")
    with pytest.raises(SessionExists, match=r"sessions\.restore"):
        sessions.get("a").fork(id="t")
    bob = sessions.for_user("bob")
    bob.open("b")
    with pytest.raises(SessionExists):
        bob.get("b").fork(id="t")
    assert is_archived(sessions)
    sessions.delete("t")
    with pytest.raises(SessionExists):
        bob.get("b").fork(id="t")
    assert sessions.get("a").fork(id="t").user_id == "alice"


def test_a_session_that_is_there_is_not_restored_over(gone: Gone) -> None:
    sessions = gone()
    sessions.restore("t")
    for door in (sessions, sessions.for_user("alice")):
        with pytest.raises(SessionExists, match=r"sessions\.open\('t'\)"):
            door.restore("t")
    with pytest.raises(SessionNotFound):
        sessions.for_user("mallory").restore("t")


def test_a_fresh_start_lists_the_archive_under_another_id_which_restores_it(gone: Gone, clock: Clock) -> None:
    sessions = gone({"on_resume": "fresh"})
    graph, config = sessions.attach(agents.chat()), sessions.config("t", user_id="alice")
    assert graph.get_state(config).values == {}
    for text in ("two", "three"):
        assert len(graph.invoke(human(text), config)["messages"]) == 2
        clock.advance(hours=1)
        assert len(sessions.sweep()) == 1
    assert {one.session_id for one in sessions.list_archived()} == {"t", "t~1", "t~2"}
    graph.invoke(human("four"), config)
    assert "its earlier content is in session 't~3'" in sessions.explain("t").text
    sessions.delete("t")
    assert sessions.check() == []
    for name, text in (("t~1", "hi"), ("t~2", "two"), ("t~3", "three")):
        session = sessions.restore(name)
        assert (session.id, said(session)[0]) == (name, ("user", text))
        state = graph.get_state(sessions.config(name, user_id="alice"))
        assert [message.text for message in state.values["messages"]] == [text, f"you said {text}"]
        assert len(graph.invoke(human("more"), sessions.config(name, user_id="alice"))["messages"]) == 4
    assert [memory.text for memory in sessions.get("t~1").memory.list()] == ["alice likes tea"]
    assert sessions.check(deep=True) == []
    assert sessions.check() == []
    assert sessions.forget_user("alice").sessions == 3


def test_a_renamed_session_takes_no_archives_id(gone: Gone, clock: Clock) -> None:
    sessions = gone({"on_resume": "fresh"})
    sessions.open("t", user_id="alice", on_expire="keep")
    clock.advance(hours=1)
    sessions.sweep()
    sessions.open("t", user_id="alice")
    assert {session.id for session in sessions.list()} == {"t", "t~2"}
    assert said(sessions.restore("t~1")) == [("user", "hi"), ("assistant", "you said hi")]


def test_what_the_store_was_given_meanwhile_is_newer_than_the_archive(gone: Gone) -> None:
    sessions = gone()
    sessions.store.put(("session", "t"), "k", {"text": "alice likes coffee"})
    assert [memory.text for memory in sessions.restore("t").memory.list()] == ["alice likes coffee"]


def test_of_many_who_restore_it_at_once_one_does(gone: Gone) -> None:
    sessions = gone()

    def restored(_: int) -> bool:
        try:
            return isinstance(sessions.restore("t"), Session)
        except SessionExists:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(restored, range(8)))[-2:] == [False, True]
    assert sessions.check() == []


def test_a_restored_session_counts_as_open(gone: Gone) -> None:
    sessions = gone({"max_sessions": 1})
    sessions.open("u")
    with pytest.raises(SessionLimitReached):
        sessions.restore("t")
    assert is_archived(sessions)
    sessions.get("u").complete()
    assert sessions.restore("t").status == "active"


def test_what_came_after_the_sweep_was_listed_is_archived_too(gone: Gone, clock: Clock) -> None:
    """A memory of an expired session does not revive it: it is in the file all the same."""
    sessions = gone()
    session = sessions.restore("t")
    clock.advance(hours=1)
    due = sessions._storage.list_due(clock())
    session.memory.remember("alice likes cake", "c")
    assert len(sessions._storage.end_due(due, now=clock())) == 1
    texts = {memory.text for memory in sessions.restore("t").memory.list()}
    assert texts == {"alice likes tea", "alice likes cake"}
