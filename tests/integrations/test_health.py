"""`verify`, `salvage` and `doctor`, as an operator meets them."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from session_middleware import Sessions, StorageError
from session_middleware import doctor as doctor_module
from session_middleware.cli import cli
from session_middleware.settings import load_settings
from tests.integrations import agents
from tests.integrations.agents import human, said

Call = Callable[..., Result]


@pytest.fixture
def call() -> Call:
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments, catch_exceptions=False)

    return call


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A session of ada's, a fork of it, and one of nobody's, each with a record; and memories."""
    path = tmp_path / "some.db"
    with Sessions(path) as sessions:
        graph = sessions.attach(agents.tool_graph())
        for thing in ("tea", "rye"):
            graph.invoke(human(f"look up {thing}"), sessions.config("a", user_id="ada"))
        graph.invoke(human("hello"), sessions.config("n"))
        sessions.checkpointer.copy_thread("a", "fork")
        sessions.get("a").memory.remember("likes tea")
        sessions.get("a").memory.remember("is tall", scope="user")
    return path


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


# verify


def test_a_whole_database_is_said_to_be_in_one_line(call: Call, db: Path) -> None:
    before = {file.name: file.read_bytes() for file in db.parent.iterdir()}
    result = call("verify", "--db", str(db))
    assert result.exit_code == 0
    assert " is whole: 3 sessions, " in " ".join(result.output.split())
    assert {file.name: file.read_bytes() for file in db.parent.iterdir()} == before


def test_damage_is_shown_with_its_place_and_what_to_do(call: Call, db: Path) -> None:
    damage_newest(db)
    result = call("verify", "--db", str(db))
    assert result.exit_code == 1
    assert "damaged" in result.output
    assert [line.split()[0] for line in result.output.splitlines() if "checkpoints" in line][1:] == ["n"]
    assert "session-middleware salvage NEW_FILE" in result.output
    assert len(result.output.splitlines()) < 12


def test_verify_as_json_names_the_checkpoint(call: Call, db: Path) -> None:
    damage_newest(db)
    found = json.loads(call("verify", "--db", str(db), "--json").output)
    [one] = found["damage"]
    assert (one["table"], one["session_id"], one["checkpoint_ns"]) == ("checkpoints", "n", "")
    with Sessions(db) as sessions, pytest.raises(StorageError, match=one["checkpoint_id"]):
        sessions.checkpointer.get_tuple(sessions.config("n"))


DAMAGE = {
    "a piece that several checkpoints share": ("UPDATE blobs SET data = zeroblob(3) WHERE family_id = 'a'", "blob"),
    "elements of a list": ("DELETE FROM list_items WHERE position = 1", "list"),
    "a write": ("UPDATE writes SET channel = 'other' WHERE session_id = 'n'", "wrote"),
    "a newest checkpoint": (
        "DELETE FROM checkpoints WHERE checkpoint_id = (SELECT MAX(checkpoint_id) FROM checkpoints)",
        "cannot be found",
    ),
    "a session's row": ("DELETE FROM sessions WHERE id = 'n'", "no such session"),
    "a time in the record": ("UPDATE messages SET created_at = 'once' WHERE session_id = 'n'", "cannot be read"),
    "a memory": ("UPDATE memories SET value = 'no JSON'", "cannot be read"),
    "a blob kept for nobody": ("UPDATE blobs SET family_id = 'x' WHERE id % 3 = 0", "another family"),
    "a list that begins as another family's": (
        "UPDATE lists SET parent_id = 1, parent_length = 1 WHERE family_id = 'n'",
        "list",
    ),
    "a family": ("UPDATE sessions SET family_id = 'b' WHERE id = 'a'", "another family"),
}


@pytest.mark.parametrize(("statement", "says"), DAMAGE.values(), ids=DAMAGE)
def test_verify_finds(statement: str, says: str, db: Path) -> None:
    change(db, statement)
    with Sessions(db) as sessions:
        found = sessions.verify()
    assert not found.is_clean
    assert any(says in one.problem for one in found.damage), found


