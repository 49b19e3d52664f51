"""A session whose row cannot be read, after an edit by hand, say, is named as damaged, and all others go on."""

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
from session_middleware.model import Status
from tests.conftest import Clock
from tests.integrations import agents
from tests.integrations.agents import human

BAD = (
    "metadata = '{bad'",
    "tags = '7'",
    "metadata = '" + "[" * 20_000 + "'",
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


@pytest.fixture
def file(tmp_path: Path, clock: Clock) -> Path:
    """Three sessions of one user."""
    file = tmp_path / "sessions.db"
    with Sessions(file, clock=clock, sweep_interval=None) as sessions:
        sessions.open("a", user_id="alice")
        clock.advance(seconds=1)
        sessions.attach(agents.chat()).invoke(human("hi"), sessions.config("b", user_id="alice"))
        clock.advance(seconds=1)
        sessions.open("c", user_id="alice")
    return file


@pytest.fixture
def sessions(file: Path, clock: Clock) -> Iterator[Sessions]:
    with Sessions(file, clock=clock, idle_timeout="1h", sweep_interval=None) as sessions:
        yield sessions


def spoil(file: Path, what: str) -> None:
    """Edit the row of session ``b`` by hand."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"UPDATE sessions SET {what} WHERE id = 'b'")


bad = pytest.mark.parametrize("what", BAD, ids=lambda what: what[:40])


@bad
def test_a_session_whose_row_cannot_be_read_is_named_with_its_file_and_found_by_verify(
    sessions: Sessions, file: Path, what: str
) -> None:
    spoil(file, what)
    with pytest.raises(StorageError, match=re.escape(str(file)) + r".*damaged.*session 'b'.*delete"):
        sessions.get("b")
    assert [(found.table, found.session_id) for found in sessions.verify().damage] == [("sessions", "b")]
    assert sessions.get("a").id == "a"


def ids(found: Iterable[Session]) -> list[str]:
    return [session.id for session in found]


@bad
def test_lists_leave_it_out_and_say_so_once(
    sessions: Sessions, file: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(file, what)
    assert ids(sessions.list()) == ids(sessions.for_user("alice").list(tags=())) == ["c", "a"]
    for status in get_args(Status):
        sessions.list(status=status)
    assert sessions.list(tags=["x"]) == []
    said = [record.message for record in caplog.records if "left out" in record.message]
    assert len(said) == 1
    assert str(file) in said[0]
    assert "session 'b'" in said[0]


def test_a_page_of_a_list_is_full_although_one_on_it_is_left_out(sessions: Sessions, file: Path) -> None:
    spoil(file, "metadata = '{bad'")
    assert ids(sessions.list(limit=2)) == ["c", "a"]
    assert ids(sessions.list(limit=1, after=sessions.get("c"))) == ["a"]


def test_room_for_a_session_is_made_by_the_oldest_that_can_be_read(file: Path, clock: Clock) -> None:
    spoil(file, "metadata = '{bad', last_active_at = '2020-01-01T00:00:00.000Z'")
    with Sessions(file, clock=clock, idle_timeout="never", max_sessions=3, on_limit="expire_oldest") as sessions:
        sessions.open("d", user_id="alice")
        assert sessions.get("a").status == "expired"
