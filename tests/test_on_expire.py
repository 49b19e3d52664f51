"""What `on_expire` says holds also for sessions that had expired before it said so, and for those over the limit."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from session_middleware import Sessions
from session_middleware.models import utc_now
from session_middleware.settings import load_settings
from session_middleware.storage.sql.sessions import expiry
from session_middleware.storage.sqlite.engine import SqliteStorage
from tests.conftest import Clock, OpenSessions
from tests.support import agents
from tests.support.agents import human, said

pytestmark = [
    pytest.mark.sessions(idle_timeout="30m", sweep_interval=None),
    pytest.mark.usefixtures("clock", "consistent"),
]


def expired(sessions: Sessions, clock: Clock) -> Any:
    """A session with two turns, which a sweep has written down as expired, and nothing more."""
    graph = sessions.attach(agents.chat())
    for text in ("one", "two"):
        graph.invoke(human(text), sessions.config("t"))
    clock.advance(hours=1)
    assert [each.action for each in sessions.sweep()] == ["keep"]
    return sessions.get("t")


def swept(sessions: Sessions) -> list[tuple[str, str, str]]:
    return [(each.session_id, each.reason, each.action) for each in sessions.sweep()]


@pytest.mark.parametrize(("action", "status"), [("delete", "deleted"), ("archive", "archived")])
def test_a_session_kept_at_first_goes_when_the_setting_says_so(
    action: str, status: str, open_sessions: OpenSessions, clock: Clock
) -> None:
    expired(open_sessions(), clock)
    sessions = open_sessions(on_expire=action)
    explained = sessions.explain("t")
    assert (explained.next_status, explained.next_reason) == (status, "on_expire")
    assert [each.action for each in sessions.sweep(dry_run=True)] == [action]
    assert swept(sessions) == [("t", "on_expire", action)]
    explained = sessions.explain("t")
    assert (explained.status, explained.reason) == (status, "idle_timeout")
    assert swept(sessions) == []


def test_a_session_kept_at_first_is_pruned_once_and_each_time_it_expires_anew(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    expired(open_sessions(), clock)
    sessions = open_sessions(on_expire="prune")
    graph, config = sessions.attach(agents.chat()), sessions.config("t")
    assert len(list(graph.get_state_history(config))) > 1
    assert swept(sessions) == [("t", "on_expire", "prune")]
    assert swept(sessions) == []
    assert len(list(graph.get_state_history(config))) == 1
    graph.invoke(human("three"), config)
    assert len(said(sessions.get("t"))) == 6
    clock.advance(hours=1)
    assert swept(sessions) == [("t", "idle_timeout", "prune")]
    assert swept(sessions) == []
    assert len(list(graph.get_state_history(config))) == 1
    assert swept(open_sessions(on_expire="delete")) == [("t", "on_expire", "delete")]


def test_its_own_on_expire_holds_when_it_is_set_after_it_expired(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions()
    session = expired(sessions, clock)
    session.update(on_expire="delete")
    session.pin(why="a dispute")
    assert swept(sessions) == []
    sessions.get("t").unpin()
    clock.advance(hours=1)
    swept(sessions)
    assert sessions.find("t") is None


def test_its_own_keep_holds_when_all_others_go(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions()
    expired(sessions, clock).update(on_expire="keep")
    assert swept(open_sessions(on_expire="delete")) == []


def test_a_session_that_expired_because_of_the_limit_goes_with_the_next_sweep(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(max_sessions_per_user=1, on_limit="expire_oldest", on_expire="delete")
    sessions.open("a", user_id="alice")
    clock.advance(minutes=1)
    sessions.open("b", user_id="alice")
    assert sessions.get("a").reason == "limit"
    assert swept(sessions) == [("a", "on_expire", "delete")]
    assert sessions.explain("a").reason == "limit"


def test_a_session_whose_state_is_damaged_expires_unpruned_beside_the_others(
    open_sessions: OpenSessions, path: Path, clock: Clock
) -> None:
    sessions = open_sessions(on_expire="prune")
    graph = sessions.attach(agents.chat())
    for name in "abc":
        for text in ("one", "two"):
            graph.invoke(human(text), sessions.config(name))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE checkpoints SET channels = '{' WHERE session_id = 'b'")
    clock.advance(hours=1)
    assert sorted(swept(sessions)) == [(name, "idle_timeout", "prune") for name in "abc"]
    assert swept(sessions) == []
    counts = {each.id: each.stats().checkpoint_count for each in sessions.list()}
    assert counts["a"] == counts["c"] == 1 < counts["b"]
    sessions.delete("b")  # the check at the end would find the damage


@pytest.mark.parametrize("own", [None, "delete"])
def test_what_is_still_to_be_done_is_read_in_its_order_from_one_index(own: str | None, tmp_path: Path) -> None:
    storage = SqliteStorage(str(tmp_path / "sessions.db"), load_settings(), clock=utc_now)
    values = {"own": own, "pruned": 0, "now": "9", "limit": 9}
    steps = storage._database.read(
        lambda connection: [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {expiry._UNDONE}", values)]
    )
    storage.close()
    index = "COVERING INDEX sessions_by_on_expire (status=? AND on_expire=? AND pruned=?)"
    assert steps == [f"SEARCH sessions USING {index}"]
