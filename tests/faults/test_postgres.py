"""Several processes on one PostgreSQL database, and faults of the server: what was acknowledged is there."""

from __future__ import annotations

import itertools
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from langchain_core.messages import HumanMessage
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import Sessions, StorageError
from session_middleware.cli.main import cli
from session_middleware.models import Message
from session_middleware.settings import load_settings
from session_middleware.storage.postgres.connection import PostgresConnection
from session_middleware.storage.postgres.database import PostgresDatabase
from tests.support import scenarios
from tests.support.postgres import Server, end_connections, start
from tests.support.processes import Process
from tests.support.proxy import Proxy

PROCESSES = 3

APPENDER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from session_middleware.models import Identity, utc_now
from session_middleware.settings import load_settings
from session_middleware.storage.factory import open_storage
from session_middleware.storage.record_entries import MessageEntry
from session_middleware.storage.run import RunContext

url, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
storage = open_storage(load_settings(storage_url=url), utc_now)

def work(number):
    context = RunContext("shared", Identity())
    for n in range(10):
        storage.append(context, [MessageEntry(f"{name}-{number}-{n}", "user", "hi")])

with ThreadPoolExecutor(3) as pool:
    list(pool.map(work, range(3)))
storage.close()
"""

TALKER = """
import sys
from session_middleware import Sessions
from tests.support import scenarios

url, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with Sessions(url, sweep_interval=None) as sessions:
    agent = sessions.attach(scenarios.chat().compile())
    for turn in range(8):
        for thread in ("one", "two"):
            agent.invoke({"messages": [("user", f"{name} {turn}")]}, sessions.config(thread), durability="sync")
            print(f"{thread} {name} {turn}", flush=True)
"""

OPENER = """
import sys
from session_middleware import Sessions

print("ready", flush=True)
sys.stdin.readline()
with Sessions(sys.argv[1], sweep_interval=None) as sessions:
    sessions.open(sys.argv[2])
