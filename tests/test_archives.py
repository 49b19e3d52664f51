"""Archiving exports a session to a file and deletes it. It comes back when it is restored, and only then."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from session_middleware import SessionNotFound, Sessions, StorageError, UnknownStatus
from session_middleware.storage.atomic_files import file_name
from tests.conftest import Clock, OpenSessions
from tests.support import agents
from tests.support.agents import human, said

pytestmark = [
    pytest.mark.sessions(idle_timeout="30m", sweep_interval=None, on_expire="archive"),
    pytest.mark.usefixtures("clock"),
]


def fill(sessions: Sessions, graph: Any, config: Any) -> None:
    """Two turns, a branch of them, and a memory."""
    graph.invoke(human("look up tea"), config)
    graph.invoke(human("both tea"), config)
    past = list(graph.get_state_history(config))[-2].config
    graph.update_state(past, {"messages": [human("other")["messages"][0]]}, as_node="__start__")
    session = sessions.get(config["configurable"]["thread_id"])
    session.memory.remember("alice likes tea", "k")
    session.memory.remember("alice is tall", "k", scope="user")


def everything(sessions: Sessions, graph: Any, config: Any) -> Any:
    session = sessions.get("t")
    history = [
        (state.values, state.config["configurable"]["checkpoint_id"], state.next, state.metadata)
        for state in graph.get_state_history(config)
    ]
    rows = [*session.messages(branch="all"), *session.tool_calls(), *session.model_calls(), *session.runs()]
    return history, rows, [memory.text for memory in session.memory.list()], session.user_id, session.created_at


def archived(sessions: Sessions, clock: Clock, graph: Any = None) -> tuple[Any, Any, Path]:
    """Alice's session "t", which a sweep has archived."""
    graph, config = graph or sessions.attach(agents.tool_graph()), sessions.config("t", user_id="alice")
    fill(sessions, graph, config)
    clock.advance(hours=1)
    assert [(ended.session_id, ended.action) for ended in sessions.sweep()] == [("t", "archive")]
    assert sessions.find("t") is None
    (path,) = Path(sessions.settings.archive_path or f"{sessions.settings.storage_url}.archive").iterdir()
    return graph, config, path


@pytest.mark.parametrize("parts", ["attached", "checkpointer"])
def test_a_restored_session_has_all_it_had_and_goes_on(open_sessions: OpenSessions, clock: Clock, parts: str) -> None:
    sessions = open_sessions()
    alone = agents.tool_graph(checkpointer=sessions.checkpointer) if parts == "checkpointer" else None
    graph, config = alone or sessions.attach(agents.tool_graph()), sessions.config("t", user_id="alice")
    fill(sessions, graph, config)
    before = everything(sessions, graph, config)
    clock.advance(hours=1)
    sessions.sweep()
    session = sessions.restore("t")
    assert everything(sessions, graph, config) == before
    assert (session.status, session.opened_as, session.reason) == ("active", "revived", "restored")
    assert session.events()[-1].kind == "restored"
    assert graph.invoke(None, config)["messages"][-1].text == "you said other"  # as it was left
    assert sessions.check(deep=True) == []
    assert sessions.check() == []


