"""Moving in from LangGraph's own savers: databases made by running graphs, and what is there afterwards."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command

from session_middleware import Sessions
from session_middleware.cli.main import cli
from session_middleware.errors import StorageError
from session_middleware.importers.langgraph import Imported, import_checkpoints
from session_middleware.importers.langgraph_source import open_source
from tests.support import agents
from tests.support.postgres import Server

Call = Callable[..., Result]
THREADS = {  # a graph, and what is said in its thread
    "chat": (agents.chat, ["hello", "how are you"]),
    "tools": (agents.tool_graph, ["look up tea", "both tea", "fail tea"]),
    "agent": (agents.agent, ["look up tea"]),
    "shared": (agents.shared_subgraph, ["look up tea"]),
    "own": (agents.own_subgraph, ["begin"]),
    "fan": (agents.fan_out, ["three of them"]),
    "parallel": (agents.parallel, ["go"]),
    "asking": (agents.approval, ["please"]),
    "essay": (lambda: agents.own_subgraph(asks=True), ["begin"]),
}


def config(thread: str, **configurable: Any) -> Any:
    return {"configurable": {"thread_id": thread, **configurable}}


@contextmanager
def saving(path: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver.from_conn_string(str(path)) as saver:
        yield saver


def on(saver: Any, graph: Any) -> Any:
    return graph.copy(update={"checkpointer": saver})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as it is found: several graphs, pending interrupts, a fork."""
    path = tmp_path_factory.mktemp("found") / "checkpoints.sqlite"
    with saving(path) as saver:
        for thread, (build, texts) in THREADS.items():
            graph = on(saver, build())
            for text in texts:
                graph.invoke(agents.human(text), config(thread))
        graph = on(saver, agents.chat())
        earlier = list(graph.get_state_history(config("chat")))[3].config
        graph.invoke(agents.human("another way"), earlier)
        graph.update_state(config("chat"), {"messages": [AIMessage("put in by hand", id="by-hand")]})
    return path


@pytest.fixture
def source(found: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(found.parent, tmp_path / "there")) / found.name


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture(scope="module")
def moved_once(found: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("moved") / "sessions.db"
    move(found, path)
    return path


@pytest.fixture
def moved(moved_once: Path, db: Path) -> Path:
    """A database into which all of it has been moved."""
    return Path(shutil.copy(moved_once, db))


@pytest.fixture
def call() -> Call:
    return lambda *arguments: CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)


def move(source: Path, db: Path, **options: Any) -> Imported:
    with open_source(str(source)) as saver, Sessions(db) as sessions:
        return import_checkpoints(saver, sessions, **options)


def everything(saver: Any, thread: str | None = None) -> dict[Any, Any]:
    """All that a saver tells of its checkpoints, by their keys."""
    found = {}
    for one in saver.list(config(thread) if thread else None):
        conf, parent = one.config["configurable"], one.parent_config
        found[conf["thread_id"], conf["checkpoint_ns"], conf["checkpoint_id"]] = (
            one.checkpoint,
            one.metadata,
            parent and parent["configurable"]["checkpoint_id"],
            one.pending_writes,
        )
    return found


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


# What is there afterwards


def test_every_checkpoint_of_every_namespace_is_there_and_equal(source: Path, db: Path) -> None:
    imported = move(source, db)
    with saving(source) as saver, Sessions(db) as sessions:
        theirs = everything(saver)
        assert everything(sessions.checkpointer) == theirs
    assert {namespace for _, namespace, _ in theirs} > {""}
    assert imported.checkpoints == len(theirs)
    assert imported.writes == sum(len(writes) for *_, writes in theirs.values())
    assert (imported.threads, imported.skipped, imported.not_copied) == (len(THREADS), 0, [])


def test_writes_keep_the_paths_of_their_tasks(source: Path, db: Path) -> None:
    move(source, db)
    found = []
    for path, thread in ((source, "thread_id"), (db, "session_id")):
        sql = f"SELECT DISTINCT {thread}, checkpoint_ns, checkpoint_id, task_id, task_path FROM writes"
        with closing(sqlite3.connect(path)) as connection:
            found.append(set(connection.execute(sql)))
    assert found[0] == found[1]
    assert any(row[-1] for row in found[0])


