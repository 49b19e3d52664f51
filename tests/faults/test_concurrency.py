"""Several threads, processes and event loops on one file: no error, no lost write."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from session_middleware import Sessions
from session_middleware.errors import StorageError
from session_middleware.models import Event, Identity, utc_now
from session_middleware.settings import load_settings
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import RunContext
from session_middleware.storage.sqlite.engine import SqliteStorage
from session_middleware.storage.types import SessionDetails
from tests.support import scenarios
from tests.support.processes import Process, run

SCALE = int(os.environ.get("SESSION_FAULT_ROUNDS", "1"))


def storage_at(path: Path, **settings: object) -> SqliteStorage:
    return SqliteStorage(str(path), load_settings(**settings), clock=utc_now)


def run_together(script: str, *arguments: object, processes: int = 4) -> None:
    """Start processes that begin at the same moment; none of them has anything to complain of."""
    started = [Process("-c", script, *arguments, number, stdin=True) for number in range(processes)]
    assert [process.stdout.readline() for process in started] == ["ready\n"] * processes
    for process in started:
        process.say("go")
    assert [process.communicate()[1] for process in started] == [""] * processes


OPENER = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from session_middleware import Sessions

path, count, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
together = threading.Barrier(count)
print("ready", flush=True)
sys.stdin.readline()

def work(number):
    together.wait()
    with Sessions(path) as sessions:
        sessions.open(f"{name}-{number}")

with ThreadPoolExecutor(count) as pool:
    list(pool.map(work, range(count)))
"""


def test_simultaneous_first_openings_all_succeed(tmp_path: Path) -> None:
    path, threads = tmp_path / "sessions.db", min(40, 8 * SCALE)
    run_together(OPENER, path, threads)
    with Sessions(path) as sessions:
        assert {session.id for session in sessions.list(limit=None)} == {
            f"{process}-{thread}" for process in range(4) for thread in range(threads)
        }
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


APPENDER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from session_middleware.models import Identity, utc_now
from session_middleware.settings import load_settings
from session_middleware.storage.run import RunContext
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.sqlite.engine import SqliteStorage

path, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()

def work(number):
    storage = SqliteStorage(path, load_settings(), clock=utc_now)
    context = RunContext("shared", Identity())
    for n in range(10):
        storage.append(context, [MessageEntry(f"{name}-{number}-{n}", "user", "hi")])
    storage.close()

with ThreadPoolExecutor(4) as pool:
    list(pool.map(work, range(4)))
"""


def test_many_who_write_to_one_session_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    run_together(APPENDER, path)
    storage = storage_at(path)
    messages = storage.list_messages("shared")
    assert len(messages) == 4 * 4 * 10
    assert len({m.seq for m in messages}) == 160
    assert [event.kind for event in storage.list_records(Event, "shared")].count("opened") == 1
    storage.close()


TURNS = 5 * min(SCALE, 10)

TALKER = """
import asyncio, sys
from concurrent.futures import ThreadPoolExecutor
from session_middleware import Sessions
from tests.support import scenarios
from tests.support.processes import Process, run

path, turns, mode, name = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
print("ready", flush=True)
sys.stdin.readline()

def talk(number):
    for turn in range(turns):
        agent.invoke(scenarios.say(f"turn {turn}"), sessions.config(f"{name}-{number}"), durability="sync")

async def atalk(number):
    for turn in range(turns):
        await agent.ainvoke(scenarios.say(f"turn {turn}"), sessions.config(f"{name}-{number}"), durability="sync")

async def all_talk():
    await asyncio.gather(*map(atalk, range(4)))

with Sessions(path) as sessions:
    agent = sessions.attach(scenarios.chat().compile())
    if mode == "async":
        asyncio.run(all_talk())
    else:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(talk, range(4)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_many_graphs_in_many_processes_lose_no_write(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    run_together(TALKER, path, TURNS, mode)
    said = [text for turn in range(TURNS) for text in (f"turn {turn}", f"{turn + 1}: you said turn {turn}")]
    with Sessions(path) as sessions:
        agent = sessions.attach(scenarios.chat().compile())
        for name in (f"{process}-{number}" for process in range(4) for number in range(4)):
            states = list(agent.get_state_history(sessions.config(name)))
            assert [message.text for message in states[0].values["messages"]] == said
            assert len(states) == 4 * TURNS  # input, start, answer, note
            assert [message.text for message in sessions.get(name).messages()] == said
            assert [run.outcome for run in sessions.get(name).runs()] == ["ok"] * TURNS


def test_operations_that_wait_together_share_a_commit_and_fail_apart(tmp_path: Path) -> None:
    storage = storage_at(tmp_path / "sessions.db")
    storage.open_session(RunContext("owned", Identity(user_id="ada")), SessionDetails())
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            user = "ada" if number % 4 else "bob"
            message = MessageEntry(f"m{number}", "user", "hi")
            storage.append(RunContext("owned", Identity(user_id=user)), [message])
        except PermissionError as error:
            errors.append(error)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(200)))
    assert len(errors) == 50
    assert len(storage.list_messages("owned")) == 150
    storage.close()


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    storage = storage_at(path)
    storage.append(RunContext("t", Identity()), [MessageEntry("m", "user", "hi")])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # another process holds the write lock
    assert [m.text for m in storage.list_messages("t")] == ["hi"]
    other.execute("ROLLBACK")
    other.close()
    storage.close()


