"""Whatever happens to the file, a read is what was written, or an error that says where the damage is.

Each round damages a copy of a database in one place, reads all there is to read, and compares that with
what a deep check finds. A few rounds by default; many with ``SESSION_FAULT_ROUNDS=200``.
What is known to be read wrong is named in `KNOWN`, each with a test below that shows it.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from session_middleware import SessionAccessDenied, Sessions, StorageError
from session_middleware.models import Problem
from session_middleware.settings import load_settings
from session_middleware.storage.sqlite.integrity import check_file
from tests.support import agents, damage
from tests.support.agents import human
from tests.support.damage import Key, Readings
from tests.support.processes import Process

ROUNDS = int(os.environ.get("SESSION_FAULT_ROUNDS", "1"))
ROOT = Path(__file__).parents[2]

_WRITE = "a write of another checkpoint than the outermost graph's latest cannot be found; a deep check finds the page"
KNOWN = {  # kinds of silently wrong reads that are not found yet
    "sessions: fewer": "a session's row cannot be found any more",
    **dict.fromkeys(("writes: fewer", "list: fewer writes", "list all: fewer writes"), _WRITE),
}
REPLAYED = ("replayed: another value", "replayed: not found")  # a channel that is made from such a write
KNOWN_ERRORS = ("TypeError", "ValueError", "AttributeError")  # from a row whose values are of another type


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "whole.db"
    damage.build(path)
    return path


@pytest.fixture(scope="module")
def truth(whole: Path) -> Readings:
    with Sessions(whole) as sessions:
        found = damage.read(sessions)
        assert found == damage.read(sessions, found)
    assert not [key for key, value in found.items() if isinstance(value, Exception)]
    return found


class Round:
    """A damaged copy, and everything that was read of it."""

    def __init__(self, whole: Path, truth: Readings, folder: Path, harm: Callable[[Path], str]) -> None:
        self.path = folder / "damaged.db"
        shutil.copy(whole, self.path)
        self.what = harm(self.path)
        self.bytes = self.path.read_bytes()
        self.truth = truth
        self.problems = check_file(str(self.path), load_settings(), deep=True)
        assert self._is_untouched(), f"the check wrote to the file: {self.what}"
        self.raw = damage.raw(self.path)
        self.found: Readings = {}
        self.read()

    def _is_untouched(self) -> bool:
        return self.path.read_bytes() == self.bytes and not list(self.path.parent.glob("damaged.db-*"))

    def read(self) -> None:
        try:
            with Sessions(self.path) as sessions:
                self.found = damage.read(sessions, self.truth)
        except StorageError as error:
            if str(self.path) not in str(error):
                raise

    def wrong(self) -> Iterator[tuple[str, Key]]:
        return ((kind, key) for kind, key in damage.silent(self.truth, self.found) if not kind.startswith("plain"))

    def is_harmed(self) -> bool:
        """Whether it cannot be opened, or something in it is not read as it was."""
        errors = [value for value in self.found.values() if isinstance(value, Exception)]
        errors = [error for error in errors if not isinstance(error, SessionAccessDenied)]  # an owner can be edited
        return not self.found or bool(errors) or any(True for _ in self.wrong())

    def refused_though_whole(self, whole_rows: dict[str, Any]) -> list[Key]:
        threads = [name for name, rows in self.raw.items() if rows == whole_rows[name]]
        state = ("one", "latest", "list", "replayed", "session")
        return [
            key
            for key, value in self.found.items()
            if key.thread in threads and key.what in state and isinstance(value, Exception)
        ]

    def judge(self, whole_rows: dict[str, Any]) -> None:
        silent = Counter(kind for kind, _ in self.wrong())
        known = KNOWN.keys() | (REPLAYED if "writes: fewer" in silent else ())
        assert not silent.keys() - known, f"{self.what}: read wrong without an error: {silent}"
        unnamed = [text for text, _ in damage.unnamed(self.path, self.found)]
        assert not [text for text in unnamed if text.split(": ")[1] not in KNOWN_ERRORS], f"{self.what}: {unnamed}"
        if not any(problem.kind in ("file", "index") for problem in self.problems):  # SQLite can follow its pages
            assert not (refused := self.refused_though_whole(whole_rows)), f"{self.what}: could be read: {refused}"
        assert self.problems or not self.is_harmed(), f"{self.what}: the check found nothing"


@pytest.mark.slow
@pytest.mark.parametrize("way", damage.WAYS)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_damage_to_the_file_is_found_named_and_kept_in_its_thread(
    way: str, number: int, whole: Path, truth: Readings, tmp_path: Path
) -> None:
    chance = random.Random(f"{way} {number}")
    Round(whole, truth, tmp_path, lambda path: damage.WAYS[way](path, chance)).judge(damage.raw(whole))


@pytest.mark.parametrize("number", range(4 * ROUNDS))
def test_damage_to_one_cell_is_found_named_and_kept_in_its_thread(
    number: int, whole: Path, truth: Readings, tmp_path: Path
) -> None:
    chance, columns = random.Random(number), damage.columns(whole)
    table, column = columns[number] if number < len(columns) else chance.choice(columns)
    Round(whole, truth, tmp_path, lambda path: damage.damage_cell(path, table, column, chance)).judge(damage.raw(whole))


# Each kind of damage, in its smallest form


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A thread of three turns, with another beside it."""
    path = tmp_path / "small.db"
    with Sessions(path) as sessions:
        graph = sessions.attach(agents.chat())
        for number in range(3):
            for name in ("t", "u"):
                graph.invoke(human(f"turn {number}", id=f"h{number}"), sessions.config(name))
    return path


