"""Whatever it is given that it cannot use, it says so in an error of its own and changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from itertools import product
from math import inf, nan
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import pytest
from click.testing import CliRunner
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.store.sqlite import SqliteStore
from typing_extensions import TypedDict

from session_middleware import (
    InvalidArgument,
    InvalidIdentity,
    InvalidSessionId,
    InvalidSettings,
    SessionAccessDenied,
    Sessions,
    StorageError,
    UnserializableValue,
)
from session_middleware.cli.main import cli
from tests.support import agents
from tests.support.agents import human, said
from tests.support.processes import Process


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and what is in it."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def advises(error: pytest.ExceptionInfo[BaseException]) -> bool:
    """The sentence says what is wrong and, after the semicolon, what to do."""
    problem, _, advice = str(error.value).rpartition("; ")
    return len(problem) > 10 and len(advice) > 10


# Ids

BAD_TEXTS = {"1 MB": "x" * 1_000_000, "NUL": "a\0b", "surrogate": "a\ud800"}
NOT_IDS = {"bool": True, "float": 3.5, "bytes": b"x", "list": ["x"], "dict": {"x": 1}, "object": object()}
BAD_IDS: dict[str, Any] = {"empty": "", **BAD_TEXTS, **NOT_IDS}
BAD_IDENTITIES: dict[str, Any] = {**BAD_TEXTS, **NOT_IDS, "list": [["x"]]}  # of a group; one text in a list is right
ODD_IDS = {
    "sql": "'; DROP TABLE sessions; --",
    "unicode": "\U0001f600 é\u202e",
    "path": "../../etc/passwd",
    "spaces": " \n\t ",
    "long": "x" * 1024,
    "pattern": "%_*?[",
}


async def invoke(graph: Any, config: Any) -> None:
    graph.invoke(human("hi"), config)


async def ainvoke(graph: Any, config: Any) -> None:
    await graph.ainvoke(human("hi"), config)


async def get_state(graph: Any, config: Any) -> None:
    graph.get_state(config)


async def get_state_history(graph: Any, config: Any) -> None:
    list(graph.get_state_history(config))


async def update_state(graph: Any, config: Any) -> None:
    graph.update_state(config, human("hi"))


DOORS = [invoke, ainvoke, get_state, get_state_history, update_state]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
async def test_an_id_no_session_can_have_is_refused_with_one_error(
    door: Any, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    graph = sessions.attach(agents.tool_graph())
    for bad in BAD_IDS.values():
        with pytest.raises(InvalidSessionId) as error:
            await door(graph, {"configurable": {"thread_id": bad}})
        assert advises(error)
        assert len(str(error.value)) < 1000
    assert sessions.count() == 0
    assert caplog.messages == []


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
async def test_an_id_no_user_or_group_can_have_is_refused_with_one_error(
    door: Any, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    graph = sessions.attach(agents.tool_graph())
    for name, bad in product(["user_id", "group_id", "group_ids"], BAD_IDENTITIES.values()):
        with pytest.raises(InvalidIdentity, match=name) as error:
            await door(graph, {"configurable": {"thread_id": "t", name: bad}})
        assert advises(error)
    assert sessions.count() == 0
    assert caplog.messages == []


def test_such_an_owner_is_refused_by_every_method(sessions: Sessions) -> None:
    calls: list[Callable[..., Any]] = [
        *(sessions.open, sessions.config, sessions.for_user, sessions.acting_as),
        *(sessions.forget_user, sessions.revoke, sessions.list_archived),
        *(sessions.usage, sessions.tool_calls, sessions.list, sessions.count),
        lambda user_id: sessions.search("x", user_id=user_id),
    ]
    for call, bad in product(calls, [*BAD_TEXTS.values(), "", True, 3.5, b"x", ["x"], {"x": 1}, object()]):
        with pytest.raises(InvalidIdentity):
            call(user_id=bad)
    for forget in (sessions.forget_user, sessions.revoke):
        with pytest.raises(InvalidIdentity):
            forget(None)  # type: ignore[arg-type]


@pytest.mark.recorder_faults
@pytest.mark.parametrize("name", ["thread_id", "user_id"])
@pytest.mark.parametrize("bad", [True, 3.5, b"x", ["x"], "a\0b"])
async def test_the_recorder_alone_records_no_run_of_such_an_id(name: str, bad: Any, sessions: Sessions) -> None:
    config: Any = {"metadata": {"thread_id": "t", name: bad}, "callbacks": [sessions.recorder]}
    graph = agents.tool_graph()
    graph.invoke(human("hi"), config)
    await graph.ainvoke(human("hi"), config)
    assert sessions.count() == 0
    assert sessions.recorder.faults


@pytest.mark.parametrize("given", [7, UUID(int=7)])
def test_an_id_may_be_a_number_or_a_uuid(given: Any, sessions: Sessions) -> None:
    config: Any = {"configurable": {"thread_id": given, "user_id": given}}
    sessions.attach(agents.tool_graph()).invoke(human("hi"), config)
    session = sessions.for_user(given).get(given)
    assert (session.id, session.user_id) == (str(given), str(given))


def test_an_attached_subgraph_of_a_graph_without_a_thread_runs(sessions: Sessions) -> None:
    outer: Any = StateGraph(MessagesState)
    outer.add_node("inner", sessions.attach(agents.tool_graph()))
    outer.add_edge(START, "inner")
    assert outer.compile().invoke(human("hi"))["messages"][-1].text


def test_such_an_id_is_refused_by_every_method(sessions: Sessions) -> None:
    calls: list[Callable[[str], Any]] = [sessions.open, sessions.config, sessions.get, sessions.find, sessions.delete]
    calls.append(sessions.checkpointer.delete_thread)
    for call, bad in product(calls, BAD_IDS.values()):
        with pytest.raises(InvalidSessionId):
            call(bad)


@pytest.mark.parametrize("door", [invoke, ainvoke], ids=lambda door: door.__name__)
async def test_a_config_without_a_thread_id_says_which_is_missing(door: Any, sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph())
    with pytest.raises(InvalidSessionId, match=r"thread id.*sessions\.config"):
        await door(graph, {"configurable": {"user_id": "alice"}})
    assert sessions.count() == 0


UNNAMED: dict[str, Any] = {"no config": None, "empty": {}, "empty configurable": {"configurable": {}}}


@pytest.mark.parametrize("config", UNNAMED.values(), ids=UNNAMED)
async def test_a_run_or_a_state_without_a_thread_says_what_to_pass(config: Any, sessions: Sessions) -> None:
    graph: Any = sessions.attach(agents.chat())
    update = {"messages": [HumanMessage("x")]}
    attempts: list[Callable[[], Any]] = [
        lambda: graph.invoke(human("hi"), config),
        lambda: list(graph.stream(human("hi"), config)),
        lambda: graph.batch([human("hi")], config),
        lambda: graph.get_state(config),
        lambda: list(graph.get_state_history(config)),
        lambda: graph.update_state(config, update),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidSessionId, match=r"thread id.*sessions\.config") as error:
            attempt()
        assert advises(error)
    for awaited in (
        lambda: graph.ainvoke(human("hi"), config),
        lambda: graph.aget_state(config),
        lambda: graph.aupdate_state(config, update),
    ):
        with pytest.raises(InvalidSessionId, match=r"thread id.*sessions\.config"):
            await awaited()
    assert sessions.count() == 0


def test_a_thread_that_the_graph_itself_names_will_do(sessions: Sessions) -> None:
    graph: Any = sessions.attach(agents.chat().with_config(configurable={"thread_id": "t"}))
    graph.invoke(human("hi"))
    assert graph.get_state({"configurable": {}}).values["messages"]
    assert sessions.find("t") is not None


def test_an_attached_graph_is_a_node_of_another(sessions: Sessions) -> None:
    inner = sessions.attach(agents.chat(), checkpointer=False, store=False)
    outer = StateGraph(agents.MessagesState).add_node("inner", inner).add_edge(START, "inner")
    sessions.attach(outer.compile()).invoke(human("hi"), sessions.config("t"))
    assert said(sessions.get("t")) == [("user", "hi"), ("assistant", "you said hi")]


def test_the_recorder_says_once_that_it_does_not_record_a_run_without_a_thread(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        agents.chat().invoke(human("hi"), {"callbacks": [sessions.recorder]})
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "session_middleware does not record a run without a thread id"
    ]


def test_an_identity_that_cannot_be_kept_is_an_error_of_ours(sessions: Sessions) -> None:
    for name, bad in product(["user_id", "group_id"], [*BAD_IDS.values()][1:]):
        with pytest.raises(InvalidIdentity) as error:
            sessions.open("t", **{name: bad})
        assert advises(error)
    assert sessions.count() == 0


def test_what_is_no_id_is_not_taken_for_its_repr(sessions: Sessions) -> None:
    alice = sessions.for_user("alice")
    doors: list[Any] = [sessions.open, sessions.get, sessions.delete, sessions.config, sessions.explain]
    for door, junk in product([*doors, alice.open, alice.get], [True, b"t", ["t"], {"id": "t"}, 1.5, object()]):
        with pytest.raises(InvalidSessionId, match=f"str, an int or a UUID, and no {type(junk).__name__}") as error:
            door(junk)
        assert advises(error)
    assert sessions.count() == 0


def test_a_number_a_uuid_and_a_session_in_hand_name_a_session(sessions: Sessions) -> None:
    number = UUID(int=7)
    assert [sessions.open(7).id, sessions.open(number).id] == ["7", str(number)]
    session = sessions.for_user("alice").open("t")
    assert sessions.get(session).id == sessions.for_user("alice").get(session).id == "t"
    assert sessions.config(session)["configurable"]["thread_id"] == "t"
    assert sessions.for_user("alice").delete(session).sessions == 1


@pytest.mark.parametrize("odd", ODD_IDS.values(), ids=ODD_IDS)
async def test_any_other_text_is_an_id_like_any(odd: str, sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph())
    sessions.attach(agents.chat()).invoke(human("other"), sessions.config("other"))
    for _ in range(2):
        await graph.ainvoke(human("look up tea"), sessions.config(odd, user_id=odd))
    assert (sessions.get(odd).id, sessions.get(odd).user_id) == (odd, odd)
    assert [role for role, _ in said(sessions.get(odd))] == ["user", "assistant", "tool", "assistant"] * 2
    assert len(graph.get_state(sessions.config(odd, user_id=odd)).values["messages"]) == 8
    assert sessions.delete(odd).messages == 8
    assert [session.id for session in sessions.list()] == ["other"]


@pytest.mark.usefixtures("each_engine")
def test_text_that_no_database_can_hold_is_kept_as_well_as_it_can_be(sessions: Sessions) -> None:
    lone = "a\ud800"
    session = sessions.open("t", title=lone, purpose=lone, tags=[lone], metadata={lone: lone}, context={"k": lone})
    assert (session.title, session.purpose, session.tags) == ("a\ufffd", "a\ufffd", ("a\ufffd",))
    assert [found.id for found in sessions.list(tags=[lone])] == ["t"]


LONE = "look up \ud800"
MESSAGES: dict[str, Any] = {
    "text": HumanMessage(LONE),
    "name": HumanMessage("hi", name="a\ud800"),
    "id": HumanMessage("hi", id="a\ud800"),
    "content": HumanMessage([{"type": "text", "text": LONE}]),
    "NUL": HumanMessage("look up a\0b"),
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
async def test_a_message_that_langgraph_can_keep_never_breaks_a_run(message: Any, sessions: Sessions) -> None:
    theirs, ours = agents.tool_graph(checkpointer=InMemorySaver()), sessions.attach(agents.tool_graph())
    config = sessions.config("t")
    for graph in (theirs, ours):
        graph.invoke({"messages": [message]}, config)
        await graph.ainvoke(human("bye"), config)
    states = [[(m.type, m.content) for m in graph.get_state(config).values["messages"]] for graph in (theirs, ours)]
    assert states[0] == states[1]
    session = sessions.get("t")
    assert [message.role for message in session.messages()] == [_ROLES[kind] for kind, _ in states[1]]
    assert {call.status for call in session.tool_calls()} <= {"ok"}
    assert sessions.recorder.faults == 0


_ROLES = {"human": "user", "ai": "assistant", "tool": "tool"}


# Files


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One that any user can enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp()).resolve()
    path.chmod(0o755)
    monkeypatch.chdir(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Root may write anything; be somebody else while this is in use."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def make_newer(file: Path) -> None:
    Sessions(file).close()
    connection = sqlite3.connect(file)
    row = ("session_middleware", "m999_from_the_future", "")
    connection.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES (?, ?, ?)", row)
    connection.commit()
    connection.close()


def make_langgraphs(file: Path) -> None:
    with SqliteSaver.from_conn_string(str(file)) as saver:
        agents.tool_graph(checkpointer=saver).invoke(human("hi"), {"configurable": {"thread_id": "t"}})


def make_langgraphs_store(file: Path) -> None:
    with SqliteStore.from_conn_string(str(file)) as store:
        store.setup()


def make_other(*tables: str, journal: str = "delete") -> Callable[[Path], None]:
    def make(file: Path) -> None:
        connection = sqlite3.connect(file)
        connection.execute(f"PRAGMA journal_mode={journal}")
        for table in tables:
            connection.execute(f"CREATE TABLE {table if '(' in table else f'{table} (id)'}")
        connection.commit()
        connection.close()

    return make


def make_damaged(file: Path) -> None:
    with Sessions(file) as sessions:
        for number in range(50):
            sessions.open(f"s{number}", title="x" * 1000)
    data = file.read_bytes()
    file.write_bytes(data[:4096] + b"\xff" * 16384 + data[20480:])


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (lambda file: file.write_text("hello " * 1000), "not an SQLite database"),
    "short": (lambda file: file.write_bytes(b"SQLite"), "not an SQLite database"),
    "folder": (lambda file: file.mkdir(), "folder"),
    "newer": (make_newer, "newer.*upgrade"),
    "langgraph's": (make_langgraphs, r"LangGraph's own saver \(tables checkpoints, writes\).*import-checkpoints .*db"),
    "langgraph's store's": (make_langgraphs_store, "another program's tables.*store.*separate file"),
    "another's lists": (make_other("lists"), "another program's tables.*lists.*separate file"),
    "another's blobs": (make_other("notes", "blobs"), "another program's tables.*blobs.*separate file"),
    "another's sessions": (make_other("Sessions"), "another program's tables.*separate file"),
    "another's": (
        make_other(*"abcdefgh"),
        r"another program's tables \(a, b, c, d, e, f and 2 more\).*separate file",
    ),
    "another's in a log": (make_other("notes", journal="wal"), r"another program's tables \(notes\)"),
    "sqlite-utils'": (make_other("_sqlite_migrations (migration_set, name)"), "another program's tables"),
}


@pytest.mark.parametrize(("make", "says"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_file_that_is_not_ours_is_refused_and_not_touched(make: Any, says: str, folder: Path) -> None:
    file = folder / "sessions.db"
    make(file)
    before = contents(folder)
    with pytest.raises(StorageError, match=f"(?i){says}") as error:
        Sessions(file)
    assert str(file) in str(error.value)
    assert advises(error)
    assert contents(folder) == before


def test_a_file_without_tables_becomes_ours_and_tables_may_be_added_to_it(folder: Path) -> None:
    file = folder / "sessions.db"
    make_other("notes")(file)
    change(file, "DROP TABLE notes")
    with Sessions(file) as sessions:
        sessions.open("t")
    change(file, "CREATE TABLE notes (session_id TEXT REFERENCES sessions)")
    with Sessions(file) as sessions:
        assert sessions.get("t").id == "t"


def change(file: Path, sql: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(sql)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("data/", "it is a folder; name a file in it, such as data/sessions.db"),
        ("data", "it is a folder"),
        (".", "it is a folder"),
        ("", "the path is empty; name a file"),
        ("  ", "the path is empty; name a file"),
        ("~no-such-user/x.db", "cannot be looked up"),
        ("a\0b.db", "cannot be looked up"),
        ("x" * 5_000, "cannot be looked up"),
        ("x" * 300, "cannot be looked up"),
        ("/dev/null", "it is a device or a pipe; name a file"),
    ],
)
def test_a_path_that_can_be_no_file_is_an_error_at_once_and_leaves_nothing(
    path: str, says: str, tmp_path: Path
) -> None:
    if path == "data":
        (tmp_path / path).mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StorageError, match=re.escape(says)) as error:
        Sessions(path)
    assert advises(error)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_does_not_exist_is_named_and_not_made(folder: Path) -> None:
    with pytest.raises(StorageError, match=r"folder does not exist.*create"):
        Sessions(folder / "no" / "sessions.db")
    assert contents(folder) == {}


def make_whole(file: Path) -> None:
    with Sessions(file) as sessions:
        sessions.attach(agents.tool_graph()).invoke(human("look up tea"), sessions.config("t", user_id="ada"))
        session = sessions.get("t")
        session.memory.remember("Ada drinks tea")
        for number in range(300):  # more than are left out of the index for long
            session.add({"role": "user", "content": f"word {number}"})
        sessions.store.put(("app",), "key", {"a": 1}, ttl=60)


PROTECTED = {"the file and its folder": (0o444, 0o555), "the folder": (0o644, 0o555), "the file": (0o444, 0o755)}


@pytest.fixture(params=PROTECTED.values(), ids=PROTECTED)
def protected(folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A database that may be read and not written, where another user's file or folder, or both, are in the way."""
    file = folder / "sessions.db"
    make_whole(file)
    file.chmod(request.param[0])
    folder.chmod(request.param[1])
    yield file
    folder.chmod(0o755)


