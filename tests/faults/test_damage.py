"""Damage is an error that names the file and the checkpoint, whatever the damaged bytes now look like."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from session_middleware import SessionError, Sessions
from tests.faults.test_saver import graph

IS_THOROUGH = "SESSION_FAULT_ROUNDS" in os.environ  # all types in each column, else one
OTHER_TYPES: dict[str, Any] = {"bytes": b"\xff\x00", "text": "zz", "number": 7}
READS: dict[str, Callable[[Sessions], Any]] = {
    "get": lambda sessions: sessions.checkpointer.get_tuple(sessions.config("t")),
    "list": lambda sessions: list(sessions.checkpointer.list(sessions.config("t"))),
    "run": lambda sessions: sessions.attach(graph().compile()).invoke({"messages": "hi"}, sessions.config("t")),
    "find": lambda sessions: sessions.find("t"),
    "copy": lambda sessions: sessions.checkpointer.copy_thread("t", "u"),
    "prune": lambda sessions: sessions.checkpointer.prune(["t"]),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "sessions.db"
    with Sessions(path) as sessions:
        agent = sessions.attach(graph().compile())
        for number in range(2):
            agent.invoke({"messages": f"m{number}"}, sessions.config("t"))
    return path


def damaged(whole: Path, path: Path, table: str) -> Iterator[str]:
    """Copies of the file in which one column holds values of another type; what was done to each."""
    connection = sqlite3.connect(whole)
    columns = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
    connection.close()
    kinds = list(OTHER_TYPES.items())
    for number, column in enumerate(columns):
        for kind, value in kinds if IS_THOROUGH else (kinds[number % 3],):
            shutil.copy(whole, path)
            connection = sqlite3.connect(path)
            try:
                connection.execute("DROP INDEX sessions_by_pin")  # SQLite would not store what it cannot index
                connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ?", (value,))
                connection.commit()
            except sqlite3.IntegrityError:
                continue  # a key of the table itself: SQLite would not store that
            finally:
                connection.close()
            yield f"{table}.{column} = {kind}"


TABLES = ("checkpoints", "writes", "list_items", "blobs", "sessions")


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_a_value_of_another_type_than_was_written_is_an_error_of_ours(table: str, whole: Path, tmp_path: Path) -> None:
    wrong = []
    for what in damaged(whole, tmp_path / "sessions.db", table):
        with Sessions(tmp_path / "sessions.db", synchronous="normal") as sessions:
            for name, read in READS.items():
                try:
                    read(sessions)
                except SessionError:
                    pass  # found, and named
                except Exception as error:  # noqa: BLE001
                    wrong.append(f"{name} where {what}: {error!r}")
    assert wrong == []


@pytest.mark.parametrize("name", READS)
def test_a_read_of_damage_keeps_no_file_open_after_closing(name: str, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    shutil.copy(whole, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE checkpoints SET type = 7")
    gc.disable()  # which would close it sooner or later
    try:
        with Sessions(path) as sessions, suppress(SessionError):
            READS[name](sessions)
        assert [file.name for file in tmp_path.iterdir()] == ["sessions.db"]
    finally:
        gc.enable()