@pytest.mark.parametrize("thread", THREADS)
def test_state_and_history_are_the_same_through_the_graph(source: Path, moved: Path, thread: str) -> None:
    graph = THREADS[thread][0]()
    with saving(source) as saver, Sessions(moved) as sessions:
        before, after = on(saver, graph), on(sessions.checkpointer, graph)
        for one, other in zip(
            [before.get_state(config(thread), subgraphs=True), *before.get_state_history(config(thread))],
            [after.get_state(config(thread), subgraphs=True), *after.get_state_history(config(thread))],
            strict=True,
        ):
            assert (one.values, one.next, one.metadata, one.created_at) == (
                other.values,
                other.next,
                other.metadata,
                other.created_at,
            )
            assert [(t.id, t.name, t.interrupts, t.error) for t in one.tasks] == [
                (t.id, t.name, t.interrupts, t.error) for t in other.tasks
            ]


@pytest.mark.parametrize("thread", ["chat", "tools", "agent", "shared", "own", "fan", "parallel"])
def test_a_conversation_goes_on(moved: Path, thread: str) -> None:
    with Sessions(moved) as sessions:
        graph = sessions.attach(THREADS[thread][0]())
        before = graph.get_state(config(thread)).values["messages"]
        graph.invoke(agents.human("and now"), config(thread))
        after = graph.get_state(config(thread)).values["messages"]
        assert after[: len(before)] == before
        assert len(after) > len(before) + 1
        versions = sessions.checkpointer.get_tuple(config(thread)).checkpoint["channel_versions"]
        assert {type(version) for version in versions.values()} == {str}


@pytest.mark.parametrize(("thread", "answer", "last"), [("asking", "yes", "approved: yes"), ("essay", "?", "begin?")])
def test_a_pending_interrupt_is_answered_here(moved: Path, thread: str, answer: str, last: str) -> None:
    with Sessions(moved) as sessions:
        graph = sessions.attach(THREADS[thread][0]())
        assert graph.get_state(config(thread)).interrupts
        assert len(sessions.get(thread).waiting_for()) == sessions.get(thread).waiting_count == 1
        result = graph.invoke(Command(resume=answer), config(thread))
        assert result["messages"][-1].text == last
        assert not graph.get_state(config(thread)).next
        assert [one.answer for one in sessions.get(thread).questions()] == [answer]


# The record


@pytest.mark.parametrize("thread", [name for name in THREADS if name != "chat"])
def test_the_record_has_each_message_once_and_in_order(moved: Path, thread: str) -> None:
    with Sessions(moved) as sessions:
        state = on(sessions.checkpointer, THREADS[thread][0]()).get_state(config(thread)).values["messages"]
        assert [message.message_id for message in sessions.get(thread).messages()] == [message.id for message in state]


def test_the_record_of_a_fork_has_both_ways(moved: Path) -> None:
    with Sessions(moved) as sessions:
        session = sessions.get("chat")
        texts = {branch: [m.text for m in session.messages(branch=branch)] for branch in (None, "main")}
    assert texts == {
        None: ["hello", "you said hello", "another way", "you said another way", "put in by hand"],
        "main": ["hello", "you said hello", "how are you", "you said how are you"],
    }


def test_edits_and_removals_are_recorded_as_they_were(tmp_path: Path, db: Path) -> None:
    source = tmp_path / "edited.sqlite"
    with saving(source) as saver:
        graph = on(saver, agents.chat())
        graph.invoke(agents.human("hello", id="h1"), config("t"))
        graph.update_state(config("t"), {"messages": [HumanMessage("hullo", id="h1")]})
        graph.invoke(agents.human("more", id="h2"), config("t"))
        graph.update_state(config("t"), {"messages": [RemoveMessage(id="h2")]})
    move(source, db)
    with Sessions(db) as sessions:
        said = [(message.message_id, message.text) for message in sessions.get("t").messages()]
        versions = [message.text for message in sessions.get("t").messages(all_versions=True)]
    assert ("h1", "hullo") in said
    assert ("h1", "hello") not in said
    assert versions.count("hello") == versions.count("hullo") == versions.count("more") == 1


def test_a_session_opens_once(moved: Path) -> None:
    with Sessions(moved) as sessions:
        for session in sessions.list():
            assert [event.kind for event in session.events()] == ["opened"]
            assert (session.status, session.run_count) == ("active", 0)