def everything(sessions: Sessions) -> list[Any]:
    session, graph = sessions.get("t"), sessions.attach(agents.tool_graph())
    return [
        [each.id for each in sessions.list()],
        session.messages(),
        session.tool_calls(),
        session.timeline(),
        session.stats(),
        [memory.text for memory in session.memory.recall("tea")],
        [memory.text for memory in session.memory.recall("word 7", 1)],
        sessions.store.get(("app",), "key"),
        graph.get_state(sessions.config("t", user_id="ada")),
        list(graph.get_state_history(sessions.config("t", user_id="ada"))),
    ]


def test_what_may_only_be_read_is_read(protected: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    with Sessions(shutil.copy(protected, folder.parent / f"{folder.name}.db")) as sessions:
        expected = everything(sessions)
    before = contents(folder)
    request.getfixturevalue("ordinary_user")
    with Sessions(protected) as sessions:
        assert everything(sessions) == expected
        with pytest.raises(SessionAccessDenied):
            sessions.checkpointer.get_tuple(sessions.config("t", user_id="eve"))
    assert contents(folder) == before
    for command in (["list"], ["show", "t"], ["explain", "t"], ["check"], ["sweep", "--dry-run"]):
        result = CliRunner().invoke(cli, [*command, "--db", str(protected)])
        assert result.exit_code == 0, result.output
    assert contents(folder) == before


def test_writing_to_what_may_only_be_read_says_so(protected: Path, folder: Path, ordinary_user: None) -> None:
    before = contents(folder)
    with Sessions(protected) as sessions:
        graph = sessions.attach(agents.tool_graph())
        for write in (
            lambda: sessions.open("new"),
            lambda: sessions.get("t").update(title="x"),
            lambda: graph.invoke(human("more"), sessions.config("t", user_id="ada")),
            lambda: sessions.checkpointer.delete_thread("t"),
            sessions.sweep,
        ):
            with pytest.raises(StorageError, match="may not be written to by this process") as error:
                write()
            assert str(protected) in str(error.value)
            assert advises(error)
        assert graph.get_state(sessions.config("t", user_id="ada")).values
    assert contents(folder) == before


async def test_writing_to_what_may_only_be_read_says_so_on_a_loop(protected: Path, ordinary_user: None) -> None:
    async with Sessions(protected) as sessions:
        graph = sessions.attach(agents.tool_graph())
        with pytest.raises(StorageError, match="may not be written to by this process"):
            await graph.ainvoke(human("more"), sessions.config("t", user_id="ada"))
        assert (await graph.aget_state(sessions.config("t", user_id="ada"))).values


_READ = """
import os, sys
from session_middleware import Sessions
if os.geteuid() == 0:
    os.seteuid(65534)
with Sessions(sys.argv[1]) as sessions:
    for _ in sys.stdin:
        print(sorted(session.id for session in sessions.list()), flush=True)
"""


def test_what_may_only_be_read_is_read_as_it_is_now(folder: Path) -> None:
    """Its owner writes to it meanwhile, and closes it or does not."""
    file = folder / "sessions.db"
    Sessions(file).close()
    file.chmod(0o444)
    with Process("-c", _READ, file, stdin=True) as reader:
        for number in range(3):
            file.chmod(0o644)  # who is not root may write to it only so
            with Sessions(file) as owner:
                file.chmod(0o444)
                owner.open(f"s{number}")
                told = []
                for _ in range(2):
                    reader.say("")
                    told.append(reader.stdout.readline().strip())
                    owner.close()
            assert told == [str([f"s{n}" for n in range(number + 1)])] * 2


def test_a_log_that_cannot_be_read_is_named(folder: Path, request: pytest.FixtureRequest) -> None:
    file = folder / "sessions.db"
    with Sessions(file) as sessions:
        sessions.open("t")
        for suffix in ("", "-wal"):
            shutil.copy(f"{file}{suffix}", folder / f"copy.db{suffix}")
    folder.chmod(0o555)
    (folder / "copy.db").chmod(0o444)
    request.getfixturevalue("ordinary_user")
    with pytest.raises(StorageError, match=r"write-ahead log.*copy it, with copy\.db-wal"):
        Sessions(folder / "copy.db")


def test_no_file_can_be_made_where_nothing_may_be_written(folder: Path, ordinary_user: None) -> None:
    with pytest.raises(StorageError, match="may be written to"):
        Sessions(folder / "new.db")
    assert contents(folder) == {}


def test_a_damaged_database_is_an_error_of_ours(folder: Path) -> None:
    file = folder / "sessions.db"
    make_damaged(file)
    with pytest.raises(StorageError, match=r"damaged.*backup"), Sessions(file) as sessions:
        sessions.list(limit=None)


async def test_a_door_that_was_closed_says_so_and_starts_no_thread(folder: Path) -> None:
    before = set(threading.enumerate())
    sessions = Sessions(folder / "sessions.db")
    graph = sessions.attach(agents.chat())
    await graph.ainvoke(human("hi"), sessions.config("t"))
    sessions.close()
    sessions.close()
    for call in (lambda: sessions.open("t"), sessions.list, lambda: graph.invoke(human("hi"), sessions.config("t"))):
        with pytest.raises(StorageError, match=r"closed; open it again"):
            call()
    with pytest.raises(StorageError, match=r"closed; open it again"):
        await graph.ainvoke(human("hi"), sessions.config("t"))
    assert not [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("session-")]


# Settings

BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"idle_timout": "30m"}, "idle_timout.*idle_timeout"),
    "no duration": ({"idle_timeout": "soon"}, r"idle_timeout.*soon.*30s"),
    "negative": ({"idle_timeout": -5}, "idle_timeout"),
    "truth": ({"idle_timeout": True}, "idle_timeout"),
    "endless": ({"idle_timeout": float("inf")}, "idle_timeout"),
    "huge": ({"idle_timeout": "99999999999999d"}, "idle_timeout"),
    "choice": ({"on_resume": "maybe"}, "on_resume.*revive"),
    "scheme": ({"storage_url": "mysql://host/db"}, "storage_url.*mysql"),
    "two": ({"on_resume": "maybe", "on_expire": "maybe"}, "on_resume.*on_expire|on_expire.*on_resume"),
}


