"""Imports, archives and backups of a process that is killed in the middle: all of it is there, or nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from session_middleware import Sessions
from tests.conftest import Clock, OpenSessions
from tests.support import agents
from tests.support.agents import human, said
from tests.support.processes import Process

KILLED = """
import os, signal, sys
from datetime import timedelta
from importlib import import_module
from session_middleware import Sessions
from session_middleware.models import utc_now

operation, database, path, point, left = sys.argv[1:]
module, _, names = point.partition(":")
owner, left = import_module(f"session_middleware.storage.{module}"), int(left)
*outer, name = names.split(".")
for each in outer:
    owner = getattr(owner, each)
inner = getattr(owner, name)

def killing(*args, **options):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*args, **options)

setattr(owner, name, killing)
sessions = Sessions(database, sweep_interval=None, on_expire="archive", archive_path=path)
if operation == "import":
    sessions.import_from(path)
elif operation == "archive":
    sessions.sweep(utc_now() + timedelta(days=99))
else:
    sessions.backup(path)
"""


def kill(operation: str, database: object, path: Path, point: str, left: int) -> None:
    process = Process("-c", KILLED, operation, database, path, point, left)
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def filled(open_sessions: OpenSessions) -> Sessions:
    sessions = open_sessions(sweep_interval=None)
    sessions.attach(agents.tool_graph()).invoke(human("look up tea"), sessions.config("t", user_id="alice"))
    sessions.get("t").fork(id="u")
    return sessions


@pytest.mark.parametrize(
    ("point", "left"),
    [("sql.sessions.imports:Import._insert", n) for n in (1, 5, 8)] + [("sql.record.runs:interrupt", 2)],
)
def test_a_killed_import_leaves_nothing(
    filled: Sessions, point: str, left: int, each_engine: str, tmp_path: Path
) -> None:
    filled.export(path := tmp_path / "all.jsonl")
    expected = {name: said(filled.get(name)) for name in "tu"}
    for name in "tu":
        filled.delete(name)
    kill("import", each_engine, path, point, left)
    assert filled.list() == []
    assert filled.check(deep=True) == []
    assert sorted(filled.import_from(path)) == ["t", "u"]
    assert {name: said(filled.get(name)) for name in "tu"} == expected
    assert filled.check(deep=True) == []


@pytest.mark.parametrize(
    ("point", "left"),
    [("jsonl:_line", 9), ("sql.sessions.endings:delete", 1), ("sql.record.runs:delete", 1)],
)
def test_a_killed_archive_is_no_archive(
    filled: Sessions, point: str, left: int, each_engine: str, tmp_path: Path
) -> None:
    expected, folder = said(filled.get("t")), tmp_path / "archives"
    kill("archive", each_engine, folder, point, left)
    assert [session.id for session in filled.list_archived()] == []
    assert {session.id for session in filled.list()} == {"t", "u"}
    assert said(filled.get("t")) == expected
    assert [each for each in filled.check(deep=True) if each.kind != "dead_lease"] == []
    with Sessions(each_engine, sweep_interval=None, on_expire="archive", archive_path=folder) as again:
        assert len(again.sweep(again._clock().replace(year=2999))) == 2
        assert len([*folder.iterdir()]) == 2
        assert said(again.restore("t")) == expected


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("point", "left"), [("sqlite.backups:check", 1), ("sqlite.backups:check_own", 1)])
def test_a_killed_backup_leaves_the_older_one(
    filled: Sessions, point: str, left: int, path: Path, clock: Clock, tmp_path: Path
) -> None:
    older = filled.backup(tmp_path / "backups" / "b.db").read_bytes()
    filled.open("v")
    kill("backup", path, tmp_path / "backups" / "b.db", point, left)
    assert (tmp_path / "backups" / "b.db").read_bytes() == older
    filled.backup(tmp_path / "backups" / "b.db")
    assert [each.name for each in (tmp_path / "backups").iterdir()] == ["b.db"]
    with Sessions(tmp_path / "backups" / "b.db", clock=clock) as copy:
        assert copy.count() == 3
