"""Every table of PostgreSQL can be hash partitions by the leading column of its key, and all works on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from session_middleware import Sessions
from session_middleware.cli.main import cli
from tests.support import agents
from tests.support.agents import human
from tests.support.postgres import Server

_TABLES = """
    SELECT relname, relkind = 'p' FROM pg_class WHERE relnamespace = 'session_middleware'::regnamespace
    AND relkind IN ('r', 'p') AND NOT relispartition AND relname != 'migrations'
"""


@pytest.fixture
def partitioned(postgres_server: Server) -> Iterator[str]:
    """The URL of a database whose tables are created as an operator creates them."""
    printed = CliRunner().invoke(cli, ["migrate", "--sql", "--partitions", "3"])
    assert printed.exit_code == 0, printed.output
    with postgres_server.database(migrated=False) as url:
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(printed.output.encode())
        yield url


def test_every_table_is_partitioned_and_has_no_foreign_key(partitioned: str) -> None:
    with psycopg.connect(partitioned) as connection:
        tables = dict(connection.execute(_TABLES).fetchall())
        foreign = connection.execute("SELECT conname FROM pg_constraint WHERE contype = 'f'").fetchall()
    assert {"sessions", "runs", "messages", "checkpoints", "blobs", "memories", "index_sessions"} < set(tables)
    assert [name for name, is_partitioned in tables.items() if not is_partitioned] == []
    assert foreign == []


def test_partitions_are_only_printed() -> None:
    done = CliRunner().invoke(cli, ["migrate", "--partitions", "3"])
    assert done.exit_code == 2
    assert "add --sql" in done.output


def test_sessions_live_and_end_on_partitions(partitioned: str, clock: Any) -> None:
    settings: dict[str, Any] = {"clock": clock, "sweep_interval": None, "idle_timeout": "1h", "on_resume": "fresh"}
    with Sessions(partitioned, **settings) as sessions:
        graph = sessions.attach(agents.tool_graph())
        for number in range(6):
            graph.invoke(human(f"look up tea {number}"), sessions.config(f"t{number}", user_id=f"u{number % 3}"))
            sessions.get(f"t{number}").memory.remember(f"fact {number}")
        assert [message.text for message in sessions.get("t0").messages()][:1] == ["look up tea 0"]
        assert [call.status for call in sessions.get("t0").tool_calls()] == ["ok"]
        states = list(graph.get_state_history(sessions.config("t0", user_id="u0")))
        graph.invoke(human("another way"), states[-2].config)
        assert len(sessions.get("t0").branches()) == 1

        fork = sessions.get("t1").fork(id="t1-fork")
        graph.invoke(human("and coffee"), sessions.config("t1-fork", user_id="u1"))
        sessions.delete("t1")
        assert fork.messages()[0].text == "look up tea 1"
        assert graph.get_state(sessions.config("t1-fork", user_id="u1")).values["messages"][0].text == "look up tea 1"

        sessions.index_memory()
        assert {hit.session_id for hit in sessions.search("tea")} >= {"t0", "t2", "t3"}
        assert sessions.get("t3").memory.recall("fact")[0].text.startswith("fact")

        clock.advance(hours=2)
        assert {ended.session_id for ended in sessions.sweep()} >= {"t0", "t2", "t3", "t4", "t5"}
        graph.invoke(human("again"), sessions.config("t2", user_id="u2"))
        assert sessions.get("t2").messages()[0].text == "again"
        renamed = next(info for info in sessions.list(user_id="u2") if info.id not in ("t2", "t5"))
        assert sessions.get(renamed.id).messages()[0].text == "look up tea 2"
        assert [item.text for item in sessions.get(renamed.id).memory.list()] == ["fact 2"]

        assert sessions.check(deep=True) == []
        receipt = sessions.forget_user("u2")
        assert receipt.sessions == 3
        assert sessions.list(user_id="u2") == []
        assert {hit.session_id for hit in sessions.search("tea")} == {"t0", "t1-fork", "t3", "t4"}
        assert sessions.check(deep=True) == []
