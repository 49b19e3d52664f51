"""A session whose row cannot be read, after an edit by hand, say, is named as damaged, and all others go on."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from session_middleware import Sessions
from session_middleware.errors import StorageError
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
        graph = sessions.attach(agents.chat())
        for name in ("a", "b", "c"):
            graph.invoke(human("hi"), sessions.config(name, user_id="alice"))
            clock.advance(seconds=1)
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
