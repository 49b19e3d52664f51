"""Cancelled calls, several event loops, sync calls on a loop: each works or raises at once, and leaves no lock."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from session_middleware import SessionError, Sessions
from tests.conftest import OpenSessions
from tests.faults.test_saver import graph

HANGS = 100.0  # seconds after which a call has not worked and has not raised


@pytest.fixture
def sessions(open_sessions: OpenSessions) -> Sessions:
    opened = open_sessions()
    opened.open("first")
    return opened


def promptly(call: Callable[[], Any]) -> Any:
    """What a call returns; a call that hangs is an error, and does not hang the tests."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append((call(), None))
        except BaseException as error:  # noqa: BLE001  # it is raised again
            found.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(HANGS)
    assert found, "it hangs"
    result, error = found[0]
    if error is not None:
        raise error
    return result


def assert_no_lock_left(path: Path, sessions: Sessions) -> None:
    """Neither in the file, for other processes, nor in this object."""
    promptly(lambda: sessions.open("afterwards"))
    with closing(sqlite3.connect(path, timeout=HANGS, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def put_of(sessions: Sessions, session_id: str, **values: Any) -> tuple[Any, ...]:
    config = sessions.config(session_id, checkpoint_ns="")
    versions = dict.fromkeys(values, 1)
    checkpoint = {**empty_checkpoint(), "channel_values": values, "channel_versions": versions}
    return config, checkpoint, {"source": "loop", "step": 0, "parents": {}}, versions


def is_whole(sessions: Sessions, session_id: str) -> bool | None:
    """``None``: there is no checkpoint."""
    found = sessions.checkpointer.get_tuple(sessions.config(session_id))
    if found is None:
        return None
    return found.checkpoint["channel_values"] == {"text": "x" * 1000, "list": list(range(50))}


async def test_four_hundred_cancelled_puts_are_each_whole_or_not_there(sessions: Sessions, path: Path) -> None:
    saver, chance = sessions.checkpointer, random.Random(1)
    puts = [put_of(sessions, f"s{n}", text="x" * 1000, list=list(range(50))) for n in range(800)]
    calls = [asyncio.ensure_future(saver.aput(*put)) for put in puts]
    await asyncio.sleep(0)
    cancelled = chance.sample(range(800), 400)
    for number in cancelled:  # some before their turn, some while they are carried out, some when they are done
        if number % 8 == 0:
            await asyncio.sleep(0)
        calls[number].cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {dict, asyncio.CancelledError}
    assert_no_lock_left(path, sessions)
    there = [is_whole(sessions, f"s{n}") for n in range(800)]
    assert False not in there
    assert all(there[n] for n, outcome in enumerate(outcomes) if isinstance(outcome, dict))


async def test_four_hundred_cancelled_calls_of_every_kind_leave_a_checkpointer_that_works(
    sessions: Sessions, path: Path
) -> None:
    saver, chance = sessions.checkpointer, random.Random(2)
    for number in range(10):
        saver.put(*put_of(sessions, f"s{number}", text="x" * 1000, list=list(range(50))))

    async def listed(session_id: str) -> int:
        return len([found async for found in saver.alist(sessions.config(session_id))])

    kinds: list[Callable[[str], Any]] = [
        lambda name: saver.aget_tuple(sessions.config(name)),
        listed,
        lambda name: saver.aput(*put_of(sessions, name, text="x" * 1000, list=list(range(50)))),
        lambda name: saver.aput_writes(sessions.config(name, checkpoint_ns="", checkpoint_id="c"), [("a", 1)], name),
        lambda name: saver.acopy_thread(name, f"{name}-copy{chance.random()}"),
        lambda name: saver.aprune([name]),
    ]
    calls = []
    for number in range(400):
        calls.append(asyncio.ensure_future(kinds[number % len(kinds)](f"s{chance.randrange(10)}")))
        if number % 16 == 0:
            await asyncio.sleep(0)
    for call in calls:
        call.cancel()
        if chance.random() < 0.1:
            await asyncio.sleep(0)
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert not isinstance(outcome, Exception) or isinstance(outcome, SessionError)
    assert_no_lock_left(path, sessions)
    assert all(is_whole(sessions, f"s{number}") for number in range(10))
    assert await asyncio.wait_for(listed("s1"), HANGS) >= 1


def test_a_second_loop_works_while_the_first_is_under_way(sessions: Sessions) -> None:
    agent, together = graph().compile(checkpointer=sessions.checkpointer), threading.Barrier(4)

    async def talk(name: str) -> list[str]:
        together.wait()
        for turn in range(5):
            state = await agent.ainvoke({"messages": f"{name} {turn}"}, sessions.config(name))
        return [message.text for message in state["messages"]]

    found: dict[str, list[str]] = {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: asyncio.run(talk(name))}), daemon=True)
        for name in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {name: texts[::2] for name, texts in found.items()} == {
        name: [f"{name} {turn}" for turn in range(5)] for name in "abcd"
    }


