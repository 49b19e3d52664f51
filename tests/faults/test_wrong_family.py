"""A session's row that names the wrong family costs it nothing: what its checkpoints refer to is no orphan."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from session_middleware import Sessions, StorageError
from tests.support import agents
from tests.support.agents import human


def damage(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def query(path: Path, sql: str) -> Any:
    connection = sqlite3.connect(path)
    found = connection.execute(sql).fetchone()
    connection.close()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def said_in(graph: Any, sessions: Sessions, session_id: str) -> int:
    return len(graph.get_state(sessions.config(session_id)).values["messages"])


def test_a_wrong_home_is_named_with_the_right_one_and_a_repair_deletes_nothing(path: Path) -> None:
    with Sessions(path, sweep_interval=None) as sessions:
        graph = sessions.attach(agents.chat())
        for text in ("one", "two"):
            graph.invoke(human(text), sessions.config("t"))
        sessions.get("t").fork(id="fork")
        (home,) = query(path, "SELECT home FROM sessions WHERE id = 't'")
        damage(path, "UPDATE sessions SET home = 1 WHERE id IN ('t', 'fork')")
        with pytest.raises(StorageError, match="session 't'"):
            graph.invoke(human("three"), sessions.config("t"))
        for deep in (False, True):
            found = sessions.check(repair=True, deep=deep)
            assert {(one.kind, one.session_id, one.repaired) for one in found} == {
                ("family", "fork", False),
                ("family", "t", False),
            }
            assert all(one.text.endswith(f"set it to {home}") for one in found)
        damage(path, f"UPDATE sessions SET home = {home} WHERE home = 1")
        graph.invoke(human("three"), sessions.config("t"))
        assert (said_in(graph, sessions, "t"), said_in(graph, sessions, "fork")) == (6, 4)
        assert sessions.check(deep=True) == []


def test_values_of_a_family_without_a_session_are_orphans_and_are_freed(path: Path) -> None:
    with Sessions(path, sweep_interval=None) as sessions:
        graph = sessions.attach(agents.chat())
        for name in ("t", "gone"):
            graph.invoke(human("one"), sessions.config(name))
        tables = ("checkpoints", "writes")
        damage(path, *(f"DELETE FROM {table} WHERE session_id = 'gone'" for table in tables))
        damage(
            path, "UPDATE sessions SET home = 1, latest_checkpoint_id = NULL, checkpoint_count = 0 WHERE id = 'gone'"
        )
        found = sessions.check(repair=True)
        assert {(one.kind, one.repaired) for one in found} == {("orphan", True)}
        assert "list_items" in {one.table for one in found} <= {"list_items", "blobs"}
        assert sessions.check() == []
        assert said_in(graph, sessions, "t") == 2
