"""Hooks are called for what this process does to sessions, after its commit, and break nothing."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from session_middleware import SessionExists, Sessions
from session_middleware.models import Event, SweepResult
from tests.conftest import Clock
from tests.support import agents, processes
from tests.support.agents import human

pytestmark = [pytest.mark.sessions(idle_timeout="30m"), pytest.mark.usefixtures("clock")]


@pytest.fixture
def told(sessions: Sessions) -> list[tuple[str, str, str | None]]:
    """What each hook was called with, in order."""
    told: list[tuple[str, str, str | None]] = []
    for name in ("opened", "resumed", "closed", "error"):

        def hook(event: Event, name: str = name) -> None:
            told.append((name, event.kind, event.reason))

        getattr(sessions, f"on_{name}")(hook)
    return told


def test_each_hook_is_called_in_order_with_what_happened(sessions: Sessions, told: list[Any], clock: Clock) -> None:
    graph, config = sessions.attach(agents.tool_graph(handle_tool_errors=False)), sessions.config("t")
    graph.invoke(human("hi"), config)
    graph.invoke(human("hi"), config)
    with pytest.raises(RuntimeError):
        graph.invoke(human("break tea"), config)
    sessions.get("t").complete(reason="solved")
    graph.invoke(human("hi"), config)
    clock.advance(hours=1)
    sessions.sweep()
    sessions.settle()
    assert told == [
        ("opened", "opened", None),
        ("resumed", "resumed", None),
        ("resumed", "resumed", None),
        ("error", "error", None),
        ("closed", "completed", "solved"),
        ("resumed", "reopened", "solved"),
        ("closed", "expired", "idle_timeout"),
    ]


async def test_an_async_hook_is_awaited(sessions: Sessions) -> None:
    import asyncio

    seen: list[str] = []

    @sessions.on_state_changed
    async def changed(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(f"{event.session_id} {event.kind}")

    (await sessions.aopen("t")).abandon()
    await asyncio.to_thread(sessions.settle)
    assert seen == ["t opened", "t abandoned"]


def test_a_hook_that_raises_is_logged_once_and_counted_and_breaks_no_run(
    sessions: Sessions, told: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    @sessions.on_opened
    def broken(event: Event) -> None:
        raise ValueError("of the hook")

    graph = sessions.attach(agents.chat())
    for name in ("a", "b"):
        assert graph.invoke(human("hi"), sessions.config(name))["messages"][-1].text == "you said hi"
    sessions.settle()
    assert sessions.get("a").stats().hook_faults == 2
    assert [record.message for record in caplog.records if "hook" in record.message][1:] == []
    assert [kind for _, kind, _ in told] == ["opened", "opened"]


def test_on_expiring_may_postpone_once_until_there_is_activity(sessions: Sessions, clock: Clock) -> None:
    asked: list[str] = []

    @sessions.on_expiring
    def expiring(ended: SweepResult) -> str:
        asked.append(ended.session_id)
        return "10m"

    session = sessions.open("t")
    clock.advance(minutes=30)
    assert sessions.sweep() == []
    assert (sessions.get("t").status, sessions.get("t").events()[-1].kind) == ("idle", "postponed")
    clock.advance(minutes=9)
    session.ping()
    clock.advance(minutes=30)
    assert sessions.sweep() == []
    clock.advance(minutes=10)
    assert [ended.session_id for ended in sessions.sweep()] == ["t"]
    assert asked == ["t", "t"]


def test_what_a_hook_does_to_sessions_calls_hooks_again(sessions: Sessions, told: list[Any]) -> None:
    @sessions.on_opened
    def close_it(event: Event) -> None:
        sessions.get(event.session_id).complete(reason="by a hook")

    sessions.open("t")
    sessions.settle()
    assert told == [("opened", "opened", None), ("closed", "completed", "by a hook")]


def status_in_file(path: Path, session_id: str) -> str | None:
    """As another connection sees it, which sees only what is committed."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # waits in vain for a transaction that the hook is called in
        row = connection.execute("SELECT status FROM sessions WHERE id = ?", (session_id,)).fetchone()
        connection.execute("ROLLBACK")
    return None if row is None else str(row[0])


def archived(sessions: Sessions, clock: Clock) -> None:
    clock.advance(hours=1)
    assert [ended.action for ended in sessions.sweep()] == ["archive"]


def restored(sessions: Sessions, clock: Clock) -> None:
    archived(sessions, clock)
    sessions.restore("t")


