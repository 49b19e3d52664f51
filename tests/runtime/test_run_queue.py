"""One run at a time in a session, where `on_busy` asks for it; and what is known of runs in progress anyway."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.tools import tool
from langgraph.errors import EmptyInputError
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import RetryPolicy, interrupt

from session_middleware import InvalidArgument, LeaseLost, SessionBusy, Sessions
from tests.conftest import Clock, OpenSessions
from tests.support import agents
from tests.support.agents import human, said
from tests.support.pairwise import ENGINES, pairwise

pytestmark = pytest.mark.usefixtures("each_engine", "clock")

PARTS = ["attached", "checkpointer"]
AT_ONCE = RetryPolicy(max_attempts=2, initial_interval=0.0, jitter=False, retry_on=ValueError)


class Gate:
    """A node that waits, once, for the test."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        self.leave.set()

    def hold(self) -> None:
        self.entered.clear()
        self.leave.clear()

    def node(self, state: MessagesState) -> dict[str, Any]:
        self.entered.set()
        assert self.leave.wait(60)
        return {"messages": [("ai", f"you said {state['messages'][-1].text}")]}


@pytest.fixture
def gate() -> Gate:
    return Gate()


def build(sessions: Sessions, node: Any, part: str = "attached") -> Any:
    builder = StateGraph(MessagesState).add_node("node", node).add_edge(START, "node")
    if part == "attached":
        return sessions.attach(builder.compile())
    return builder.compile(checkpointer=sessions.checkpointer)


def count_leases(sessions: Sessions) -> int:
    """How many runs hold the session "t" or wait for it."""
    counting = "SELECT count(*) FROM leases WHERE session_id = 't'"
    found: int = sessions._storage._database.read(lambda c: c.execute(counting).fetchone()[0])
    return found


async def until_queued(sessions: Sessions, count: int) -> None:
    while count_leases(sessions) < count:
        await asyncio.sleep(0)


@pytest.mark.parametrize("part", PARTS)
def test_reject_names_the_run_that_is_in_progress_and_admits_the_next(
    part: str, open_sessions: OpenSessions, gate: Gate
) -> None:
    sessions = open_sessions(on_busy="reject")
    graph = build(sessions, gate.node, part)
    sessions.open("t")  # the run may come to its node before its first write
    gate.hold()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(graph.invoke, human("one"), sessions.config("t"))
        assert gate.entered.wait(60)
        with pytest.raises(SessionBusy, match="busy with") as busy:
            graph.invoke(human("two"), sessions.config("t"))
        assert sessions.get("t").is_running
        gate.leave.set()
        first.result()
    assert not sessions.get("t").is_running
    if part == "attached":
        assert busy.value.run_id == sessions.get("t").runs()[0].id
    graph.invoke(human("three"), sessions.config("t"))
    assert [text for role, text in said(sessions.get("t")) if role == "user"] == ["one", "three"]
    assert [event.reason for event in sessions.get("t").events() if event.kind == "denied"] == ["busy"]


@pytest.mark.parametrize("part", [*PARTS, "recorder"])
async def test_a_run_refused_before_the_first_one_has_opened_the_session_is_an_event_too(
    part: str, open_sessions: OpenSessions
) -> None:
    sessions, leave = open_sessions(on_busy="reject"), asyncio.Event()

    async def node(state: MessagesState) -> dict[str, Any]:
        await leave.wait()
        return {"messages": [("ai", "ok")]}

    config = sessions.config("t")
    if part == "recorder":
        graph = StateGraph(MessagesState).add_node("node", node).add_edge(START, "node").compile()
        config = {**config, "callbacks": [sessions.recorder]}
    else:
        graph = build(sessions, node, part)
    runs = [asyncio.create_task(graph.ainvoke(human("hi"), config)) for _ in range(2)]
    (refused,), (admitted,) = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(refused.exception(), SessionBusy)
    leave.set()
    await admitted
    assert [(event.kind, event.reason) for event in await sessions.get("t").aevents()] == [
        ("opened", None),
        ("denied", "busy"),
    ]


