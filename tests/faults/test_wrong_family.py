"""A session's row that names the wrong family costs it nothing: what its checkpoints refer to is no orphan."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from session_middleware import Sessions
from tests.support import agents
from tests.support.agents import human


def damage(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def said_in(graph: Any, sessions: Sessions, session_id: str) -> int:
    return len(graph.get_state(sessions.config(session_id)).values["messages"])


def test_a_wrong_family_is_named_with_the_right_one_and_a_repair_deletes_nothing_of_it(path: Path) -> None:
    with Sessions(path, sweep_interval=None) as sessions:
        graph = sessions.attach(agents.chat())
        for text in ("one", "two"):
            graph.invoke(human(text), sessions.config("t"))
        sessions.copy("t", "fork")
        damage(path, "UPDATE sessions SET family_id = 'nope' WHERE id IN ('t', 'fork')")
        for deep in (False, True):
            found = sessions.check(repair=True, deep=deep)
            assert [(one.kind, one.session_id, one.repaired) for one in found] == [
                ("family", "fork", False),
                ("family", "t", False),
            ]
            assert all(one.text.endswith("set it to 't'") for one in found)
        damage(path, "UPDATE sessions SET family_id = 't' WHERE family_id = 'nope'")
        graph.invoke(human("three"), sessions.config("t"))
        assert (said_in(graph, sessions, "t"), said_in(graph, sessions, "fork")) == (6, 4)
        assert sessions.check(deep=True) == []


def test_values_under_several_families_are_told_and_left_as_they_are(path: Path) -> None:
    with Sessions(path, sweep_interval=None) as sessions:
        graph = sessions.attach(agents.chat())
        graph.invoke(human("one"), sessions.config("t"))
        damage(path, "UPDATE lists SET family_id = 'x'", "UPDATE sessions SET family_id = 'y'")
        (problem,) = sessions.check(repair=True)
        assert (problem.kind, problem.session_id, problem.repaired) == ("damage", "t", False)
        assert said_in(graph, sessions, "t") == 2


def test_values_that_nothing_refers_to_are_orphans_and_are_freed(path: Path) -> None:
    with Sessions(path, sweep_interval=None) as sessions:
        graph = sessions.attach(agents.chat())
        for name in ("t", "gone"):
            graph.invoke(human("one"), sessions.config(name))
        tables = ("checkpoints", "heads", "writes")
        damage(path, *(f"DELETE FROM {table} WHERE session_id = 'gone'" for table in tables))
        damage(path, "UPDATE sessions SET family_id = 'x' WHERE id = 'gone'")
        found = sessions.check(repair=True)
        assert [(one.kind, one.session_id, one.repaired) for one in found] == [("orphan", "gone", True)]
        assert sessions.check() == []
        assert said_in(graph, sessions, "t") == 2