@pytest.mark.parametrize(("statement", "says"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_saved_after_it_is_whole(statement: str, says: str, db: Path, call: Call) -> None:
    change(db, statement)
    saved = db.with_name("saved.db")
    assert call("salvage", str(saved), "--db", str(db)).exit_code in (0, 1)
    assert call("verify", "--db", str(saved)).exit_code == 0


def test_a_schema_that_cannot_be_read_hides_no_rows(db: Path, call: Call) -> None:
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX x ON' WHERE name = 'sessions_by_status'")
    with pytest.raises(StorageError, match="damaged"):
        Sessions(db)
    assert "cannot be opened as usual" in " ".join(call("verify", "--db", str(db)).output.split())
    saved = db.with_name("saved.db")
    assert call("salvage", str(saved), "--db", str(db)).exit_code == 1
    with Sessions(saved) as sessions:
        assert len(sessions.get("a").messages()) == 8


async def test_verify_works_while_others_write_and_sees_what_is_in_the_log(db: Path) -> None:
    with Sessions(db) as writing, Sessions(db) as reading:
        graph = writing.attach(agents.tool_graph())
        for number in range(5):
            graph.invoke(human(f"turn {number}"), writing.config(f"w{number}"))
            seen: list[tuple[int, int]] = []
            found = await reading.averify(lambda done, total, seen=seen: seen.append((done, total)))
            assert found.is_clean, found
            assert (found.sessions, seen[-1]) == (4 + number, (4 + number, 4 + number))


def test_a_database_in_memory_is_no_file_to_verify() -> None:
    with Sessions(":memory:") as sessions, pytest.raises(StorageError, match="no such file"):
        sessions.verify()


def test_a_log_that_a_killed_process_left_is_read_and_left(tmp_path: Path, db: Path, call: Call) -> None:
    copy = tmp_path / "copy.db"
    with Sessions(db) as sessions:
        sessions.attach(agents.tool_graph()).invoke(human("more"), sessions.config("late"))
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").write_bytes(Path(f"{db}{suffix}").read_bytes())
    before = [Path(f"{copy}{suffix}").read_bytes() for suffix in ("", "-wal")]
    assert json.loads(call("verify", "--db", str(copy), "--json").output)["sessions"] == 4
    assert [Path(f"{copy}{suffix}").read_bytes() for suffix in ("", "-wal")] == before


# salvage


def test_of_a_whole_database_everything_is_saved(call: Call, db: Path) -> None:
    saved = db.with_name("saved.db")
    before = db.read_bytes()
    result = call("salvage", str(saved), "--db", str(db))
    assert result.exit_code == 0
    assert "nothing was lost" in result.output
    assert db.read_bytes() == before
    assert sorted(file.name for file in db.parent.iterdir()) == ["saved.db", "some.db"]
    with Sessions(db) as old, Sessions(saved) as new:
        for session_id, user in (("a", "ada"), ("fork", "ada"), ("n", None)):
            assert old.get(session_id).model_dump() == new.get(session_id).model_dump()
            assert state_of(old, session_id, user_id=user) == state_of(new, session_id, user_id=user)
            assert old.get(session_id).timeline() == new.get(session_id).timeline()
        found = [(one.text, one.score) for one in new.get("a").memory.recall("tea")]
        assert "likes tea" in dict(found)
        assert found == [(one.text, one.score) for one in old.get("a").memory.recall("tea")]


def test_what_is_lost_is_said_and_the_rest_goes_on(call: Call, db: Path) -> None:
    damage_newest(db)
    saved = db.with_name("saved.db")
    result = call("salvage", str(saved), "--db", str(db))
    assert result.exit_code == 1
    assert "lost" in result.output
    with Sessions(saved) as sessions:
        assert len(state_of(sessions, "n")) == 2
        assert said(sessions.get("n")) == [("user", "hello"), ("assistant", "you said hello")]
        graph = sessions.attach(agents.tool_graph())
        graph.invoke(human("look up ice"), sessions.config("a", user_id="ada"))
        graph.invoke(None, sessions.config("n"))
        assert graph.get_state(sessions.config("n")).values["messages"][-1].text == "you said hello"
        assert sessions.verify().is_clean


@pytest.mark.parametrize("table", ["messages", "checkpoints", "writes", "memories", "events", "list_items"])
def test_a_page_that_cannot_be_read_takes_no_other_table_with_it(table: str, call: Call, db: Path) -> None:
    overwrite_page_of(db, table)
    assert call("verify", "--db", str(db)).exit_code == 1
    saved = db.with_name("saved.db")
    result = call("salvage", str(saved), "--db", str(db), "--json")
    assert result.exit_code == 1
    assert table in {one["table"] for one in json.loads(result.output)["lost"]}
    with Sessions(saved) as sessions:
        assert [session.id for session in sessions.list()] == ["fork", "n", "a"]
        if table != "messages":
            assert len(sessions.get("a").messages()) == 8


def test_sessions_whose_rows_are_lost_keep_their_owner(call: Call, db: Path) -> None:
    overwrite_page_of(db, "sessions")
    saved = db.with_name("saved.db")
    result = call("salvage", str(saved), "--db", str(db), "--json")
    assert json.loads(result.output)["rebuilt"] == ["a", "fork", "n"]
    with Sessions(saved) as sessions:
        assert [(s.id, s.user_id, s.family_id) for s in sessions.list()] == [
            ("fork", "ada", "a"),
            ("n", None, "n"),
            ("a", "ada", "a"),
        ]
        assert sessions.get("a").message_count == 8
        sessions.attach(agents.tool_graph()).invoke(human("more"), sessions.config("a", user_id="ada"))
        assert len(sessions.get("a").messages()) == 10


def test_a_cut_file_gives_what_is_in_front_of_the_cut(call: Call, db: Path) -> None:
    with db.open("r+b") as file:
        file.truncate(db.stat().st_size - 3 * 4096)
    with pytest.raises(StorageError, match="damaged"):
        Sessions(db)
    saved = db.with_name("saved.db")
    call("salvage", str(saved), "--db", str(db))
    assert call("verify", "--db", str(saved)).exit_code == 0


def test_deleted_text_does_not_come_back(db: Path) -> None:
    saved = db.with_name("saved.db")
    with Sessions(db) as sessions:
        sessions.attach(agents.tool_graph()).invoke(human("the-secret-word"), sessions.config("gone"))
        sessions.delete("gone")
        sessions.salvage(saved)
    assert b"the-secret-word" not in saved.read_bytes()


def test_salvage_overwrites_nothing(call: Call, db: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.db"
    there.write_text("mine")
    result = call("salvage", str(there), "--db", str(db))
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert there.read_text() == "mine"
    assert call("salvage", str(tmp_path / "no" / "new.db"), "--db", str(db)).exit_code == 1


# Errors


@pytest.mark.parametrize("command", [("verify",), ("salvage", "new.db")])
def test_what_is_no_database_of_ours_is_one_line(call: Call, tmp_path: Path, command: tuple[str, ...]) -> None:
    for path, says in ((tmp_path / "none.db", "no such database"), (tmp_path / "text.db", "cannot read any of it")):
        if says.startswith("cannot"):
            path.write_text("a letter to a friend, not a database at all")
        result = call(*command, "--db", str(path))
        assert result.exit_code == 1
        assert result.stdout == ""
        [line] = result.stderr.splitlines()
        assert line.startswith("Error: ")
        assert says in line


# doctor


def test_doctor_says_that_all_is_well(call: Call, db: Path) -> None:
    result = call("doctor", "--db", str(db))
    assert result.exit_code == 0
    assert result.output.rstrip().endswith("all is well")
    for word in ("langgraph", "langchain-core", sqlite3.sqlite_version, "wal, synchronous full", "free on disk"):
        assert word in result.output


def test_doctor_as_json_has_the_facts(call: Call, db: Path) -> None:
    found = json.loads(call("doctor", "--db", str(db), "--json").output)
    assert (found["sessions"], found["journal_mode"], found["synchronous"]) == (3, "wal", "full")
    assert found["file_bytes"] == db.stat().st_size == found["pages"] * found["page_bytes"]
    assert found["versions"]["sqlite"] == sqlite3.sqlite_version
    assert found["problems"] == []


def test_doctor_needs_no_database_and_makes_none(call: Call, tmp_path: Path) -> None:
    result = call("doctor", "--db", str(tmp_path / "none.db"))
    assert result.exit_code == 0
    assert "made when it is first used" in result.output
    assert list(tmp_path.iterdir()) == []


def test_doctor_notes_an_sqlite_that_can_damage_a_log(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, expected in (((3, 51, 2), 1), ((3, 51, 3), 0)):
        monkeypatch.setattr(doctor_module.sqlite3, "sqlite_version_info", version)
        notes = doctor_module.examine(str(db), load_settings()).notes
        assert len([note for note in notes if "3.51.3" in note]) == expected


def test_doctor_finds_what_stands_in_the_way(call: Call, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    result = call("doctor", "--db", str(db))
    assert result.exit_code == 1
    assert "may not be written to" in result.output
    monkeypatch.undo()
    db.write_bytes(b"SQLite format 3\0" + b"\xff" * 9000)
    result = call("doctor", "--db", str(db))
    assert result.exit_code == 1
    assert "session-middleware verify" in result.output.replace("\n", " ")