def dated(source: Path, *years: int) -> None:
    """Two turns of a conversation, each said in a year of its own."""
    with saving(source) as saver:
        for year in years:
            on(saver, agents.chat()).invoke(agents.human(f"in {year}"), config("t"))
            for row in saver.conn.execute("SELECT checkpoint_id, type, checkpoint FROM checkpoints").fetchall():
                checkpoint = saver.serde.loads_typed((row[1], row[2]))
                if checkpoint["ts"] > "2026":
                    checkpoint["ts"] = f"{year}-03-01T10:00:00+00:00"
                    kind, body = saver.serde.dumps_typed(checkpoint)
                    saver.conn.execute(
                        "UPDATE checkpoints SET type = ?, checkpoint = ? WHERE checkpoint_id = ?", (kind, body, row[0])
                    )
        saver.conn.commit()


def test_sessions_and_messages_have_the_times_of_their_checkpoints(tmp_path: Path, db: Path) -> None:
    source = tmp_path / "old.sqlite"
    dated(source, 2021, 2023)
    move(source, db)
    with Sessions(db, idle_timeout=None) as sessions:
        session = sessions.get("t")
        assert [m.created_at.year for m in session.messages()] == [2021, 2021, 2023, 2023]
        assert (session.created_at.year, session.last_active_at.year) == (2021, 2023)
        assert [(e.kind, e.created_at.year) for e in session.events()] == [("opened", 2021)]
        sessions.attach(agents.chat()).invoke(agents.human("today"), sessions.config("t"))
        assert sessions.get("t").last_active_at.year == session.messages()[-1].created_at.year > 2023


def test_an_old_thread_is_brought_up_to_date_as_of_when_it_went_on(tmp_path: Path, db: Path) -> None:
    source = tmp_path / "old.sqlite"
    dated(source, 2021)
    move(source, db)
    dated(source, 2022)
    move(source, db)
    with Sessions(db) as sessions:
        session = sessions.get("t")
        assert (session.status, session.last_active_at.year, session.message_count) == ("expired", 2022, 4)
        assert [(e.kind, e.created_at.year) for e in session.events()] == [("opened", 2021), ("revived", 2022)]


# Again


def test_again_skips_all_and_changes_nothing(source: Path, db: Path) -> None:
    first = move(source, db)
    with Sessions(db) as sessions:
        before = [(session.last_active_at, session.events()) for session in sessions.list()]
    again = move(source, db)
    assert (again.checkpoints, again.writes, again.skipped) == (0, 0, first.checkpoints)
    with Sessions(db) as sessions:
        assert [(session.last_active_at, session.events()) for session in sessions.list()] == before


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("reached", [1, 7, 40])
def test_an_import_that_was_cut_off_goes_on(source: Path, db: Path, reached: int) -> None:
    def stop(done: int, total: int) -> None:
        if done == reached:
            raise Stopped

    with pytest.raises(Stopped):
        move(source, db, progress=stop)
    again = move(source, db)
    with saving(source) as saver, Sessions(db) as sessions:
        theirs = everything(saver)
        assert everything(sessions.checkpointer) == theirs
        for session in sessions.list():
            ids = [message.message_id for message in session.messages()]
            assert len(set(ids)) == len(ids)
    assert (again.skipped, again.checkpoints, again.not_copied) == (reached, len(theirs) - reached, [])


def test_cut_off_between_writes_and_their_checkpoint_it_goes_on(source: Path, db: Path) -> None:
    with open_source(str(source)) as saver, Sessions(db) as sessions:
        one = next(one for one in saver.list(config("asking", checkpoint_ns="")) if one.pending_writes)
        assert one.pending_writes
        task_id, channel, value = one.pending_writes[0]
        sessions.checkpointer.put_writes(one.config, [(channel, value)], task_id)
    assert move(source, db).not_copied == []


def test_a_thread_that_went_on_in_the_source_is_brought_up_to_date(source: Path, db: Path) -> None:
    move(source, db)
    with saving(source) as saver:
        on(saver, agents.approval()).invoke(Command(resume="yes"), config("asking"))
        on(saver, agents.chat()).invoke(agents.human("more"), config("chat"))
    again = move(source, db)
    assert again.not_copied == []
    assert again.checkpoints > 2
    with saving(source) as saver, Sessions(db) as sessions:
        assert everything(sessions.checkpointer) == everything(saver)