async def test_nodes_that_begin_together_are_one_run(open_sessions: OpenSessions) -> None:
    """Each asks for admission where the recorder is alone, and each run ends before its record is written."""

    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("ai", "ok")]}

    sessions = open_sessions(on_busy="reject")
    builder = StateGraph(MessagesState)
    for name in ("one", "two", "three"):
        builder.add_node(name, node).add_edge(START, name)
    graph = builder.compile().with_config(callbacks=[sessions.recorder])
    for _ in range(10):
        await graph.ainvoke(human("hi"), sessions.config("t"))
    assert [run.outcome for run in sessions.get("t").runs()] == ["ok"] * 10
    assert count_leases(sessions) == 0


@pytest.mark.parametrize("part", PARTS)
async def test_wait_runs_them_one_after_the_other_in_order(part: str, open_sessions: OpenSessions) -> None:
    sessions = open_sessions(on_busy="wait")
    inside, most, all_wait = 0, 0, asyncio.Event()

    async def node(state: MessagesState) -> dict[str, Any]:
        nonlocal inside, most
        inside, most = inside + 1, max(most, inside + 1)
        await all_wait.wait()
        await asyncio.sleep(0)
        inside -= 1
        return {"messages": [("ai", f"you said {state['messages'][-1].text}")]}

    graph = build(sessions, node, part)
    runs = []
    for number in range(12):
        runs.append(asyncio.ensure_future(graph.ainvoke(human(str(number)), sessions.config("t"))))
        await until_queued(sessions, number + 1)
    all_wait.set()
    await asyncio.gather(*runs)
    assert most == 1
    assert [text for role, text in said(sessions.get("t")) if role == "user"] == [str(n) for n in range(12)]
    last = graph.get_state(sessions.config("t")).values["messages"]
    assert len(last) == 24


def test_threads_wait_too_and_give_up_after_the_timeout(open_sessions: OpenSessions, gate: Gate) -> None:
    sessions = open_sessions(on_busy="wait", busy_timeout="200ms")
    graph = build(sessions, gate.node)
    gate.hold()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(graph.invoke, human("one"), sessions.config("t"))
        assert gate.entered.wait(60)
        second = pool.submit(graph.invoke, human("two"), sessions.config("t"))
        with pytest.raises(SessionBusy) as busy:
            second.result(100)
        gate.leave.set()
        first.result(100)
    assert busy.value.run_id == sessions.get("t").runs()[0].id
    assert [event.reason for event in sessions.get("t").events() if event.kind == "denied"] == ["busy"]
    assert graph.invoke(human("three"), sessions.config("t"))["messages"][-1].text == "you said three"
    assert sessions.check() == []


@pytest.mark.parametrize("part", PARTS)
async def test_a_run_after_another_has_returned_is_not_refused(part: str, open_sessions: OpenSessions) -> None:
    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("ai", "x")]}

    graphs = [build(open_sessions(on_busy="reject"), node, part) for _ in range(2)]
    for number in range(10):
        for graph in graphs:
            assert await graph.ainvoke(human("hi"), {"configurable": {"thread_id": f"t{number}"}})


async def test_a_waiting_run_that_is_cancelled_gives_its_place_away(open_sessions: OpenSessions) -> None:
    sessions = open_sessions(on_busy="wait")
    entered, leave = asyncio.Event(), asyncio.Event()

    async def node(state: MessagesState) -> dict[str, Any]:
        entered.set()
        await leave.wait()
        return {"messages": [("ai", "done")]}

    graph = build(sessions, node)
    runs = [asyncio.ensure_future(graph.ainvoke(human("0"), sessions.config("t")))]
    await entered.wait()
    for number in (1, 2):
        runs.append(asyncio.ensure_future(graph.ainvoke(human(str(number)), sessions.config("t"))))
        await until_queued(sessions, number + 1)
    runs[1].cancel()
    await asyncio.gather(runs[1], return_exceptions=True)
    leave.set()
    await asyncio.gather(runs[0], runs[2])
    assert [text for role, text in said(sessions.get("t")) if role == "user"] == ["0", "2"]


