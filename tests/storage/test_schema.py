"""The schema: migrated is fresh, known is real, and no query on the hot path scans a table."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest
from langgraph.store.base import PutOp
from sqlite_utils import Database

from session_middleware import Sessions
from session_middleware.models import Event, Identity, Pin, Run, ToolCall, utc_now
from session_middleware.settings import load_settings
from session_middleware.storage.checkpoint_types import (
    Blob,
    CheckpointFilter,
    CheckpointPut,
    Chunk,
    ListPut,
    Write,
    WritesPut,
)
from session_middleware.storage.memory_types import MemoryQuery, MessageScope
from session_middleware.storage.protocol import Storage
from session_middleware.storage.record_entries import MessageEntry, RunEnd, ToolEnd, ToolStart
from session_middleware.storage.run import Lease, RunContext
from session_middleware.storage.sql.record import usage
from session_middleware.storage.sql.sessions import expiry, session_rows
from session_middleware.storage.sqlite import database, migrations
from session_middleware.storage.sqlite.connection import SqliteConnection
from session_middleware.storage.sqlite.engine import SqliteStorage
from session_middleware.storage.sqlite.integrity import original_schema
from session_middleware.storage.types import Part, SessionDetails, SessionFilter, ToolCallFilter, UsageBy, UsageFilter
from tests.memory.test_memory_in_graphs import echo
from tests.support.memories import put_of


def test_the_migrations_the_code_knows_are_those_there_are() -> None:
    known = {migration.name for migration in migrations.migrations._migrations}
    assert known == database.KNOWN_MIGRATIONS


def test_a_database_migrated_step_by_step_equals_a_fresh_one(tmp_path: Path) -> None:
    fresh = SqliteStorage(str(tmp_path / "fresh.db"), load_settings(), clock=utc_now)
    fresh.close()
    stepwise = Database(tmp_path / "stepwise.db")
    for migration in migrations.migrations.pending(stepwise):
        later = [m.name for m in migrations.migrations.pending(stepwise) if m.name > migration.name]
        migrations.migrations.apply(stepwise, stop_before=later[:1])
    found = Database(tmp_path / "fresh.db")
    assert found.schema == stepwise.schema
    found.close()
    stepwise.close()


SCANS_BY_DESIGN = (
    "FROM sessions WHERE TRUE ORDER BY",  # all sessions, by the index of the order
    "SELECT COUNT(*) FROM sessions WHERE TRUE",
    "SELECT * FROM tool_calls WHERE TRUE ORDER BY",  # all tool calls, by the index of their start
    "FROM checkpoints WHERE TRUE ORDER BY",  # the saver's list(None)
    "SUM(checkpoint_count), 0) FROM sessions WHERE TRUE",  # the same
    "FROM sessions WHERE TRUE AND checkpoint_count",  # the same, where one is missing
    "FROM tombstones WHERE archive IS NOT NULL AND TRUE",  # the archived sessions, by an index of them alone
    "UNION SELECT id FROM sessions WHERE visibility = 'group-write'",  # those that groups write in, by an index of them
    "FROM leases ORDER BY number",  # the runs in progress, of all sessions
    "FROM leases WHERE user_id",  # the same
    "leases WHERE number IN",  # the same
    "UPDATE leases SET renewed_at",  # the same
    "FROM runs WHERE outcome = 'running'",  # the same, by an index of them alone
    "FROM tool_calls WHERE process IS NOT NULL",  # what is executed outside of runs, by an index of it alone
    "FROM sqlite_master",
    "FROM index_sessions WHERE 1 = 1 GROUP BY",  # where a search of everybody looks
    "CREATE TEMP TABLE",
)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement that is executed from now on, with its parameters filled in."""
    seen: list[str] = []
    connect = sqlite3.connect

    def traced(*args: object, **kwargs: object) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)  # type: ignore[arg-type]
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    return seen