async def test_what_the_recorder_alone_kept_is_restored(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions()
    chain = RunnableLambda(lambda text: AIMessage(f"you said {text}"))
    config = sessions.config("t", user_id="alice") | {"callbacks": [sessions.recorder]}
    await chain.ainvoke("hi", config)
    before = sessions.get("t").timeline()
    clock.advance(hours=1)
    await sessions.asweep()
    session = await sessions.arestore("t")
    assert list(session.timeline())[: len(before)] == list(before)
    await chain.ainvoke("again", config)
    assert sessions.get("t").run_count == 2


def test_a_restored_session_is_not_archived_again_before_it_idles_again(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(max_age="2h")
    _, _, path = archived(sessions, clock)
    clock.advance(days=9)
    sessions.restore("t")
    assert not path.exists()
    assert sessions.sweep() == []
    clock.advance(hours=1)
    assert [ended.action for ended in sessions.sweep()] == ["archive"]
    assert path.is_file()


def test_a_session_that_is_archived_again_while_its_file_is_removed_keeps_its_data(
    open_sessions: OpenSessions, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions, other = open_sessions(), open_sessions()
    _, _, path = archived(sessions, clock)
    write = sessions._storage._database.write  # type: ignore[attr-defined]

    def write_before_a_sweep(*args: Any, **kwargs: Any) -> Any:
        restored = write(*args, **kwargs)
        monkeypatch.undo()
        clock.advance(hours=1)
        assert [ended.action for ended in other.sweep()] == ["archive"]
        return restored

    monkeypatch.setattr(sessions._storage._database, "write", write_before_a_sweep)  # type: ignore[attr-defined]
    sessions.restore("t")
    assert path.is_file()
    assert len(other.restore("t").messages(branch="all")) == 10
    assert not path.exists()


def test_a_handle_is_good_again_after_its_session_was_restored(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions()
    session = sessions.open("t", user_id="alice")
    archived(sessions, clock)
    with pytest.raises(SessionNotFound):
        session.messages()
    sessions.restore("t")
    assert len(session.messages()) > 0


def test_the_file_describes_itself(open_sessions: OpenSessions, clock: Clock, tmp_path: Path) -> None:
    sessions = open_sessions()
    _, _, path = archived(sessions, clock)
    header, *lines, end = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert (header["format"], header["version"]) == ("session-middleware.sessions", 1)
    assert (header["sessions"], lines[0]["table"], lines[0]["row"]["id"]) == (1, "sessions", "t")
    assert end["rows"] == len(lines)
    assert "both tea" in {line["row"]["text"] for line in lines if line["table"] == "messages"}
    assert {"$bytes"} == set(next(line["row"]["digest"] for line in lines if line["table"] == "list_items"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert b"likes tea" not in stored


def test_text_with_any_line_separator_is_restored(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions, text = open_sessions(), "one\u2028two\x0bthree\r\nfour\x85 猫 \U0001f600"
    graph, config = sessions.attach(agents.chat()), sessions.config("ÄT/..", user_id="alice")
    graph.invoke(human(text), config)
    clock.advance(hours=1)
    sessions.sweep()
    assert said(sessions.restore("ÄT/.."))[0] == ("user", text)
    assert graph.get_state(config).values["messages"][0].content == text


def test_ids_that_differ_in_case_have_files_that_differ_in_more() -> None:
    names = {file_name(text).lower() for text in ("t", "T", "t/", "t.", "T" * 300)}
    assert len(names) == 5
    assert max(map(len, names)) < 100


def test_a_fork_lives_on_beside_an_archived_member_of_its_family(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions()
    graph = sessions.attach(agents.chat())
    graph.invoke(human("hi"), sessions.config("t"))
    sessions.checkpointer.copy_thread("t", "u")
    clock.advance(minutes=20)
    graph.invoke(human("only here"), sessions.config("u"))
    clock.advance(minutes=20)
    assert [ended.session_id for ended in sessions.sweep()] == ["t"]
    fork = ["hi", "you said hi", "only here", "you said only here"]
    assert [m.text for m in graph.get_state(sessions.config("u")).values["messages"]] == fork
    sessions.restore("t")
    graph.invoke(human("again"), sessions.config("t"))
    texts = {name: [m.text for m in graph.get_state(sessions.config(name)).values["messages"]] for name in "tu"}
    assert texts == {"t": ["hi", "you said hi", "again", "you said again"], "u": fork}
    assert sessions.check(deep=True) == []
    assert sessions.check() == []


@pytest.mark.parametrize("order", ["tu", "ut"])
def test_a_whole_family_is_archived_and_restored_in_any_order(
    open_sessions: OpenSessions, clock: Clock, order: str
) -> None:
    sessions = open_sessions()
    graph = sessions.attach(agents.chat())
    graph.invoke(human("hi"), sessions.config("t"))
    sessions.checkpointer.copy_thread("t", "u")
    clock.advance(hours=1)
    assert len(sessions.sweep()) == 2
    for name in order:
        sessions.restore(name)
    for name in "tu":
        assert len(graph.invoke(human("again"), sessions.config(name))["messages"]) == 4
    assert sessions.check(deep=True) == []
    assert sessions.check() == []


# Deleting


@pytest.mark.parametrize("door", ["operator", "owner", "checkpointer"])
def test_an_archived_session_is_deleted_with_its_file(open_sessions: OpenSessions, clock: Clock, door: str) -> None:
    sessions = open_sessions()
    graph, config, path = archived(sessions, clock)
    size = path.stat().st_size
    stranger, owner = sessions.for_user("mallory", ["team"]), sessions.for_user("alice")
    for refused in (stranger.delete, stranger.explain, stranger.restore):
        with pytest.raises(SessionNotFound, match="there is no session"):
            refused("t")
    assert path.is_file()
    if door == "checkpointer":
        sessions.checkpointer.delete_thread("t")
    else:
        deleted = (sessions if door == "operator" else owner).delete("t")
        assert (deleted.sessions, deleted.bytes_freed) == (1, size)
    assert not path.exists()
    assert sessions.explain("t").status == owner.explain("t").status == "deleted"
    assert sessions.delete("t").sessions == 0
    for gone in (owner.delete, owner.restore, sessions.restore):
        with pytest.raises(SessionNotFound, match="there is no session"):
            gone("t")
    graph.invoke(human("hi"), config)
    assert len(said(sessions.get("t"))) == 2


@pytest.mark.parametrize("way", ["delete", "retention", "forget", "fresh"])
def test_a_file_that_a_killed_sweep_left_goes_with_its_session(
    open_sessions: OpenSessions, clock: Clock, way: str
) -> None:
    sessions = open_sessions(retention="7d", on_resume="fresh")
    _, _, path = archived(sessions, clock)
    content = path.read_bytes()
    sessions.restore("t").update(on_expire="keep")
    path.write_bytes(content)
    (half := path.with_name(f"partial.{path.name}")).write_bytes(content[:99])
    if way == "delete":
        assert sessions.delete("t").bytes_freed >= len(content)
    elif way == "forget":
        assert sessions.forget_user("alice", dry_run=True).archives == 0
        assert path.is_file()
        assert sessions.forget_user("alice").archives == 0
    else:
        clock.advance(days=9 if way == "retention" else 1)
        sessions.sweep()
        sessions.open("t", user_id="alice")
    assert not path.exists()
    assert not half.exists()


def test_forgetting_a_user_leaves_the_archive_that_was_another_sessions_of_the_id(
    open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions = open_sessions(on_resume="fresh")
    sessions.attach(agents.chat()).invoke(human("hi"), sessions.config("t"))
    clock.advance(hours=1)
    sessions.sweep()
    sessions.open("t", user_id="bob")
    assert sessions.forget_user("bob").archives == 0
    assert len(said(sessions.restore("t~1"))) == 2


@pytest.mark.usefixtures("each_engine")
def test_archived_sessions_are_listed_in_pages_and_to_their_owner_only(
    open_sessions: OpenSessions, clock: Clock, tmp_path: Path
) -> None:
    sessions = open_sessions(archive_path=tmp_path / "archives")
    for session_id, user_id in (("t1", "alice"), ("t2", "bob"), ("t3", "alice"), ("t4", None)):
        sessions.open(session_id, user_id=user_id, title=f"about {session_id}")
        clock.advance(hours=1)
        sessions.sweep()
    found = sessions.list_archived()
    assert [(one.session_id, one.user_id, one.title) for one in found] == [
        ("t4", None, "about t4"),
        ("t3", "alice", "about t3"),
        ("t2", "bob", "about t2"),
        ("t1", "alice", "about t1"),
    ]
    assert {one.reason for one in found} == {"idle_timeout"}
    assert all(Path(one.path).is_file() and one.ended_at is not None for one in found)
    assert sessions.list_archived(limit=2, after=found[0]) == found[1:3]
    alice = sessions.for_user("alice")
    assert [one.session_id for one in alice.list_archived()] == ["t3", "t1"]
    assert [one.session_id for one in alice.list_archived(after=found[1])] == ["t1"]
    assert sessions.for_user("mallory").list_archived() == []
    with pytest.raises(ValueError, match="user_id cannot be 'bob'"):
        alice.list_archived(user_id="bob")
    with pytest.raises(UnknownStatus, match=r"sessions\.list_archived\(\)"):
        sessions.list(status="archived")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="after"):
        sessions.list_archived(after="t1")  # type: ignore[arg-type]
    assert alice.restore("t1").title == "about t1"
    sessions.delete("t3")
    forgotten = sessions.forget_user("bob")
    assert (forgotten.archives, forgotten.bytes_freed > 0) == (1, True)
    assert [one.session_id for one in sessions.list_archived()] == ["t4"]
    assert sessions.check() == []


# Files


def test_check_names_an_archive_whose_file_is_missing(open_sessions: OpenSessions, clock: Clock) -> None:
    sessions = open_sessions()
    _, _, path = archived(sessions, clock)
    assert sessions.check() == []
    path.unlink()
    (problem,) = sessions.check(repair=True)
    assert (problem.kind, problem.session_id, problem.repaired) == ("archive", "t", False)
    assert str(path) in problem.text
    assert sessions.delete("t").sessions == 1
    assert sessions.check() == []


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "edited": lambda content: content.replace(b"both tea", b"both rum"),
    "empty": lambda content: b"",
    "another's": lambda content: content.replace(b"alice", b"carol"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_not_what_was_written_restores_nothing(
    open_sessions: OpenSessions, clock: Clock, change: str
) -> None:
    sessions = open_sessions()
    _, _, path = archived(sessions, clock)
    content = path.read_bytes()
    path.write_bytes(CHANGES[change](content))
    with pytest.raises(StorageError, match=r"\.jsonl: .*put back the file"):
        sessions.restore("t")
    assert (sessions.find("t"), len(sessions.list_archived())) == (None, 1)
    path.write_bytes(content)
    assert sessions.restore("t").user_id == "alice"


def test_nothing_is_deleted_when_the_archive_cannot_be_written(
    open_sessions: OpenSessions, clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    sessions = open_sessions(archive_path=str(tmp_path / "file"))
    for name in ("t", "u"):
        sessions.attach(agents.chat()).invoke(human("hi"), sessions.config(name))
    sessions.open("plain", on_expire="keep")
    sessions.open("gone", on_expire="delete")
    clock.advance(hours=1)
    with pytest.raises(StorageError, match="nothing was deleted"):
        sessions.sweep()
    for name in ("t", "u"):
        assert (sessions.get(name).status, len(said(sessions.get(name)))) == ("expired", 2)
    assert (sessions.find("gone"), sessions.get("plain").ended_at is not None) == (None, True)  # others do not wait
    assert sessions.check() == []
    (tmp_path / "file").unlink()
    assert [ended.session_id for ended in sessions.sweep()] == ["t", "u"]
    assert sessions.find("t") is None


def test_a_database_in_memory_archives_where_a_folder_is_named(clock: Clock, tmp_path: Path) -> None:
    settings = {"idle_timeout": "30m", "clock": clock, "sweep_interval": None, "on_expire": "archive"}
    for folder in (None, str(tmp_path / "archives")):
        with Sessions(":memory:", archive_path=folder, **settings) as sessions:
            sessions.open("t").memory.remember("tea")
            clock.advance(hours=1)
            if folder is None:
                with pytest.raises(StorageError, match="archive_path"):
                    sessions.sweep()
            else:
                sessions.sweep()
                assert [memory.text for memory in sessions.restore("t").memory.list()] == ["tea"]


def test_an_archive_is_found_from_another_working_directory(
    tmp_path: Path, open_sessions: OpenSessions, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sessions = open_sessions(Path("sessions.db"))
    archived(sessions, clock)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(said(open_sessions().restore("t"))) > 0


def test_an_archive_moves_with_its_database(tmp_path: Path, open_sessions: OpenSessions, clock: Clock) -> None:
    (tmp_path / "old").mkdir()
    sessions = open_sessions(tmp_path / "old" / "sessions.db")
    archived(sessions, clock)
    sessions.close()
    (tmp_path / "old").rename(tmp_path / "new")
    sessions = open_sessions(tmp_path / "new" / "sessions.db")
    assert sessions.check() == []
    [found] = sessions.list_archived()
    assert Path(found.path).is_file()
    sessions.restore("t")
    assert not Path(found.path).exists()


def test_two_databases_may_have_one_folder_of_archives(
    tmp_path: Path, open_sessions: OpenSessions, clock: Clock
) -> None:
    folder = str(tmp_path / "archives")
    one, two = (open_sessions(tmp_path / name, archive_path=folder) for name in ("1.db", "2.db"))
    for sessions, owner in ((one, "alice"), (two, "bob")):
        sessions.attach(agents.chat()).invoke(human(owner), sessions.config("t", user_id=owner))
    clock.advance(hours=1)
    for sessions in (one, two):
        sessions.sweep()
    assert len(list(Path(folder).iterdir())) == 2
    assert one.forget_user("alice").archives == 1
    assert said(two.restore("t")) == [("user", "bob"), ("assistant", "you said bob")]


# Retention


@pytest.mark.usefixtures("each_engine")
def test_retention_counts_from_the_end_and_deletes_archives_too(
    open_sessions: OpenSessions, clock: Clock, tmp_path: Path
) -> None:
    sessions = open_sessions(retention="7d", archive_path=tmp_path / "archives")
    own = {"t": None, "short": "1d", "kept": "never"}
    for session_id, retention in own.items():
        sessions.open(session_id, user_id="alice", retention=retention)
    clock.advance(minutes=30)
    ended_at = clock()
    clock.advance(hours=1)
    assert {(each.session_id, each.action) for each in sessions.sweep()} == {(name, "archive") for name in own}
    explained = sessions.for_user("alice").explain("t")
    assert (explained.next_status, explained.next_at) == ("deleted", ended_at + timedelta(days=7))
    assert "it is deleted at 2026-01-08 12:30:00 UTC (retention)" in explained.text
    assert sessions.sweep() == []
    clock.advance(days=1)
    (due,) = sessions.sweep(dry_run=True)
    assert (due.session_id, due.user_id, due.reason, due.action) == ("short", "alice", "retention", "delete")
    assert sessions.sweep() == [due.model_copy(update={"bytes": None})]
    clock.advance(days=6)
    deleted: list[Any] = []
    sessions.on_closed(deleted.append)
    assert [each.session_id for each in sessions.sweep()] == ["t"]
    sessions.settle()
    assert [(event.kind, event.reason, event.session_id) for event in deleted] == [("deleted", "retention", "t")]
    assert [each.session_id for each in sessions.list_archived()] == ["kept"]
    assert len([*(tmp_path / "archives").iterdir()]) == 1
    assert (sessions.explain("t").status, sessions.explain("t").reason) == ("deleted", "retention")
    for session_id in ("t", "short"):
        with pytest.raises(SessionNotFound):
            sessions.restore(session_id)
    sessions.restore("kept")
    assert (sessions.sweep(), sessions.check()) == ([], [])