@pairwise(part=PARTS, on_busy=["wait", "reject"], each_engine=ENGINES)
async def test_a_run_inside_a_run_of_the_same_session_has_its_turn_already(
    part: str, on_busy: str, open_sessions: OpenSessions
) -> None:
    sessions = open_sessions(on_busy=on_busy, busy_timeout="5s")
    inner = build(sessions, lambda state: {"messages": [("ai", "inner")]}, part)

    def node(state: MessagesState) -> dict[str, Any]:
        inner.invoke(human("nested"), sessions.config("t"))
        return {"messages": [("ai", "outer")]}

    async def anode(state: MessagesState) -> dict[str, Any]:
        await inner.ainvoke(human("nested"), sessions.config("t"))
        return {"messages": [("ai", "outer")]}

    assert build(sessions, node, part).invoke(human("hi"), sessions.config("t"))["messages"][-1].text == "outer"
    assert (await build(sessions, anode, part).ainvoke(human("hi"), sessions.config("t")))["messages"]
    assert not sessions.get("t").is_running


@pytest.mark.parametrize("part", PARTS)
def test_a_run_inside_a_run_has_its_turn_also_after_one_of_another_session(
    part: str, open_sessions: OpenSessions
) -> None:
    sessions = open_sessions(on_busy="reject")
    inner = build(sessions, lambda state: {"messages": [("ai", "inner")]}, part)

    def node(state: MessagesState) -> dict[str, Any]:
        inner.invoke(human("nested"), sessions.config("u"))
        assert (sessions.get("u").is_running, sessions.get("t").is_running) == (False, True)
        inner.invoke(human("nested"), sessions.config("t"))
        assert sessions.get("t").is_running
        return {"messages": [("ai", "outer")]}

    assert build(sessions, node, part).invoke(human("hi"), sessions.config("t"))["messages"][-1].text == "outer"
    assert not sessions.get("t").is_running


@pytest.mark.parametrize("part", PARTS)
async def test_a_run_begun_while_a_stream_is_read_is_not_inside_it(part: str, open_sessions: OpenSessions) -> None:
    """Whoever reads a stream has the context of its run."""
    sessions = open_sessions(on_busy="wait", busy_timeout="20s")
    graph = build(sessions, lambda state: {"messages": [("ai", "ok")]}, part)
    second = None
    async for _ in graph.astream(human("first"), sessions.config("t")):
        second = second or asyncio.create_task(graph.ainvoke(human("second"), sessions.config("t")))
    assert second is not None
    assert [m.text for m in (await second)["messages"]] == ["first", "ok", "second", "ok"]


@pytest.mark.parametrize("part", PARTS)
def test_a_run_refused_while_a_stream_is_read_is_not_looked_for_by_what_comes_after(
    part: str, open_sessions: OpenSessions
) -> None:
    sessions = open_sessions(on_busy="reject")
    graph = build(sessions, lambda state: {"messages": [("ai", "ok")]}, part)
    stream = graph.stream(human("first"), sessions.config("t"))
    next(stream)
    with pytest.raises(SessionBusy):
        graph.invoke(human("second"), sessions.config("t"))
    assert list(graph.get_state_history(sessions.config("t")))
    assert list(stream) == []
    assert [m.text for m in graph.get_state(sessions.config("t")).values["messages"]] == ["first", "ok"]


@pytest.mark.parametrize("part", PARTS)
def test_a_run_that_fails_leaves_the_session_free(part: str, open_sessions: OpenSessions) -> None:
    sessions = open_sessions(on_busy="reject")

    def node(state: MessagesState) -> dict[str, Any]:
        if state["messages"][-1].text == "break":
            raise RuntimeError("no")
        return {"messages": [("ai", "ok")]}

    graph = build(sessions, node, part)
    kept: list[BaseException] = []
    for _ in range(2):
        try:
            graph.invoke(human("break"), sessions.config("t"))
        except RuntimeError as error:
            kept.append(error)  # and with it its traceback, and with that all that was in the run
    assert graph.invoke(human("go on"), sessions.config("t"))["messages"][-1].text == "ok"
    assert len(kept) == 2


@pytest.fixture
def uncollected() -> Iterator[None]:
    """The end of a run is known whether or not garbage is collected."""
    gc.disable()
    yield
    gc.enable()


def asking(state: MessagesState) -> dict[str, Any]:
    return {"messages": [("ai", str(interrupt("?")))]}


def breaking(state: MessagesState) -> dict[str, Any]:
    raise RuntimeError("no")


def answering(state: MessagesState) -> dict[str, Any]:
    return {"messages": [("ai", "ok")]}


ENDS: dict[str, tuple[Any, Any]] = {
    "ok": (answering, human("hi")),
    "error": (breaking, human("hi")),
    "interrupt": (asking, human("hi")),
    "refused input": (answering, {}),
}