"""


def started(program: str, url: str, count: int) -> list[Process]:
    """Processes that begin at the same time."""
    processes = [Process("-c", program, url, f"p{number}", stdin=True) for number in range(count)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.say("")
    return processes


def test_many_who_write_to_one_session_lose_nothing(postgres_url: str) -> None:
    for process in started(APPENDER, postgres_url, PROCESSES):
        assert process.communicate() == ("", "")
    with Sessions(postgres_url, sweep_interval=None) as sessions:
        messages = sessions.get("shared").messages()
        assert len({message.seq for message in messages}) == len(messages) == PROCESSES * 3 * 10
        assert [event.kind for event in sessions.get("shared").events()].count("opened") == 1
        assert sessions.check() == []


def test_the_state_is_whole_after_processes_talked_at_once_and_one_was_killed(postgres_url: str) -> None:
    killed, *others = started(TALKER, postgres_url, PROCESSES)
    told = [killed.stdout.readline() for _ in range(4)]
    killed.send_signal(signal.SIGKILL)
    for process in others:
        out, err = process.communicate()
        assert err == ""
        told += out.splitlines()
    killed.wait()
    killed.close()
    with Sessions(postgres_url, sweep_interval=None) as sessions:
        sessions.sweep()
        storage = sessions._storage
        said = {name: {message.text for message in storage.list_records(Message, name)} for name in ("one", "two")}
        for line in told:
            thread, _, text = line.strip().partition(" ")
            assert text in said[thread]
        assert [problem for problem in sessions.check() if problem.kind in ("damage", "counter", "orphan")] == []
        agent = sessions.attach(scenarios.chat().compile())
        for thread in said:
            for state in agent.get_state_history(sessions.config(thread)):
                assert state.values is not None


def test_processes_that_start_at_once_create_the_tables_once(postgres_server: Server) -> None:
    with postgres_server.database(migrated=False) as url:
        for process in started(OPENER, url, 4):
            assert process.communicate() == ("", "")
        with Sessions(url, sweep_interval=None) as sessions:
            assert sessions.count() == 4


def test_a_lost_connection_is_replaced(postgres_url: str) -> None:
    with Sessions(postgres_url, sweep_interval=None) as sessions:
        sessions.open("t")
        end_connections(postgres_url)
        assert sessions.get("t").id == "t"
        end_connections(postgres_url)
        assert sessions.open("u").id == "u"


def test_a_pooler_changes_nothing(pooled_url: str) -> None:
    """PgBouncer gives each transaction of a connection another connection to the server."""
    texts = [f"turn {turn}" for turn in range(3)]
    with ExitStack() as opened:
        processes = [opened.enter_context(Sessions(pooled_url, sweep_interval=None)) for _ in range(2)]

        def talk(number: int) -> list[str]:
            for text, sessions in zip(texts, itertools.cycle(processes), strict=False):
                agent = sessions.attach(scenarios.chat().compile())
                agent.invoke({"messages": [("user", text)]}, sessions.config(f"t{number}", user_id="alice"))
            return [message.text for message in sessions.get(f"t{number}").messages() if message.role == "user"]

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(talk, range(8))) == [texts] * 8
        sessions = processes[0]
        assert sessions.check() == []
        assert sessions.forget_user("alice").sessions == 8


def test_a_statement_is_not_mistaken_for_one_of_another_process(pooled_url: str) -> None:
    def select(database: PostgresDatabase, number: int, meanwhile: Callable[[], object] = lambda: None) -> int:
        def operation(connection: PostgresConnection) -> int:
            ((found,),) = connection.execute(f"SELECT {number}").fetchall()
            meanwhile()
            return int(found)

        return database.read(operation)

    with closing(PostgresDatabase(pooled_url)) as one, closing(PostgresDatabase(pooled_url)) as other:
        assert select(one, 1, lambda: select(other, 2)) == 1  # each on its own connection to the server
        with psycopg.connect(pooled_url) as third:
            third.execute("SELECT")  # on the first of these, so only the second one is free
            assert select(one, 1) == 1


def test_no_name_is_prepared_twice_because_newer_poolers_refuse_it(postgres_url: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with psycopg.connect(postgres_url, autocommit=True) as raw, trace.open("w") as file:
        connection = PostgresConnection(raw)
        raw.pgconn.trace(file.fileno())
        wrong = connection.execute("SELECT 1 / 0")
        connection.execute("SELECT 2")  # is not prepared after the error
        with pytest.raises(psycopg.errors.DivisionByZero):
            wrong.fetchall()
        connection.end()
        assert connection.execute("SELECT 2").fetchall() == [(2,)]
        raw.pgconn.untrace()
    prepared = re.findall(r'\tParse\t "(\w+)" "(.*?)"', trace.read_text())
    assert [text for _, text in prepared].count("SELECT 2") == 2
    assert len({name for name, _ in prepared}) == len(prepared)


def test_prepared_statements_that_a_pooler_has_lost_are_not_needed(postgres_url: str) -> None:
    """As behind a transaction pooler, which gives the next transaction another connection to the server."""
    with Sessions(postgres_url, sweep_interval=None) as sessions:
        database = sessions._storage._database  # type: ignore[attr-defined]
        agent = sessions.attach(scenarios.chat().compile())
        for number in range(3):
            agent.invoke({"messages": [("user", f"write {number}")]}, sessions.config("t"))
            database.read(lambda connection: connection.execute("DEALLOCATE ALL"))
            assert sessions.get("t").id == "t"
            database.write(lambda connection: connection.execute("DEALLOCATE ALL"))
        texts = [message.text for message in sessions.get("t").messages() if message.role == "user"]
        assert texts == [f"write {number}" for number in range(3)]
        assert sessions.check() == []


BROKEN = """
    CREATE FUNCTION session_middleware.broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'broken'; END $$;
    CREATE TRIGGER broken BEFORE INSERT ON session_middleware.messages
        FOR EACH ROW EXECUTE FUNCTION session_middleware.broken();
