"""Sessions whose row cannot be read, after an edit by hand, say, are named as damaged, and all others go on."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import get_args

import pytest

from session_middleware import Session, Sessions
from session_middleware.errors import StorageError
from session_middleware.models import OnExpire, Status
from tests.conftest import Clock
from tests.support import agents
from tests.support.agents import human

SPOILT = (
    "metadata = '{bad'",
    "tags = '7'",
    "visibility = 'all'",
    "run_count = 'many'",
    "last_active_at = '2025-01-01 00:00:00'",
    "last_active_at = '2025-01-01'",
    "last_active_at = ''",
    "last_active_at = '9999-12-31T00:00:00.000Z'",
    "postponed_until = '2027-01-01T00:00:00'",
    "idle_timeout_seconds = 1e300",
    "idle_timeout_seconds = 9e999",
    "idle_timeout_seconds = -5",
    "max_age_seconds = 'long'",
)


BAD = {f"bad {what[:40]}": what for what in SPOILT}


@pytest.fixture
def file(tmp_path: Path, clock: Clock) -> Path:
    """Sessions of one user: ``a``, then those of `BAD`, then ``c``."""
    file = tmp_path / "sessions.db"
    with Sessions(file, clock=clock, sweep_interval=None) as sessions:
        graph = sessions.attach(agents.chat())
        graph.invoke(human("hi"), sessions.config("a", user_id="alice"))
        graph.invoke(human("hi"), sessions.config(next(iter(BAD)), user_id="alice"))
        for name in (*BAD, "c"):
            clock.advance(seconds=1)
            sessions.open(name, user_id="alice")
    for name, what in BAD.items():
        change(file, f"UPDATE sessions SET {what} WHERE id = ?", name)
    return file


def change(file: Path, statement: str, *values: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement, values)


@pytest.fixture
def sessions(file: Path, clock: Clock) -> Iterator[Sessions]:
    with Sessions(file, clock=clock, idle_timeout="1h", sweep_interval=None) as sessions:
        yield sessions


def ids(found: Iterable[Session]) -> list[str]:
    return [session.id for session in found]


def test_each_is_named_with_its_file_and_found_by_a_deep_check(sessions: Sessions, file: Path) -> None:
    for name in BAD:
        with pytest.raises(StorageError, match=f"{re.escape(str(file))}.*damaged.*{re.escape(repr(name))}.*delete"):
            sessions.get(name)
    assert sorted((found.table, found.session_id) for found in sessions.check(deep=True)) == [
        ("sessions", name) for name in sorted(BAD)
    ]
    assert sessions.get("a").id == "a"


def test_lists_leave_them_out_and_say_so_once(sessions: Sessions, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert ids(sessions.list()) == ids(sessions.for_user("alice").list(tags=())) == ["c", "a"]
    for status in get_args(Status):
        sessions.list(status=status)
    assert sessions.list(tags=["x"]) == []
    said = [record.message for record in caplog.records if "left out" in record.message]
    assert len(said) == len(BAD)
    assert all(str(file) in text for text in said)


def test_a_page_of_a_list_is_full_although_some_on_it_are_left_out(sessions: Sessions) -> None:
    assert ids(sessions.list(limit=2)) == ["c", "a"]
    assert ids(sessions.list(limit=1, after=sessions.get("c"))) == ["a"]


def test_room_for_a_session_is_made_by_the_oldest_that_can_be_read(file: Path, clock: Clock) -> None:
    oldest = next(iter(BAD))
    change(file, "DELETE FROM sessions WHERE id GLOB 'bad*' AND id != ?", oldest)
    change(file, "UPDATE sessions SET last_active_at = '2020-01-01T00:00:00.000Z' WHERE id = ?", oldest)
    with Sessions(file, clock=clock, idle_timeout="never", max_sessions=3, on_limit="expire_oldest") as sessions:
        sessions.open("d", user_id="alice")
        assert sessions.get("a").status == "expired"


@pytest.mark.parametrize("on_expire", get_args(OnExpire))
def test_a_sweep_ends_all_others(file: Path, clock: Clock, on_expire: str) -> None:
    settings = {"idle_timeout": "1h", "retention": "2h", "on_expire": on_expire}
    clock.advance(hours=2)
    with Sessions(file, clock=clock, sweep_interval=None, **settings) as sessions:
        sessions.on_expiring(lambda ended: None)
        assert {"a", "c"} <= {ended.session_id for ended in sessions.sweep(dry_run=True)}
        assert {"a", "c"} <= {ended.session_id for ended in sessions.sweep()}
        clock.advance(hours=3)
        sessions.sweep()
        assert ids(sessions.list()) == []


def test_cleaning_by_age_passes_over_them(sessions: Sessions, clock: Clock) -> None:
    clock.advance(days=9)
    assert [ended.session_id for ended in sessions.sweep(older_than="2d")] == ["a", "c"]


def test_their_user_can_be_revoked(sessions: Sessions) -> None:
    assert sessions.revoke("alice") == ["a", "c"]


def test_each_can_be_deleted_with_all_there_is_of_it(sessions: Sessions, file: Path) -> None:
    assert [sessions.delete(name).sessions for name in BAD] == [1] * len(BAD)
    assert sessions.count() == 2
    assert sessions.check(deep=True) == []
    assert all(sessions.find(name) is None for name in BAD)


def test_their_user_can_be_forgotten(sessions: Sessions) -> None:
    assert sessions.forget_user("alice", dry_run=True).sessions == len(BAD) + 2
    assert sessions.forget_user("alice").sessions == len(BAD) + 2
    assert (sessions.count(), sessions.check(deep=True)) == (0, [])


def test_each_is_a_finding_of_a_check_whose_repair_mends_all_else(sessions: Sessions, file: Path) -> None:
    change(file, "UPDATE sessions SET message_count = 7 WHERE id = 'a'")
    change(file, "UPDATE sessions SET message_count = 7 WHERE id = ?", next(iter(BAD)))
    change(file, "UPDATE runs SET outcome = 'running', process = 'nobody:1:1' WHERE session_id > 'bad'")
    sessions.check(repair=True)
    found = sessions.check()
    assert [(problem.kind, problem.session_id) for problem in found] == [("damage", name) for name in sorted(BAD)]
    assert sessions.get("a").message_count == 2