@pytest.mark.usefixtures("uncollected")
@pairwise(part=PARTS, end=ENDS, durability=["sync", "async", "exit"], each_engine=ENGINES)
async def test_a_run_is_over_as_soon_as_its_caller_goes_on(
    part: str, end: str, durability: Any, open_sessions: OpenSessions
) -> None:
    node, given = ENDS[end]
    sessions, others = open_sessions(on_busy="reject"), open_sessions(on_busy="reject")
    graph = build(sessions, node, part)
    kept: list[BaseException] = []
    sessions.open("t")
    for _ in range(2):
        try:
            graph.invoke(given, sessions.config("t"), durability=durability)
        except (RuntimeError, EmptyInputError) as error:
            kept.append(error)
        assert not sessions.get("t").is_running
        assert not others.get("t").is_running
        assert sessions.get("t").repair() == []
        try:
            await graph.ainvoke(given, sessions.config("t"), durability=durability)
        except (RuntimeError, EmptyInputError) as error:
            kept.append(error)
        assert not sessions.get("t").is_running
        assert sessions.get("t").repair() == []
    assert len(kept) in (0, 4)


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("part", PARTS)
async def test_a_run_whose_reader_stops_or_that_is_cancelled_is_over(part: str, open_sessions: OpenSessions) -> None:
    sessions = open_sessions(on_busy="reject")
    graph = build(sessions, answering, part)
    stream = graph.stream(human("hi"), sessions.config("t"))
    next(stream)
    assert sessions.get("t").is_running
    stream.close()
    assert not sessions.get("t").is_running
    astream = graph.astream(human("hi"), sessions.config("t"))
    await anext(astream)
    await astream.aclose()
    assert not sessions.get("t").is_running
    entered = asyncio.Event()

    async def waiting(state: MessagesState) -> dict[str, Any]:
        entered.set()
        await asyncio.Event().wait()
        return {}

    run = asyncio.create_task(build(sessions, waiting, part).ainvoke(human("hi"), sessions.config("t")))
    await entered.wait()
    assert sessions.get("t").is_running
    run.cancel()
    await asyncio.wait([run])
    assert run.cancelled()
    assert not sessions.get("t").is_running
    await graph.ainvoke(human("hi"), sessions.config("t"))


@pytest.mark.parametrize("part", PARTS)
async def test_an_error_that_a_handler_takes_is_not_the_end_of_its_run(part: str, open_sessions: OpenSessions) -> None:
    sessions = open_sessions(on_busy="reject")
    quick = build(sessions, answering, part)
    refused: list[bool] = []
    tries = 0

    def second_run_is_refused() -> None:
        with ThreadPoolExecutor(1) as another, pytest.raises(SessionBusy):
            another.submit(quick.invoke, human("beside"), sessions.config("t")).result()
        sessions._background.renew_leases()
        refused.append(sessions.get("t").is_running)

    def breaks(state: MessagesState) -> dict[str, Any]:
        nonlocal tries
        tries += 1
        if tries % 2 == 0:
            second_run_is_refused()  # it is tried again
        raise ValueError("no")

    def handle(state: MessagesState) -> dict[str, Any]:
        second_run_is_refused()
        return {"messages": [("ai", "handled")]}

    builder = StateGraph(MessagesState).add_edge(START, "breaks")
    builder.add_node("breaks", breaks, error_handler=handle, retry_policy=AT_ONCE)
    if part == "attached":
        graph = sessions.attach(builder.compile())
    else:
        graph = builder.compile(checkpointer=sessions.checkpointer)
    assert graph.invoke(human("hi"), sessions.config("t"))["messages"][-1].text == "handled"
    assert (await graph.ainvoke(human("hi"), sessions.config("t")))["messages"][-1].text == "handled"
    assert refused == [True] * 4
    assert not sessions.get("t").is_running


