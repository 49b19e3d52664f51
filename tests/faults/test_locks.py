"""What a transaction on PostgreSQL locks: the families it writes to, the owners of memories, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from session_middleware import Sessions, StorageError
from session_middleware.storage.sql.tables import tables
from tests.support import scenarios
from tests.support.processes import Process

DUE = tuple(f"due-{number:02}" for number in range(12))


def long_ago() -> datetime:
    return datetime(2020, 1, 1, tzinfo=UTC)


def opened(url: str, **settings: Any) -> Sessions:
    return Sessions(url, **{"sweep_interval": None, "idle_timeout": "1h", "on_expire": "delete"} | settings)


@pytest.fixture
def filled(postgres_url: str) -> str:
    """Twelve due sessions of alice's, and three of bob's that are not due, each with a turn and a memory."""
    for ids, user, settings in ((DUE, "alice", {"clock": long_ago}), (("b1", "b2", "b3"), "bob", {})):
        with opened(postgres_url, **settings) as sessions:
            agent = sessions.attach(scenarios.chat().compile())
            for name in ids:
                agent.invoke({"messages": [("user", f"hello {name}")]}, sessions.config(name, user_id=user))
                sessions.get(name).memory.remember(f"fact of {name}")
    return postgres_url


@contextmanager
def held_open(sessions: Sessions, operation: Callable[[Sessions], Any]) -> Iterator[Future[Any]]:
    """Within the block the operation's first transaction has done its work, and is not committed."""
    writer = sessions._storage._database._writer  # type: ignore[attr-defined]
    is_held, may_end, end = threading.Event(), threading.Event(), writer._end

    def wait_and_end() -> None:
        if any("due-00" in str(lock) for lock in writer.connection.locks):
            is_held.set()
            assert may_end.wait(60)
        end()

    writer._end = wait_and_end
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(operation, sessions)
        assert is_held.wait(60)
        try:
            yield done
        finally:
            may_end.set()
        done.result(60)


def work_of_others(sessions: Sessions) -> None:
    agent = sessions.attach(scenarios.chat().compile())
    agent.invoke({"messages": [("user", "again")]}, sessions.config("b1", user_id="bob"))
    agent.invoke({"messages": [("user", "hi")]}, sessions.config("new", user_id="bob"))
    sessions.get("b1").memory.remember("a preference", scope="user")
    sessions.get("b1").complete()
    sessions.checkpointer.copy_thread("b2", "copy")
    assert sessions.delete("b2").sessions == 1
    sessions.get("b3").messages()[0]
    assert sessions.for_user("bob").search("hello")
    assert sessions.revoke("carol") == []
    assert sessions.forget_user("bob").sessions == 4