def test_a_thread_that_went_on_here_is_left_as_it_is(source: Path, db: Path) -> None:
    move(source, db)
    with Sessions(db) as sessions:
        sessions.attach(agents.approval()).invoke(Command(resume="yes"), config("asking"))
        before = everything(sessions.checkpointer, "asking")
    assert move(source, db).not_copied == []
    with Sessions(db) as sessions:
        assert everything(sessions.checkpointer, "asking") == before


def test_a_thread_that_went_on_in_both_is_named_and_not_touched(source: Path, db: Path) -> None:
    move(source, db)
    with saving(source) as saver:
        on(saver, agents.chat()).invoke(agents.human("there"), config("chat"))
    with Sessions(db) as sessions:
        sessions.attach(agents.chat()).invoke(agents.human("here"), config("chat"))
        before = everything(sessions.checkpointer)
    [left] = move(source, db).not_copied
    assert left.thread_id == "chat"
    assert "checkpoints that the source does not have" in left.reason
    with Sessions(db) as sessions:
        assert everything(sessions.checkpointer) == before


def test_a_thread_with_other_content_is_named_and_not_overwritten(source: Path, db: Path, tmp_path: Path) -> None:
    move(source, db)
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("UPDATE checkpoints SET metadata = '{\"step\": 99}' WHERE thread_id = 'own'")
    [left] = move(source, db).not_copied
    assert left.thread_id == "own"
    assert "another metadata" in left.reason
    assert "not overwritten" in left.reason


def test_a_session_of_its_own_with_the_same_id_is_not_mixed_in(source: Path, db: Path) -> None:
    with Sessions(db) as sessions:
        sessions.attach(agents.chat()).invoke(agents.human("mine"), config("chat"))
    [left] = move(source, db).not_copied
    assert left.thread_id == "chat"
    with Sessions(db) as sessions:
        assert [message.text for message in sessions.get("chat").messages()] == ["mine", "you said mine"]


# Owners


def test_the_user_key_names_the_owners(tmp_path: Path, db: Path) -> None:
    source = tmp_path / "users.sqlite"
    with saving(source) as saver:
        graph = on(saver, agents.chat())
        for thread, users in {"a": ["ada"], "b": ["bob", "bob"], "c": ["cy", "di"], "n": [None]}.items():
            for user in users:
                graph.invoke(agents.human("hi"), config(thread, **({"customer": user} if user else {})))
        theirs = everything(saver)
    imported = move(source, db, user_key="customer")
    assert imported.unowned == 1
    [left] = imported.not_copied
    assert left.thread_id == "c"
    assert "cy, di" in left.reason
    with Sessions(db) as sessions:
        assert {session.id: session.user_id for session in sessions.list()} == {"a": "ada", "b": "bob", "n": None}
        ours = everything(sessions.checkpointer)
        assert ours == {key: value for key, value in theirs.items() if key[0] != "c"}
    assert move(source, db, user_key="customer").skipped == len(ours)
    assert {left.thread_id for left in move(source, db).not_copied} == {"a", "b"}  # owned now, and nobody asks


# Types


@pytest.fixture
def typed(tmp_path: Path) -> Path:
    path = tmp_path / "typed.sqlite"
    with saving(path) as saver:
        on(saver, agents.typed_graph()).invoke(agents.human("Rome"), config("trip"))
        on(saver, agents.chat()).invoke(agents.human("hi"), config("plain"))
    return path


PLACES = [f"{agents.__name__}:{cls.__name__}" for cls in (agents.Place, agents.Plan)]


def test_a_type_whose_module_is_not_imported_is_named_and_the_rest_goes_on(
    call: Call, typed: Path, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, agents.__name__)
    result = call("import-checkpoints", typed, "--db", db)
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("not copied: thread 'trip'")
    assert f"pass --allow {agents.__name__}:P" in line
    with Sessions(db) as sessions:
        assert [session.id for session in sessions.list()] == ["plain"]