@pytest.mark.parametrize("part", PARTS)
def test_an_error_of_one_branch_is_not_the_end_of_a_run_that_another_goes_on_in(
    part: str, open_sessions: OpenSessions, gate: Gate
) -> None:
    sessions = open_sessions(on_busy="reject")
    quick = build(sessions, answering, part)
    builder = StateGraph(MessagesState).add_node("slow", gate.node).add_node("breaks", breaking)
    builder.add_edge(START, "slow").add_edge(START, "breaks")
    if part == "attached":
        graph = sessions.attach(builder.compile())
    else:
        graph = builder.compile(checkpointer=sessions.checkpointer)
    gate.hold()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(graph.invoke, human("hi"), sessions.config("t"))
        assert gate.entered.wait(60)
        sessions._background.renew_leases()
        with pytest.raises(SessionBusy):
            quick.invoke(human("beside"), sessions.config("t"))
        gate.leave.set()
        assert isinstance(run.exception(), RuntimeError)
    quick.invoke(human("afterwards"), sessions.config("t"))


def test_an_abandoned_stream_frees_the_session(open_sessions: OpenSessions) -> None:
    sessions = open_sessions(on_busy="reject")
    graph = build(sessions, lambda state: {"messages": [("ai", "ok")]}, "checkpointer")
    stream = graph.stream(human("hi"), sessions.config("t"))
    next(stream)
    with ThreadPoolExecutor(1) as pool, pytest.raises(SessionBusy):
        pool.submit(graph.invoke, human("two"), sessions.config("t")).result()
    del stream
    with ThreadPoolExecutor(1) as pool:
        pool.submit(graph.invoke, human("two"), sessions.config("t")).result()


@pytest.mark.parametrize("part", PARTS)
def test_a_run_that_was_taken_for_dead_cannot_write_any_more(
    part: str, open_sessions: OpenSessions, gate: Gate
) -> None:
    sessions, others = open_sessions(on_busy="reject"), open_sessions(on_busy="reject")
    graph = build(sessions, gate.node, part)
    graph.invoke(human("zero"), sessions.config("t"))
    gate.hold()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(graph.invoke, human("one"), sessions.config("t"))
        assert gate.entered.wait(60)
        (number,) = others._storage._database.read(
            lambda c: c.execute("SELECT number FROM leases WHERE session_id = 't'").fetchone()
        )
        others._storage._database.write(lambda c: c.execute("DELETE FROM leases"))  # as another would, of a dead one
        quick = build(others, lambda state: {"messages": [("ai", "taken over")]}, part)
        quick.invoke(human("two"), others.config("t"))
        gate.leave.set()
        with pytest.raises(LeaseLost, match=f"lease {number}"):
            first.result(100)
    messages = graph.get_state(sessions.config("t")).values["messages"]
    assert [message.text for message in messages][-1] == "taken over"
    assert ("denied", "lease") in [(event.kind, event.reason) for event in sessions.get("t").events()]


@pairwise(part=PARTS, durability=["sync", "async", "exit"], each_engine=ENGINES)
def test_a_live_run_is_never_idle_to_anybody(
    part: str, durability: Any, open_sessions: OpenSessions, clock: Clock
) -> None:
    sessions, others = (open_sessions(idle_timeout="30m", on_expire="delete") for _ in range(2))

    @tool
    def look_up(thing: str) -> str:
        """Takes its time."""
        clock.advance(hours=5)
        if durability == "sync" or part == "attached":
            assert (others.get("t").status, others.get("t").is_running) == ("active", True)
            assert [session.id for session in others.list(status="active")] == ["t"]
            assert others.list(status="expired") == []
            assert others.sweep() == []
            assert others.sweep(older_than="1h") == []
        return f"{thing} is nice"

    if part == "attached":
        graph = sessions.attach(agents.tool_graph(look_up))
    else:
        graph = agents.tool_graph(look_up, checkpointer=sessions.checkpointer)
    for turn in (1, 2):
        result = graph.invoke(human("look up tea"), sessions.config("t"), durability=durability)
        assert len(result["messages"]) == 4 * turn
    assert (sessions.get("t").is_running, sessions.get("t").status) == (False, "active")
    clock.advance(minutes=30)
    assert [ended.session_id for ended in sessions.sweep()] == ["t"]


async def test_runs_in_many_sessions_do_not_wait_for_each_other(open_sessions: OpenSessions) -> None:
    sessions = open_sessions(on_busy="reject")
    everybody = asyncio.Barrier(8)

    async def node(state: MessagesState) -> dict[str, Any]:
        await asyncio.wait_for(everybody.wait(), 20)
        return {"messages": [("ai", "met")]}

    graph = build(sessions, node)
    await asyncio.gather(*(graph.ainvoke(human("hi"), sessions.config(f"s{n}")) for n in range(8)))
    assert sessions.count() == 8


