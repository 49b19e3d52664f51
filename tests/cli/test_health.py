"""The commands `check` and `doctor` on whole and on damaged databases."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from session_middleware import Sessions, StorageError
from session_middleware.cli import doctor as doctor_module
from session_middleware.cli.main import cli
from session_middleware.settings import load_settings
from tests.support import agents
from tests.support.agents import human

Call = Callable[..., Result]


@pytest.fixture
def call() -> Call:
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments, catch_exceptions=False)

    return call


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of ada's, a fork of it, and one of nobody's, each with a record; and memories."""
    path = tmp_path_factory.mktemp("filled") / "some.db"
    with Sessions(path, synchronous="normal") as sessions:
        graph = sessions.attach(agents.tool_graph())
        for thing in ("tea", "rye"):
            graph.invoke(human(f"look up {thing}"), sessions.config("a", user_id="ada"))
        graph.invoke(human("hello"), sessions.config("n"))
        sessions.checkpointer.copy_thread("a", "fork")
        sessions.get("a").memory.remember("likes tea")
        sessions.get("a").memory.remember("is tall", scope="user")
    return path


@pytest.fixture
def db(filled: Path, tmp_path: Path) -> Path:
    """A copy of this test's own."""
    return Path(shutil.copy(filled, tmp_path))


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            assert connection.execute(statement).rowcount >= 1


def damage_newest(path: Path, session_id: str = "n") -> None:
    newest = f"(SELECT MAX(checkpoint_id) FROM checkpoints WHERE session_id = '{session_id}')"
    change(path, f"UPDATE checkpoints SET body = zeroblob(9) WHERE checkpoint_id = {newest}")