def test_an_object_first_used_in_one_loop_works_in_the_next(sessions: Sessions) -> None:
    agent = graph().compile(checkpointer=sessions.checkpointer)
    for turn in range(4):
        state = promptly(lambda turn=turn: asyncio.run(agent.ainvoke({"messages": f"{turn}"}, sessions.config("t"))))
    assert [message.text for message in state["messages"]][::2] == ["0", "1", "2", "3"]


def test_a_loop_that_ends_while_its_put_waits_for_a_lock_does_not_stop_the_next(sessions: Sessions, path: Path) -> None:
    saver = sessions.checkpointer
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # another process is writing

    async def leave() -> None:
        call = asyncio.ensure_future(saver.aput(*put_of(sessions, "left", text="x" * 1000, list=list(range(50)))))
        done, _ = await asyncio.wait([call], timeout=0.05)
        assert not done

    promptly(lambda: asyncio.run(leave()))  # which cancels what is left, and closes the loop
    assert promptly(lambda: is_whole(sessions, "left")) is None  # a reader does not wait
    other.execute("ROLLBACK")
    other.close()
    put = put_of(sessions, "next", text="x" * 1000, list=list(range(50)))
    promptly(lambda: asyncio.run(saver.aput(*put)))
    assert is_whole(sessions, "next")
    assert is_whole(sessions, "left") in (True, None)
    assert_no_lock_left(path, sessions)


SYNC_CALLS: dict[str, Callable[[Sessions], Any]] = {
    "get_tuple": lambda sessions: sessions.checkpointer.get_tuple(sessions.config("t")),
    "list": lambda sessions: list(sessions.checkpointer.list(sessions.config("t"))),
    "put": lambda sessions: sessions.checkpointer.put(*put_of(sessions, "t", value=1)),
    "put_writes": lambda sessions: sessions.checkpointer.put_writes(
        sessions.config("t", checkpoint_ns="", checkpoint_id="c"), [("a", 1)], "task"
    ),
    "copy_thread": lambda sessions: sessions.checkpointer.copy_thread("t", "u"),
    "prune": lambda sessions: sessions.checkpointer.prune(["t"]),
    "delete_for_runs": lambda sessions: sessions.checkpointer.delete_for_runs(["r"]),
    "delete_thread": lambda sessions: sessions.checkpointer.delete_thread("t"),
    "invoke": lambda sessions: sessions.attach(graph().compile()).invoke({"messages": "hi"}, sessions.config("t")),
    "open": lambda sessions: sessions.open("t"),
}


@pytest.mark.parametrize("name", SYNC_CALLS)
def test_a_sync_method_works_on_a_loops_thread_while_async_calls_are_under_way(name: str, sessions: Sessions) -> None:
    sessions.checkpointer.put(*put_of(sessions, "t", value=0))
    agent = sessions.attach(graph().compile())

    async def both() -> Any:
        runs = [asyncio.ensure_future(agent.ainvoke({"messages": "hi"}, sessions.config(f"a{n}"))) for n in range(3)]
        await asyncio.sleep(0)
        SYNC_CALLS[name](sessions)  # waits on this very thread, which the async calls need in order to go on
        return await asyncio.gather(*runs)

    assert len(promptly(lambda: asyncio.run(both()))) == 3


async def test_a_sync_method_inside_an_async_node_works(sessions: Sessions, path: Path) -> None:
    """As people do in a tool that looks at the thread it runs in."""

    async def node(state: Any) -> Any:
        seen = sessions.checkpointer.get_tuple(sessions.config("t"))
        sessions.checkpointer.put(*put_of(sessions, "other", value=1))
        return {"messages": [("ai", f"{seen is not None}")]}

    from langgraph.graph import START, MessagesState, StateGraph

    agent = sessions.attach(StateGraph(MessagesState).add_node("node", node).add_edge(START, "node").compile())
    run = asyncio.wait_for(agent.ainvoke({"messages": "hi"}, sessions.config("t"), durability="sync"), HANGS)
    assert (await run)["messages"][-1].text == "True"
    assert_no_lock_left(path, sessions)