def test_the_recorder_alone_refuses_a_second_run_too(open_sessions: OpenSessions, gate: Gate) -> None:
    sessions = open_sessions(on_busy="reject")
    graph = StateGraph(MessagesState).add_node("node", gate.node).add_edge(START, "node").compile()
    config = {**sessions.config("t"), "callbacks": [sessions.recorder]}
    gate.hold()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(graph.invoke, human("one"), config)
        assert gate.entered.wait(60)
        with pytest.raises(SessionBusy):
            graph.invoke(human("two"), config)
        gate.leave.set()
        first.result()
    graph.invoke(human("three"), config)


@pytest.mark.sessions(on_busy="reject")
async def test_a_run_starts_right_after_the_end_of_another_sessions_run(
    each_engine: str, open_sessions: OpenSessions
) -> None:
    first, second = open_sessions(), open_sessions()
    graph = StateGraph(MessagesState).add_node("answer", lambda _: {"messages": [("ai", "fine")]})
    graph = graph.add_edge(START, "answer").compile()
    for number in range(20):
        for sessions in (first, second):
            config = {**sessions.config("t"), "callbacks": [sessions.recorder]}
            await graph.ainvoke(human(f"{number}"), config)
    first.settle()
    assert {run.outcome for run in second.get("t").runs()} == {"ok"}
    assert len(second.get("t").runs()) == 40


@pytest.mark.sessions(on_busy="reject")
def test_a_refusal_before_the_first_write_of_another_sessions_run_is_recorded(
    each_engine: str, open_sessions: OpenSessions, gate: Gate
) -> None:
    first, second = open_sessions(), open_sessions()
    gate.hold()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            build(first, gate.node, "checkpointer").invoke, human("one"), first.config("t"), durability="exit"
        )
        assert gate.entered.wait(60)
        with pytest.raises(SessionBusy):
            build(second, gate.node, "checkpointer").invoke(human("two"), second.config("t"))
        assert first.find("t") is None
        gate.leave.set()
        running.result(60)
    second.close()
    assert [(event.kind, event.reason) for event in first.get("t").events()] == [("opened", None), ("denied", "busy")]


@pytest.mark.parametrize("on_busy", ["allow", "wait", "reject"])
async def test_a_run_may_have_a_rule_of_its_own(on_busy: str, open_sessions: OpenSessions) -> None:
    sessions, entered, leave = open_sessions(on_busy=on_busy), asyncio.Event(), asyncio.Event()

    async def node(state: MessagesState) -> dict[str, Any]:
        if state["messages"][-1].text == "first":
            entered.set()
            await leave.wait()
        return {"messages": [("ai", "done")]}

    graph = build(sessions, node)
    await sessions.aopen("t")
    first = asyncio.create_task(graph.ainvoke(human("first"), sessions.config("t", on_busy="allow")))
    await entered.wait()
    with pytest.raises(SessionBusy):
        await graph.ainvoke(human("refused"), sessions.config("t", on_busy="reject"))
    with pytest.raises(SessionBusy):
        await graph.ainvoke(human("late"), sessions.config("t", on_busy="wait", busy_timeout="1ms"))
    with pytest.raises(InvalidArgument, match="on_busy cannot be 'perhaps'"):
        await graph.ainvoke(human("?"), sessions.config("t", on_busy="perhaps"))
    await graph.ainvoke(human("beside"), sessions.config("t", on_busy="allow"))
    waiting = asyncio.create_task(
        graph.ainvoke(human("second"), sessions.config("t", on_busy="wait", busy_timeout="never"))
    )
    await until_queued(sessions, 2)
    leave.set()
    await first
    assert [message.text for message in (await waiting)["messages"][-2:]] == ["second", "done"]
    await sessions.asettle()
    assert count_leases(sessions) == 0
    assert {*map(str, (run.metadata for run in sessions.get("t").runs()))} == {"{}"}  # the rules are no labels
    stored = [saved.metadata.keys() async for saved in sessions.checkpointer.alist(sessions.config("t"))]
    assert not {"on_busy", "busy_timeout"} & set().union(*stored)
