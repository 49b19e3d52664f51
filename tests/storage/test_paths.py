"""Which file a path names, and who may read the files that are made."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle
from pathlib import Path

import pytest

from session_middleware import InvalidSettings, Sessions, StorageError
from tests.conftest import Clock
from tests.support import agents
from tests.support.agents import human, said

NAMES = [
    "file:books.db",
    "file::memory:",
    "file:x?mode=memory",
    "file:x?mode=memory&cache=shared",
    "FILE:books.db",
    "books.db?mode=ro",
    "books.db#part",
    "100%.db",
    "%41.db",
    "a name.db",
    "Bücher 本.db",
    ":memory:.db",
    ":memory:?cache=shared",
    "sqlite:books.db",
    "-books.db",
    "'books'.db",
]


def turn(sessions: Sessions) -> list[tuple[str, str]]:
    sessions.attach(agents.chat()).invoke(human("hi"), sessions.config("t", user_id="alice"))
    return said(sessions.get("t"))


@pytest.mark.parametrize(("name", "absolute"), list(zip(NAMES, cycle([False, True]))))
async def test_a_path_is_the_name_of_a_file_whatever_is_in_it_and_reaches_no_other_file(
    name: str, absolute: bool, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "books.db")) as connection:
        connection.execute("CREATE TABLE books (title TEXT)")
    before = (tmp_path / "books.db").read_bytes()
    given = str(tmp_path / name) if absolute else name
    with Sessions(given) as sessions:
        first = turn(sessions)
        assert {file.name for file in tmp_path.iterdir()} == {"books.db", name, f"{name}-wal", f"{name}-shm"}
        assert sessions.check(deep=True) == []
        assert [entry.seq for entry in sessions.get("t").follow(timeout=0.01)]
    async with Sessions(Path(given)) as sessions:
        assert said(sessions.get("t")) == first
        await sessions.aopen("u")
    assert {file.name for file in tmp_path.iterdir()} == {"books.db", name}
    assert (tmp_path / "books.db").read_bytes() == before


def test_a_url_of_sqlite_is_a_path_with_a_word_before_it(tmp_path: Path) -> None:
    for url, name in (
        ("sqlite:///books.db", "books.db"),
        (f"sqlite:///{tmp_path}/absolute.db", "absolute.db"),
        ("sqlite:///file:x?mode=memory", "file:x?mode=memory"),
        ("sqlite:///a%20b.db", "a%20b.db"),
    ):
        with Sessions(url) as sessions:
            turn(sessions)
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize("url", ["file:///tmp/books.db", "file://books.db", "http://books.db"])
def test_another_url_is_refused_and_no_file_is_made(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"storage_url.*name a file, ':memory:', or postgresql:"):
        Sessions(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_is_the_file_it_leads_to(dangling: bool, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file, link = tmp_path / "there" / "real.db", tmp_path / "link.db"
    link.symlink_to(file)
    if not dangling:
        with Sessions(file) as sessions:
            sessions.open("t", user_id="alice")
    with Sessions(link) as sessions:
        first = turn(sessions)
        assert sessions.check(deep=True) == []
        assert modes(file.parent) == {"real.db": 0o600, "real.db-wal": 0o600, "real.db-shm": 0o600}
        assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["link.db"]
        sessions.forget_user("alice")
        assert (file.parent / "real.db-wal").stat().st_size == 0
        turn(sessions)
        with Sessions(file) as others:
            assert said(others.get("t")) == first
        other = tmp_path / "other.db"
        with Sessions(other) as others:
            others.open("o")
        link.unlink()
        link.symlink_to(other)
        for call in (lambda: sessions.open("lost"), lambda: sessions.list()):
            with pytest.raises(StorageError, match=r"link\.db"):
                call()
    with Sessions(other) as others:
        assert [session.id for session in others.list()] == ["o"]


# Who may read them


@pytest.fixture(params=[0o000, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.rglob("*") if file.is_file()}


def test_files_that_are_made_are_private(umask: int, tmp_path: Path, clock: Clock) -> None:
    with Sessions("sessions.db", clock=clock, idle_timeout="1h", on_expire="archive") as sessions:
        turn(sessions)
        assert modes(tmp_path) == {"sessions.db": 0o600, "sessions.db-wal": 0o600, "sessions.db-shm": 0o600}
        clock.advance(hours=2)
        sessions.sweep()
        sessions.open("u")
        assert len(list((tmp_path / "sessions.db.archive").iterdir())) == 1
        assert stat.S_IMODE((tmp_path / "sessions.db.archive").stat().st_mode) == 0o700
        assert set(modes(tmp_path).values()) == {0o600}
    with Sessions("sessions.db", clock=clock) as sessions:
        [archived] = sessions.list_archived()
        sessions.restore(archived.session_id)
        assert len(turn(sessions)) == 4


@pytest.mark.parametrize(("mode", "empty"), [(0o644, True), (0o660, False)])
def test_a_file_that_is_there_keeps_its_mode(mode: int, empty: bool, tmp_path: Path) -> None:
    if empty:
        (tmp_path / "sessions.db").touch()
    else:
        with Sessions("sessions.db") as sessions:
            turn(sessions)
    (tmp_path / "sessions.db").chmod(mode)
    with Sessions("sessions.db") as sessions:
        turn(sessions)
        assert set(modes(tmp_path).values()) == {mode}
    assert modes(tmp_path) == {"sessions.db": mode}
