"""Many operations in one transaction: each is done or not by itself, whatever the others do."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from session_middleware.errors import StorageError
from session_middleware.models import Identity
from session_middleware.storage.executor import WriteQueue
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.run_write import RunWrite
from session_middleware.storage.sqlite import wal
from session_middleware.storage.sqlite.connection import SqliteConnection
from session_middleware.storage.sqlite.database import SqliteDatabase
from tests.support.processes import Process


class Failed(Exception):
    pass


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    database = SqliteDatabase(str(tmp_path / "sessions.db"))
    database.write(lambda connection: connection.execute("CREATE TABLE notes (text TEXT UNIQUE)"))
    yield database
    database.close()


def notes(database: SqliteDatabase) -> list[str]:
    return [text for (text,) in database.read(lambda c: c.execute("SELECT text FROM notes ORDER BY rowid").fetchall())]


def note(database: SqliteDatabase, text: str, *, then: Exception | None = None) -> str:
    def operation(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO notes VALUES (?)", (text,))
        if then is not None:
            raise then
        return text

    return database.write(operation)


def test_one_that_fails_half_way_takes_no_other_with_it(database: SqliteDatabase) -> None:
    calls: list[Any] = [
        lambda: note(database, "first"),
        lambda: note(database, "half", then=Failed()),
        lambda: note(database, "first"),  # twice
        lambda: note(database, "last"),
    ]
    first, half, twice, last = database.together(calls)
    assert first() == "first"
    assert last() == "last"
    with pytest.raises(Failed):
        half()
    with pytest.raises(StorageError, match="UNIQUE"):
        twice()
    assert notes(database) == ["first", "last"]


def test_a_call_that_mends_what_has_failed_in_it_keeps_the_rest(database: SqliteDatabase) -> None:
    def mended() -> str:
        note(database, "before")
        try:
            note(database, "half", then=Failed())
        except Failed:
            note(database, "instead")
        return "done"

    outcomes = database.together([lambda: note(database, "other"), mended])
    assert [ticket() for ticket in outcomes] == ["other", "done"]
    assert notes(database) == ["other", "before", "instead"]


def test_a_call_sees_what_it_and_those_before_it_have_written(database: SqliteDatabase) -> None:
    seen = database.together([lambda: note(database, "first"), lambda: notes(database)])
    assert seen[1]() == ["first"]


def test_a_run_gets_what_was_decided_about_it_when_that_is_committed(database: SqliteDatabase) -> None:
    runs = {name: RunContext(name, Identity()) for name in "abc"}
    seen: list[bool] = []

    def deciding(name: str, error: Exception | None = None) -> None:
        def operation(connection: SqliteConnection) -> None:
            connection.execute("INSERT INTO notes VALUES (?)", (name,))
            run = RunWrite(connection, runs[name])
            run.state = run.state._replace(admitted=True)
            if error is not None:
                raise error
            connection.decisions[runs[name]] = run
            seen.extend([runs[name].state.admitted, RunWrite(connection, runs[name]).state.admitted])

        database.write(operation)

    outcomes = database.together([lambda: deciding("a"), lambda: deciding("b", Failed()), lambda: deciding("c")])
    assert [run.state.admitted for run in runs.values()] == [True, False, True]
    assert seen == [False, True] * 3  # "a" was carried out twice
    with pytest.raises(Failed):
        outcomes[1]()


def added(lane: WriteQueue, call: Any) -> asyncio.Future[Any]:
    return lane.add(call, asyncio.get_running_loop().create_future())


async def test_async_calls_share_a_commit_and_come_in_order(database: SqliteDatabase) -> None:
    commits, order = [], []

    def together(calls: Any, *, durable: bool) -> Any:
        commits.append(len(calls))
        return database.together(calls, durable=durable)

    def call(number: int) -> int:
        order.append(number)
        note(database, str(number))
        return number

    lane = WriteQueue(together)
    assert await asyncio.gather(*(added(lane, lambda n=n: call(n)) for n in range(100))) == list(range(100))
    lane.close()
    assert order == list(range(100))
    assert len(commits) < 100
    assert notes(database) == [str(number) for number in range(100)]


async def test_a_call_cancelled_before_its_turn_is_not_carried_out_and_its_neighbours_are(
    database: SqliteDatabase,
) -> None:
    hold, lane = threading.Event(), WriteQueue(lambda calls, durable: database.together(calls))
    first = added(lane, hold.wait)
    await asyncio.sleep(0)
    cancelled = added(lane, lambda: note(database, "cancelled"))
    last = added(lane, lambda: note(database, "last"))
    await asyncio.sleep(0)
    cancelled.cancel()
    hold.set()
    await asyncio.gather(first, last)
    lane.close()
    assert notes(database) == ["last"]


async def test_a_call_that_stops_the_thread_is_told_and_the_lane_goes_on(database: SqliteDatabase) -> None:
    class Stopped(BaseException):
        pass

    def stop() -> None:
        raise Stopped

    lane = WriteQueue(lambda calls, durable: database.together(calls))
    with pytest.raises(Stopped):
        await added(lane, stop)
    assert await added(lane, lambda: note(database, "after")) == "after"
    lane.close()


def test_the_log_is_written_back_after_a_long_reader_has_ended(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "_PAGES", 1)
    reader = sqlite3.connect(database.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM notes").fetchone()
    for number in range(8):
        note(database, f"note {number} " + "x" * 10_000)
    assert b"note 7" not in Path(database.path).read_bytes()
    reader.execute("ROLLBACK")
    reader.close()
    note(database, "last")
    assert b"note 7" in Path(database.path).read_bytes()


def test_the_log_is_written_back_and_does_not_grow_with_what_is_written(database: SqliteDatabase) -> None:
    for number in range(600):
        note(database, "x" * 20_000 + str(number))
    assert Path(f"{database.path}-wal").stat().st_size <= 16 * 1024 * 1024


HOLDER = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(sqlite3.sqlite_version_info >= wal.FIXED_IN, reason="this SQLite needs no lock of ours")
def test_the_log_is_not_written_back_while_another_process_is_at_it(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "_PAGES", 1)
    with Process("-c", HOLDER, Path(database.path).parent, stdin=True) as other:
        assert other.stdout.readline() == "held\n"
        before = Path(database.path).read_bytes()
        for number in range(8):
            note(database, "x" * 10_000 + str(number))
        assert Path(database.path).read_bytes() == before
        other.say("go")
        assert other.wait() == 0
    note(database, "last")
    assert Path(database.path).stat().st_size > len(before)
    assert len(notes(database)) == 9