def overwrite_page_of(path: Path, table: str, filling: int = 0xFF) -> None:
    """The first page of a table's rows."""
    with closing(sqlite3.connect(path)) as connection:
        [(root,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchall()
        [(size,)] = connection.execute("PRAGMA page_size").fetchall()
    data = bytearray(path.read_bytes())
    data[(root - 1) * size : root * size] = bytes([filling]) * size
    path.write_bytes(data)


def state_of(sessions: Sessions, session_id: str, **identity: Any) -> list[Any]:
    history = sessions.attach(agents.tool_graph()).get_state_history(sessions.config(session_id, **identity))
    return [(state.values, state.next, state.config["configurable"]["checkpoint_id"]) for state in history]


# check


@pytest.mark.parametrize("how", [(), ("--deep",)])
def test_a_check_of_a_whole_database_is_one_line_and_writes_nothing(call: Call, db: Path, how: tuple[str, ...]) -> None:
    before = {file.name: file.read_bytes() for file in db.parent.iterdir()}
    result = call("check", *how, "--db", str(db))
    assert (result.exit_code, result.output) == (0, "no problems\n")
    assert {file.name: file.read_bytes() for file in db.parent.iterdir()} == before


def test_damage_is_shown_with_its_place_and_what_to_do(call: Call, db: Path) -> None:
    damage_newest(db)
    result = call("check", "--deep", "--db", str(db))
    assert result.exit_code == 1
    output = " ".join(result.output.split())
    assert "problem session 'n' (" in output
    assert "checkpoints: its row is not what was written; resume the session from another checkpoint" in output
    assert call("check", "--db", str(db)).exit_code == 0
    assert call("check", "--deep", "--repair", "--db", str(db)).exit_code == 1


def test_each_problem_is_one_line_however_long(call: Call, db: Path) -> None:
    change(db, f"UPDATE sessions SET id = '{'x' * 300}' WHERE id = 'n'")
    for command in ("check", "doctor"):
        lines = call(command, "--db", str(db)).output.splitlines()
        assert any(line.startswith("problem") and "x" * 300 in line and " and there are " in line for line in lines)


def test_check_as_json_names_the_row(call: Call, db: Path) -> None:
    damage_newest(db)
    [one] = json.loads(call("check", "--deep", "--db", str(db), "--json").output)
    assert (one["kind"], one["table"], one["session_id"]) == ("damage", "checkpoints", "n")
    with Sessions(db) as sessions, pytest.raises(StorageError, match=one["key"]):
        sessions.checkpointer.get_tuple(sessions.config("n"))


def test_the_same_problem_in_many_sessions_is_one_line(call: Call, db: Path) -> None:
    change(db, "UPDATE checkpoints SET body = zeroblob(9)")
    result = call("check", "--db", str(db), "--deep")
    assert "checkpoints: its row is not what was written" in " ".join(result.output.split())
    assert len(result.output.splitlines()) < 8


DAMAGE = {
    "a piece that several checkpoints share": (
        "UPDATE list_items SET data = zeroblob(3) WHERE home = (SELECT home FROM sessions WHERE id = 'a')",
        "an element of list",
    ),
    "elements of a list": ("DELETE FROM list_items WHERE position = 1", "list"),
    "a write": ("UPDATE writes SET task_path = 'other' WHERE session_id = 'n'", "is not what was written"),
    "a newest checkpoint": (
        "DELETE FROM checkpoints WHERE checkpoint_id = (SELECT MAX(checkpoint_id) FROM checkpoints)",
        "cannot be found",
    ),
    "a session's row": ("DELETE FROM sessions WHERE id = 'n'", "without their session"),
    "a time in the record": ("UPDATE messages SET created_at = 'once' WHERE session_id = 'n'", "cannot be read"),
    "a memory": ("UPDATE memories SET value = 'no JSON'", "cannot be read"),
    "elements of no family": ("UPDATE list_items SET home = 1", "without a session"),
    "a family": ("UPDATE sessions SET home = 1 WHERE id = 'a'", "set it to"),
}


@pytest.mark.parametrize(("statement", "says"), DAMAGE.values(), ids=DAMAGE)
def test_a_deep_check_finds_and_names(statement: str, says: str, db: Path) -> None:
    change(db, statement)
    with Sessions(db) as sessions:
        found = sessions.check(deep=True)
    assert any(says in one.text and one.table for one in found), found


def test_a_schema_that_cannot_be_read_hides_nothing_else(db: Path, call: Call) -> None:
    damage_newest(db)
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX x ON' WHERE name = 'sessions_by_status'")
    with pytest.raises(StorageError, match="damaged"):
        Sessions(db)
    found = json.loads(call("check", "--deep", "--json", "--db", str(db)).output)
    assert any("its schema is damaged" in one["text"] for one in found)
    assert ("checkpoints", "n") in [(one["table"], one["session_id"]) for one in found]


@pytest.mark.parametrize("table", ["sessions", "messages", "checkpoints", "writes", "memories", "events", "list_items"])
def test_a_page_that_cannot_be_read_is_found_and_nothing_is_repaired(table: str, call: Call, db: Path) -> None:
    change(db, "INSERT INTO files (session_id, hash, data) VALUES ('gone', 'h', x'00')")
    overwrite_page_of(db, table)
    found = json.loads(call("check", "--deep", "--db", str(db), "--json").output)
    assert "file" in {one["kind"] for one in found}
    assert table in {one["table"] for one in found}
    assert call("check", "--deep", "--repair", "--db", str(db)).exit_code == 1
    with closing(sqlite3.connect(db)) as connection:
        assert connection.execute("SELECT session_id FROM files").fetchall() == [("gone",)]


def test_a_row_that_a_check_cannot_read_is_named_and_the_rest_is_repaired(db: Path) -> None:
    change(db, "UPDATE checkpoints SET channels = '{' WHERE session_id = 'n'", "UPDATE sessions SET run_count = 9")
    with Sessions(db) as sessions:
        assert {one.kind for one in sessions.check()} == {"damage", "counter"}
        found = sessions.check(deep=True, repair=True)
        assert {(one.kind, one.repaired) for one in found} == {("damage", False), ("counter", True)}
        assert ("checkpoints", "n") in [(one.table, one.session_id) for one in found]
        assert {one.kind for one in sessions.check(deep=True)} == {"damage"}
        assert sessions.get("a").run_count == 2


@pytest.mark.parametrize("where", ["1", "id = 'n'", "id != 'n'"])
def test_one_repair_leaves_nothing_to_repair_after_sessions_lost_their_rows(where: str, call: Call, db: Path) -> None:
    change(db, f"DELETE FROM sessions WHERE {where}")  # rows of lists become orphans when those of heads are deleted
    before = call("check", "--db", str(db))
    assert before.exit_code == 1
    assert " with session-middleware check --repair" in before.output.splitlines()[-1]
    repaired = call("check", "--repair", "--db", str(db))
    assert repaired.exit_code == 0
    assert repaired.output.splitlines()[-1].endswith(" repaired, none left")
    assert call("check", "--deep", "--db", str(db)).output == "no problems\n"


def test_a_repair_that_leaves_problems_exits_with_1_and_counts_them(call: Call, db: Path) -> None:
    damage_newest(db)
    change(db, "UPDATE sessions SET run_count = 9 WHERE id = 'a'")
    for _ in range(2):
        result = call("check", "--deep", "--repair", "--db", str(db))
        assert result.exit_code == 1
        assert result.output.splitlines()[-1].endswith("see the action of each above")
    assert "1 problem repaired" not in result.output


def test_a_cut_file_is_checked_and_not_opened(call: Call, db: Path) -> None:
    with db.open("r+b") as file:
        file.truncate(db.stat().st_size - 3 * 4096)
    with pytest.raises(StorageError, match="damaged"):
        Sessions(db)
    assert call("check", "--deep", "--db", str(db)).exit_code == 1


def test_an_index_that_lacks_a_row_is_found_and_made_again(db: Path) -> None:
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql = sql || ' WHERE 0' WHERE name = 'sessions_by_home'")
    change(
        db,
        "INSERT INTO sessions (id, family_id, home, opened_as, created_at, active_since, last_active_at)"
        " SELECT 'new', 'new', home, opened_as, created_at, active_since, last_active_at FROM sessions WHERE id = 'n'",
    )
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, ' WHERE 0', '') WHERE name = 'sessions_by_home'"
        )
    with Sessions(db) as sessions:
        assert {(one.kind, one.key) for one in sessions.check(deep=True)} == {("index", "sessions_by_home")}
        assert all(one.repaired for one in sessions.check(deep=True, repair=True))
        assert sessions.check(deep=True) == []