def test_no_statement_scans_a_table(statements: list[str], tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    storage = SqliteStorage(str(path), load_settings(idle_timeout="1h"), clock=utc_now)
    statements.clear()
    use_everything(storage)
    storage.close()
    plain = sqlite3.connect(path, factory=SqliteConnection)
    plain.set_trace_callback(None)
    scans = {}
    for statement in dict.fromkeys(statements):
        if not statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE", "INSERT", "WITH")):
            continue
        if any(part in statement for part in (*SCANS_BY_DESIGN, "_fts", "used_lists")):
            continue
        plan = [row[3] for row in plain.execute(f"EXPLAIN QUERY PLAN {statement}")]
        if found := [step for step in plan if step.startswith("SCAN") and is_table(step)]:
            scans[statement] = found
    plain.close()
    assert scans == {}


def test_a_batch_of_puts_is_a_few_statements(statements: list[str], tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db", sweep_interval=None) as sessions:
        puts = [PutOp(("n",), f"k{n}", {"text": f"item {n}"}) for n in range(1_000)]
        statements.clear()
        sessions.store.batch(puts)
        assert len(statements) < 20


def test_a_run_executes_no_statement_of_the_index(statements: list[str], tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db", sweep_interval=None) as sessions:
        agent = sessions.attach(echo())
        statements.clear()
        for text in ("hello", "again"):
            agent.invoke({"messages": text}, sessions.config("t", user_id="alice"))
        sessions.recorder.drain()
        assert [statement for statement in statements if "index_" in statement or "memories" in statement] == []


OWN_ENTRIES = frozenset(original_schema())


def is_table(step: str) -> bool:
    return step.split()[1] in OWN_ENTRIES


def use_everything(storage: Storage) -> None:
    context = RunContext("t", Identity(user_id="u"), run_id="r")
    storage.open_session(context, SessionDetails(title="x", tags=["a"]))
    storage.authorize(RunContext("t", Identity(user_id="u")))
    for where in (SessionFilter(), SessionFilter(user_id="u", tags=["a"]), SessionFilter(status=["idle"])):
        storage.list_sessions(where, limit=5)
        storage.count_sessions(where)
    message = MessageEntry("m", "assistant", "hi", tool_calls=[{"id": "c"}])
    storage.append(context, [message, MessageEntry("n", "tool", "x", tool_call_id="c")])
    storage.append(context, [MessageEntry("m", "assistant", "ho")])
    storage.append(context, [ToolStart("e", "c", "f", {})])
    storage.append(context, [ToolEnd("e", "ok", 1, None, 1)])
    storage.append(context, [RunEnd("ok", None, 1)])
    chunk = Chunk(Blob("t", b"x"))
    for number in range(3):
        put = CheckpointPut(
            context, "", f"c{number}", None, Blob("t", b"b"), "loop", 0, None, (), {"m": ListPut(None, 0, [chunk])}
        )
        storage.put_checkpoint(put)
    storage.put_writes(WritesPut(context, "", "c0", "task", "", [Write(0, "x", [chunk])]))
    storage.get_checkpoint("t", "", None)
    storage.list_checkpoints(CheckpointFilter("t", "", before="c2"), limit=2)
    storage.list_checkpoints(CheckpointFilter("t", after=("t", "", "c2")), matches=lambda body: True)
    storage.get_history("t", "", None, ["m", "x"])
    storage.fork_session("t", "u")
    storage.prune_checkpoints(["u"])
    storage.delete_for_runs(["r1"])
    storage.put_memories([put_of(("session", "t"), "k", {"a": 1}, "x")])
    storage.get_memories([(("session", "t"), "k")])
    storage.search_memories(MemoryQuery([("session", "t")], prefix=True))
    (
        storage.list_messages("t"),
        storage.list_records(ToolCall, "t"),
        storage.list_records(Run, "t"),
        storage.list_records(Event, "t"),
    )
    storage.search_memories(MemoryQuery([], prefix=False, query="beg", whose=[MessageScope()], typed=True))
    for whose in (MessageScope(), MessageScope(user_id="u"), MessageScope("t", "u")):
        storage.search_memories(MemoryQuery([], prefix=False, query="the", whose=[whose], typed=True))
    storage.delete_message("t", "m"), storage.append(context, [message])
    report_everything(storage)
    use_all_of_upkeep(storage)
    storage.delete_session("t")


def report_everything(storage: Storage) -> None:
    now = utc_now()
    for by in get_args(UsageBy):
        for where in (UsageFilter(), UsageFilter(user_id="u", since=now), UsageFilter(session_id="t", until=now)):
            storage.sum_usage(by, where)
    for where in (ToolCallFilter(), ToolCallFilter(name="f"), ToolCallFilter(status="ok", user_id="u", since=now)):
        found = storage.list_tool_calls(where, limit=5)
        storage.list_tool_calls(where, limit=5, before=found[-1] if found else None)
    storage.list_timeline("t", Part(after=1, limit=5))
    storage.list_unfinished("t", up_to=100)
    storage.find_executions("t", ["c"])
    storage.append_repair("t", [], run_id=None, reason="x", checkpoint_id="c0")
    storage.list_checkpoint_namespaces("t")


@pytest.fixture
def plan() -> Iterator[Callable[[str], list[str]]]:
    """The steps of a statement's plan."""
    storage = SqliteStorage(":memory:", load_settings(), clock=utc_now)
    values = {"now": "9", "since": "9", "seconds": 5.0, "limit": 9, "gone": "9", "born": "9", "live": "[]"}

    def explain(sql: str) -> list[str]:
        rows = storage._database.read(lambda connection: connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))
        return [row[3] for row in rows]

    yield explain
    storage.close()


def test_what_is_due_is_read_in_its_order_by_an_index_of_the_moment(plan: Callable[[str], list[str]]) -> None:
    index = {"idle_timeout": "COVERING INDEX sessions_by_status (status=? AND last_active_at<?)"}
    index |= {"max_age": "INDEX sessions_by_age (active_since<?)", "retention": "INDEX sessions_by_end (ended_at>?"}
    for reason, statements in expiry._DUE.items():
        by_settings, durations, of_own = map(plan, statements)
        assert by_settings[0].startswith(f"SEARCH sessions USING {index[reason]}")
        assert durations == [f"SEARCH sessions USING COVERING INDEX sessions_by_own_{reason} ({reason}_seconds>?)"]
        assert of_own[0].startswith(f"SEARCH sessions USING INDEX sessions_by_own_{reason} ({reason}_seconds=? AND ")
        assert not any("TEMP B-TREE" in step for step in by_settings + of_own)


def test_no_session_that_goes_on_is_read_to_list_those_that_have_expired(plan: Callable[[str], list[str]]) -> None:
    for condition in session_rows._BY_STATUS["expired"]:
        found = plan(f"SELECT id FROM sessions WHERE {condition} ORDER BY last_active_at DESC, id DESC LIMIT :limit")
        assert not any(step.startswith("SCAN sessions") for step in found)


def test_usage_reads_calls_by_an_index_and_sessions_that_it_is_about(plan: Callable[[str], list[str]]) -> None:
    for by in get_args(UsageBy):
        found = plan(usage._statement(by, "TRUE"))
        if by == "tool":
            assert found[0] == "SCAN c USING INDEX tool_calls_by_name"
        else:
            assert found[0].startswith("SCAN s") or "USING INDEX sessions" in found[0]
            assert "SEARCH c USING PRIMARY KEY (session_id=?)" in found
        grouped = [step for step in found if "TEMP B-TREE" in step]
        assert bool(grouped) == (by in ("model", "day"))  # all others come in the order they are summed in


def use_all_of_upkeep(storage: Storage) -> None:
    later = utc_now() + timedelta(days=900)
    run = RunContext("w", Identity(user_id="u"), lease=Lease())
    storage.acquire_session(run, wait=True), storage.acquire_session(run, wait=True)
    storage.append(run, [])
    storage.renew_leases([run]), storage.find_active_run("w"), storage.release_leases([run.lease])
    storage.update_session("w", SessionDetails(idle_timeout_seconds=5.0, max_age_seconds=9.0, retention_seconds=9.0))
    storage.ping_session("w")
    storage.pin_session("w", Pin(at=later)), storage.pin_session("w", None)
    storage.postpone_expiry("w", later)
    storage.list_due(later, sized=True), storage.list_due(later, inactive_since=utc_now())
    storage.measure_session("w")
    storage.end_due(storage.list_due(later + timedelta(days=1)), now=later + timedelta(days=1))
    storage.open_session(RunContext("e", Identity(user_id="u")), SessionDetails())
    storage.end_session("e", "completed", reason="x", detail={})
    storage.collect_garbage()
    storage.acquire_duty("\0sweep")
    storage.find_tombstone("w")
    for where in (SessionFilter(), SessionFilter(user_id="u")):
        storage.export_sessions(Path("all.jsonl"), where, memories=("user", "u"))
    storage.import_sessions(Path("all.jsonl"), skips=True)
    storage.list_archived(user_id=None, limit=5), storage.list_archived(user_id="u", limit=5, before=(later, "w"))
    storage.subscribe(["opened", "completed"], lambda events: None)
    storage.open_session(RunContext("x", Identity(user_id="v")), SessionDetails())
    (
        storage.revoke_user("v", reason=None),
        storage.list_revoked(["v"]),
        storage.revoke_user("v", lift=True),
    )
    storage.forget_user("v", dry_run=False)
    storage.open_session(RunContext("t", Identity(user_id="u")), SessionDetails())