@pytest.mark.parametrize(("given", "says"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_cannot_be_used_are_named(given: dict[str, Any], says: str, folder: Path) -> None:
    with pytest.raises(InvalidSettings, match=says) as error:
        Sessions(**({"storage_url": folder / "sessions.db"} | given))
    assert advises(error)
    assert contents(folder) == {}


def test_a_variable_that_cannot_be_used_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_IDLE_TIMEOUT", "soon")
    with pytest.raises(InvalidSettings, match=r"idle_timeout.*SESSION_"):
        Sessions(folder / "sessions.db")
    assert contents(folder) == {}


# Arguments

BAD_DETAILS: dict[str, tuple[dict[str, Any], str]] = {
    "visibility": ({"visibility": "public"}, "visibility cannot be 'public'; .*'group-write'"),
    "on_expire": ({"on_expire": "foo"}, "on_expire cannot be 'foo'; .*'archive'"),
    "on_resume": ({"on_resume": 3}, "on_resume cannot be 3; .*'revive'"),
    "tags": ({"tags": [1]}, r"tags cannot be \[1\]; .*texts"),
    "tag": ({"tags": 1}, "tags cannot be 1; .*texts"),
    "title": ({"title": 5}, "title cannot be 5; .*text"),
    "long title": ({"title": "x" * 1_000_000}, "title cannot be 'xxx.*1,024 characters"),
    "long purpose": ({"purpose": "x" * 1_025}, "purpose cannot be 'xxx.*1,024 characters"),
    "long tag": ({"tags": ["ok", "x" * 5_000]}, "tags cannot be .*xxx.*1,024 characters"),
    "empty tag": ({"tags": [""]}, r"tags cannot be \[''\]; .*1,024 characters"),
    "many tags": ({"tags": [str(n) for n in range(101)]}, "at most 100 texts"),
    "metadata": ({"metadata": "abc"}, "metadata cannot be 'abc'; .*dict"),
    "keys": ({"context": {1: 2}}, r"context cannot be \{1: 2\}; .*dict"),
    "nobody's group": ({"visibility": "group"}, "visibility cannot be 'group'; .*group_id"),
    "duration": ({"idle_timeout": "soon"}, "idle_timeout cannot be 'soon'; .*'30s'"),
    "negative": ({"max_age": -1}, "max_age cannot be -1; .*longer than zero"),
    "truth": ({"retention": True}, "retention cannot be True; .*duration"),
}


def test_what_cannot_be_said_of_a_session_is_named_and_nothing_is_written(sessions: Sessions) -> None:
    there = sessions.open("there", title="old")
    for given, says in BAD_DETAILS.values():
        for change in (partial(sessions.open, "new", **given), partial(there.update, **{"purpose": "new"} | given)):
            with pytest.raises(InvalidArgument, match=says) as error:
                change()
            assert advises(error)
            assert "Sessions(" not in str(error.value)
    assert sessions.find("new") is None
    assert dict(sessions.get("there")) == dict(there)


MADE_WRONGLY: dict[str, tuple[dict[str, Any], str]] = {
    "storage_url": ({"storage_url": 5}, "storage_url cannot be 5; .*a path"),
    "clock": ({"clock": 5}, "clock cannot be 5; .*a function"),
    "clock without a zone": ({"clock": lambda: datetime(2026, 1, 1)}, "clock cannot be .*time zone"),
    "clock in seconds": ({"clock": time.time}, "clock cannot be .*time zone"),
    "new_id": ({"new_id": "x"}, "new_id cannot be 'x'; .*a function"),
    "serde": ({"serde": "x"}, "serde cannot be 'x'; .*EncryptedSerializer"),
    "allowed_types": ({"allowed_types": dict}, "allowed_types cannot be .*a list of classes"),
    "allowed names": ({"allowed_types": ["app.MyType"]}, "allowed_types cannot be .*a list of classes"),
}


def test_what_sessions_cannot_be_made_with_is_named_and_no_file_is_made(tmp_path: Path) -> None:
    for given, says in MADE_WRONGLY.values():
        with pytest.raises(InvalidArgument, match=says) as error:
            Sessions(**({"storage_url": tmp_path / "sessions.db"} | given))
        assert advises(error)
    assert list(tmp_path.iterdir()) == []


NO_DURATIONS: list[Any] = ["soon", "-5m", "", 0, -1, nan, inf, 1e300, True, [], timedelta(0), timedelta(days=99_999)]
ASKED_WRONGLY: dict[str, tuple[Callable[[Sessions, Any], Any], str]] = {
    "if_exists": (lambda sessions, _: sessions.open("new", if_exists="foo"), "if_exists.*'resume', 'raise'"),
    "after an id": (lambda sessions, _: sessions.list(after="a7"), "after.*last session"),
    "limit": (lambda sessions, _: sessions.list(limit=-1), "limit cannot be -1; .*0 or more"),
    "listed tags": (lambda sessions, _: sessions.count(tags=[1]), "tags"),
    "since": (lambda sessions, _: sessions.list(since="7d"), "since cannot be '7d'; .*time zone"),
    "until": (lambda sessions, _: sessions.count(until=datetime(2026, 1, 1)), "until cannot be .*time zone"),
    "usage since": (lambda sessions, _: sessions.usage(since=5), "since cannot be 5"),
    "now": (lambda sessions, _: sessions.sweep(now="2026-01-01"), "now cannot be '2026-01-01'"),
    "hook": (lambda sessions, _: sessions.on_closed(5), "hook cannot be 5; .*a function"),
    "calls": (lambda sessions, _: sessions.tool_calls(status="foo"), "status cannot be 'foo'; .*'running', 'ok'"),
    "calls after": (lambda sessions, _: sessions.tool_calls(after="c1"), "after.*last tool call"),
    "calls limit": (lambda sessions, _: sessions.tool_calls(limit=-1), "limit"),
    "older_than": (lambda sessions, _: sessions.sweep(older_than="soon"), "older_than cannot be 'soon'; .*'12h'"),
    "never older": (lambda sessions, _: sessions.sweep(older_than="never"), "older_than cannot be 'never'"),
    "status": (lambda sessions, _: sessions.sweep(status="expired"), "status cannot be 'expired'; .*older_than"),
    "branch": (lambda _, session: session.messages(branch="nope"), "branch cannot be 'nope'; .*'main', 'all'"),
    "page": (lambda _, session: session.runs(limit=-1), "limit cannot be -1"),
    "page after": (lambda _, session: session.events(after="m1"), "after cannot be 'm1'; .*seq"),
    "page after all": (lambda _, session: session.messages(after=10**30), "after cannot be 10+.*seq"),
    "page of all": (lambda _, session: session.messages(limit=10**30), "limit cannot be 10+.*None for all"),
    "follow after": (lambda _, session: session.follow(after="m1"), "after cannot be 'm1'; .*seq"),
    "follow after all": (lambda _, session: session.follow(after=10**30), "after cannot be 10+.*seq"),
    "timeout": (lambda _, session: session.follow(timeout="soon"), "timeout cannot be 'soon'"),
    "failure": (lambda _, session: session.fail(5), "error cannot be 5; .*an exception"),
    "detail": (lambda _, session: session.complete(detail="x"), "detail cannot be 'x'; .*a dict"),
    "reason": (lambda _, session: session.abandon(reason=5), "reason cannot be 5; .*a text"),
    "revoked": (lambda sessions, _: sessions.revoke("alice", reason=["x"]), "reason cannot be"),
    "pin": (lambda _, session: session.pin(by=5), "by cannot be 5"),
    "until true": (lambda _, session: session.follow(until=5), "until cannot be 5; .*a function"),
    "resource": (lambda _, session: session.resource("x", open=5), "open cannot be 5; .*a function"),
    "resource's name": (lambda _, session: session.resource(["x"], open=dict), "name cannot be"),
    "resource's end": (lambda _, session: session.resource("x", open=dict, close=5), "close cannot be 5"),
    "template": (lambda _, session: session.path(5), "template cannot be 5"),
    "message": (lambda _, session: session.delete_message(5), "message_id cannot be 5; .*the id of a message"),
    "file": (lambda _, session: session.file(5), "hash cannot be 5"),
    "tool": (lambda sessions, _: sessions.tool_calls(name=5), "name cannot be 5"),
    **{
        f"idle_timeout {value!r:.9}": (
            lambda _, session, value=value: session.update(idle_timeout=value),
            "idle_timeout cannot be .*; give a duration",
        )
        for value in NO_DURATIONS
    },
    **{
        f"older than {value!r:.9}": (
            lambda sessions, _, value=value: sessions.sweep(older_than=value),
            "older_than cannot be .*; give a duration",
        )
        for value in NO_DURATIONS
    },
    "outcome": (lambda _, session: session.record_tool("t", status="running"), "status cannot be 'running'; .*'ok'"),
}


def test_what_cannot_be_asked_is_named_with_what_can(sessions: Sessions) -> None:
    session = sessions.open("t")
    for ask, says in ASKED_WRONGLY.values():
        with pytest.raises(InvalidArgument, match=says) as error:
            ask(sessions, session)
        assert advises(error)
    assert [event.kind for event in session.events()] == ["opened"]
    assert (sessions.count(), session.tool_calls()) == (1, [])


def test_the_first_and_the_last_moment_there_are_are_moments_of_all_time(sessions: Sessions) -> None:
    sessions.open("t").record_model_call("m")
    for zone in (UTC, timezone(timedelta(hours=5)), timezone(timedelta(hours=-5))):
        ever = {"since": datetime.min.replace(tzinfo=zone), "until": datetime.max.replace(tzinfo=zone)}
        assert [session.id for session in sessions.list(**ever)] == ["t"]
        assert [usage.calls for usage in sessions.usage("session", **ever)] == [1]
        assert sessions.tool_calls(**ever) == []
        assert sessions.sweep(ever["since"]) == []
        assert [due.session_id for due in sessions.sweep(ever["until"], dry_run=True)] == ["t"]


def test_a_single_text_is_one_thread_to_prune(sessions: Sessions) -> None:
    for session_id in ("ab", "a", "b"):
        sessions.open(session_id)
    sessions.checkpointer.prune("ab", strategy="delete")  # type: ignore[arg-type]
    assert sorted(session.id for session in sessions.list()) == ["a", "b"]


def test_a_single_text_is_one_tag_and_one_group(sessions: Sessions) -> None:
    assert sessions.open("t", tags="urgent").tags == ("urgent",)
    assert sessions.get("t").update(tags="done").tags == ("done",)
    assert [session.id for session in sessions.list(tags="done")] == ["t"]
    assert sessions.count(tags="x") == 0
    assert sessions.for_user("u", "team").identity.group_ids == ("team",)
    assert sessions.config("t", user_id="u", group_ids="team")["configurable"]["group_ids"] == ["team"]


# State


class Odd(TypedDict):
    messages: Annotated[list[Any], agents.add_messages]
    things: Any


def returning(things: Any) -> Any:
    node = lambda state: {"things": things, "messages": [AIMessage("done")]}  # noqa: E731
    return StateGraph(Odd).add_node("node", node).add_edge(START, "node").compile()


UNSTORABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "lock": (threading.Lock, r"state\.things\b.*lock"),
    "function": (lambda: {"a": [1, lambda: 1]}, r"state\.things\['a'\]\[1\].*function"),
    "file": (lambda: [{"f": open(os.devnull)}], r"state\.things\[0\]\['f'\]"),  # noqa: SIM115, PTH123
    "integer": (lambda: {"n": 2**80}, r"state\.things\['n'\]"),
    "model": (lambda: [agents.Place({"x": threading.Lock()})], r"state\.things\[0\]\.name\['x'\]: a _thread\.lock"),
    "class": (lambda: {"p": agents.Place}, r"state\.things\['p'\].*Place is a class"),
}


def test_the_culprit_of_an_input_is_named_as_its_user_knows_it(sessions: Sessions) -> None:
    graph = sessions.attach(returning(None))
    for things, says in (
        ([{"k": threading.Lock()}], r"input\.things\[0\]\['k'\]: a _thread\.lock"),
        ({"k": (1, 2**80)}, r"input\.things\['k'\]\[1\]: an int "),
        (2**80, r"input\.things: an int "),
    ):
        with pytest.raises(UnserializableValue, match=f"^{says}"):
            graph.invoke({**human("hi"), "things": things}, sessions.config())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(("make", "says"), UNSTORABLE.values(), ids=UNSTORABLE)
async def test_a_value_that_cannot_be_stored_is_named_with_its_channel_and_path(
    make: Any, says: str, sessions: Sessions
) -> None:
    graph = sessions.attach(returning(make()))
    for durability in ("sync", "async", "exit"):
        with pytest.raises(UnserializableValue, match=says) as error:
            graph.invoke(human("hi"), sessions.config("t"), durability=durability)
        assert advises(error)
        with pytest.raises(UnserializableValue, match=says):
            await graph.ainvoke(human("hi"), sessions.config("t"), durability=durability)
    assert {run.outcome for run in sessions.get("t").runs()} == {"error"}
    state = graph.get_state(sessions.config("t")).values
    assert "things" not in state
    sessions.attach(agents.chat()).invoke(human("go on"), sessions.config("t"))
    assert sessions.recorder.faults == 0


def test_with_strict_types_an_unlisted_type_is_refused_when_it_is_put(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db", strict_types=True) as sessions:
        graph = sessions.attach(returning({"p": agents.Place("here")}))
        with pytest.raises(UnserializableValue, match=r"state\.things\['p'\].*Place.*allowed_types=\[Place\]") as error:
            graph.invoke(human("hi"), sessions.config("t"))
        assert advises(error)


def test_with_strict_types_a_type_is_refused_when_the_checkpointer_is_used_alone_until_it_is_allowed(
    tmp_path: Path,
) -> None:
    file = tmp_path / "sessions.db"
    with Sessions(file, strict_types=True) as sessions:
        graph = agents.typed_graph(checkpointer=sessions.checkpointer)
        with pytest.raises(UnserializableValue, match=r"state\.(place|plans).*allowed_types=\[(Place|Plan)\]"):
            graph.invoke(human("rome"), sessions.config("t"))
    with Sessions(file, strict_types=True, allowed_types=[agents.Place, agents.Plan]) as sessions:
        graph = agents.typed_graph(checkpointer=sessions.checkpointer)
        for _ in range(2):
            graph.invoke(human("rome"), sessions.config("u"))
        values = graph.get_state(sessions.config("u")).values
        assert (values["place"], values["plans"]) == (agents.Place("rome", 2), [agents.Plan(steps=["rome"])] * 2)


def test_with_strict_types_those_that_the_schema_names_are_allowed_by_attaching(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db", strict_types=True) as sessions:
        graph = sessions.attach(agents.typed_graph())
        for _ in range(2):
            graph.invoke(human("rome"), sessions.config("t"))
        values = graph.get_state(sessions.config("t")).values
        assert (values["place"], values["plans"]) == (agents.Place("rome", 2), [agents.Plan(steps=["rome"])] * 2)
        other = agents.typed_graph(checkpointer=sessions.checkpointer)
        with pytest.raises(UnserializableValue, match="allowed_types"):
            other.get_state(sessions.config("t"))