def test_types_of_modules_that_are_imported_are_copied(typed: Path, db: Path) -> None:
    assert move(typed, db).not_copied == []
    with Sessions(db) as sessions:
        values = agents.typed_graph(checkpointer=sessions.checkpointer).get_state(config("trip")).values
    assert (values["place"], values["plans"]) == (agents.Place("Rome", 1), [agents.Plan(steps=["Rome"])])


def test_with_strict_types_only_allowed_types_are_copied(typed: Path, db: Path) -> None:
    with saving(typed) as saver, Sessions(db, strict_types=True) as sessions:
        [left] = import_checkpoints(saver, sessions).not_copied
    assert left.thread_id == "trip"
    assert "--allow" in left.reason
    with saving(typed) as saver, Sessions(db, strict_types=True, allowed_types=[agents.Place, agents.Plan]) as sessions:
        assert import_checkpoints(saver, sessions).not_copied == []


def test_types_that_are_allowed_are_copied(call: Call, typed: Path, db: Path) -> None:
    call("import-checkpoints", typed, "--db", db)
    result = call("import-checkpoints", typed, "--db", db, "--allow", PLACES[0], "--allow", PLACES[1])
    assert result.exit_code == 0, result.stderr
    with Sessions(db) as sessions:
        values = sessions.attach(agents.typed_graph()).get_state(config("trip")).values
    assert values["place"] == agents.Place("Rome", 1)
    assert values["plans"] == [agents.Plan(steps=["Rome"])]


@pytest.mark.parametrize(
    ("allowed", "error"),
    [
        ("Place", "a colon and a name in it"),
        ("no_such_module:Order", "there is no module 'no_such_module'"),
        (f"{agents.__name__}:Plaice", "has no 'Plaice'"),
    ],
)
def test_what_is_to_be_allowed_is_a_module_and_a_class_in_it(
    call: Call, typed: Path, db: Path, allowed: str, error: str
) -> None:
    result = call("import-checkpoints", typed, "--db", db, "--allow", allowed)
    assert result.exit_code != 0
    assert error in " ".join(result.stderr.split())
    assert not db.exists()


