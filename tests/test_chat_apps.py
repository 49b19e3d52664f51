"""What a chat app does around a run: claims a visitor's session, requires a user, checks, and opens by a template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from session_middleware import (
    InvalidArgument,
    SessionAccessDenied,
    SessionBusy,
    SessionClosed,
    SessionExpired,
    SessionLimitReached,
    SessionNotFound,
    Sessions,
    UserRequired,
    UserRevoked,
)
from tests.conftest import Clock, OpenSessions
from tests.support import agents
from tests.support.agents import human

pytestmark = pytest.mark.usefixtures("each_engine")


def kinds(sessions: Sessions, session_id: str) -> list[str]:
    return [event.kind for event in sessions.get(session_id).events()]


# Claiming


def test_a_visitor_s_session_is_claimed_once_with_its_forks(sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph())
    graph.invoke(human("look up tea"), sessions.config("t"))
    sessions.get("t").fork(id="fork")
    alice, bob = sessions.for_user("alice"), sessions.for_user("bob")
    assert alice.list() == []
    claimed = alice.claim("t")
    assert (claimed.user_id, claimed.title) == ("alice", "look up tea")
    assert {session.id for session in alice.list()} == {"t", "fork"}
    for session_id in ("t", "fork"):
        assert kinds(sessions, session_id)[-1] == "claimed"
        assert sessions.get(session_id).events()[-1].detail == {"user_id": "alice"}
    assert alice.claim("fork") == sessions.claim("fork", user_id="alice")
    assert kinds(sessions, "fork").count("claimed") == 1
    with pytest.raises(SessionAccessDenied, match="owned by another user"):
        sessions.claim("t", user_id="bob")
    for session_id in ("t", "fork", "unknown"):
        with pytest.raises(SessionNotFound):
            bob.claim(session_id)
    with pytest.raises(SessionNotFound):
        sessions.claim("unknown", user_id="bob")
    graph.invoke(human("hi"), claimed.config())
    with pytest.raises(SessionAccessDenied):
        graph.invoke(human("hi"), sessions.config("t"))

    sessions.open("visit-1").merge(sessions.open("visit-2"))
    assert bob.claim("visit-2").id == "visit-1"
    assert len(alice.get("t").messages()) == 6


@pytest.mark.parametrize("indexed", [False, True])
async def test_a_claimed_session_is_part_of_the_user_s_memory(indexed: bool, sessions: Sessions) -> None:
    for session_id, user_id, text in (("t", None, "xyzzy"), ("own", "alice", "plugh"), ("else", None, "quux")):
        sessions.open(session_id, user_id=user_id).add(HumanMessage(f"the word is {text}"))
    sessions.get("t").memory.remember("a visitor's note")
    if indexed:
        sessions.index_memory()
    own = sessions.get("own")
    assert not own.memory.recall("xyzzy", scopes=["user"])
    assert [hit.session_id for hit in sessions.search("xyzzy")] == ["t"]
    await sessions.for_user("alice").aclaim("t")
    assert [hit.session_id for hit in own.memory.recall("xyzzy", scopes=["user"])] == ["t"]
    assert [hit.session_id for hit in sessions.for_user("alice").search("word")] == ["t", "own"]
    assert not sessions.for_user("alice").search("quux")
    assert [item.text for item in sessions.get("t").memory.list()] == ["a visitor's note"]
    sessions.index_memory(), sessions.get("t").add(AIMessage("xyzzy again"))
    assert len(sessions.for_user("alice").search("xyzzy")) == 2
    assert [hit.session_id for hit in sessions.search("quux")] == ["else"]
    assert sessions.check(deep=True) == []
    assert sessions.forget_user("alice").sessions == 2
    assert not sessions.search("xyzzy")


def test_a_claim_that_is_refused_changes_nothing(open_sessions: OpenSessions) -> None:
    sessions = open_sessions(max_sessions_per_user=1)
    sessions.open("t").add(HumanMessage("hi"))
    sessions.get("t").fork(id="fork")
    sessions.open("own", user_id="alice")
    sessions.revoke("mallory")
    before = {session.id: session.user_id for session in sessions.list()}, kinds(sessions, "t")
    with pytest.raises(SessionLimitReached):
        sessions.claim("t", user_id="alice")
    with pytest.raises(UserRevoked):
        sessions.for_user("mallory").claim("t")
    with sessions.get("fork"), pytest.raises(SessionBusy):
        sessions.claim("t", user_id="bob")
    after = {session.id: session.user_id for session in sessions.list()}, kinds(sessions, "t")
    assert after == before


# Users are required

RUNS: dict[str, Callable[[Sessions, dict[str, Any]], object]] = {
    "attach": lambda sessions, config: sessions.attach(agents.tool_graph()).invoke(human("hi"), config),
    "checkpointer": lambda sessions, config: agents.tool_graph(checkpointer=sessions.checkpointer).invoke(
        human("hi"), config
    ),
    "recorder": lambda sessions, config: agents.tool_graph().invoke(
        human("hi"), config | {"callbacks": [sessions.recorder]}
    ),
    "update_state": lambda sessions, config: sessions.attach(agents.tool_graph()).update_state(config, human("hi")),
    "open": lambda sessions, config: sessions.open(config["configurable"]["thread_id"]),
}


@pytest.mark.parametrize("how", RUNS)
def test_a_run_that_names_nobody_is_refused_before_anything_is_written(how: str, open_sessions: OpenSessions) -> None:
    open_sessions().open("free").add(HumanMessage("hi"))
    sessions = open_sessions(require_user=True)
    sessions.open("owned", user_id="alice")
    before = {session.id: (dict(session), kinds(sessions, session.id)) for session in sessions.list()}
    for session_id in ("new", "free", "owned")[: 2 if how == "update_state" else 3]:  # which reads what is owned first
        with pytest.raises(UserRequired, match=r"require_user refuses .*user_id="):
            RUNS[how](sessions, sessions.config(session_id))
    assert {session.id: (dict(session), kinds(sessions, session.id)) for session in sessions.list()} == before
    with sessions.acting_as("bob"):
        RUNS[how](sessions, sessions.config("new"))
    assert sessions.get("new").user_id == "bob"


async def test_a_loop_by_hand_names_a_user_too(open_sessions: OpenSessions) -> None:
    open_sessions().open("free")
    sessions = open_sessions(require_user=True)
    free = sessions.get("free")
    with pytest.raises(UserRequired):
        free.add(HumanMessage("hi"))
    with pytest.raises(UserRequired):
        async with free:
            pass
    with pytest.raises(UserRequired):
        await sessions.attach(agents.tool_graph()).ainvoke(human("hi"), sessions.config("new"))
    assert (free.messages(), kinds(sessions, "free")) == ([], ["opened"])
    claimed = await sessions.for_user("alice").aclaim("free")
    claimed.add(HumanMessage("hi"))
    assert sessions.get("free").update(title="Tea").title == "Tea"


# Checking


def test_a_check_raises_what_a_run_would_and_writes_nothing(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(idle_timeout="1h", on_resume="reject", on_closed="reject", on_busy="reject")
    for session_id in ("ready", "busy", "done", "shared"):
        sessions.open(session_id, user_id="alice", group_id="team", idle_timeout="9d", visibility="group")
    sessions.open("late", user_id="alice")
    sessions.open("free")
    sessions.get("done").complete()
    clock.advance(hours=2)
    alice, bob, eve = sessions.for_user("alice"), sessions.for_user("bob", ["team"]), sessions.for_user("eve")
    written = {session.id: (session.last_active_at, kinds(sessions, session.id)) for session in sessions.list()}
    checked = alice.check("ready")
    assert (checked.id, checked.acting.user_id) == ("ready", "alice")
    for user, session_id, error in (
        (alice, "unknown", SessionNotFound),
        (alice, "free", SessionNotFound),
        (eve, "ready", SessionNotFound),
        (bob, "shared", SessionAccessDenied),
        (alice, "late", SessionExpired),
        (alice, "done", SessionClosed),
    ):
        with pytest.raises(error):
            user.check(session_id)
    assert {session.id: (session.last_active_at, kinds(sessions, session.id)) for session in sessions.list()} == written
    with alice.get("busy"), pytest.raises(SessionBusy, match="busy with run"):
        alice.check("busy")
    assert alice.check("busy").id == "busy"
    sessions.revoke("alice")
    with pytest.raises(UserRevoked):
        alice.check("ready")


async def test_a_session_that_a_run_would_revive_passes_the_check(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(idle_timeout="1h")
    sessions.open("late", user_id="alice")
    clock.advance(hours=2)
    assert (await sessions.for_user("alice").acheck("late")).status == "expired"
    assert kinds(sessions, "late") == ["opened"]


# Templates


async def test_a_template_applies_to_a_new_session_and_what_is_given_wins(sessions: Sessions) -> None:
    options: dict[str, Any] = {"tags": ["support"], "context": {"tone": "calm", "more": {"a": 1}}, "idle_timeout": "2h"}
    sessions.template("support", title="Support", metadata={"queue": 1}, **options)
    first = sessions.open(
        "t", user_id="alice", template="support", metadata={"plan": "pro"}, context={"more": {"b": 2}}
    )
    assert (first.title, first.tags, first.idle_timeout_seconds) == ("Support", ("support",), 7200)
    assert first.metadata == {"queue": 1, "plan": "pro"}
    assert first.context == {"tone": "calm", "more": {"a": 1, "b": 2}}
    first.update(title="Mine", tags=[])
    again = await sessions.for_user("alice").aopen("t", template="support")
    assert (again.title, again.tags) == ("Mine", ())
    assert sessions.for_user("bob").open("u", template="support", title="Tea", tags=["x"]).tags == ("x",)
    assert sessions.open("v").tags == ()
    sessions.get("u").add(HumanMessage("a message"))
    assert sessions.get("u").title == "Tea"


def test_a_wrong_template_says_what_is_right(sessions: Sessions) -> None:
    with pytest.raises(InvalidArgument, match="register it first"):
        sessions.open("t", template="support")
    with pytest.raises(InvalidArgument, match="idle_timeout"):
        sessions.template("support", idle_timeout="soon")
    with pytest.raises(TypeError, match="title"):
        sessions.template("support", titel="x")  # type: ignore[call-arg]
    with pytest.raises(InvalidArgument, match="name"):
        sessions.template("")
    sessions.template("support")
    with pytest.raises(InvalidArgument, match="one of: 'support'"):
        sessions.open("t", template="suport")
    assert sessions.list() == []
