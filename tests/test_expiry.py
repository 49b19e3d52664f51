"""An idle session is expired by the clock, at once and without a sweep; what then happens is a setting."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import SessionExpired, Sessions
from session_middleware.runtime import sweeper
from tests.conftest import Clock, OpenSessions
from tests.support import agents
from tests.support.agents import human, said
from tests.support.pairwise import ENGINES, pairwise

pytestmark = [pytest.mark.sessions(idle_timeout="30m"), pytest.mark.usefixtures("clock")]

TURN = [("user", "hi"), ("assistant", "you said hi")]


def events(session: Any) -> list[str]:
    return [event.kind for event in session.events()]


def with_a_turn(sessions: Sessions, **configurable: Any) -> tuple[Any, Any]:
    graph, config = sessions.attach(agents.chat()), sessions.config("t", **configurable)
    graph.invoke(human("hi"), config)
    assert sessions.get("t").messages()  # what was handed over is written before the clock is moved
    return graph, config


# Seen by the clock


def test_a_session_expires_at_the_moment_it_is_due_without_a_sweep(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(idle_after="5m")
    with_a_turn(sessions)
    due = sessions.get("t").expires_at
    seen = []
    for minutes in (0, 5, 24, 1):
        clock.advance(minutes=minutes)
        session = sessions.get("t")
        (listed,) = sessions.list()
        assert (session.expires_at, listed.status) == (due, session.status)
        assert sessions.count(status=session.status) == len(sessions.list(status=session.status)) == 1
        seen.append(session.status)
    assert seen == ["active", "idle", "idle", "expired"]
    assert clock() == due


def test_reading_neither_revives_nor_counts_as_activity(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions()
    graph, config = with_a_turn(sessions)
    before = sessions.get("t")
    for minutes in (29, 2):
        clock.advance(minutes=minutes)
        graph.get_state(config)
        list(graph.get_state_history(config))
        sessions.get("t").messages()
        sessions.list()
        sessions.get("t").stats()
    after = sessions.get("t")
    assert (after.status, after.last_active_at, events(after)) == ("expired", before.last_active_at, ["opened"])


@pytest.mark.parametrize("act", ["run", "update_state", "open"])
def test_a_run_a_change_and_an_opening_are_activity(act: str, open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions()
    graph, config = with_a_turn(sessions)
    clock.advance(minutes=29)
    if act == "run":
        graph.invoke(human("hi"), config)
    elif act == "update_state":
        graph.update_state(config, human("hi"))
    else:
        sessions.open("t")
    clock.advance(minutes=29)
    assert sessions.get("t").status == "idle"


def test_without_a_timeout_nothing_expires(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(idle_timeout=None)
    with_a_turn(sessions)
    clock.advance(days=10_000)
    assert (sessions.get("t").status, sessions.get("t").expires_at, sessions.sweep()) == ("idle", None, [])


# on_resume


async def test_revive_goes_on_with_the_state_and_says_so(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(on_resume="revive")
    graph, config = with_a_turn(sessions, user_id="alice")
    clock.advance(hours=1)
    assert len(graph.get_state(config).values["messages"]) == 2
    assert sessions.get("t").status == "expired"
    await graph.ainvoke(human("hi"), config)
    session = sessions.get("t")
    assert (session.status, session.opened_as, events(session)) == ("active", "revived", ["opened", "revived"])
    assert session.events()[-1].reason == "idle_timeout"
    assert said(session) == TURN * 2


async def test_reject_refuses_the_run_before_anything_is_recorded(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(on_resume="reject")
    graph, config = with_a_turn(sessions)
    clock.advance(hours=1)
    with pytest.raises(SessionExpired, match="on_resume"):
        graph.invoke(human("again"), config)
    with pytest.raises(SessionExpired, match="on_resume"):
        await graph.ainvoke(human("again"), config)
    with pytest.raises(SessionExpired, match="on_resume"):
        sessions.open("t")
    session = sessions.get("t")
    assert (session.status, said(session), len(session.runs())) == ("expired", TURN, 1)
    (denied,) = session.events()[1:]
    assert (denied.kind, denied.reason, denied.detail["times"]) == ("denied", "expired", 3)


@pytest.mark.parametrize("swept", [False, True], ids=["unswept", "swept"])
def test_fresh_starts_empty_and_keeps_the_old_session_under_another_id(
    swept: bool, open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(on_resume="fresh")
    graph, config = with_a_turn(sessions, user_id="alice")
    sessions.get("t").memory.remember("alice likes tea")
    clock.advance(hours=1)
    if swept:
        sessions.sweep()
    assert graph.get_state(config).values == {}
    assert [session.id for session in sessions.list()] == ["t"]
    assert len(graph.invoke(human("new"), config)["messages"]) == 2
    new = sessions.get("t")
    (old,) = [session for session in sessions.list() if session.id != "t"]
    assert (said(new), new.opened_as, events(new)) == (
        [("user", "new"), ("assistant", "you said new")],
        "opened",
        ["opened"],
    )
    assert (said(old), old.status, old.user_id, len(old.runs())) == (TURN, "abandoned", "alice", 1)
    assert [memory.text for memory in old.memory.list()] == ["alice likes tea"]
    assert new.memory.list() == []


def test_the_state_that_fresh_renamed_can_still_be_read(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(on_resume="fresh")
    graph, config = with_a_turn(sessions, user_id="alice")
    before = graph.get_state(config).values
    clock.advance(hours=1)
    graph.invoke(human("new"), config)
    (old,) = [session for session in sessions.list() if session.id != "t"]
    assert graph.get_state(old.config()).values == before
    assert len(list(graph.get_state_history(old.config()))) > 1


def test_a_fresh_start_keeps_the_name_and_the_settings_and_leads_to_what_was_before(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(on_resume="fresh")
    given = {"title": "Tea", "purpose": "shop", "tags": ["a"], "metadata": {"n": 1}}
    sessions.open("t", user_id="alice", **given, context={"likes": "tea"}, idle_timeout="30m", on_expire="prune")
    clock.advance(hours=1)
    new, old = sessions.open("t", user_id="alice"), sessions.get("t~1")
    for each in (new, old):
        assert (each.title, each.purpose, each.tags, each.metadata) == ("Tea", "shop", ("a",), {"n": 1})
        assert (each.idle_timeout_seconds, each.on_expire) == (1800, "prune")
    assert (new.context, old.context) == ({}, {"likes": "tea"})
    assert new.expires_at == clock() + timedelta(minutes=30)
    (opened,) = new.events()
    assert (opened.reason, opened.detail) == ("fresh", {"renamed": "t~1"})
    assert old.events()[-1].detail == {"was": "t"}
    assert "its earlier content is in session 't~1'" in sessions.explain("t").text
    assert "it was session 't' until that id was started afresh" in sessions.for_user("alice").explain("t~1").text
    assert sessions.open("t", user_id="alice", title="Coffee").title == "Coffee"


def test_a_fresh_start_by_another_of_the_group_stays_the_owner_s(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(on_resume="fresh")
    sessions.open("t", user_id="alice", group_id="team", visibility="group-write")
    clock.advance(hours=1)
    graph = sessions.attach(agents.chat())
    graph.invoke(human("new"), sessions.config("t", user_id="bob", group_id="team"))
    for each in (sessions.get("t"), sessions.get("t~1")):
        assert (each.user_id, each.group_id, each.visibility) == ("alice", "team", "group-write")
    assert said(sessions.get("t")) == [("user", "new"), ("assistant", "you said new")]


def test_a_fresh_start_of_what_was_nobody_s_is_its_user_s(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(on_resume="fresh")
    sessions.open("t")
    clock.advance(hours=1)
    assert sessions.open("t", user_id="alice").user_id == "alice"
    assert sessions.get("t~1").user_id is None


def test_fresh_twice_keeps_both(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(on_resume="fresh")
    graph, config = with_a_turn(sessions)
    for _ in range(2):
        clock.advance(hours=1)
        graph.invoke(human("hi"), config)
    assert sorted(len(session.messages()) for session in sessions.list()) == [2, 2, 2]


def test_fresh_after_the_same_messages_records_them_again(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(on_resume="fresh")
    graph = agents.chat()
    config = {**sessions.config("t"), "callbacks": [sessions.recorder]}
    for _ in range(2):
        graph.invoke(human("hi", id="h1"), config)
        clock.advance(hours=1)
    assert [said(session) for session in sessions.list()] == [TURN, TURN]


# Longer than the timeout


def slow_graph(clock: Clock, meanwhile: Callable[[], Any] = lambda: None, **compiled_with: Any) -> Any:
    @tool
    def look_up(thing: str) -> str:
        """Takes its time."""
        clock.advance(hours=1)
        meanwhile()
        return f"{thing} is nice"

    return agents.tool_graph(look_up, **compiled_with)


@pairwise(
    turns=[1, 2],
    on_resume=["revive", "fresh", "reject"],
    part=["attached", "checkpointer"],
    durability=["sync", "async", "exit"],
    each_engine=ENGINES,
)
async def test_a_run_longer_than_the_timeout_ends_as_it_began(
    turns: int, on_resume: str, part: str, durability: str, open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(on_resume=on_resume)
    if part == "attached":
        graph = sessions.attach(slow_graph(clock))
    else:
        graph = slow_graph(clock, checkpointer=sessions.checkpointer)
    for turn in range(turns):
        invoke = graph.ainvoke(human("look up tea"), sessions.config("t"), durability=durability)
        assert len((await invoke)["messages"]) == 4 * (turn + 1)
    (session,) = sessions.list()
    assert (session.status, events(session)) == ("active", ["opened", "resumed"][:turns])
    assert [role for role, _ in said(session)] == ["user", "assistant", "tool", "assistant"] * turns


@pytest.mark.parametrize("part", ["attached", "checkpointer"])
@pytest.mark.parametrize("on_resume", ["revive", "fresh", "reject"])
def test_branches_longer_than_the_timeout_end_as_they_began(
    on_resume: str, part: str, open_sessions: OpenSessions, clock: Clock
) -> None:
    def branch(state: MessagesState) -> dict[str, Any]:
        clock.advance(hours=1)
        return {"messages": [AIMessage("done")]}

    builder = StateGraph(MessagesState).add_node("left", branch).add_node("right", branch)
    builder.add_edge(START, "left").add_edge(START, "right")
    sessions = open_sessions(on_resume=on_resume)
    graph = builder.compile(checkpointer=sessions.checkpointer if part == "checkpointer" else None)
    graph = sessions.attach(graph) if part == "attached" else graph
    for _ in range(2):
        graph.invoke(human("hi"), sessions.config("t"), durability="sync")
    (session,) = sessions.list()
    assert (events(session), len(said(session))) == (["opened", "resumed"], 6)


@pytest.mark.parametrize("on_expire", ["keep", "delete"])
def test_a_sweep_leaves_a_session_with_a_live_run_alone(
    on_expire: str, open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(on_expire=on_expire)
    graph = sessions.attach(slow_graph(clock, lambda: sessions.sweep()))
    graph.invoke(human("look up tea"), sessions.config("t"))
    session = sessions.get("t")
    assert (session.status, events(session), len(session.messages())) == ("active", ["opened"], 4)


def test_a_session_is_active_for_whoever_changes_it_during_a_run(
    each_engine: str, open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions, others = open_sessions(), open_sessions()
    with sessions.open("t"):
        clock.advance(hours=1)
        held = others.get("t")
        for change in (
            lambda: held.update(title="tea"),
            lambda: held.pin("hold"),
            held.unpin,
            lambda: others.open("t"),
            lambda: others.open("t", title="tea"),
        ):
            changed = change()
            assert (changed.status, changed.is_running) == ("active", True)
            clock.advance(hours=1)


def test_a_session_that_another_process_expired_during_a_run_is_active_after_it(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions, others = open_sessions(on_resume="reject"), open_sessions(on_resume="reject")
    graph = sessions.attach(slow_graph(clock, lambda: others.sweep()))
    for _ in range(2):
        graph.invoke(human("look up tea"), sessions.config("t"))
    session = sessions.get("t")
    assert (session.status, session.ended_at, len(session.messages())) == ("active", None, 8)


# Sweeping


def test_a_dry_sweep_says_what_a_sweep_then_does(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions(on_expire="keep")
    with_a_turn(sessions, user_id="alice")
    clock.advance(minutes=30)
    planned = sessions.sweep(dry_run=True)
    assert events(sessions.get("t")) == ["opened"]
    assert sessions.sweep() == [planned[0].model_copy(update={"bytes": None})]  # which only a dry one counts
    (ended,) = planned
    assert (ended.session_id, ended.user_id, ended.reason, ended.action) == ("t", "alice", "idle_timeout", "keep")
    assert sessions.sweep() == []
    session = sessions.get("t")
    assert (session.status, session.ended_at) == ("expired", ended.expired_at)
    assert [(event.kind, event.reason) for event in session.events()] == [("opened", None), ("expired", "idle_timeout")]
    assert said(session) == TURN


def test_delete_leaves_nothing_and_the_id_may_be_used_again(
    open_sessions: OpenSessions, clock: Clock, tmp_path: Path
) -> None:
    sessions = open_sessions(on_expire="delete")
    graph, config = with_a_turn(sessions)
    sessions.open("other")
    clock.advance(minutes=30)
    sessions.open("other")
    assert [ended.session_id for ended in sessions.sweep(dry_run=True)] == ["t"]
    assert sessions.find("t") is not None
    assert [(ended.session_id, ended.action) for ended in sessions.sweep()] == [("t", "delete")]
    assert sessions.find("t") is None
    assert [session.id for session in sessions.list()] == ["other"]
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert b"you said hi" not in stored
    assert graph.get_state(config).values == {}
    graph.invoke(human("hi"), config)
    assert (events(sessions.get("t")), said(sessions.get("t"))) == (["opened"], TURN)


@pytest.mark.parametrize("how", ["sweep", "delete_thread", "delete"])
def test_what_was_deleted_is_recorded_again_when_it_is_said_again(
    how: str, open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(on_expire="delete")
    graph = agents.chat()
    config = {**sessions.config("t"), "callbacks": [sessions.recorder]}
    graph.invoke(human("hi", id="h1"), config)
    clock.advance(hours=1)
    if how == "sweep":
        sessions.sweep()
    elif how == "delete_thread":
        sessions.checkpointer.delete_thread("t")
    else:
        sessions.delete("t")
    graph.invoke(human("hi", id="h1"), config)
    assert said(sessions.get("t")) == TURN


async def test_a_sweep_at_a_given_time_ends_what_is_due_then(open_sessions: OpenSessions, clock: Clock) -> None:
    from datetime import timedelta

    sessions = open_sessions()
    with_a_turn(sessions)
    assert await sessions.asweep() == []
    assert [ended.session_id for ended in await sessions.asweep(clock() + timedelta(hours=1), dry_run=True)] == ["t"]


def elsewhere(path: Path) -> None:
    """Whoever has a lease is now on another machine, where only its silence tells that it is dead."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE leases SET process = 'elsewhere:1:1'")
    connection.close()


