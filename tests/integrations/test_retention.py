"""What becomes of sessions that have ended: pruned, archived, deleted, remembered; and how many may be open."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import tool

from session_middleware import (
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionLimitReached,
    SessionNotFound,
    Sessions,
    StorageError,
)
from session_middleware.model import Identity
from session_middleware.storage.seen import MessageSeen
from session_middleware.storage.visit import Visit
from tests.conftest import Clock
from tests.integrations import agents
from tests.integrations.agents import human, said

Open = Callable[..., Sessions]


@pytest.fixture
def open_sessions(tmp_path: Path, clock: Clock) -> Iterator[Open]:
    opened: list[Sessions] = []

    def open_(**settings: Any) -> Sessions:
        opened.append(Sessions(tmp_path / "sessions.db", **{"idle_timeout": "30m", "clock": clock} | settings))
        return opened[-1]

    yield open_
    for sessions in opened:
        sessions.close()


def kinds(session: Any) -> list[str]:
    return [event.kind for event in session.events()]


# Archives


def archived(sessions: Sessions, clock: Clock, **configurable: Any) -> tuple[Any, Any, Path]:
    """A session with two turns, a branch and a memory, which a sweep has archived."""
    graph, config = sessions.attach(agents.tool_graph()), sessions.config("t", **configurable)
    graph.invoke(human("look up tea"), config)
    graph.invoke(human("both tea"), config)
    past = list(graph.get_state_history(config))[-2].config
    graph.update_state(past, {"messages": [human("other")["messages"][0]]}, as_node="__start__")
    sessions.get("t").memory.remember("alice likes tea", "k")
    clock.advance(hours=1)
    (ended,) = sessions.sweep()
    assert (ended.session_id, ended.action) == ("t", "archive")
    assert sessions.find("t") is None
    (path,) = Path(f"{sessions.settings.storage_url}.archive").iterdir()
    return graph, config, path


def everything(sessions: Sessions, graph: Any, config: Any) -> Any:
    session = sessions.get("t")
    history = [
        (state.values, state.config["configurable"]["checkpoint_id"], state.next)
        for state in graph.get_state_history(config)
    ]
    rows = [row.model_dump(exclude={"seq"}) for row in (*session.messages(branch="all"), *session.tool_calls())]
    return history, rows, [memory.text for memory in session.memory.list()]


def test_an_archived_session_is_a_file_of_json_lines_and_comes_back_whole(
    open_sessions: Open, clock: Clock, tmp_path: Path
) -> None:
    sessions = open_sessions(on_expire="keep")
    graph, config = sessions.attach(agents.tool_graph()), sessions.config("t", user_id="alice")
    graph.invoke(human("look up tea"), config)
    graph.invoke(human("both tea"), config)
    past = list(graph.get_state_history(config))[-2].config
    graph.update_state(past, {"messages": [human("other")["messages"][0]]}, as_node="__start__")
    sessions.get("t").memory.remember("alice likes tea", "k")
    before = everything(sessions, graph, config)
    sessions = open_sessions(on_expire="archive")
    graph = sessions.attach(agents.tool_graph())
    clock.advance(hours=1)
    assert [(ended.session_id, ended.action) for ended in sessions.sweep()] == [("t", "archive")]
    assert sessions.find("t") is None
    assert sessions.explain("t").status == "archived"
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert b"likes tea" not in stored
    (path,) = (tmp_path / "sessions.db.archive").iterdir()
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert [line[0] for line in lines][:2] == ["archive", "sessions"]
    assert "both tea" in {line[1]["text"] for line in lines if line[0] == "messages"}
    assert lines[-1] == ["end", {"rows": len(lines) - 1}]
    assert graph.get_state(config).values == {}  # to read brings nothing back
    assert sessions.find("t") is None
    sessions.open("t", user_id="alice")
    assert everything(sessions, graph, config) == before
    session = sessions.get("t")
    assert (session.status, session.opened_as, kinds(session)[-2:]) == ("active", "revived", ["restored", "revived"])
    assert graph.invoke(None, config)["messages"][-1].text == "you said other"  # as it was left
    assert sessions.check(deep=True) == []


def test_an_archive_that_was_brought_back_leaves_no_file(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(on_expire="archive")
    graph, config, path = archived(sessions, clock, user_id="alice")
    graph.invoke(human("again"), config)
    assert not path.exists()
    clock.advance(hours=1)
    sessions.sweep()
    (second,) = path.parent.iterdir()
    sessions.open("t", user_id="alice")
    assert not second.exists()


def test_threads_that_resume_an_archived_session_at_once_bring_it_back_once(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(on_expire="archive")
    archived(sessions, clock, user_id="alice")
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: sessions.open("t", user_id="alice").opened_as, range(8)))
    assert set(opened) <= {"revived", "resumed"}
    assert kinds(sessions.get("t")).count("restored") == 1
    assert sessions.check() == []


def test_a_session_used_while_it_is_archived_leaves_no_file(
    open_sessions: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from session_middleware.storage.sqlite.lifecycle import archives

    sessions, write = open_sessions(on_expire="archive"), archives.write
    sessions.open("t", user_id="alice")
    clock.advance(hours=1)

    def slowly(*given: Any) -> Any:
        archive = write(*given)
        sessions.open("t", user_id="alice")
        return archive

    monkeypatch.setattr(archives, "write", slowly)
    sessions.sweep()
    assert sessions.get("t").status == "active"
    assert list(Path(f"{sessions.settings.storage_url}.archive").iterdir()) == []


async def test_an_archive_is_its_owners_and_comes_back_by_open_as_well(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(on_expire="archive")
    graph, _, _ = archived(sessions, clock, user_id="alice")
    with pytest.raises(PermissionError):
        await graph.ainvoke(human("mine"), sessions.config("t", user_id="mallory"))
    assert sessions.find("t") is None
    opened = sessions.open("t", user_id="alice")
    assert (opened.opened_as, len(opened.tool_calls())) == ("revived", 3)


@pytest.mark.parametrize("door", ["operator", "owner", "checkpointer"])
def test_an_archived_session_is_deleted_with_its_file(open_sessions: Open, clock: Clock, door: str) -> None:
    sessions = open_sessions(on_expire="archive")
    graph, config, path = archived(sessions, clock, user_id="alice", group_id="team")
    size = path.stat().st_size
    stranger, owner = sessions.for_user("mallory", ["team"]), sessions.for_user("alice")
    for refused in (lambda: stranger.delete("t"), lambda: stranger.explain("t")):
        with pytest.raises(SessionNotFound, match="there is no session"):
            refused()
    assert path.is_file()
    if door == "checkpointer":
        sessions.checkpointer.delete_thread("t")
    else:
        deleted = (sessions if door == "operator" else owner).delete("t")
        assert (deleted.sessions, deleted.bytes_freed) == (1, size)
    assert not path.exists()
    assert sessions.explain("t").status == owner.explain("t").status == "deleted"
    assert sessions.delete("t").sessions == 0
    with pytest.raises(SessionNotFound, match="there is no session"):
        owner.delete("t")
    graph.invoke(human("hi"), config)
    assert len(said(sessions.get("t"))) == 2


def test_its_owner_is_told_that_a_session_is_archived_and_how_it_comes_back(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(on_expire="archive")
    archived(sessions, clock, user_id="alice")
    owner = sessions.for_user("alice")
    for door in (sessions, owner):
        assert "restores it" in door.explain("t").text
        with pytest.raises(SessionNotFound, match=r"is archived; resume it.* bring it back") as refusal:
            door.get("t")
        assert refusal.value.archived
    assert owner.open("t").opened_as == "revived"
    assert [said.role for said in owner.get("t").messages()][:1] == ["user"]


def test_archived_sessions_are_listed_in_pages_and_to_their_owner_only(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(on_expire="archive")
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
    with pytest.raises(TypeError):
        alice.list_archived(user_id="bob")
    with pytest.raises(ValueError, match=r"sessions\.list_archived\(\)"):
        sessions.list(status="archived")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="after"):
        sessions.list_archived(after="t1")  # type: ignore[arg-type]
    sessions.open("t1", user_id="alice")
    sessions.delete("t3")
    assert sessions.forget_user("bob").archives == 1
    assert [one.session_id for one in sessions.list_archived()] == ["t4"]
    assert sessions.check() == []


def test_what_lies_in_an_archive_comes_out_of_it_when_its_id_is_taken(open_sessions: Open, clock: Clock) -> None:
    _, config, path = archived(open_sessions(on_expire="archive"), clock)
    sessions = open_sessions(on_expire="archive", on_resume="fresh")
    sessions.attach(agents.chat()).invoke(human("hi"), config)
    assert not path.exists()
    assert sessions.delete("t").messages == 2
    assert sessions.get("t~1").message_count > 0


def test_a_copy_does_not_take_an_archived_id_nor_one_that_was_anothers(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(on_expire="archive")
    archived(sessions, clock, user_id="alice")
    bob = sessions.for_user("bob")
    bob.open("b")
    for step in (lambda: None, lambda: sessions.delete("t")):
        step()
        with pytest.raises(SessionExists):
            bob.copy("b", "t")
    sessions.open("a", user_id="alice")
    assert sessions.copy("a", "t").user_id == "alice"


def test_check_names_an_archive_whose_file_is_missing(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(on_expire="archive")
    _, _, path = archived(sessions, clock)
    assert sessions.check() == []
    path.unlink()
    (problem,) = sessions.check(repair=True)
    assert (problem.kind, problem.session_id, problem.repaired) == ("archive", "t", False)
    assert str(path) in problem.text
    assert sessions.delete("t").sessions == 1
    assert sessions.check() == []


def test_an_archive_that_is_not_what_was_written_brings_nothing_back(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(on_expire="archive")
    graph, config, path = archived(sessions, clock)
    path.write_bytes(gzip.compress(b'["archive",{}]\n'))
    with pytest.raises(StorageError, match=r"jsonl\.gz.*not what was written"):
        graph.invoke(human("hi"), config)
    assert sessions.find("t") is None
    path.unlink()
    with pytest.raises(StorageError, match="cannot be read"):
        graph.invoke(human("hi"), config)


def test_nothing_is_deleted_when_the_archive_cannot_be_written(
    open_sessions: Open, clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    sessions = open_sessions(on_expire="archive", archive_path=str(tmp_path / "file"))
    sessions.attach(agents.chat()).invoke(human("hi"), sessions.config("t"))
    clock.advance(hours=1)
    with pytest.raises(StorageError, match="nothing was deleted"):
        sessions.sweep()
    session = sessions.get("t")
    assert (session.status, len(said(session))) == ("closing", 2)
    assert [problem.kind for problem in sessions.check()] == ["stuck"]
    (tmp_path / "file").unlink()
    sessions.sweep()
    assert sessions.find("t") is None


def test_a_fork_comes_back_beside_the_one_it_shares_with(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(on_expire="archive")
    graph = sessions.attach(agents.chat())
    graph.invoke(human("hi"), sessions.config("t"))
    sessions.checkpointer.copy_thread("t", "u")
    clock.advance(minutes=20)
    graph.invoke(human("only here"), sessions.config("u"))
    clock.advance(minutes=20)
    assert [ended.session_id for ended in sessions.sweep()] == ["t"]
    graph.invoke(human("again"), sessions.config("t"))
    texts = {name: [m.text for m in graph.get_state(sessions.config(name)).values["messages"]] for name in "tu"}
    assert texts == {
        "t": ["hi", "you said hi", "again", "you said again"],
        "u": ["hi", "you said hi", "only here", "you said only here"],
    }
    assert sessions.check(deep=True) == []


# Pruning and deleting


def test_prune_keeps_the_latest_checkpoint_and_the_record(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(on_expire="prune")
    graph, config = sessions.attach(agents.chat()), sessions.config("t")
    for text in ("one", "two"):
        graph.invoke(human(text), config)
    clock.advance(hours=1)
    (planned,) = sessions.sweep(dry_run=True)
    assert planned.bytes > 500
    assert [ended.action for ended in sessions.sweep()] == ["prune"]
    session = sessions.get("t")
    assert (session.status, session.stats().checkpoint_count, len(said(session))) == ("expired", 1, 4)
    assert len(graph.invoke(human("three"), config)["messages"]) == 6


def test_retention_deletes_what_has_ended_long_ago_and_remembers_the_id(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(retention="7d")
    sessions.open("t", user_id="alice").complete()
    sessions.open("short", retention="1d").abandon()
    sessions.open("kept", retention="never").complete()
    sessions.open("idle")
    clock.advance(days=1)
    assert [(e.session_id, e.reason, e.action) for e in sessions.sweep()] == [
        ("idle", "idle_timeout", "keep"),
        ("short", "retention", "delete"),
    ]
    clock.advance(days=6)
    assert {(e.session_id, e.reason) for e in sessions.sweep()} == {("t", "retention")}
    explained = sessions.explain("t")
    assert (explained.status, explained.reason, explained.since) == ("deleted", "retention", clock())
    assert {session.id for session in sessions.list()} == {"kept", "idle"}
    clock.advance(days=1)
    assert [e.session_id for e in sessions.sweep()] == ["idle"]


def test_one_sweep_ends_and_deletes_what_has_been_due_for_both(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(retention="1d")
    sessions.open("t")
    clock.advance(days=2)
    assert [(e.session_id, e.action) for e in sessions.sweep()] == [("t", "keep"), ("t", "delete")]
    assert sessions.find("t") is None


def test_older_than_cleans_by_age_and_status(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(idle_timeout=None)
    for name in ("a", "b"):
        sessions.open(name)
    sessions.get("b").complete()
    clock.advance(days=89)
    sessions.open("young")
    clock.advance(days=1, seconds=1)
    planned = sessions.sweep(older_than="90d", status="completed", dry_run=True)
    assert [(e.session_id, e.reason, e.action) for e in planned] == [("b", "older_than", "delete")]
    assert sessions.sweep(older_than="90d", status="completed") == [planned[0].model_copy(update={"bytes": None})]
    assert [e.session_id for e in sessions.sweep(older_than=timedelta(days=90))] == ["a"]
    assert [session.id for session in sessions.list()] == ["young"]
    with pytest.raises(ValueError, match="older_than"):
        sessions.sweep(status="idle")


# Tombstones


@pytest.mark.parametrize("part", ["attached", "checkpointer"])
@pytest.mark.parametrize("reopened", [False, True])
def test_a_run_that_is_slower_than_its_sessions_deletion_brings_nothing_back(
    reopened: bool, part: str, open_sessions: Open
) -> None:
    sessions, others = open_sessions(), open_sessions()

    @tool
    def look_up(thing: str) -> str:
        """The operator acts meanwhile."""
        others.delete("t")
        if reopened:
            others.attach(agents.chat()).invoke(human("anew"), others.config("t"))
        return thing

    if part == "attached":
        graph = sessions.attach(agents.tool_graph(look_up))
    else:
        graph = agents.tool_graph(look_up, checkpointer=sessions.checkpointer)
    graph.invoke(human("hi"), sessions.config("t"))
    with pytest.raises(SessionClosed, match="is deleted"):
        graph.invoke(human("look up tea"), sessions.config("t"))
    if reopened:
        assert said(sessions.get("t")) == [("user", "anew"), ("assistant", "you said anew")]
        assert sessions.get("t").incarnation == 2
    else:
        assert sessions.find("t") is None
    assert sessions.check() == []
    assert sessions.check(deep=True) == []


def test_a_deleted_id_is_resumed_as_on_resume_says(open_sessions: Open) -> None:
    strict, lenient = open_sessions(on_resume="reject"), open_sessions()
    strict.open("t")
    strict.delete("t")
    with pytest.raises(SessionExpired, match="was deleted"):
        strict.attach(agents.chat()).invoke(human("hi"), strict.config("t"))
    assert strict.find("t") is None
    lenient.attach(agents.chat()).invoke(human("hi"), lenient.config("t"))
    assert (lenient.get("t").incarnation, kinds(lenient.get("t"))) == (2, ["opened"])


def test_a_visit_of_another_process_that_looked_before_the_deletion_is_refused(open_sessions: Open) -> None:
    sessions = open_sessions()
    storage = sessions._storage
    sessions.open("t")
    visit = Visit("t", Identity())
    assert storage.look(visit) is not None
    sessions.delete("t")
    with pytest.raises(SessionClosed):
        storage.append_messages(visit, [MessageSeen("m", "user", "late")])
    assert sessions.find("t") is None


# Limits


def test_a_limit_refuses_one_more_and_counts_only_what_is_open(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(max_sessions=3, max_sessions_per_user=2)
    graph = sessions.attach(agents.chat())
    for name in ("a", "b"):
        graph.invoke(human("hi"), sessions.config(name, user_id="alice"))
    with pytest.raises(SessionLimitReached, match="limit of 2 open sessions for user 'alice'"):
        graph.invoke(human("hi"), sessions.config("c", user_id="alice"))
    assert sessions.find("c") is None
    graph.invoke(human("hi"), sessions.config("a", user_id="alice"))
    sessions.open("d", user_id="bob")
    with pytest.raises(SessionLimitReached, match="limit of 3 open sessions is"):
        sessions.open("e", user_id="eve")
    with pytest.raises(SessionLimitReached):
        sessions.checkpointer.copy_thread("d", "f")
    sessions.get("a").complete()
    graph.invoke(human("hi"), sessions.config("c", user_id="alice"))
    with pytest.raises(SessionLimitReached):
        graph.invoke(human("hi"), sessions.config("a", user_id="alice"))  # to reopen it would be one more
    clock.advance(hours=1)
    graph.invoke(human("hi"), sessions.config("a", user_id="alice"))


def test_expire_oldest_makes_room_of_what_was_used_least_recently(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(max_sessions=2, on_limit="expire_oldest")
    sessions.open("pinned").pin()
    clock.advance(minutes=1)
    sessions.open("old")
    clock.advance(minutes=1)
    sessions.open("new")
    old = sessions.get("old")
    assert (old.status, old.reason, kinds(old)) == ("expired", "limit", ["opened", "expired"])
    sessions.get("new").pin()
    with pytest.raises(SessionLimitReached):
        sessions.open("more")


# Sweeping


def test_one_process_sweeps_at_a_time(open_sessions: Open, clock: Clock) -> None:
    sessions, others = open_sessions(), open_sessions()
    sessions.open("t")
    clock.advance(hours=1)
    lease = others._storage.take_over("sweep")
    assert sessions.sweep() == []
    others._storage.release([lease])
    assert [ended.session_id for ended in sessions.sweep()] == ["t"]


def test_writes_whose_checkpoint_never_came_are_swept_away(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions()
    graph, config = sessions.attach(agents.chat()), sessions.config("t")
    graph.invoke(human("hi"), config)
    lost = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "2"}}
    sessions.checkpointer.put_writes(lost, [("messages", "never")], "task")
    sessions.sweep()
    count = "SELECT COUNT(*) FROM writes WHERE checkpoint_id = '2'"
    assert sessions._storage._database.read(lambda c: c.execute(count).fetchone()) == (1,)
    clock.advance(minutes=11)
    assert [problem.kind for problem in sessions.check()] == ["orphaned_writes"]
    sessions.sweep()
    assert sessions._storage._database.read(lambda c: c.execute(count).fetchone()) == (0,)
    assert sessions.check() == []
    assert len(graph.get_state(config).values["messages"]) == 2
    assert kinds(sessions.get("t"))[-1] == "repaired"


def test_a_sweep_goes_on_beside_runs_by_itself(open_sessions: Open, clock: Clock) -> None:
    sessions = open_sessions(sweep_interval="1h")
    sessions.open("t")
    clock.advance(hours=1)
    sessions.open("u")
    for chore in sessions._pulse._chores:
        chore.next_at = 0.0  # by the clock of the thread
    sessions._pulse.do_chores(woken=False)
    assert kinds(sessions.get("t")) == ["opened", "expired"]