def change(file: Path, sql: str, *values: Any) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        assert connection.execute(sql, values).rowcount == 1


def ids(file: Path, thread: str = "t") -> list[str]:
    """Oldest first."""
    with closing(sqlite3.connect(file)) as connection:
        sql = "SELECT checkpoint_id FROM checkpoints WHERE session_id = ? ORDER BY checkpoint_id"
        return [checkpoint_id for (checkpoint_id,) in connection.execute(sql, (thread,))]


def at(thread: str, checkpoint_id: str | None = None) -> Any:
    more = {"checkpoint_id": checkpoint_id} if checkpoint_id else {}
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **more}}


def deep(file: Path) -> list[Problem]:
    return check_file(str(file), load_settings(), deep=True)


NAMED = r"small\.db.*damaged"


def test_missing_writes_of_the_latest_checkpoint_are_found(file: Path) -> None:
    latest = ids(file)[-1]
    with Sessions(file) as sessions:
        sessions.checkpointer.put_writes(at("t", latest), [("messages", "written")], "task")
    change(file, "DELETE FROM writes WHERE session_id = 't' AND checkpoint_id = ?", latest)
    with Sessions(file) as sessions, pytest.raises(StorageError, match=NAMED):
        sessions.checkpointer.get_tuple(at("t"))


def test_missing_writes_of_an_older_checkpoint_are_not_found(file: Path) -> None:
    older = ids(file)[0]
    with Sessions(file) as sessions:
        found = sessions.checkpointer.get_tuple(at("t", older))
        assert found is not None
        assert found.pending_writes
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DELETE FROM writes WHERE session_id = 't' AND checkpoint_id = ?", (older,))
    with Sessions(file) as sessions:
        assert sessions.checkpointer.get_tuple(at("t", older)) == found._replace(pending_writes=[])


def test_a_missing_older_checkpoint_is_found_when_it_is_asked_for(file: Path) -> None:
    second = ids(file)[1]
    change(file, "DELETE FROM checkpoints WHERE checkpoint_id = ?", second)
    with Sessions(file) as sessions, pytest.raises(StorageError, match=NAMED):
        sessions.checkpointer.get_tuple(at("t", second))


def test_a_missing_older_checkpoint_is_found_when_all_are_listed(file: Path) -> None:
    change(file, "DELETE FROM checkpoints WHERE checkpoint_id = ?", ids(file)[1])
    with Sessions(file) as sessions, pytest.raises(StorageError, match=NAMED):
        list(sessions.checkpointer.list(at("t")))


def test_a_missing_ancestor_of_a_replayed_channel_is_found(tmp_path: Path) -> None:
    path = tmp_path / "small.db"
    with Sessions(path) as sessions:
        graph = sessions.attach(damage.delta_graph())
        graph.invoke({"said": ["a"]}, sessions.config("t"))
    change(path, "DELETE FROM checkpoints WHERE checkpoint_id = ?", ids(path)[0])
    with Sessions(path) as sessions, pytest.raises(StorageError, match=NAMED):
        sessions.attach(damage.delta_graph()).get_state(at("t"))


