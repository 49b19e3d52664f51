"""Limits, leases and sweeps across processes, some of which are killed in the middle of it."""

from __future__ import annotations

import os
import random
import selectors
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from session_middleware import Sessions
from session_middleware.storage.processes import is_gone, is_near, this_process
from session_middleware.storage.sql.tables import tables
from tests.support.processes import Process

ROUNDS = int(os.environ.get("SESSION_FAULT_ROUNDS", "1"))


def start(script: str, *arguments: object) -> Process:
    return Process("-c", script, *arguments, stdin=True)


OPENING = """
import sys
from concurrent.futures import ThreadPoolExecutor
from session_middleware import Sessions, SessionLimitReached

path, name, on_limit = sys.argv[1:]
sessions = Sessions(path, max_sessions=30, max_sessions_per_user=12, on_limit=on_limit)

def work(number):
    try:
        sessions.open(f"{name}-{number}", user_id=f"u{number % 4}")
    except SessionLimitReached:
        return "refused"
    return "opened"

sys.stdin.readline()
with ThreadPoolExecutor(50) as pool:
    print(*pool.map(work, range(50)))
sessions.close()
"""


@pytest.mark.parametrize("on_limit", ["reject", "expire_oldest"])
def test_limits_are_exact_under_many_opens_at_once_in_several_processes(each_engine: str, on_limit: str) -> None:
    processes = [start(OPENING, each_engine, number, on_limit) for number in range(4)]
    for process in processes:
        process.say("go")
    outcomes = " ".join(process.communicate(timeout=100)[0] for process in processes).split()
    with Sessions(each_engine) as sessions:
        opened = outcomes.count("opened")
        assert len(outcomes) == 200
        assert sessions.count(status="active") == 30
        assert sessions.count() == opened == (30 if on_limit == "reject" else 200)
        assert all(sessions.count(status="active", user_id=f"u{n}") <= 12 for n in range(4))
        assert sessions.check() == []


RUNNING = """
import sys, time
from langgraph.graph import START, MessagesState, StateGraph
from session_middleware import Sessions

path, on_busy, part = sys.argv[1:]
sessions = Sessions(path, on_busy=on_busy)

def node(state):
    print("inside", flush=True)
    sys.stdin.readline()
    return {"messages": [("ai", "done")]}

builder = StateGraph(MessagesState).add_node("node", node).add_edge(START, "node")
if part == "attached":
    graph = sessions.attach(builder.compile())
else:
    graph = builder.compile(checkpointer=sessions.checkpointer)
graph.invoke({"messages": "hi"}, sessions.config("t"), durability="sync")
print("ended", flush=True)
sessions.close()
"""


@pytest.mark.parametrize("part", ["attached", "checkpointer"])
def test_a_run_waits_for_another_processes_run_and_takes_over_when_that_is_killed(each_engine: str, part: str) -> None:
    path = each_engine
    first, second = start(RUNNING, path, "wait", part), start(RUNNING, path, "wait", part)
    inside = _first_to_speak([first, second])
    assert inside.stdout.readline() == "inside\n"
    other = second if inside is first else first
    with Sessions(path) as sessions:
        assert sessions.get("t").is_running
        assert sessions.sweep() == []
    inside.kill()
    assert other.stdout.readline() == "inside\n"
    other.communicate("go\n", timeout=60)
    inside.communicate()
    assert (inside.returncode, other.returncode) == (-9, 0)
    with Sessions(path) as sessions:
        assert not sessions.get("t").is_running
        sessions.check(repair=True)
        assert sessions.check() == []


def _first_to_speak(processes: list[Any]) -> Any:
    with selectors.DefaultSelector() as selector:
        for process in processes:
            selector.register(process.stdout, selectors.EVENT_READ, process)
        ready = selector.select(60)
        assert ready
        return ready[0][0].data


BUSY = """
import random, sys
from langgraph.graph import START, MessagesState, StateGraph
from session_middleware import SessionError, Sessions

path, seed, archives = sys.argv[1:]
random.seed(seed)
sessions = Sessions(path, archive_path=archives, idle_timeout="50ms", retention="200ms", on_busy="wait",
                    sweep_interval="20ms", on_expire=random.choice(["keep", "delete", "archive", "prune"]))
def node(state):
    return {"messages": [("ai", "you said " + state["messages"][-1].text)]}
graph = sessions.attach(StateGraph(MessagesState).add_node("node", node).add_edge(START, "node").compile())
print("ready", flush=True)
while True:
    name, act = f"s{random.randrange(6)}", random.randrange(12)
    try:
        if any(one.session_id == name for one in sessions.list_archived()):
            sessions.restore(name)
        if act < 7:
            graph.invoke({"messages": "hi"}, sessions.config(name), durability=random.choice(["sync", "async", "exit"]))
        elif act == 7:
            sessions.sweep()
        elif act == 8 and (session := sessions.find(name)):
            session.complete()
        elif act == 9:
            print("deletes", name, flush=True)
            sessions.delete(name)
        elif act == 10 and (session := sessions.find(name)):
            session.memory.remember("x")
        else:
            sessions.checkpointer.copy_thread(name, name + "-copy")
    except SessionError:
        pass
    print("did", act, flush=True)
"""


