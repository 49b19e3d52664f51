"""A backup is the state of one moment, made beside running writers, checked, and put back by one command."""

from __future__ import annotations

import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from session_middleware import Sessions
from session_middleware.cli.main import cli
from session_middleware.errors import InvalidArgument, StorageError
from tests.conftest import Clock, OpenSessions
from tests.support import agents, processes
from tests.support.agents import human, said


def run(*arguments: object, ok: bool = True) -> str:
    done = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code == 0) == ok, done.output
    return done.output


def damage_page(path: Path) -> None:
    """Overwrite the first page of the messages."""
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'messages'").fetchone()
    with path.open("r+b") as file:
        file.seek(4096 * (page - 1))
        file.write(b"\xff" * 4096)


def filled(sessions: Sessions, *ids: str) -> Any:
    graph = sessions.attach(agents.chat())
    for session_id in ids:
        graph.invoke(human("hi"), sessions.config(session_id, user_id="alice"))
    return graph


async def test_a_backup_beside_writers_is_the_state_of_one_moment(open_sessions: OpenSessions, tmp_path: Path) -> None:
    sessions, stop = open_sessions(), threading.Event()
    graph = filled(sessions, "t")

    def write() -> None:
        number = 0
        while not stop.is_set():
            graph.invoke(human(f"turn {(number := number + 1)}"), sessions.config("t", user_id="alice"))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        paths = [await sessions.abackup(tmp_path / f"{number}.db", progress=True) for number in range(3)]
    finally:
        stop.set()
        writer.join()
    for path in paths:
        assert path.stat().st_mode & 0o777 == 0o600
        with Sessions(path, sweep_interval=None) as copy:
            assert [each for each in copy.check(deep=True) if each.kind not in ("dead_run", "dead_lease")] == []
            assert said(copy.get("t"))[0] == ("user", "hi")
    assert not [*tmp_path.rglob("partial.*")]
    with Sessions(":memory:") as memory:
        filled(memory, "m")
        assert Sessions(memory.backup(tmp_path / "m.db")).get("m").user_id == "alice"


def test_dated_backups_rotate(open_sessions: OpenSessions, clock: Clock, tmp_path: Path) -> None:
    sessions, folder = open_sessions(), tmp_path / "backups"
    folder.mkdir()
    for name in ("mine.db", "sessions-old.db", "others-20200101-000000-000000.db"):
        (folder / name).touch()
    made = []
    for number in range(4):
        sessions.open(f"t{number}")
        made.append(sessions.backup(folder, keep=2))
        clock.advance(hours=1)
    left = {each.name for each in folder.iterdir()}
    assert left == {"mine.db", "sessions-old.db", "others-20200101-000000-000000.db", made[2].name, made[3].name}
    assert made[3].name == "sessions-20260101-150000-000000.db"
    assert sessions.backup(folder).parent == folder
    for keep in (0, True, "7"):
        with pytest.raises(InvalidArgument, match="keep"):
            sessions.backup(folder, keep=keep)  # type: ignore[arg-type]


def test_a_backup_replaces_an_older_one_and_nothing_else(sessions: Sessions, path: Path, tmp_path: Path) -> None:
    filled(sessions, "t")
    (tmp_path / "notes.txt").write_text("mine")
    with Sessions(tmp_path / "other.db") as other:
        other.open("t")
        for taken in (path, Path(f"{path}-wal"), tmp_path / "notes.txt", tmp_path / "other.db"):
            before = taken.read_bytes()
            with pytest.raises(StorageError):
                sessions.backup(taken)
            assert taken.read_bytes() == before
    with pytest.raises(StorageError, match="a database and not a backup"):
        sessions.backup(tmp_path / "other.db")
    first = sessions.backup(tmp_path / "copy.db").read_bytes()
    with pytest.raises(StorageError, match="it is a database"):
        sessions.export(tmp_path / "copy.db")
    sessions.open("u")
    assert sessions.backup(tmp_path / "copy.db").read_bytes() != first