COMMITS: dict[str, tuple[str, str, Callable[[Sessions, Clock], Any]]] = {
    "fork": ("opened", "forked", lambda sessions, _: sessions.get("t").fork()),
    "copy_thread": ("opened", "forked", lambda sessions, _: sessions.checkpointer.copy_thread("t", "u")),
    "fork by its user": ("opened", "forked", lambda sessions, _: sessions.for_user("alice").get("t").fork()),
    "delete": ("closed", "deleted", lambda sessions, _: sessions.delete("t")),
    "delete_thread": ("closed", "deleted", lambda sessions, _: sessions.checkpointer.delete_thread("t")),
    "delete by its user": ("closed", "deleted", lambda sessions, _: sessions.for_user("alice").delete("t")),
    "forget": ("closed", "deleted", lambda sessions, _: sessions.for_user("alice").get("t").delete()),
    "archive": ("closed", "archived", archived),
    "restore": ("state_changed", "restored", restored),
    "restore by its user": (
        "state_changed",
        "restored",
        lambda sessions, clock: (archived(sessions, clock), sessions.for_user("alice").restore("t")),
    ),
    "delete of an archive": (
        "closed",
        "deleted",
        lambda sessions, clock: (archived(sessions, clock), sessions.for_user("alice").delete("t")),
    ),
    "run": ("resumed", "resumed", lambda sessions, _: sessions.attach(agents.chat()).invoke(human("hi"), ALICES)),
    "history": ("resumed", "reopened", lambda sessions, _: sessions.get("t").complete().history().add_messages(HI)),
}
ALICES: Any = {"configurable": {"thread_id": "t", "user_id": "alice"}}
HI = human("hi")["messages"]


@pytest.mark.parametrize("commit", COMMITS)
@pytest.mark.sessions(idle_timeout="30m", on_expire="archive")
def test_the_hook_of_an_event_is_called_without_a_later_call(commit: str, sessions: Sessions, clock: Clock) -> None:
    sessions.open("t", user_id="alice")
    hook, kind, call = COMMITS[commit]
    seen, is_called = [], threading.Event()

    def note(event: Event) -> None:
        seen.append(event.kind)
        if event.kind == kind:
            is_called.set()

    getattr(sessions, f"on_{hook}")(note)
    call(sessions, clock)
    assert is_called.wait(30), seen


ENDS: dict[str, Callable[[Sessions, Clock], Any]] = {
    "complete": lambda sessions, _: sessions.get("t").complete(),
    "fail": lambda sessions, _: sessions.get("t").fail("no"),
    "delete": lambda sessions, _: sessions.delete("t"),
    "delete_thread": lambda sessions, _: sessions.checkpointer.delete_thread("t"),
    "revoke": lambda sessions, _: sessions.revoke("alice"),
    "sweep": lambda sessions, clock: (clock.advance(hours=1), sessions.sweep()),
    "sweep beside": lambda sessions, clock: (clock.advance(hours=1), sessions._sweeper.sweep()),
    "clean": lambda sessions, clock: (clock.advance(minutes=1), sessions.sweep(older_than="10s")),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=list(ENDS))
def test_a_hook_is_called_once_and_after_the_commit_however_a_session_ends(
    end: Callable[[Sessions, Clock], Any], sessions: Sessions, clock: Clock, tmp_path: Path
) -> None:
    sessions.open("t", user_id="alice")
    seen: list[tuple[str, str | None]] = []

    @sessions.on_closed
    def closed(event: Event) -> None:
        seen.append((event.kind, status_in_file(tmp_path / "sessions.db", event.session_id)))

    end(sessions, clock)
    sessions.settle()
    assert len(seen) == 1
    assert seen[0] in {*((kind, kind) for kind in ("completed", "failed", "abandoned", "expired")), ("deleted", None)}


@pytest.mark.parametrize("parts", ["attach", "checkpointer", "recorder"])
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_run_calls_hooks_after_the_commit_and_not_on_its_own_thread(
    parts: str, mode: str, sessions: Sessions, tmp_path: Path
) -> None:
    seen: list[tuple[str, str | None]] = []
    threads: set[int] = set()
    called = threading.Event()

    @sessions.on_opened
    def opened(event: Event) -> None:
        seen.append((event.kind, status_in_file(tmp_path / "sessions.db", event.session_id)))
        threads.add(threading.get_ident())
        called.set()

    config = sessions.config("t")
    if parts == "attach":
        graph = sessions.attach(agents.chat())
    elif parts == "checkpointer":
        graph = agents.tool_graph(checkpointer=sessions.checkpointer)
    else:
        graph, config = agents.chat(), config | {"callbacks": [sessions.recorder]}
    if mode == "sync":
        graph.invoke(human("hi"), config)
    else:
        await graph.ainvoke(human("hi"), config)
    assert called.wait(30)  # without `settle`
    assert seen == [("opened", "active")]
    assert threading.get_ident() not in threads