@pytest.mark.slow
def test_processes_killed_at_random_leave_nothing_that_a_check_finds(each_engine: str, tmp_path: Path) -> None:
    path, archives = each_engine, tmp_path / "archives"
    for round_ in range(ROUNDS):
        processes = [start(BUSY, path, f"{round_}-{number}", archives) for number in range(3)]
        last = dict.fromkeys(processes, "")
        for process in processes:
            for _ in range(random.randrange(3, 25)):
                last[process] = process.stdout.readline()
                assert last[process], process.stderr.read()
            process.kill()
        for process in processes:
            last[process] = [last[process], *process.communicate()[0].splitlines()][-1]
        killed_at = datetime.now(UTC)
        settings: dict[str, Any] = {"idle_timeout": "50ms", "on_expire": "archive", "archive_path": archives}
        with Sessions(path, **settings, sweep_interval=None) as sessions:
            sessions.sweep()
            found = sessions.check(repair=True)
            unrepaired = {problem.session_id for problem in found if not problem.repaired}
            for one in sessions.list_archived():
                if one.session_id in unrepaired:  # a process was killed between the deletion of its file and the commit
                    is_due = killed_at - one.ended_at >= timedelta(milliseconds=200)
                    assert is_due or f"deletes {one.session_id}" in map(str.strip, last.values())
                    sessions.delete(one.session_id)
                    unrepaired.remove(one.session_id)
            assert not unrepaired
            assert {problem.kind for problem in found} <= {"dead_lease", "dead_run", "archive"}
            assert sessions.check(deep=True) == []


SWEEPING = """
import sys
from datetime import UTC, datetime, timedelta
from session_middleware import Sessions

path, on_expire = sys.argv[1:]
with Sessions(path, idle_timeout="1s", on_expire=on_expire, sweep_interval=None) as sessions:
    print("ready", flush=True)
    sys.stdin.readline()
    print("begun", flush=True)
    print(*(ended.session_id for ended in sessions.sweep(now=datetime(2100, 1, 1, tzinfo=UTC))), flush=True)
"""


@pytest.mark.parametrize("on_expire", ["keep", "delete"])
def test_processes_that_sweep_at_once_end_each_session_once_although_one_is_killed(
    each_engine: str, on_expire: str
) -> None:
    names = {f"s{number}" for number in range(60)}
    with Sessions(each_engine, sweep_interval=None) as sessions:
        for name in sorted(names):
            sessions.open(name)
    processes = [start(SWEEPING, each_engine, on_expire) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.say("go")
    killed, *others = processes
    assert killed.stdout.readline() == "begun\n"
    killed.kill()
    swept = [name for process in others for name in process.communicate(timeout=100)[0].split()[1:]]
    killed.communicate()
    assert len(swept) == len(set(swept))
    with Sessions(each_engine, idle_timeout="1s", on_expire=on_expire, sweep_interval=None) as sessions:
        sessions.sweep(now=datetime(2100, 1, 1, tzinfo=UTC))
        if on_expire == "keep":
            for name in names:
                assert [event.kind for event in sessions.get(name).events()] == ["opened", "expired"]
        else:
            assert sessions.count() == 0
        assert sessions.check(deep=True) == []


SPEAKING = """
import sys
from session_middleware import SessionError, Sessions
from tests.support import scenarios

path, name = sys.argv[1:]
with Sessions(path, sweep_interval=None) as sessions:
    agent = sessions.attach(scenarios.chat().compile())
    for turn in range(8):
        for user in ("alice", "bob"):
            config = sessions.config(f"{user}-{name}-{turn % 2}", user_id=user)
            try:
                agent.invoke({"messages": [("user", f"{user} {turn}")]}, config, durability="sync")
                sessions.get(config["configurable"]["thread_id"]).memory.remember(f"of {user} {turn}", scope="user")
            except SessionError:
                assert user == "alice"
        print(turn, flush=True)
"""


def test_a_user_is_forgotten_while_processes_work_for_them_and_one_is_killed(each_engine: str) -> None:
    processes = [start(SPEAKING, each_engine, number) for number in range(3)]
    for process in processes:
        assert process.stdout.readline() == "0\n"
    processes[0].kill()
    with Sessions(each_engine, sweep_interval=None) as sessions:
        theirs = sessions.count(user_id="alice")
        assert sessions.forget_user("alice").sessions >= theirs > 0
        for process in processes:
            process.communicate(timeout=100)
        assert [process.returncode for process in processes[1:]] == [0, 0]
        sessions.forget_user("alice")  # what they began since
        assert sessions.count(user_id="alice") == 0
        database = sessions._storage._database  # type: ignore[attr-defined]
        for table in tables():
            rows = database.read(lambda connection, t=table: connection.execute(f"SELECT * FROM {t}").fetchall())
            assert "alice" not in repr(rows), table
        for number in (1, 2):
            said = [m.text for m in sessions.get(f"bob-{number}-1").messages() if m.role == "user"]
            assert said == ["bob 1", "bob 3", "bob 5", "bob 7"]
        sessions.check(repair=True)
        assert sessions.check(deep=True) == []


def test_a_process_is_known_from_another_that_has_its_number(tmp_path: Path) -> None:
    mine = this_process()
    host, number, started = mine.rsplit(":", 2)
    assert is_near(mine)
    assert not is_gone(mine)
    assert is_gone(f"{host}:{number}:{int(started) + 1}") == (int(started) != 0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_gone(f"{host}:{ended.pid}:12345")
    assert not is_gone(f"elsewhere:{ended.pid}:12345")
    assert not is_near(f"elsewhere:{ended.pid}:12345")