def test_a_stopped_thread_takes_nobody_elses_operation_with_it(tmp_path: Path) -> None:
    storage = storage_at(tmp_path / "sessions.db")
    database = storage._database
    entered, leave = threading.Event(), threading.Event()

    def stopped(connection: sqlite3.Connection) -> None:
        entered.set()
        leave.wait()
        raise KeyboardInterrupt

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(database.write, stopped)
        entered.wait()
        others = [
            pool.submit(storage.append, RunContext("t", Identity()), [MessageEntry(f"m{n}", "user", "hi")])
            for n in range(2)
        ]
        leave.set()
        assert isinstance(first.exception(), KeyboardInterrupt)
        assert [other.exception() for other in others] == [None, None]
    assert len(storage.list_messages("t")) == 2
    storage.close()


async def test_a_cancelled_call_is_done_wholly_or_not_at_all(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "sessions.db")
    calls = [asyncio.ensure_future(sessions.aopen(f"s{n}", title="whole")) for n in range(200)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 100
    found = await sessions.alist(limit=None)
    assert {s.title for s in found} == {"whole"}
    assert {f"s{n}" for n in range(1, 200, 2)} <= {s.id for s in found}
    sessions.open("after")  # no lock is left behind
    sessions.close()


def test_one_object_serves_several_event_loops_over_time(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db") as sessions:
        for number in range(3):
            asyncio.run(sessions.aopen(f"s{number}"))
        assert sessions.count() == 3


def test_the_log_shrinks_again_when_a_reader_that_held_it_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    storage, context, log = storage_at(path), RunContext("t", Identity()), tmp_path / "sessions.db-wal"
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM sessions").fetchone()
    for number in range(24):
        storage.append(context, [MessageEntry(f"m{number}", "user", "x" * 1_000_000)])
    assert log.stat().st_size > 20_000_000
    reader.execute("ROLLBACK")
    reader.close()
    for number in range(3):
        storage.append(context, [MessageEntry(f"n{number}", "user", "hi")])
    assert log.stat().st_size <= 16 * 1024 * 1024
    storage.close()


def test_a_closed_storage_says_so(tmp_path: Path) -> None:
    storage = storage_at(tmp_path / "sessions.db")
    storage.close()
    storage.close()
    for call in (
        lambda: storage.find_session("t"),
        lambda: storage.open_session(RunContext("t", Identity()), SessionDetails()),
    ):
        with pytest.raises(StorageError, match="closed"):
            call()


def test_a_failing_commit_leaves_what_was_acknowledged_and_goes_on(tmp_path: Path) -> None:
    storage = storage_at(tmp_path / "sessions.db")
    storage.append(RunContext("t", Identity()), [MessageEntry("m1", "user", "hi")])
    pages = storage._database.write(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    storage._database._writer.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match=r"sessions\.db: the disk is full .*free some space"):
        storage.append(RunContext("t", Identity()), [MessageEntry("m2", "user", "x" * 1_000_000)])
    assert [m.message_id for m in storage.list_messages("t")] == ["m1"]
    storage._database._writer.connection.execute("PRAGMA max_page_count = 1000000")
    storage.append(RunContext("t", Identity()), [MessageEntry("m2", "user", "x" * 1_000_000)])
    assert len(storage.list_messages("t")) == 2
    storage.close()


FORKING = """
import asyncio, os, sys
from session_middleware import Sessions

sessions = Sessions(sys.argv[1])
asyncio.run(sessions.aopen("parent"))
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        sessions.open(f"child-{number}-sync")
        asyncio.run(sessions.aopen(f"child-{number}-async"))
        os._exit(0)
    children.append(child)
sessions.open("parent-again")
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
print(sessions.count())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_fork_goes_on_with_connections_and_threads_of_its_own(tmp_path: Path) -> None:
    done = run("-c", FORKING, tmp_path / "sessions.db", timeout=60)
    assert (done.stdout, done.stderr) == ("8\n", "")