async def test_a_check_goes_on_while_others_write_and_sees_what_is_in_the_log(db: Path) -> None:
    with Sessions(db) as writing, Sessions(db) as reading:
        graph = writing.attach(agents.tool_graph())
        for number in range(5):
            graph.invoke(human(f"turn {number}"), writing.config(f"w{number}"))
            assert await reading.acheck(deep=True) == []
        change(db, "UPDATE writes SET task_path = 'other' WHERE session_id = 'w4'")
        assert {one.session_id for one in await reading.acheck(deep=True)} == {"w4"}


def test_a_database_in_memory_can_be_checked() -> None:
    with Sessions(":memory:") as sessions:
        sessions.attach(agents.tool_graph()).invoke(human("look up tea"), sessions.config("t"))
        assert sessions.check(deep=True) == []
        seqs = [message.seq for message in sessions.get("t").messages()]
        sessions._storage._database.write(lambda c: c.execute("UPDATE messages SET created_at = 'once'"))
        assert [(one.table, one.session_id, one.key) for one in sessions.check(deep=True)] == [
            ("messages", "t", str(seq)) for seq in seqs
        ]


def test_a_log_that_a_killed_process_left_is_read_and_left(tmp_path: Path, db: Path, call: Call) -> None:
    copy = tmp_path / "copy.db"
    with Sessions(db) as sessions:
        sessions.attach(agents.tool_graph()).invoke(human("more"), sessions.config("late"))
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").write_bytes(Path(f"{db}{suffix}").read_bytes())
    before = [Path(f"{copy}{suffix}").read_bytes() for suffix in ("", "-wal")]
    assert json.loads(call("check", "--deep", "--db", str(copy), "--json").output) == []
    assert [Path(f"{copy}{suffix}").read_bytes() for suffix in ("", "-wal")] == before


# doctor


def test_doctor_says_that_all_is_well(call: Call, db: Path) -> None:
    result = call("doctor", "--db", str(db))
    assert result.exit_code == 0
    assert result.output.rstrip().endswith("no problems")
    for word in ("langgraph", "langchain-core", sqlite3.sqlite_version, "synchronous", "free bytes"):
        assert word in result.output


def test_doctor_of_a_server_that_is_not_there_is_one_line_without_the_password(call: Call) -> None:
    result = call("doctor", "--db", "postgresql://user:secret@localhost:1/database")
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert "the connection failed" in line
    assert "secret" not in result.output


def test_doctor_as_json_has_the_facts(call: Call, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SESSION_SYNCHRONOUS")
    found = json.loads(call("doctor", "--db", str(db), "--json").output)
    assert (found["sessions"], found["synchronous"]) == (3, "full")
    assert found["file_bytes"] == db.stat().st_size == found["pages"] * found["page_bytes"]
    assert found["versions"]["sqlite"] == sqlite3.sqlite_version
    assert found["problems"] == []


def test_doctor_notes_an_old_sqlite_only_where_another_program_may_write(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def notes(*version: int) -> list[str]:
        monkeypatch.setattr(doctor_module.sqlite3, "sqlite_version_info", version)
        return doctor_module.examine(str(db), load_settings(synchronous="full"))["notes"]

    assert notes(3, 51, 2) == []
    with closing(sqlite3.connect(db)) as connection:
        connection.execute("CREATE TABLE my_table (x)")
    [note] = notes(3, 51, 2)
    assert "other tables (my_table)" in note
    assert notes(3, 51, 3) == []


def test_doctor_finds_what_stands_in_the_way(call: Call, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    result = call("doctor", "--db", str(db))
    assert result.exit_code == 1
    assert "may not be written to" in result.output