FULL = """
import resource, sys
from session_middleware import Sessions
sessions = Sessions(sys.argv[1], sweep_interval=None)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for write in (lambda: sessions.backup(sys.argv[2], keep=1), lambda: sessions.export(sys.argv[2] + "/all.jsonl")):
    try:
        write()
    except OSError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits of file sizes")
def test_a_full_disk_leaves_the_older_backups_and_nothing_half(sessions: Sessions, path: Path, tmp_path: Path) -> None:
    filled(sessions, "t")
    sessions.get("t").update(metadata={"long": "x" * 30_000})
    older = sessions.backup(tmp_path / "backups", keep=1)
    sessions.close()
    done = processes.run("-c", FULL, path, older.parent, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["StorageError", "StorageError"], done.stdout
    assert [*older.parent.iterdir()] == [older]


def test_a_damaged_database_is_not_backed_up_over_the_good_backups(
    open_sessions: OpenSessions, path: Path, tmp_path: Path
) -> None:
    sessions = open_sessions()
    filled(sessions, "t")
    older = sessions.backup(tmp_path / "backups", keep=1)
    sessions.close()
    damage_page(path)
    with Sessions(path, sweep_interval=None) as sessions, pytest.raises(StorageError, match=r"damaged"):
        sessions.backup(tmp_path / "backups", keep=1)
    assert [*older.parent.iterdir()] == [older]


def test_a_damaged_row_is_backed_up_with_a_warning(
    open_sessions: OpenSessions, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = open_sessions()
    filled(sessions, "t", "u")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE sessions SET tags = '[1' WHERE id = 't'")
    backup = sessions.backup(tmp_path / "b.db")
    assert "b.db: sessions has a damaged row" in caplog.text
    with Sessions(backup, sweep_interval=None) as copy:
        assert said(copy.get("u")) == [("user", "hi"), ("assistant", "you said hi")]


USING = """
import sys
from session_middleware import Sessions
with Sessions(sys.argv[1], sweep_interval=None):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_one_command_restores_a_damaged_file(open_sessions: OpenSessions, path: Path, tmp_path: Path) -> None:
    sessions = open_sessions()
    graph = filled(sessions, "t", "u")
    assert "backed up to" in run("backup", tmp_path / "b", "--keep", 7, "--db", path)
    (backup,) = (tmp_path / "b").iterdir()
    graph.invoke(human("later"), sessions.config("t", user_id="alice"))
    using = processes.Process("-c", USING, path, stdin=True)
    assert using.stdout.readline() == "open\n"
    assert "a process has the database open" in run("restore-backup", backup, "--db", path, "--yes", ok=False)
    using.communicate()
    sessions.close()
    content = b"not a database at all" * 1000
    path.write_bytes(content)
    path.chmod(0o640)
    run("restore-backup", backup, "--db", path, ok=False)  # not confirmed
    assert path.read_bytes() == content
    output = run("restore-backup", backup, "--db", path, "--yes")
    (kept,) = tmp_path.glob("sessions.db.replaced-*")
    assert str(kept) in output.replace("\n", "")
    assert kept.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o640
    with Sessions(path, sweep_interval=None) as restored:
        assert said(restored.get("t")) == [("user", "hi"), ("assistant", "you said hi")]
        assert restored.check(deep=True) == []
        restored.attach(agents.chat()).invoke(human("on"), restored.config("u", user_id="alice"))
    run("restore-backup", backup, "--db", tmp_path / "new.db")
    assert '"u"' in run("list", "--db", tmp_path / "new.db", "--json")


def test_what_is_no_backup_is_not_restored(path: Path, tmp_path: Path) -> None:
    with Sessions(path, sweep_interval=None) as sessions:
        filled(sessions, "t")
        backup = sessions.backup(tmp_path / "b.db")
    before = path.read_bytes()
    damage_page(backup)
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("hello " * 1000)
    for wrong in (backup, tmp_path / "empty.db", tmp_path / "text.db", tmp_path / "missing.db", tmp_path):
        assert "Error: " in run("restore-backup", wrong, "--db", path, "--yes", ok=False)
        assert path.read_bytes() == before


def test_a_database_of_another_program_is_not_replaced_by_a_backup(path: Path, tmp_path: Path) -> None:
    with Sessions(path, sweep_interval=None) as sessions:
        backup = sessions.backup(tmp_path / "b.db")
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE orders (id)")
    before = other.read_bytes()
    said = run("restore-backup", backup, "--db", other, "--yes", ok=False)
    assert "it holds another program's tables (orders); name the file of the sessions" in said
    assert (other.read_bytes(), [*tmp_path.glob("other.db.*")]) == (before, [])


def test_a_server_is_exported_and_names_its_own_tool(
    postgres_url: str, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Sessions(postgres_url, sweep_interval=None) as sessions:
        filled(sessions, "t")
        sessions.get("t").memory.remember("alice is tall", "k", scope="user")
        made = [sessions.backup(tmp_path / "backups", keep=1) for _ in range(2)][1]
    assert "pg_dump" in caplog.text
    assert [each.name for each in made.parent.iterdir()] == [made.name]
    run("import", made, "--db", path)
    with Sessions(path, sweep_interval=None) as copy:
        assert said(copy.get("t")) == [("user", "hi"), ("assistant", "you said hi")]
        assert [hit.text for hit in copy.get("t").memory.recall("tall")] == ["alice is tall"]
    assert "line 2: session 't' exists already; import with --skip" in run("import", made, "--db", path, ok=False)
    assert "imported 0 sessions" in run("import", made, "--skip", "--db", path)
    assert "pg_restore" in run("restore-backup", made, "--db", postgres_url, ok=False)
