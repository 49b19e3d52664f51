"""Archives are found where they are now, and what was archived is not lost to a fresh start."""

from __future__ import annotations

from pathlib import Path

import pytest

from session_middleware import Sessions
from tests.conftest import Clock
from tests.integrations import agents
from tests.integrations.agents import human, said

SETTINGS = {"idle_timeout": "1h", "on_expire": "archive", "sweep_interval": None}


def archive_one(path: Path | str, clock: Clock) -> None:
    with Sessions(path, clock=clock, **SETTINGS) as sessions:
        sessions.attach(agents.chat()).invoke(human("hi"), sessions.config("t"))
        clock.advance(hours=2)
        assert [ended.action for ended in sessions.sweep()] == ["archive"]


def test_an_archive_is_found_from_another_working_directory(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive_one("sessions.db", clock)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with Sessions(tmp_path / "sessions.db", clock=clock, **SETTINGS) as sessions:
        assert said(sessions.open("t")) == [("user", "hi"), ("assistant", "you said hi")]


def test_an_archive_moves_with_its_database(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "old").mkdir()
    archive_one(tmp_path / "old" / "sessions.db", clock)
    (tmp_path / "old").rename(tmp_path / "new")
    with Sessions(tmp_path / "new" / "sessions.db", clock=clock, **SETTINGS) as sessions:
        assert sessions.check() == []
        [archived] = sessions.list_archived()
        assert Path(archived.path).is_file()
        assert said(sessions.open("t")) == [("user", "hi"), ("assistant", "you said hi")]
        assert not Path(archived.path).exists()


def test_a_fresh_start_keeps_what_was_archived_under_another_id(tmp_path: Path, clock: Clock) -> None:
    with Sessions(tmp_path / "s.db", clock=clock, on_resume="fresh", **SETTINGS) as sessions:
        graph = sessions.attach(agents.chat())
        for text in ("one", "two", "three"):
            graph.invoke(human(text), sessions.config("t"))
            clock.advance(hours=2)
            sessions.sweep()
        found = {session.id: said(session)[0][1] for session in sessions.list()}
        assert found == {"t~1": "one", "t~2": "two"}
        assert [archived.session_id for archived in sessions.list_archived()] == ["t"]


def test_two_databases_may_have_one_folder_of_archives(tmp_path: Path, clock: Clock) -> None:
    folder = {"archive_path": str(tmp_path / "archives")} | SETTINGS
    with (
        Sessions(tmp_path / "1.db", clock=clock, **folder) as one,
        Sessions(tmp_path / "2.db", clock=clock, **folder) as two,
    ):
        for sessions, owner in ((one, "alice"), (two, "bob")):
            sessions.attach(agents.chat()).invoke(human(owner), sessions.config("t", user_id=owner))
        clock.advance(hours=2)
        for sessions in (one, two):
            sessions.sweep()
        assert one.forget_user("alice").archives == 1
        assert said(two.open("t", user_id="bob")) == [("user", "bob"), ("assistant", "you said bob")]
