"""One run at a time, where runs of a graph and blocks of `with session:` meet in one session."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import LeaseLost, SessionBusy, Sessions
from tests.conftest import OpenSessions
from tests.runtime.test_run_queue import PARTS, Gate, answering, build, count_leases
from tests.support.agents import human

pytestmark = [
    pytest.mark.sessions(sweep_interval=None, busy_timeout="5s"),
    pytest.mark.usefixtures("each_engine", "clock"),
]

by_part = pytest.mark.parametrize("part", PARTS)
on_busy = pytest.mark.parametrize("on_busy", ["wait", "reject"])


def answer(state: Any) -> dict[str, Any]:
    return {"messages": [("ai", "inner")]}


@contextmanager
def running(graph: Any, gate: Gate, sessions: Sessions) -> Iterator[Any]:
    """A run of the graph goes on in another thread, as long as the block."""
    gate.hold()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(graph.invoke, human("graph"), sessions.config("t"))
        assert gate.entered.wait(60)
        try:
            yield run
        finally:
            gate.leave.set()


@by_part
def test_a_block_beside_a_graphs_run_is_refused(part: str, open_sessions: OpenSessions) -> None:
    sessions, gate = open_sessions(on_busy="reject"), Gate()
    session = sessions.open("t")
    with running(build(sessions, gate.node, part), gate, sessions), pytest.raises(SessionBusy), session:
        raise AssertionError("the block was entered")
    assert [run.outcome for run in session.runs()] == (["ok"] if part == "attached" else [])
    assert [event.reason for event in session.events() if event.kind == "denied"] == ["busy"]


def test_a_block_waits_for_a_graphs_run(open_sessions: OpenSessions) -> None:
    sessions, gate = open_sessions(on_busy="wait", busy_timeout="60s"), Gate()
    session = sessions.open("t")
    entered = threading.Event()

    def by_hand() -> None:
        with sessions.get("t") as again:
            entered.set()
            again.add({"role": "user", "content": "by hand"})

    with ThreadPoolExecutor(1) as pool:
        with running(build(sessions, gate.node), gate, sessions):
            waiting = pool.submit(by_hand)
            while count_leases(sessions) < 2:
                time.sleep(0)
            assert not entered.is_set()
        waiting.result()
    assert [message.text for message in session.messages()] == ["graph", "you said graph", "by hand"]


def test_a_graphs_run_beside_a_block_is_refused(open_sessions: OpenSessions) -> None:
    sessions = open_sessions(on_busy="reject")
    graph = build(sessions, answer)
    with sessions.open("t"), ThreadPoolExecutor(1) as another, pytest.raises(SessionBusy):
        another.submit(graph.invoke, human("graph"), sessions.config("t")).result()


@on_busy
@by_part
async def test_a_block_inside_a_graphs_run_has_its_turn_already(
    part: str, on_busy: str, open_sessions: OpenSessions
) -> None:
    sessions = open_sessions(on_busy=on_busy)
    session = sessions.open("t")

    def node(state: Any) -> dict[str, Any]:
        with sessions.get("t") as again:
            again.add({"role": "user", "content": "by hand"})
        refused(sessions)
        return {"messages": [("ai", "graph")]}

    async def anode(state: Any) -> dict[str, Any]:
        async with await sessions.aget("t") as again:
            await again.aadd({"role": "user", "content": "by hand"})
        return {"messages": [("ai", "graph")]}

    build(sessions, node, part).invoke(human("hi"), sessions.config("t"))
    await build(sessions, anode, part).ainvoke(human("hi"), sessions.config("t"))
    assert not sessions.get("t").is_running
    assert [run.outcome for run in session.runs()] == ["ok"] * (4 if part == "attached" else 2)


@on_busy
@by_part
async def test_a_graphs_run_inside_a_block_has_its_turn_already(
    part: str, on_busy: str, open_sessions: OpenSessions
) -> None:
    sessions = open_sessions(on_busy=on_busy)
    session, graph = sessions.open("t"), build(sessions, answer, part)
    with session:
        graph.invoke(human("hi"), sessions.config("t"))
        refused(sessions)
        session.add({"role": "user", "content": "afterwards"})
    async with session:
        await graph.ainvoke(human("hi"), sessions.config("t"))
    assert not sessions.get("t").is_running
    assert {run.outcome for run in session.runs()} == {"ok"}


def test_what_only_the_recorder_sees_inside_a_block_has_its_turn_already(open_sessions: OpenSessions) -> None:
    sessions = open_sessions(on_busy="reject")
    graph = build(sessions, answer, "nothing of it")
    graph.checkpointer = None
    with sessions.open("t"):
        graph.invoke(human("hi"), {**sessions.config("t"), "callbacks": [sessions.recorder]})
        refused(sessions)
    assert [run.outcome for run in sessions.get("t").runs()] == ["ok", "ok"]


def test_a_run_inside_a_block_that_was_taken_for_dead_cannot_write_either(open_sessions: OpenSessions) -> None:
    sessions = open_sessions(on_busy="reject")
    graph = build(sessions, answer)

    def write() -> None:
        with sessions.open("t"):
            sessions._storage.release_leases([next(iter(sessions._background._runs))])
            graph.invoke(human("hi"), sessions.config("t"))

    with pytest.raises(LeaseLost):
        write()
    assert sessions.get("t").messages() == []


class Elsewhere(InMemorySaver):
    """A saver that has another do everything on a thread of its own, where the run cannot be seen."""

    def __init__(self, saver: Any) -> None:
        super().__init__()
        self.saver, self.pool = saver, ThreadPoolExecutor(1)

    def get_tuple(self, config: Any) -> Any:
        return self.pool.submit(self.saver.get_tuple, config).result()

    def put(self, *args: Any) -> Any:
        return self.pool.submit(self.saver.put, *args).result()

    def put_writes(self, *args: Any) -> None:
        self.pool.submit(self.saver.put_writes, *args).result()


def test_a_run_that_cannot_be_seen_holds_its_session_until_it_is_silent_for_long(open_sessions: OpenSessions) -> None:
    sessions = open_sessions(on_busy="reject")
    builder = StateGraph(MessagesState).add_node("node", answering).add_edge(START, "node")
    graph = builder.compile(checkpointer=Elsewhere(sessions.checkpointer))
    graph.invoke(human("hi"), sessions.config("t"))
    for _ in range(6):
        sessions._background.renew_leases()
    assert sessions.get("t").is_running
    sessions._background.renew_leases()
    assert not sessions.get("t").is_running
    graph.invoke(human("hi"), sessions.config("t"))


def refused(sessions: Sessions) -> None:
    """The session is still taken for whoever is not inside."""
    assert sessions._storage.find_active_run("t") is not None