def test_a_row_of_another_thread_is_never_an_answer(file: Path) -> None:
    """As a page in a wrong place makes it: here, the table is made to take "T" for "t"."""
    with Sessions(file) as sessions:
        sessions.open("T", user_id="eve")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA writable_schema=ON")
        sql = "UPDATE sqlite_master SET sql = replace(sql, 'session_id TEXT', 'session_id TEXT COLLATE NOCASE')"
        connection.execute(f"{sql} WHERE name = 'checkpoints'")
        connection.execute("UPDATE sessions SET home = (SELECT home FROM sessions WHERE id = 't') WHERE id = 'T'")
    config = at("T", ids(file)[-1])
    config["configurable"]["user_id"] = "eve"
    with Sessions(file) as sessions, pytest.raises(StorageError, match=NAMED):
        sessions.checkpointer.get_tuple(config)


def test_lists_that_make_a_ring_are_found(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("INSERT INTO lists SELECT DISTINCT home, list_id, list_id, 1, 1 FROM list_items")
    code = (
        "import sys; from session_middleware import *\n"
        "sessions = Sessions(sys.argv[1])\n"
        "try: sessions.checkpointer.get_tuple({'configurable': {'thread_id': 't', 'checkpoint_ns': ''}})\n"
        "except StorageError: print('found')\n"
    )
    with Process("-c", code, file) as process:  # one that can be killed, if it goes round and round
        process.wait(timeout=100)
        assert process.stdout.read() == "found\n"


@pytest.mark.parametrize(
    ("table", "column"), [("checkpoints", "enclosing"), ("writes", "task_path"), ("list_items", "type")]
)
def test_a_value_of_another_type_is_named_as_damage(file: Path, table: str, column: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"UPDATE {table} SET {column} = X'00'")
    with Sessions(file) as sessions, pytest.raises(StorageError, match=NAMED):
        sessions.checkpointer.get_tuple(at("t", ids(file)[1]))


def test_a_damaged_time_is_named_with_its_file(file: Path) -> None:
    change(file, "UPDATE sessions SET created_at = 'yesterday' WHERE id = 't'")
    with Sessions(file) as sessions, pytest.raises(StorageError, match=NAMED):
        sessions.get("t")


def test_what_is_acknowledged_after_damage_can_be_read(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            "UPDATE list_items SET data = zeroblob(length(data))"
            " WHERE home = (SELECT home FROM sessions WHERE id = 't')"
        )
    with Sessions(file) as sessions:
        saver = sessions.checkpointer
        checkpoint: Any = _first(file)
        config = saver.put({"configurable": {"thread_id": "t", "checkpoint_ns": "new"}}, *checkpoint)
        assert saver.get_tuple(config) is not None


def _first(file: Path) -> tuple[Any, Any, Any]:
    """The latest of thread ``u``, whose inputs are those of ``t``."""
    with Sessions(file) as sessions:
        found = sessions.checkpointer.get_tuple(at("u"))
        assert found is not None
        return found.checkpoint, found.metadata, found.checkpoint["channel_versions"]


def test_a_session_that_left_its_state_behind_is_not_said_never_to_have_been(file: Path) -> None:
    change(file, "DELETE FROM sessions WHERE id = 't'")
    with Sessions(file) as sessions, pytest.raises(StorageError, match=NAMED):
        sessions.find("t")


def test_a_type_beside_a_reference_to_a_blob_is_found(file: Path) -> None:
    with Sessions(file) as sessions:
        sessions.attach(agents.chat()).invoke(human("long " * 2000), sessions.config("t"))
    change(file, "UPDATE list_items SET type = 1 WHERE data IS NULL AND position = 6")
    assert any("an element of list" in problem.text for problem in deep(file))
    with Sessions(file) as sessions, pytest.raises(StorageError, match=NAMED):
        sessions.checkpointer.get_tuple(at("t"))


def test_a_schema_that_says_something_else_is_found(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA writable_schema=ON")
        rename = "UPDATE sqlite_master SET sql = replace(sql, 'task_path', 'tbsk_path') WHERE name = 'writes'"
        connection.execute(rename)
        assert deep(file) == []
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'step', 'stfp') WHERE name = 'checkpoints'")
    assert any("the schema's entry of checkpoints is changed" in problem.text for problem in deep(file))