def test_the_command_finds_the_user_s_own_modules(tmp_path: Path, db: Path) -> None:
    (tmp_path / "myapp.py").write_text("from pydantic import BaseModel\n\nclass Order(BaseModel):\n    n: int\n")
    source = tmp_path / "app.sqlite"
    code = (
        "import myapp, sys\n"
        "from langgraph.checkpoint.sqlite import SqliteSaver\n"
        "from langgraph.checkpoint.base import empty_checkpoint\n"
        "state = {'channel_values': {'p': myapp.Order(n=1)}, 'channel_versions': {'p': '1'}}\n"
        "with SqliteSaver.from_conn_string(sys.argv[1]) as saver:\n"
        "    config = {'configurable': {'thread_id': 't', 'checkpoint_ns': ''}}\n"
        "    saver.put(config, {**empty_checkpoint(), **state}, {}, {'p': '1'})\n"
    )
    subprocess.run([sys.executable, "-c", code, source], check=True, cwd=tmp_path)
    run = "import sys; sys.path.remove(''); from session_middleware.cli.main import main; main()"
    command = [sys.executable, "-c", run, "import-checkpoints", str(source), "--db", str(db), "--allow", "myapp:Order"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_in_the_source_is_executed(source: Path, db: Path) -> None:
    with closing(sqlite3.connect(source)) as connection, connection:
        for thread, kind, data in (
            ("own", "pickle", b"cos\nsystem\n(S'echo gotcha > gotcha'\ntR."),
            ("fan", "json", b'{"lc": 2, "type": "constructor", "id": ["os", "system"], "args": ["echo > gotcha"]}'),
            ("chat", "msgpack", b"\xc1 not msgpack"),
        ):
            connection.execute(
                "UPDATE checkpoints SET type = ?, checkpoint = ? WHERE thread_id = ?", (kind, data, thread)
            )
    imported = move(source, db)
    assert {left.thread_id for left in imported.not_copied} == {"own", "fan", "chat"}
    assert any("os:system" in left.reason for left in imported.not_copied)
    assert not Path("gotcha").exists()
    with Sessions(db) as sessions:
        assert {session.id for session in sessions.list()} == set(THREADS) - {"own", "fan", "chat"}


# The source


def test_the_source_is_left_as_it_was(source: Path, db: Path) -> None:
    before = files(source)
    assert list(before) == [source.name]
    move(source, db)
    assert files(source) == before


def test_a_source_that_is_in_use_is_read_with_what_is_in_its_log(source: Path, db: Path) -> None:
    with saving(source) as saver:
        on(saver, agents.chat()).invoke(agents.human("just now"), config("late"))
        before = {name: data for name, data in files(source).items() if not name.endswith("-shm")}
        assert before[f"{source.name}-wal"]
        move(source, db)
        assert {name: data for name, data in files(source).items() if not name.endswith("-shm")} == before
    with Sessions(db) as sessions:
        assert sessions.find("late")


def test_a_source_from_before_task_paths_is_copied(source: Path, db: Path) -> None:
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("ALTER TABLE writes DROP COLUMN task_path")
    before = files(source)
    imported = move(source, db)
    assert imported.not_copied == []
    assert files(source) == before


def test_another_saver_is_copied_too(db: Path) -> None:
    saver = InMemorySaver()
    for thread, (build, texts) in THREADS.items():
        for text in texts:
            on(saver, build()).invoke(agents.human(text), config(thread))
    with Sessions(db) as sessions:
        assert import_checkpoints(saver, sessions).not_copied == []
        assert everything(sessions.checkpointer).keys() == everything(saver).keys()


def bad_sources(folder: Path) -> dict[str, str]:
    """What is not LangGraph's, and a word of what is said of it."""
    (folder / "text").write_text("no database at all " * 100)
    with closing(sqlite3.connect(folder / "other.db")) as connection:
        connection.execute("CREATE TABLE checkpoints (a)")
    (folder / "empty").touch()
    Sessions(folder / "ours.db").close()
    return {
        str(folder / "missing"): "no such file",
        str(folder): "it is a folder",
        str(folder / "text"): "not a database",
        str(folder / "other.db"): "no checkpoints of LangGraph's",
        str(folder / "empty"): "no checkpoints of LangGraph's",
        str(folder / "ours.db"): "session-middleware's own",
    }


def test_what_is_not_langgraph_s_is_said_in_a_line_and_makes_no_file(call: Call, tmp_path: Path) -> None:
    for source, words in bad_sources(tmp_path).items():
        result = call("import-checkpoints", source, "--db", tmp_path / "target.db")
        assert result.exit_code == 1
        [line] = result.stderr.splitlines()
        assert words in line
    assert not (tmp_path / "target.db").exists()


def test_the_source_cannot_be_the_target(call: Call, source: Path) -> None:
    before = files(source)
    result = call("import-checkpoints", source, "--db", source)
    assert result.exit_code == 1
    assert "the checkpoints of LangGraph's own saver" in result.stderr
    assert files(source) == before


@pytest.mark.parametrize(
    ("where", "module", "package"),
    [
        ("checkpoints.sqlite", "langgraph.checkpoint.sqlite", "langgraph-checkpoint-sqlite"),
        ("postgresql://me:secret@host/app", "langgraph.checkpoint.postgres", "langgraph-checkpoint-postgres"),
    ],
)
def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, where: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StorageError, match=f"pip install '?{package}") as raised, open_source(where):
        pass
    assert "secret" not in str(raised.value)


def test_postgres_is_copied(postgres_server: Server, db: Path, call: Call) -> None:
    postgres = pytest.importorskip("langgraph.checkpoint.postgres")
    with (
        postgres_server.database(migrated=False) as url,
        postgres.PostgresSaver.from_conn_string(url) as saver,
    ):
        saver.setup()
        for thread, (build, texts) in THREADS.items():
            for text in texts:
                on(saver, build()).invoke(agents.human(text), config(thread))
        result = call("import-checkpoints", url, "--db", db)
        assert (result.exit_code, result.stderr) == (0, "")
        with Sessions(db) as sessions:
            assert everything(sessions.checkpointer) == everything(saver)


# The command


def test_the_command_says_what_it_did(call: Call, source: Path, db: Path) -> None:
    result = call("import-checkpoints", source, "--db", db)
    assert result.exit_code == 0
    total, sizes = result.stdout.splitlines()
    assert f"{len(THREADS)} threads, 0 not copied" in total
    assert f"{source} " in sizes
    assert f"{db} " in sizes
    assert "copied 0 checkpoints" in call("import-checkpoints", source, "--db", db).stdout