"""


@pytest.mark.parametrize("way", ["attach", "in subgraph", "checkpointer alone"])
def test_a_record_that_cannot_be_written_breaks_no_run(postgres_server: Server, way: str) -> None:
    graph = scenarios.chat().compile(checkpointer=True if way == "in subgraph" else None)
    if way == "in subgraph":
        graph = StateGraph(MessagesState).add_node("inner", graph).add_edge(START, "inner").compile()
    with postgres_server.database() as url:
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(BROKEN.encode())
        with Sessions(url, sweep_interval=None) as sessions:
            alone = way == "checkpointer alone"
            agent = scenarios.chat().compile(sessions.checkpointer) if alone else sessions.attach(graph)
            for number in range(2):
                agent.invoke({"messages": [("user", f"hi {number}")]}, sessions.config("t"))
            state = agent.get_state(sessions.config("t")).values["messages"]
            assert [message.text for message in state if message.type == "human"] == ["hi 0", "hi 1"]
            assert sessions.get("t").messages() == []


def test_a_connection_lost_in_a_transaction_fails_the_write_and_the_next_one_works(postgres_url: str) -> None:
    with Sessions(postgres_url, sweep_interval=None) as sessions:
        database = sessions._storage._database  # type: ignore[attr-defined]

        def operation(connection: object) -> None:
            connection.execute("UPDATE sessions SET title = 'lost'")  # type: ignore[attr-defined]
            end_connections(postgres_url)
            connection.execute("UPDATE sessions SET title = 'lost'")  # type: ignore[attr-defined]

        sessions.open("t")
        with pytest.raises(StorageError, match="connection failed"):
            database.write(operation)
        assert sessions.get("t").title is None
        assert sessions.open("u").id == "u"


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder))
        yield server
        server.stop()


def test_a_restart_between_turns_is_not_noticed_and_a_stopped_server_is_named(own_server: Server) -> None:
    with own_server.database() as url, Sessions(url, sweep_interval=None) as sessions:
        agent = sessions.attach(scenarios.chat().compile())
        agent.invoke({"messages": [("user", "before")]}, sessions.config("t"))
        own_server.stop()
        own_server.start()
        agent.invoke({"messages": [("user", "after")]}, sessions.config("t"))
        said = [message.text for message in sessions.get("t").messages()]
        assert "before" in said
        assert "after" in said
        assert sessions.check() == []


def test_a_run_that_a_stopped_server_has_interrupted_is_resumed(own_server: Server) -> None:
    stopped = []

    def work(state: MessagesState) -> dict[str, object]:
        if not stopped:
            stopped.append(own_server.stop())
        return {"messages": [("ai", f"answer {len(state['messages'])}")]}

    builder = StateGraph(MessagesState).add_node("first", lambda _: {"messages": [("ai", "begun")]})
    builder.add_node("work", work).add_edge(START, "first").add_edge("first", "work")
    with own_server.database() as url, Sessions(url, sweep_interval=None) as sessions:
        agent = sessions.attach(builder.compile())
        config = sessions.config("t")
        with pytest.raises(StorageError, match="connection failed"):
            agent.invoke({"messages": [("user", "go")]}, config, durability="sync")
        own_server.start()
        assert agent.get_state(config).next == ("work",)
        agent.invoke(None, config, durability="sync")
        assert [m.text for m in agent.get_state(config).values["messages"]] == ["go", "begun", "answer 2"]
        assert [m.text for m in sessions.get("t").messages()] == ["go", "begun", "answer 2"]
        assert sessions.check() == []


def test_runs_that_a_restart_interrupts_are_repeated_and_lose_nothing(own_server: Server) -> None:
    restarted = threading.Event()
    begun = [threading.Event() for _ in range(PROCESSES)]

    def talk(thread: int, agent: Any, config: Any) -> list[str]:
        said: list[str] = []
        while not restarted.is_set() or len(said) < 3:
            message = HumanMessage(f"{thread} {len(said)}", id=f"{thread}-{len(said)}")
            with suppress(StorageError):
                agent.invoke({"messages": [message]}, config, durability="sync")
                said.append(message.text)
            begun[thread].set()
        return said

    with own_server.database() as url, Sessions(url, sweep_interval=None) as sessions:
        agent = sessions.attach(scenarios.chat().compile())
        configs = [sessions.config(f"t{thread}") for thread in range(PROCESSES)]
        with ThreadPoolExecutor(PROCESSES) as pool:
            talks = pool.map(talk, range(PROCESSES), [agent] * PROCESSES, configs)
            assert all(event.wait(60) for event in begun)
            own_server.stop()
            own_server.start()
            restarted.set()
            for thread, (said, config) in enumerate(zip(talks, configs, strict=True)):
                state = agent.get_state(config).values["messages"]
                assert [message.text for message in state if message.type == "human"] == said
                recorded = [message.text for message in sessions.get(f"t{thread}").messages() if message.role == "user"]
                assert recorded == said
        assert sessions.check(deep=True) == []


def test_a_run_for_which_no_connection_is_free_is_told_so_and_resumed(postgres_server: Server) -> None:
    is_limited = []

    def work(state: MessagesState) -> dict[str, object]:
        if not is_limited:
            is_limited.append(postgres_server.execute("ALTER ROLE limited CONNECTION LIMIT 0"))
            end_connections(url)
        return {"messages": [("ai", "done")]}

    graph = StateGraph(MessagesState).add_node("first", lambda _: {"messages": [("ai", "begun")]})
    graph.add_node("work", work).add_edge(START, "first").add_edge("first", "work")
    with postgres_server.database() as url:
        postgres_server.execute("CREATE ROLE limited LOGIN")
        limited = url.replace("postgres@", "limited@")
        try:
            with psycopg.connect(url, autocommit=True) as owner:
                owner.execute("GRANT ALL ON SCHEMA session_middleware TO limited")
                owner.execute("GRANT ALL ON ALL TABLES IN SCHEMA session_middleware TO limited")
            with Sessions(limited, sweep_interval=None) as sessions:
                agent, config = sessions.attach(graph.compile()), sessions.config("t")
                with pytest.raises(StorageError, match="too many connections"):
                    agent.invoke({"messages": [("user", "go")]}, config, durability="sync")
                postgres_server.execute("ALTER ROLE limited CONNECTION LIMIT -1")
                assert agent.get_state(config).next == ("work",)
                agent.invoke(None, config, durability="sync")
                assert [m.text for m in sessions.get("t").messages()] == ["go", "begun", "done"]
                assert sessions.check(deep=True) == []
        finally:
            with psycopg.connect(url, autocommit=True) as owner:
                owner.execute("DROP OWNED BY limited")
            postgres_server.execute("DROP ROLE limited")


def test_a_connection_cut_at_any_request_loses_nothing_acknowledged(postgres_server: Server) -> None:
    """The request arrives and its answer does not, so a commit may have been carried out or not."""
    failed = 0
    with (
        postgres_server.database() as url,
        Proxy(url) as network,
        Sessions(network.url, sweep_interval=None) as sessions,
    ):
        agent = sessions.attach(scenarios.chat().compile())
        for request in range(1, 16):
            config = sessions.config(f"t{request}")
            agent.invoke({"messages": [HumanMessage("before", id="1")]}, config, durability="sync")
            again = {"messages": [HumanMessage("meanwhile", id="2")]}
            network.cuts_at = request
            try:
                agent.invoke(again, config, durability="sync")
            except StorageError as error:
                assert "the connection failed" in str(error)  # noqa: PT017
                failed += 1
            network.cuts_at = 0
            texts = [m.text for m in agent.get_state(config).values["messages"] if m.type == "human"]
            assert texts in (["before"], ["before", "meanwhile"])
            agent.invoke(again, config, durability="sync")
            texts = [m.text for m in agent.get_state(config).values["messages"] if m.type == "human"]
            assert texts == ["before", "meanwhile"]
            recorded = [m.text for m in sessions.get(f"t{request}").messages() if m.role == "user"]
            assert recorded == ["before", "meanwhile"]
        assert failed >= 3
        assert [each for each in sessions.check(deep=True) if each.kind not in ("dead_run", "dead_lease")] == []


def test_a_slow_network_and_one_that_stalls_only_delay_runs(postgres_server: Server) -> None:
    with (
        postgres_server.database() as url,
        Proxy(url) as network,
        Sessions(network.url, sweep_interval=None) as sessions,
        ThreadPoolExecutor(4) as pool,
    ):
        agent = sessions.attach(scenarios.chat().compile())
        network.delay_seconds = 0.003
        network.flows.clear()
        runs = [
            pool.submit(agent.invoke, {"messages": [("user", f"hi {thread}")]}, sessions.config(f"t{thread}"))
            for thread in range(4)
        ]
        assert network.waits.wait(60)
        assert not any(run.done() for run in runs)
        network.flows.set()
        for thread, run in enumerate(runs):
            assert run.result(60)["messages"][0].text == f"hi {thread}"
            assert sessions.get(f"t{thread}").messages()[0].text == f"hi {thread}"
        assert sessions.check(deep=True) == []


def test_no_error_and_no_repr_contains_the_password(postgres_server: Server) -> None:
    url = f"postgresql://postgres:secret@127.0.0.1:{postgres_server.port}/missing?application_name=x"
    for wrong in (url, url.replace("application_name=x", "nonsense=secret"), "postgresql://u:secret@[/x"):
        with pytest.raises(StorageError) as raised:
            Sessions(wrong)
        assert "secret" not in str(raised.value)
    assert "secret" not in repr(load_settings(storage_url=url))


def test_a_role_that_may_not_create_tables_is_told_how_to_have_them_created(postgres_server: Server) -> None:
    rights = """
        GRANT USAGE ON SCHEMA session_middleware TO guest;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA session_middleware TO guest;
        GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA session_middleware TO guest;
    """
    with postgres_server.database(migrated=False) as url:
        as_guest = url.replace("postgres@", "guest@")
        postgres_server.execute("CREATE ROLE guest LOGIN")
        try:
            with pytest.raises(StorageError, match=r"may not create its tables.*session-middleware migrate --sql"):
                Sessions(as_guest)
            printed = CliRunner().invoke(cli, ["migrate", "--sql"])
            assert printed.exit_code == 0
            with psycopg.connect(url, autocommit=True) as owner:
                owner.execute(printed.output.encode())
                owner.execute(rights.encode())
            with Sessions(as_guest, sweep_interval=None) as sessions:
                agent = sessions.attach(scenarios.chat().compile())
                agent.invoke({"messages": [("user", "hi")]}, sessions.config("t", user_id="alice"))
                sessions.get("t").memory.remember("a fact")
                sessions.index_memory()
                sessions.sweep()
                assert sessions.check() == []
                assert sessions.delete("t").sessions == 1
        finally:
            with psycopg.connect(url, autocommit=True) as owner:
                owner.execute("DROP OWNED BY guest")
            postgres_server.execute("DROP ROLE guest")


def test_a_statement_that_takes_too_long_is_named_and_the_run_goes_on_after_it(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("ALTER DATABASE reused SET statement_timeout TO '100ms'")
        try:
            with Sessions(postgres_url, sweep_interval=None) as sessions:
                agent = sessions.attach(scenarios.chat().compile())
                agent.invoke({"messages": [("user", "before")]}, sessions.config("t"))
                with other.transaction():
                    other.execute("LOCK TABLE session_middleware.sessions")
                    with pytest.raises(StorageError, match=r"canceled a statement.*statement_timeout"):
                        agent.invoke({"messages": [("user", "meanwhile")]}, sessions.config("t"))
                agent.invoke({"messages": [("user", "after")]}, sessions.config("t"))
                texts = [message.text for message in sessions.get("t").messages() if message.role == "user"]
                assert texts[0] == "before"
                assert texts[-1] == "after"
        finally:
            other.execute("ALTER DATABASE reused RESET statement_timeout")
    with Sessions(postgres_url, sweep_interval=None) as sessions:
        assert sessions.check() == []


@pytest.fixture(params=["setting", "replica"])
def readable(request: pytest.FixtureRequest, postgres_server: Server) -> Iterator[tuple[str, Callable[[], str]]]:
    """The URL of a database, and a function that returns the URL of a server that only reads what is there then."""
    with ExitStack() as opened:
        url = opened.enter_context(postgres_server.database())

        def replica() -> str:
            if request.param == "setting":
                return f"{url}?options=-c%20default_transaction_read_only%3Don"
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            server = Server(folder, replica_of=postgres_server.url())
            opened.callback(server.stop)
            return server.url(url.rsplit("/", 1)[1])

        yield url, replica


def test_a_server_that_allows_no_writes_can_be_read(readable: tuple[str, Callable[[], str]]) -> None:
    url, replica = readable
    with Sessions(url, sweep_interval=None) as sessions:
        agent = sessions.attach(scenarios.chat().compile())
        agent.invoke({"messages": [("user", "hi")]}, sessions.config("t"))
        said = sessions.get("t").messages()
    with Sessions(replica(), sweep_interval=None) as sessions:
        agent = sessions.attach(scenarios.chat().compile())
        session = sessions.get("t")
        assert session.messages() == said
        assert sessions.search("hi")[0].text == "hi"
        assert list(session.follow(timeout="1ms")) == session.timeline()
        assert sessions.count() == 1
        assert [m.text for m in agent.get_state(sessions.config("t")).values["messages"]] == [m.text for m in said]
        assert sessions.check(deep=True) == []
        with pytest.raises(StorageError, match="read-only"):
            sessions.open("u")
        with pytest.raises(StorageError, match="read-only"):
            agent.invoke({"messages": [("user", "hi")]}, sessions.config("t"))


def test_a_server_without_a_free_connection_is_named(postgres_server: Server) -> None:
    with postgres_server.database() as url:
        postgres_server.execute(f"ALTER DATABASE {url.rsplit('/', 1)[1]} CONNECTION LIMIT 1")
        postgres_server.execute("CREATE ROLE limited LOGIN")
        try:
            limited = url.replace("postgres@", "limited@")
            with psycopg.connect(limited), pytest.raises(StorageError, match="too many connections"):
                Sessions(limited, sweep_interval=None)
        finally:
            postgres_server.execute("DROP ROLE limited")


@pytest.mark.parametrize(("synchronous", "commits"), [("full", "on"), ("normal", "off")])
def test_a_commit_waits_for_the_disk_as_the_setting_says(postgres_url: str, synchronous: str, commits: str) -> None:
    with Sessions(postgres_url, synchronous=synchronous) as sessions:
        database = sessions._storage._database  # type: ignore[attr-defined]
        row = database.write(lambda connection: connection.execute("SHOW synchronous_commit").fetchone(), of="t")
        assert row == (commits,)


@pytest.mark.parametrize("max_sessions", [None, 2])
def test_runs_and_memories_do_not_wait_for_a_process_that_writes_to_another_session(
    max_sessions: int | None, postgres_url: str
) -> None:
    url = f"{postgres_url}?options=-c%20lock_timeout%3D5s"
    with (
        psycopg.connect(postgres_url) as other,
        Sessions(url, sweep_interval=None, max_sessions=max_sessions) as sessions,
    ):
        agent = sessions.attach(scenarios.chat().compile())
        agent.invoke({"messages": "hello"}, sessions.config("one", user_id="alice"))
        # As a transaction of another process that writes to one session of hers.
        other.execute("SELECT pg_advisory_xact_lock_shared(7236000)")
        other.execute("SET search_path TO session_middleware")
        other.execute("SELECT acquire_locks(%s, '[]')", ('["two"]',))
        agent.invoke({"messages": "again"}, sessions.config("one", user_id="alice"))
        sessions.store.put(("user", "alice"), "drink", {"text": "tea"})
        if max_sessions is None:  # else the sessions are counted before one may be revived
            sessions.get("one").memory.remember("tea is hot")
        found = sessions.store.get(("user", "alice"), "drink")
        assert found is not None
        assert found.value == {"text": "tea"}
        assert len(sessions.get("one").messages()) == 4
