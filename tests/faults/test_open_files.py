"""A file that is deleted, moved or replaced while it is open: nothing is acknowledged that would be gone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from session_middleware import Sessions, StorageError
from tests.support import agents
from tests.support.agents import human, said


def delete(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    other = file.with_name("other.db")
    with Sessions(other) as sessions:
        sessions.open("of-another")
    other.replace(file)


def restore(file: Path) -> None:
    """As a backup is copied back: the same name, another file."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)


def move_behind_a_link(file: Path) -> None:
    """Others find the same file, and not its log."""
    file.rename(file.with_name("moved.db"))
    file.symlink_to("moved.db")


def rename_folder(file: Path) -> None:
    file.parent.rename(file.parent.with_name("elsewhere"))


def replace_folder(file: Path) -> None:
    rename_folder(file)
    file.parent.mkdir()
    with Sessions(file) as sessions:
        sessions.open("of-another")


def delete_log(file: Path) -> None:
    Path(f"{file}-wal").unlink()


def delete_index_of_log(file: Path) -> None:
    Path(f"{file}-shm").unlink()


def empty_copy_of_log(file: Path) -> None:
    delete_log(file)
    Path(f"{file}-wal").touch()


HARMS = [
    delete,
    replace,
    restore,
    move_behind_a_link,
    rename_folder,
    replace_folder,
    delete_log,
    delete_index_of_log,
    empty_copy_of_log,
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "sessions.db"


def contents(folder: Path) -> dict[str, bytes]:
    ours = [each for each in folder.rglob("*") if each.is_file() and not each.name.endswith("-shm")]
    return {str(each): each.read_bytes() for each in ours}


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("harm", HARMS)
async def test_no_write_is_acknowledged_and_no_other_file_read_when_the_file_was_lost(
    harm: Callable[[Path], None], attach: bool, file: Path
) -> None:
    with Sessions(file, sweep_interval=None) as sessions:
        graph = sessions.attach(agents.chat()) if attach else agents.chat()
        graph.checkpointer = sessions.checkpointer
        mine = sessions.config("t", user_id="alice")
        graph.invoke(human("hi"), mine)
        session = sessions.get("t")
        harm(file)
        found = contents(file.parent) if file.parent.is_dir() else {}
        calls: list[Callable[[], Any]] = [
            lambda: graph.get_state(mine),
            lambda: sessions.list(),
            lambda: session.messages(),
            lambda: list(session.follow(timeout=0.01)),
            lambda: sessions.check(deep=True),
            lambda: graph.invoke(human("lost"), mine),
            lambda: graph.update_state(mine, human("lost")),
            lambda: sessions.open("new"),
            lambda: session.add({"role": "user", "content": "lost"}),
            lambda: session.memory.remember("lost"),
            lambda: sessions.store.put(("any",), "key", {"is": "lost"}),
            lambda: sessions.forget_user("alice"),
            lambda: sessions.sweep(),
        ]
        for call in calls:
            with pytest.raises(StorageError, match=str(file)):
                call()
        with pytest.raises(StorageError, match=str(file)):
            await graph.ainvoke(human("lost"), mine)
        with pytest.raises(StorageError, match=str(file)):
            await sessions.aopen("new")
        assert (contents(file.parent) if file.parent.is_dir() else {}) == found
    assert file.exists() or harm in (delete, rename_folder)


def test_a_recorder_alone_counts_what_it_could_not_write_and_the_run_goes_on(file: Path) -> None:
    with Sessions(file, sweep_interval=None) as sessions:
        config = sessions.config("t") | {"callbacks": [sessions.recorder]}
        agents.chat().invoke(human("hi"), config)
        aside = file.with_name("aside.db")
        file.rename(aside)
        assert len(agents.chat().invoke(human("lost"), config)["messages"]) == 2
        aside.rename(file)
        assert sessions.get("t").stats().recorder_faults > 0
        assert "lost" not in str(sessions.get("t").messages())


def test_a_run_whose_file_is_lost_half_way_fails_at_its_next_checkpoint(file: Path) -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    def node(state: MessagesState) -> dict[str, Any]:
        delete(file)
        return {"messages": [("ai", "lost")]}

    with Sessions(file) as sessions:
        builder = StateGraph(MessagesState).add_node("node", node).add_edge(START, "node")
        with pytest.raises(StorageError, match=str(file)):
            sessions.attach(builder.compile()).invoke(human("hi"), sessions.config("t"))
    assert not file.exists()


def test_a_file_that_is_put_back_goes_on(file: Path) -> None:
    with Sessions(file) as sessions:
        graph = sessions.attach(agents.chat())
        graph.invoke(human("hi"), sessions.config("t"))
        rename_folder(file)
        with pytest.raises(StorageError):
            graph.invoke(human("lost"), sessions.config("t"))
        file.parent.with_name("elsewhere").rename(file.parent)
        graph.invoke(human("again"), sessions.config("t"))
        assert [text for _, text in said(sessions.get("t"))][::2] == ["hi", "again"]


def test_what_was_acknowledged_before_the_log_was_deleted_is_there_after_closing(file: Path) -> None:
    with Sessions(file) as sessions:
        sessions.attach(agents.chat()).invoke(human("hi"), sessions.config("t"))
        delete_log(file)
    with Sessions(file) as sessions:
        assert len(said(sessions.get("t"))) == 2
        assert sessions.check(deep=True) == []


def test_another_file_is_not_harmed_by_closing_the_one_it_replaced(file: Path) -> None:
    with Sessions(file) as old:
        old.open("old")
        delete(file)
        for end in ("-wal", "-shm"):
            Path(f"{file}{end}").unlink()
        with Sessions(file) as new:
            new.open("new")
            old.close()
            assert Path(f"{file}-wal").exists()
            new.open("newer")
            with Sessions(file) as third:
                assert {session.id for session in third.list()} == {"new", "newer"}


def test_a_path_stays_the_same_file_when_the_current_folder_is_another(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    with Sessions("sessions.db") as sessions:
        sessions.open("here")
        monkeypatch.chdir(tmp_path)
        sessions.open("and-here")
        assert {session.id for session in sessions.list()} == {"here", "and-here"}
        assert sessions.check(deep=True) == []
    assert os.listdir(tmp_path) == ["folder"]  # noqa: PTH208