def test_the_event_is_the_one_in_the_record(sessions: Sessions) -> None:
    seen: list[Event] = []
    for name in ("opened", "resumed", "closed"):
        getattr(sessions, f"on_{name}")(seen.append)
    graph = sessions.attach(agents.chat())
    for _ in range(2):
        graph.invoke(human("hi"), sessions.config("t"))
    sessions.get("t").complete(detail={"by": "the user"})
    sessions.settle()
    assert seen == sessions.get("t").events()


def test_what_is_rolled_back_calls_no_hook(sessions: Sessions, told: list[Any]) -> None:
    sessions.open("t").complete()
    with pytest.raises(SessionExists):
        sessions.open("t", if_exists="raise")
    sessions.settle()
    assert told == [("opened", "opened", None), ("closed", "completed", "by_user")]


def test_what_is_rolled_back_inside_a_shared_transaction_calls_no_hook(sessions: Sessions, told: list[Any]) -> None:
    sessions.open("t").complete()

    def refused() -> None:
        with pytest.raises(SessionExists):
            sessions.open("t", if_exists="raise")

    sessions._storage.run_batch([lambda: sessions.open("u")], durable=True)
    sessions._storage.run_batch([refused], durable=True)
    sessions._storage.run_batch([lambda: sessions.open("v"), refused], durable=True)
    sessions.settle()
    opened = [("opened", "opened", None)]
    assert told == [*opened, ("closed", "completed", "by_user"), *opened * 2]


def test_hooks_are_for_what_their_own_process_does_and_others_read_the_events(
    sessions: Sessions, told: list[Any], tmp_path: Path, clock: Clock
) -> None:
    with Sessions(tmp_path / "sessions.db", clock=clock) as others:
        others.open("t").complete()
    sessions.settle()
    assert told == []
    assert [event.kind for event in sessions.get("t").events()] == ["opened", "completed"]


def test_a_hook_may_add_hooks(sessions: Sessions) -> None:
    seen: list[str] = []

    @sessions.on_opened
    def more(event: Event) -> None:
        seen.append(event.session_id)
        sessions.on_opened(more)

    for name in "ab":
        sessions.open(name)
        sessions.settle()
    assert seen == ["a", "b", "b"]


def test_a_hook_may_close_the_sessions(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "sessions.db")
    closed = threading.Event()

    @sessions.on_closed
    def close(event: Event) -> None:
        sessions.close()
        closed.set()

    sessions.open("t").complete()
    assert closed.wait(30)
    with Sessions(tmp_path / "sessions.db") as again:
        assert again.get("t").status == "completed"


AT_EXIT = """
import sys
from session_middleware import Sessions
sessions = Sessions(sys.argv[1])
sessions.on_closed(lambda event: print(event.session_id, event.reason, flush=True))
sessions.open("t").complete(reason="solved")
"""


def test_a_process_that_ends_without_closing_calls_its_hooks(tmp_path: Path) -> None:
    done = processes.run("-c", AT_EXIT, tmp_path / "sessions.db")
    assert (done.stdout, done.returncode) == ("t solved\n", 0)


FORKING = """
import os, sys
from session_middleware import Sessions
from session_middleware.models import Identity
from session_middleware.storage.types import SessionDetails
from session_middleware.storage.run import RunContext
sessions = Sessions(sys.argv[1])
sessions.on_closed(lambda event: print(event.session_id, os.getpid() == parent, flush=True))
parent = os.getpid()
sessions._storage.open_session(RunContext("t", Identity()), SessionDetails())
sessions._storage.delete_session("t")
child = os.fork()
if child == 0:
    sessions.open("u").complete()
    sessions.settle()
    os._exit(0)
os.waitpid(child, 0)
sessions.close()
"""


def test_a_fork_calls_the_hooks_for_what_it_does_and_not_for_what_its_parent_did(tmp_path: Path) -> None:
    done = processes.run("-c", FORKING, tmp_path / "sessions.db")
    assert (sorted(done.stdout.splitlines()), done.stderr, done.returncode) == (["t True", "u False"], "", 0)
