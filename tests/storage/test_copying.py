"""A copy of a database, into the same or the other engine, is equal by every public read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from session_middleware import Sessions
from session_middleware.cli.main import cli
from session_middleware.models import utc_now
from tests.support import agents
from tests.support.agents import human
from tests.support.postgres import Server

SESSIONS = 5 * int(os.environ.get("SESSION_FAULT_ROUNDS", "1"))
STARTED = utc_now()
TEXT = "tea \0 with \x01 milk, दूध"


@pytest.fixture
def databases(postgres_server: Server, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Two empty databases of each engine."""
    with ExitStack() as opened:
        urls = {f"postgres {n}": opened.enter_context(postgres_server.database()) for n in (1, 2)}
        yield urls | {f"sqlite {n}": str(tmp_path / f"{n}.db") for n in (1, 2)}


def fill(url: str) -> None:
    with Sessions(url, sweep_interval=None) as sessions:
        graph = sessions.attach(agents.tool_graph())
        for number in range(SESSIONS):
            config = sessions.config(f"t{number}", user_id=f"user-{number % 3}")
            for text in (f"look up {number}", TEXT):
                graph.invoke(human(text), config)
            session = sessions.get(f"t{number}")
            session.memory.remember(f"fact {number}: {TEXT}", scope="user")
            session.update(title=f"title {number}", tags=["a"], metadata={"n": [number, 0.1, None]})
        states = list(graph.get_state_history(sessions.config("t1", user_id="user-1")))
        graph.invoke(human("another branch"), states[-2].config)
        graph.get_state(sessions.config("t2", user_id="user-2"))
        sessions.get("t2").fork(id="t2-copy")
        sessions.get("t3").complete()
        sessions.delete("t4")
        sessions.revoke("mallory", reason="spam")
        sessions.store.put(("notes",), "k", {"text": "stored", "n": 1})
        sessions.index_memory()


def seen(url: str) -> dict[str, Any]:
    """All that can be read of a database, at one time: reading many sessions takes so long that some become idle."""
    with Sessions(url, sweep_interval=None, clock=lambda: STARTED) as sessions:
        graph = sessions.attach(agents.tool_graph())
        found: dict[str, Any] = {}
        for info in sessions.list(limit=None):
            session = sessions.get(info.id)
            found[info.id] = {
                "session": dict(info),
                "messages": session.messages(all_versions=True),
                "history": session.history().messages,
                "timeline": session.timeline(),
                "branches": session.branches(),
                "stats": session.stats().model_dump(exclude={"bytes"}),  # a NUL takes two bytes in PostgreSQL
                "runs": session.runs(),
                "events": session.events(),
                "tool_calls": session.tool_calls(),
                "model_calls": session.model_calls(),
                "recalled": [hit.text for hit in session.memory.recall("fact tea milk")],
                "states": [
                    (state.values, state.next, state.metadata, state.created_at, state.config)
                    for state in graph.get_state_history(sessions.config(info.id, user_id=info.user_id))
                ],
            }
        found["usage"] = [sessions.usage(by) for by in ("user", "session", "model", "tool", "day")]
        found["searched"] = [(hit.session_id, hit.text) for hit in sessions.search("tea milk", limit=1000)]
        found["explained"] = str(sessions.explain("t4"))
        found["stored"] = [(item.key, item.value) for item in sessions.store.search(("notes",))]
        found["revoked"] = sessions._storage.list_revoked(["mallory"])
        assert sessions.check() == []
        return found


def copied(source: str, target: str) -> str:
    done = CliRunner().invoke(cli, ["copy", source, target])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_copy_of_a_copy_in_each_engine_is_equal(databases: dict[str, str]) -> None:
    fill(databases["sqlite 1"])
    expected = seen(databases["sqlite 1"])
    for source, target in (("sqlite 1", "postgres 1"), ("postgres 1", "postgres 2"), ("postgres 2", "sqlite 2")):
        assert f"copied {SESSIONS:,} sessions" in copied(databases[source], databases[target])
        assert seen(databases[target]) == expected


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_a_copy_goes_on_where_it_ended_and_follows_what_has_changed(engine: str, databases: dict[str, str]) -> None:
    source, target = databases["sqlite 1"], databases[f"{engine} 2"]
    fill(source)
    copied(source, target)
    with Sessions(target, sweep_interval=None) as sessions:
        sessions._storage._database.write(  # type: ignore[attr-defined]
            lambda connection: [
                connection.execute("DELETE FROM messages WHERE session_id = 't0'"),
                connection.execute("UPDATE sessions SET title = 'wrong' WHERE id = 't1'"),
            ]
        )
    with Sessions(source, sweep_interval=None) as sessions:
        sessions.attach(agents.tool_graph()).invoke(human("more"), sessions.config("t0", user_id="user-0"))
        sessions.get("t1").memory.remember("another fact", scope="user")
    copied(source, target)
    assert seen(target) == seen(source)
    with Sessions(target, sweep_interval=None) as sessions:  # what is new has numbers of its own
        sessions.attach(agents.tool_graph()).invoke(human("on"), sessions.config("new", user_id="user-0"))
        sessions.get("new").memory.remember("a new fact", scope="user")
        sessions.index_memory()
        assert "a new fact" in [hit.text for hit in sessions.get("new").memory.recall("new fact")]


def test_a_copy_that_would_lose_sessions_or_has_no_source_is_refused_and_changes_nothing(
    databases: dict[str, str], tmp_path: Path
) -> None:
    for name, title in (("sqlite 1", "theirs"), ("sqlite 2", "mine"), ("postgres 2", "mine")):
        with Sessions(databases[name], sweep_interval=None) as sessions:
            sessions.open(title, title=title)
    for source, target, problem in (
        (databases["sqlite 1"], databases["sqlite 1"], "it is the source too"),
        (str(tmp_path / "missing.db"), databases["sqlite 1"], "there is no such database"),
        (databases["sqlite 1"], databases["sqlite 2"], "it has the session 'mine', which the source has not"),
        (databases["sqlite 1"], databases["postgres 2"], "it has the session 'mine', which the source has not"),
    ):
        done = CliRunner().invoke(cli, ["copy", source, target])
        assert done.exit_code == 1
        assert problem in done.output
    for name in ("sqlite 2", "postgres 2"):
        with Sessions(databases[name], sweep_interval=None) as sessions:
            assert [session.title for session in sessions.list()] == ["mine"]