OPERATIONS: dict[str, Callable[[Sessions], Any]] = {
    "sweep": lambda sessions: sessions.sweep(),
    "forget_user": lambda sessions: sessions.forget_user("alice"),
    "revoke": lambda sessions: sessions.revoke("alice"),
    "delete": lambda sessions: sessions.delete("due-00"),
    "index_memory": lambda sessions: sessions.index_memory(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_writer_waits_for_a_transaction_on_sessions_that_it_does_not_touch(name: str, filled: str) -> None:
    patient, impatient = (f"{filled}?options=-c%20lock_timeout%3D{time}" for time in ("20s", "1ms"))
    with opened(filled) as first, opened(patient) as other, opened(impatient) as related:
        with held_open(first, OPERATIONS[name]):
            if name == "index_memory":  # a run does not wait for the indexing of its own session
                related.get("b1").add({"role": "user", "content": "at once"})
            else:
                with pytest.raises(StorageError, match="a lock was not free"):
                    related.get("due-00").update(title="too late")
                work_of_others(other)
        first.sweep()
        assert first.check(deep=True) == []


def test_a_sweep_leaves_what_another_one_is_ending_to_that_one(filled: str) -> None:
    with opened(filled) as first, opened(filled) as second, ThreadPoolExecutor(1) as pool:
        now, others = datetime.now(UTC), threading.Semaphore(0)
        due = second._storage.list_due(now)
        second._storage.subscribe(["deleted"], lambda events: others.release(len(events)))
        with held_open(first, lambda sessions: sessions.sweep()) as swept:
            also_swept = pool.submit(second._storage.end_due, due, now=now)
            assert all(others.acquire(timeout=60) for _ in DUE[10:])
            assert {session.id for session in second.list(user_id="alice")} == {*DUE[:10]}
        assert {each.session_id for each in also_swept.result(60)} == {*DUE[10:]}
        assert {each.session_id for each in swept.result(60)} == {*DUE[:10]}
        assert first.count(user_id="alice") == 0


def test_a_deadlock_that_the_server_reports_is_retried(filled: str) -> None:
    url, both = f"{filled}?options=-c%20deadlock_timeout%3D10ms", threading.Barrier(2)

    def rename(sessions: Sessions, *ids: str) -> int:
        attempts = []

        def operation(connection: Any) -> None:
            attempts.append(ids)
            connection.execute("UPDATE sessions SET title = ? WHERE id = ? RETURNING 1", (ids[0], ids[0])).fetchone()
            if len(attempts) == 1:
                both.wait(60)
            connection.execute("UPDATE sessions SET title = ? WHERE id = ? RETURNING 1", (ids[0], ids[1])).fetchone()

        sessions._storage._database.write(operation, of="")  # type: ignore[attr-defined]
        return len(attempts)

    with opened(url) as first, opened(url) as second, ThreadPoolExecutor(2) as pool:
        done = [pool.submit(rename, first, "b1", "b2"), pool.submit(rename, second, "b2", "b1")]
        assert max(each.result(60) for each in done) > 1
        assert first.get("b1").title == first.get("b2").title


WORKING = """
import sys
from datetime import UTC, datetime
from threading import Thread
from session_middleware import SessionError, Sessions
from tests.support import scenarios

path, name = sys.argv[1:]

def sweep():
    now = datetime.now(UTC)
    for _ in range(3):
        for ended in sessions._storage.end_due(sessions._storage.list_due(now), now=now):
            print("ended", ended.session_id, flush=True)

def talk(user):
    agent = sessions.attach(scenarios.chat().compile())
    for turn in range(6):
        config = sessions.config(f"{user}-{name}-{turn % 2}", user_id=user)
        try:
            agent.invoke({"messages": [("user", f"{user} {turn}")]}, config, durability="sync")
            sessions.get(config["configurable"]["thread_id"]).memory.remember(f"of {user} {turn}", scope="user")
            sessions.index_memory()
        except SessionError:
            assert user == "alice"
        print("said", user, turn, flush=True)

with Sessions(path, sweep_interval=None, idle_timeout="1h") as sessions:
    threads = [Thread(target=sweep), Thread(target=talk, args=("alice",)), Thread(target=talk, args=("bob",))]
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_sweeps_runs_and_forgetting_at_once_in_processes_of_which_one_is_killed_are_exact(each_engine: str) -> None:
    due = {f"due-{number}": ("alice", "bob")[number % 2] for number in range(40)}
    with opened(each_engine, clock=long_ago) as sessions:
        for name, user in due.items():
            sessions.open(name, user_id=user).add({"role": "user", "content": f"hello from {user}"})
            sessions.get(name).memory.remember(f"a fact about {user}", scope="user")
    processes = [Process("-c", WORKING, each_engine, f"p{number}", stdin=True) for number in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.say("go")
    killed, *others = processes
    assert killed.stdout.readline()
    with opened(each_engine, on_expire="keep") as sessions:
        killed.kill()
        sessions.forget_user("alice")
        lines = []
        for process in others:
            lines += process.communicate(timeout=100)[0].splitlines()
            assert process.returncode == 0
        killed.communicate()
        ended = [line.split()[1] for line in lines if line.startswith("ended")]
        assert len(ended) == len(set(ended))
        sessions.sweep()
        sessions.forget_user("alice")  # what was begun for her since
        for name, user in due.items():
            if user == "bob":
                kinds = [event.kind for event in sessions.get(name).events()]
                assert kinds.count("expired") == 1
                assert [message.text for message in sessions.get(name).messages()] == ["hello from bob"]
            else:
                assert sessions.find(name) is None
        for number in (1, 2):
            for turn in range(6):
                said = [message.text for message in sessions.get(f"bob-p{number}-{turn % 2}").messages()]
                assert f"bob {turn}" in said
        database = sessions._storage._database  # type: ignore[attr-defined]
        for table in tables():
            rows = database.read(lambda connection, t=table: connection.execute(f"SELECT * FROM {t}").fetchall())
            assert "alice" not in repr(rows), table
        sessions.check(repair=True)
        assert sessions.check(deep=True) == []


def test_a_transaction_of_several_methods_locks_its_session_before_it_reads(filled: str) -> None:
    with opened(filled) as sessions:
        writer = sessions._storage._database._writer  # type: ignore[attr-defined]
        session = sessions.get("b1")
        assert session._authorized.in_transaction(lambda: {*writer.connection.locks}) == {"b1"}