def test_a_sweep_stays_one_processs_however_long_hooks_take(
    open_sessions: OpenSessions, clock: Clock, tmp_path: Path
) -> None:
    sessions, others = open_sessions(), open_sessions()
    sweeps: list[Any] = []

    @sessions.on_expiring
    def expiring(ended: Any) -> None:
        elsewhere(tmp_path / "sessions.db")
        clock.advance(seconds=40)
        sweeps.append(others.sweep())

    for name in "abc":
        sessions.open(name)
    clock.advance(minutes=30)
    assert [ended.session_id for ended in sessions.sweep()] == ["a", "b", "c"]
    assert sweeps == [[], [], []]


def test_each_transaction_of_a_sweep_tells_that_it_goes_on(
    open_sessions: OpenSessions, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from session_middleware.storage.sql.sessions import engine

    monkeypatch.setattr(engine, "_SMALLEST", 1), monkeypatch.setattr(engine, "_BATCH", 1)
    sessions, others = open_sessions(), open_sessions()
    for name in "abc":
        sessions.open(name)
    clock.advance(minutes=30)
    storage = sessions._storage
    duty = storage.acquire_duty("\0sweep")
    elsewhere(tmp_path / "sessions.db")
    sweeps: list[Any] = []

    def pause(seconds: float) -> None:
        clock.advance(seconds=40)
        sweeps.append(others.sweep())

    monkeypatch.setattr(engine.time, "sleep", pause)
    assert len(storage.end_due(storage.list_due(clock()), now=clock(), duty=duty)) == 3
    assert sweeps == [[], []]


def test_a_sweep_ends_all_page_by_page_beside_those_that_stay(
    open_sessions: OpenSessions, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "_PAGE", 2)
    sessions = open_sessions(retention="10m")

    @sessions.on_expiring
    def expiring(ended: Any) -> str | None:
        return "1h" if ended.session_id in "ab" else None

    for name in "abcdefg":
        sessions.open(name)
    clock.advance(hours=1)
    ended = sorted((each.session_id, each.reason) for each in sessions.sweep())
    assert ended == [(name, reason) for name in "cdefg" for reason in ("idle_timeout", "retention")]
    assert sorted(each.id for each in sessions.list()) == ["a", "b"]
    assert sessions.sweep() == []


def test_a_sweep_whose_turn_is_over_leaves_the_rest_to_the_next(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions, others = open_sessions(), open_sessions()
    sessions.open("t")
    clock.advance(minutes=30)
    storage = sessions._storage
    duty = storage.acquire_duty("\0sweep")
    assert duty is not None
    others._storage.release_leases([duty.lease])
    assert storage.end_due(storage.list_due(clock()), now=clock(), duty=duty) == []
    assert [ended.session_id for ended in others.sweep()] == ["t"]


# A run that has looked, and not written yet


@pytest.mark.parametrize("on_resume", ["revive", "fresh"])
@pytest.mark.parametrize("part", ["attached", "checkpointer"])
@pytest.mark.parametrize(
    "sweep",
    [
        lambda others: others.sweep(),
        lambda others: others.sweep(older_than="10m"),
    ],
    ids=["on_expire", "older_than"],
)
async def test_a_run_holds_its_session_from_its_first_look(
    sweep: Any, part: str, on_resume: Any, open_sessions: OpenSessions, clock: Clock
) -> None:
    settings: Any = {"on_expire": "delete", "on_resume": on_resume}
    sessions, others = open_sessions(**settings), open_sessions(**settings)
    swept: list[Any] = []

    def node(state: MessagesState) -> dict[str, Any]:
        swept.extend(sweep(others))
        return {"messages": [AIMessage("ok")]}

    builder = StateGraph(MessagesState).add_node("node", node).add_edge(START, "node")
    if part == "attached":
        graph = sessions.attach(builder.compile())
    else:
        graph = builder.compile(checkpointer=sessions.checkpointer)
    config = sessions.config("t")
    for _ in range(2):
        clock.advance(minutes=29, seconds=59)  # it is about to expire
        await asyncio.to_thread(graph.invoke, human("hi"), config, durability="exit")
        clock.advance(hours=1)
        result = await graph.ainvoke(human("hi"), config, durability="exit")
        assert sessions.get("t").messages()  # what was handed over is written before the clock is moved
    assert "t" not in [ended.session_id for ended in swept]
    assert [message.text for message in result["messages"]] == ["hi", "ok"] * (1 if on_resume == "fresh" else 4)
    assert not sessions.get("t").is_running


def test_a_session_that_was_swept_before_a_run_looks_is_opened_anew(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions, others = open_sessions(on_expire="delete"), open_sessions(on_expire="delete")
    graph, config = with_a_turn(sessions)
    clock.advance(hours=1)
    assert len(others.sweep()) == 1
    assert len(graph.invoke(human("hi"), config)["messages"]) == 2
