"""An export is complete: an import of it elsewhere is equal by every public read, and nothing is imported by halves."""

from __future__ import annotations

import gzip
import hashlib
import json
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from langgraph.types import Command

from session_middleware import Sessions
from session_middleware.errors import (
    InvalidArgument,
    SessionAccessDenied,
    SessionExists,
    SessionLimitReached,
    SessionNotFound,
    StorageError,
)
from tests.conftest import Clock, OpenSessions
from tests.storage.test_copying import TEXT
from tests.support import agents
from tests.support.agents import human, said
from tests.support.postgres import Server

ODD = "ÄT/../é\n猫 '; DROP TABLE sessions --"


def fill(sessions: Sessions) -> Any:
    """Alice's conversations: with tools, branches, a fork, an image, memories, and a question that waits."""
    graph, config = sessions.attach(agents.tool_graph()), sessions.config(ODD, user_id="alice")
    for text in ("look up tea", TEXT, "both tea"):
        graph.invoke(human(text), config)
    past = list(graph.get_state_history(config))[-2].config
    graph.invoke(human("another branch"), past)
    sessions.get(ODD).fork(id="fork")
    graph.invoke(human("only in the fork"), sessions.config("fork", user_id="alice"))
    session = sessions.get(ODD)
    session.memory.remember(f"a fact: {TEXT}", "k")
    session.memory.remember("alice is tall", "k", scope="user")
    session.update(title="Tea", tags=["a"], metadata={"n": [1, 0.1, None]}, retention="9d")
    image = "data:image/png;base64," + "iVBORw0KGgo" * 40 + "AA=="
    session.add({"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]})
    sessions.open("bob's", user_id="bob").complete()
    graph.invoke(human("ask cake"), sessions.config("asks", user_id="bob"))
    sessions.store.put(("notes",), "k", {"text": "stored", "n": 1})
    return graph


def seen(sessions: Sessions, *ids: str) -> dict[str, Any]:
    """All that can be read of the sessions. The number of a family is each database's own."""
    graph = sessions.attach(agents.tool_graph())
    found: dict[str, Any] = {}
    for session_id in ids:
        session = sessions.get(session_id)
        states = graph.get_state_history(sessions.config(session_id, user_id=session.user_id))
        found[session_id] = (
            {**dict(session), "home": 0},
            session.messages(all_versions=True, branch="all"),
            session.history().messages,
            list(session.timeline()),
            session.branches(),
            session.questions(),
            session.stats().model_dump(exclude={"bytes"}),
            [memory.text for memory in session.memory.list()],
            [hit.text for hit in session.memory.recall("fact tea")],
            [session.file(digest) for digest in files_of(session)],
            [(state.values, state.next, state.metadata, state.created_at, state.config) for state in states],
        )
    return found


def files_of(session: Any) -> list[str]:
    text = json.dumps([message.content for message in session.messages()])
    return [f"sha256:{part[:64]}" for part in text.split("sha256:")[1:]]


@pytest.fixture
def targets(postgres_server: Server, tmp_path: Path, clock: Clock) -> Iterator[list[Sessions]]:
    """An empty database of each engine."""
    with ExitStack() as opened:
        url = opened.enter_context(postgres_server.database())
        yield [
            opened.enter_context(Sessions(place, clock=clock, sweep_interval=None))
            for place in (tmp_path / "target.db", url)
        ]


@pytest.fixture(autouse=True)
def _one_time(clock: Clock) -> None:
    """Nothing becomes idle meanwhile."""


# Whole exports


@pytest.mark.usefixtures("each_engine")
async def test_an_import_into_each_engine_is_equal_by_every_read_and_goes_on(
    open_sessions: OpenSessions, targets: list[Sessions], tmp_path: Path
) -> None:
    sessions = open_sessions()
    fill(sessions)
    ids = (ODD, "fork", "bob's", "asks")
    expected, path = seen(sessions, *ids), tmp_path / "new folder" / "all.jsonl.gz"
    assert await sessions.aexport(path) == 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    for target in targets:
        assert sorted(await target.aimport_from(path)) == sorted(ids)
        assert seen(target, *ids) == expected
        assert [(hit.session_id, hit.text) for hit in target.search("tea")] == [
            (hit.session_id, hit.text) for hit in sessions.search("tea")
        ]
        assert target.usage("model") == sessions.usage("model")
        assert target.store.get(("notes",), "k").value == {"text": "stored", "n": 1}  # type: ignore[union-attr]
        assert "alice is tall" in [hit.text for hit in target.get("fork").memory.recall("tall")]
        assert target.get(ODD).home == target.get("fork").home != target.get("bob's").home
        assert target.check(deep=True) == []
        graph, config = target.attach(agents.tool_graph()), target.config(ODD, user_id="alice")
        assert graph.invoke(human("look up more"), config)["messages"][-1].text == "it said more is nice"
        assert [question.status for question in target.get("asks").waiting_for()] == ["open"]
        graph.invoke(Command(resume="yes"), target.config("asks", user_id="bob"))
        assert [question.answer for question in target.get("asks").questions()] == ["yes"]
        target.delete(ODD)
        assert seen(target, "fork")["fork"][-1] == expected["fork"][-1]
        assert target.check(deep=True) == []


@pytest.mark.usefixtures("each_engine")
def test_a_fork_exported_alone_is_imported_alone_and_joins_its_family_where_that_is(
    open_sessions: OpenSessions, targets: list[Sessions], tmp_path: Path
) -> None:
    sessions = open_sessions()
    fill(sessions)
    expected, path = seen(sessions, "fork"), sessions.get("fork").export(tmp_path / "fork.jsonl")
    for target in targets:
        assert target.import_from(path) == ["fork"]
        assert seen(target, "fork") == expected
        assert target.check(deep=True) == []
    sessions.delete("fork")
    assert sessions.import_from(path) == ["fork"]
    assert sessions.get("fork").home == sessions.get(ODD).home
    assert (sessions.get("fork").incarnation, expected["fork"][0]["incarnation"]) == (2, 1)
    assert [state[:3] for state in seen(sessions, "fork")["fork"][-1]] == [s[:3] for s in expected["fork"][-1]]
    assert sessions.check(deep=True) == []


def test_filters_choose_sessions_and_the_memories_of_their_user(
    open_sessions: OpenSessions, targets: list[Sessions], tmp_path: Path
) -> None:
    sessions, target = open_sessions(), targets[0]
    fill(sessions)
    tables = lambda path: [json.loads(line).get("table") for line in path.read_text().splitlines()]  # noqa: E731
    assert sessions.export(tmp_path / "a", tags=["a"]) == 1
    assert tables(tmp_path / "a").count("memories") == 1
    assert sessions.export(tmp_path / "b", user_id="bob") == 2
    assert sessions.export(tmp_path / "c", status="completed", progress=True) == 1
    assert sessions.export(tmp_path / "d", user_id="nobody") == 0
    assert target.import_from(tmp_path / "d", progress=True) == []
    assert sessions.for_user("alice").export(tmp_path / "e") == 2
    assert tables(tmp_path / "e").count("memories") == 2
    assert sorted(target.import_from(tmp_path / "e")) == sorted([ODD, "fork"])
    assert target.store.get(("notes",), "k") is None
    with pytest.raises(InvalidArgument):
        sessions.for_user("alice").export(tmp_path / "f", user_id="bob")


def test_a_run_in_progress_is_interrupted_in_the_import(
    open_sessions: OpenSessions, targets: list[Sessions], tmp_path: Path
) -> None:
    sessions = open_sessions()
    with sessions.open("t") as session:
        session.add({"role": "user", "content": "hi"})
        session.export(tmp_path / "t.jsonl")
    targets[0].import_from(tmp_path / "t.jsonl")
    assert [run.outcome for run in targets[0].get("t").runs()] == ["interrupted"]
    assert said(targets[0].get("t")) == [("user", "hi")]
    assert targets[0].check() == []


# Ids that are taken


@pytest.mark.usefixtures("each_engine")
def test_an_id_that_is_here_is_refused_or_left_as_it_is(open_sessions: OpenSessions, tmp_path: Path) -> None:
    sessions, path = open_sessions(), tmp_path / "all.jsonl"
    fill(sessions)
    sessions.export(path)
    sessions.delete("fork")
    sessions.get(ODD).update(title="newer")
    with pytest.raises(SessionExists, match=r"line \d+: .*if_exists='skip'"):
        sessions.import_from(path)
    assert sessions.find("fork") is None
    assert sessions.import_from(path, if_exists="skip") == ["fork"]
    assert (sessions.get(ODD).title, sessions.get("fork").user_id) == ("newer", "alice")
    assert sessions.check(deep=True) == []
    sessions.delete("fork")
    sessions.open("fork", user_id="alice", if_exists="raise")
    for session_id in (ODD, "bob's", "asks"):
        sessions.delete(session_id)
    content = edited(path, lambda row: row | {"user_id": "carol"} if row.get("id") in ("bob's", "fork") else row)
    for skip in ("raise", "skip"):
        with pytest.raises(SessionExists, match="another owner; nothing was imported"):
            sessions.import_from(content, if_exists=skip)  # type: ignore[arg-type]
    assert sessions.find("bob's") is None
    with pytest.raises(InvalidArgument, match="if_exists"):
        sessions.import_from(path, if_exists="replace")  # type: ignore[arg-type]


def test_an_id_that_was_merged_into_another_is_taken(sessions: Sessions, tmp_path: Path) -> None:
    for session_id in ("a", "b"):
        sessions.attach(agents.chat()).invoke(human(session_id), sessions.config(session_id, user_id="alice"))
    sessions.export(tmp_path / "all.jsonl")
    sessions.get("a").merge("b")
    sessions.delete("a")
    with pytest.raises(SessionExists, match="'b' exists already"):
        sessions.import_from(tmp_path / "all.jsonl")
    assert sessions.import_from(tmp_path / "all.jsonl", if_exists="skip") == ["a"]
    assert said(sessions.get("b")) == [("user", "a"), ("assistant", "you said a")]


def test_an_archived_id_is_not_imported_over(open_sessions: OpenSessions, clock: Clock, tmp_path: Path) -> None:
    sessions = open_sessions(on_expire="archive", idle_timeout="30m", sweep_interval=None)
    sessions.open("t", user_id="alice").export(tmp_path / "t.jsonl")
    clock.advance(hours=1)
    sessions.sweep()
    with pytest.raises(SessionExists, match="in its archive"):
        sessions.import_from(tmp_path / "t.jsonl")
    assert sessions.restore("t").user_id == "alice"


# One user's


@pytest.mark.usefixtures("each_engine")
async def test_a_user_exports_and_imports_what_is_theirs(
    open_sessions: OpenSessions, targets: list[Sessions], tmp_path: Path
) -> None:
    sessions, path = open_sessions(), tmp_path / "all.jsonl"
    fill(sessions)
    sessions.open("shared", user_id="bob", group_id="team", visibility="group")
    sessions.export(path)
    alice = sessions.for_user("alice", ["team"])
    assert await alice.aexport(tmp_path / "own.jsonl") == 2
    assert alice.get("shared").export(tmp_path / "read.md", "markdown").is_file()
    session = alice.get("fork")
    sessions.delete("fork")
    with pytest.raises(SessionNotFound):
        session.export(tmp_path / "gone.jsonl")
    assert not (tmp_path / "gone.jsonl").exists()
    for target in targets:
        door = target.for_user("alice")
        with pytest.raises(StorageError, match=r"line \d+: .*owned by another user"):
            door.import_from(path)
        foreign = edited(tmp_path / "own.jsonl", lambda row: row | {"group_id": "team"} if "group_id" in row else row)
        with pytest.raises(StorageError, match="group that the user is not in"):
            door.import_from(foreign)
        shared = edited(tmp_path / "own.jsonl", as_notes)
        with pytest.raises(StorageError, match="a memory of another scope"):
            door.import_from(shared)
        assert target.list() == []
        assert sorted(await door.aimport_from(tmp_path / "own.jsonl")) == sorted([ODD, "fork"])
        target.delete("fork")
        target.revoke("alice")
        with pytest.raises(SessionAccessDenied, match="revoked"):
            door.import_from(tmp_path / "own.jsonl", if_exists="skip")


def as_notes(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"namespace": '["notes"]'} if row.get("namespace") == '["user","alice"]' else row


def test_a_users_import_keeps_to_the_limit(
    targets: list[Sessions], open_sessions: OpenSessions, tmp_path: Path
) -> None:
    sessions = open_sessions(max_sessions_per_user=1)
    fill(targets[0])
    targets[0].export(tmp_path / "own.jsonl", user_id="alice")
    with pytest.raises(SessionLimitReached):
        sessions.for_user("alice").import_from(tmp_path / "own.jsonl")
    assert sessions.list() == []


# Files that are not what was exported


def edited(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A copy whose rows are changed, with a checksum that fits."""
    header, *lines, _ = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line | {"row": change(line["row"])} for line in lines]
    return sealed(path.with_name("edited.jsonl"), [header, *lines])


def sealed(path: Path, entries: list[Any]) -> Path:
    body = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
    end = {"rows": len(entries) - 1, "sha256": hashlib.sha256(body).hexdigest()}
    path.write_bytes(body + json.dumps(end).encode() + b"\n")
    return path


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut in a line": (lambda content: content[: len(content) // 2], r"line \d+: it is not JSON"),
    "cut at a line": (lambda content: b"".join(content.splitlines(keepends=True)[:-3]), r"line \d+: the end is miss"),
    "a row removed": (lambda content: b"\n".join([*(rows := content.split(b"\n"))[:4], *rows[5:]]), "rows instead of"),
    "a text changed": (lambda content: content.replace(b"both tea", b"both rum"), r"line \d+: the checksum differs"),
    "a line added": (lambda content: content + b"{}\n", r"line \d+: it should be the last line"),
    "bytes": (lambda _: b"\xff\x00\n", "line 1: "),
    "empty": (lambda _: b"", "line 1: the end is missing"),
    "a list": (lambda _: b"[]\n", "line 1: it is not a JSON object"),
    "deep": (lambda _: b"[" * 100_000 + b"\n", "line 1: "),
    "another format": (lambda content: content.replace(b"middleware.s", b""), "line 1: it is not the header"),
    "a later version": (lambda content: content.replace(b'"version":1', b'"version":2'), "line 1: .*version 1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with Sessions(":memory:", sweep_interval=None) as sessions:
        fill(sessions)
        return sessions.get(ODD).export(tmp_path_factory.mktemp("exported") / "t.jsonl").read_bytes()


@pytest.fixture(scope="module")
def refusing(postgres_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Sessions]]:
    """A database of each engine that has bob's session, and stays as it is."""
    with ExitStack() as opened:
        url = opened.enter_context(postgres_server.database())
        path = tmp_path_factory.mktemp("refusing") / "t.db"
        targets = [opened.enter_context(Sessions(place, sweep_interval=None)) for place in (path, url)]
        for target in targets:
            target.open("bob's", user_id="bob")
        yield targets


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_is_refused_with_the_line(
    name: str, exported: bytes, refusing: list[Sessions], tmp_path: Path
) -> None:
    change, reason = BROKEN[name]
    path = tmp_path / "t.jsonl"
    path.write_bytes(change(exported))
    with pytest.raises(StorageError, match=f"{reason}.*nothing of it was imported"):
        refusing[0].import_from(path)
    assert [session.id for session in refusing[0].list()] == ["bob's"]


def test_a_compressed_file_that_is_cut_off_or_missing_is_refused(sessions: Sessions, tmp_path: Path) -> None:
    path = sessions.open("t").export(tmp_path / "t.jsonl.gz")
    sessions.delete("t")
    content = path.read_bytes()
    for damaged in (content[:-9], content[:40], gzip.compress(b"{}\n"), b"{}\n"):
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match="line"):
            sessions.import_from(path)
    for missing in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(StorageError, match=r"missing|cannot be read"):
            sessions.import_from(missing)
    with pytest.raises(InvalidArgument):
        sessions.import_from("\0")


def in_table(table: str, **changes: Any) -> Callable[[list[Any]], list[Any]]:
    def change(entries: list[Any]) -> list[Any]:
        place = next(place for place, entry in enumerate(entries) if entry.get("table") == table)
        entries[place]["row"].update(changes)
        return entries

    return change


def line(**entry: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda entries: [*entries, entry]


HOSTILE: dict[str, tuple[Callable[[list[Any]], list[Any]], str]] = {
    "an unknown table": (line(table="revoked", row={}), "there is no table 'revoked'"),
    "SQL as a table": (line(table="runs; DROP TABLE sessions", row={}), "there is no table 'runs; DROP"),
    "an unknown column": (in_table("sessions", secret=1), "the table sessions has no column 'secret'"),
    "SQL as a column": (in_table("runs", **{"id) --": 1}), "the table runs has no column"),
    "a missing column": (line(table="events", row={}), "the table events needs a value for"),
    "another session's row": (in_table("messages", session_id="bob's"), "it belongs to no session before it"),
    "rows before sessions": (lambda entries: [entries[0], *entries[2:]], "it belongs to no session"),
    "the session twice": (lambda entries: [*entries, entries[1]], "session .* exists already"),
    "a row twice": (lambda entries: [*entries[:3], *entries[2:]], "repeats another one"),
    "a number as a text": (in_table("messages", text=5), "text is of another type"),
    "a text as a number": (in_table("messages", seq="1; --"), "seq is of another type"),
    "a huge number": (in_table("messages", seq=2**70), "seq is too large"),
    "no value": (in_table("messages", role=None), "role is null"),
    "an unknown role": (in_table("messages", role="root"), "malformed role"),
    "a status of another version": (in_table("sessions", status="paused"), "malformed status"),
    "no JSON": (in_table("sessions", tags="[1"), "malformed tags"),
    "no time": (in_table("sessions", created_at="now"), "malformed created_at"),
    "no valid id": (in_table("sessions", id=""), "thread id"),
    "a lone surrogate": (in_table("sessions", title="\ud800"), "title is not valid UTF-8"),
    "an object": (in_table("sessions", title={"a": 1}), "an object other than bytes"),
    "another state": (in_table("checkpoints", body={"$bytes": "AAAA"}), "is not what was written"),
    "another element": (in_table("list_items", data={"$bytes": "AAAA"}), "is not what was written"),
    "another file": (in_table("files", data={"$bytes": "AAAA"}), "the file is not what was written"),
    "another's memory": (in_table("memories", namespace='["session","bob\'s"]'), "it belongs to no session"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_the_line_and_the_reason(
    name: str, exported: bytes, refusing: list[Sessions], tmp_path: Path
) -> None:
    change, reason = HOSTILE[name]
    *entries, _ = [json.loads(text) for text in exported.splitlines()]
    path = sealed(tmp_path / "t.jsonl", change(entries))
    for target in refusing:
        with pytest.raises((StorageError, SessionExists), match=f"line .*{reason}"):
            target.import_from(path)
        assert [session.id for session in target.list()] == ["bob's"]
        assert target.check(deep=True) == []


# Paths


def test_an_export_replaces_no_database_and_leaves_nothing_half(sessions: Sessions, path: Path, tmp_path: Path) -> None:
    session = sessions.open("t")
    with pytest.raises(StorageError, match="it is a database"):
        session.export(path)
    for kind in ("jsonl", "markdown", "html"):
        with pytest.raises(StorageError, match="folder"):
            session.export(tmp_path, kind)  # type: ignore[arg-type]
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").touch()
    with pytest.raises(StorageError, match="it exists already"):
        session.export(tmp_path / "kept", "folder")
    with pytest.raises(StorageError, match="cannot be written"):
        session.export(tmp_path / "kept" / "mine.txt" / "t.jsonl")
    with pytest.raises(InvalidArgument, match="one of: 'jsonl', 'markdown', 'html', 'folder'"):
        session.export(tmp_path / "t", "pdf")  # type: ignore[arg-type]
    session.export(tmp_path / "t.jsonl")
    session.export(tmp_path / "t.jsonl")  # again
    assert sessions.get("t").id == "t"
    assert not [*tmp_path.rglob("partial.*")]
