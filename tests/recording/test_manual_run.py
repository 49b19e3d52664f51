"""Blocks of ``with session:`` inside each other and beside each other: which of them are runs."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from session_middleware import Session, SessionBusy, Sessions
from tests.conftest import Clock
from tests.support import agents
from tests.support.agents import human

pytestmark = [pytest.mark.sessions(idle_timeout="1m"), pytest.mark.usefixtures("clock", "consistent")]


def say(session: Session, text: str) -> None:
    session.add({"role": "user", "content": text})


def runs_of(session: Session) -> list[tuple[str, list[str]]]:
    """Each run's outcome, and what was said in it."""
    messages = session.messages()
    return [(run.outcome, [m.text for m in messages if m.run_id == run.id]) for run in session.runs()]


def test_a_block_inside_a_block_is_part_of_its_run(sessions: Sessions) -> None:
    session = sessions.open("t")
    with session:
        with session:
            say(session, "inner")
        with sessions.get("t") as again:
            say(again, "by another object")
        with pytest.raises(ValueError, match="caught"), session:
            raise ValueError("caught")
        say(session, "outer")
    assert runs_of(session) == [("ok", ["inner", "by another object", "outer"])]


def test_a_block_inside_a_block_of_another_session_is_a_run_of_its_own(sessions: Sessions) -> None:
    first, second = sessions.open("a"), sessions.open("b")
    with first, second:
        say(first, "in a")
        say(second, "in b")
    assert (runs_of(first), runs_of(second)) == ([("ok", ["in a"])], [("ok", ["in b"])])


async def test_blocks_of_tasks_beside_each_other_are_runs_of_their_own(sessions: Sessions) -> None:
    session, all_in = sessions.open("t"), asyncio.Barrier(3)

    async def part(text: str) -> None:
        async with session:
            await all_in.wait()
            await session.aadd({"role": "user", "content": text})

    await asyncio.gather(part("1"), part("2"), part("3"))
    assert sorted(runs_of(session)) == [("ok", ["1"]), ("ok", ["2"]), ("ok", ["3"])]


async def test_tasks_and_threads_of_a_block_are_part_of_its_run(sessions: Sessions) -> None:
    session = sessions.open("t")

    async def part(text: str) -> None:
        async with session:
            await session.aadd({"role": "user", "content": text})

    async with session:
        await asyncio.gather(part("1"), part("2"))
        with ThreadPoolExecutor(1) as threads:
            threads.submit(say, session, "by a thread").result()
    ((outcome, texts),) = runs_of(session)
    assert (outcome, sorted(texts)) == ("ok", ["1", "2", "by a thread"])


def test_a_block_that_is_left_in_another_context_has_ended(sessions: Sessions) -> None:
    session = sessions.open("t")
    contextvars.copy_context().run(session.__enter__)
    say(session, "between")
    contextvars.copy_context().run(session.__exit__, None, None, None)
    say(session, "behind")
    assert runs_of(session) == [("ok", ["between"])]


def test_a_session_whose_blocks_have_ended_expires(sessions: Sessions, clock: Clock) -> None:
    session = sessions.open("t")
    with session, session:
        clock.advance(minutes=2)
        assert sessions.get("t").status == "active"
    clock.advance(minutes=2)
    assert sessions.get("t").status == "expired"


def test_a_block_beside_another_is_refused_where_one_run_at_a_time_is_wanted(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db", on_busy="reject") as sessions:
        session = sessions.open("t")
        with session, session, ThreadPoolExecutor(1) as threads:
            with pytest.raises(SessionBusy):
                threads.submit(session.__enter__).result()
            with pytest.raises(SessionBusy):
                contextvars.Context().run(sessions.get("t").__enter__)
        with session:
            say(session, "free again")
        assert runs_of(session) == [("ok", []), ("ok", ["free again"])]


async def test_a_block_waits_for_another_where_one_run_at_a_time_is_wanted(tmp_path: Path) -> None:
    with Sessions(tmp_path / "sessions.db", on_busy="wait") as sessions:
        session, order = sessions.open("t"), list[str]()

        async def part(text: str) -> None:
            async with session:
                order.append(f"{text} in")
                await session.aadd({"role": "user", "content": text})
                order.append(f"{text} out")

        await asyncio.gather(part("a"), part("b"))
        assert sorted(order[:2]) in (["a in", "a out"], ["b in", "b out"])
        assert sorted(runs_of(session)) == [("ok", ["a"]), ("ok", ["b"])]


@pytest.mark.parametrize("on_busy", ["wait", "reject"])
@pytest.mark.parametrize("parts", [{}, {"checkpointer": False}, {"recorder": False}], ids=str)
async def test_a_graph_inside_a_block_has_its_turn_already(
    on_busy: Any, parts: dict[str, bool], tmp_path: Path
) -> None:
    with Sessions(tmp_path / "sessions.db", on_busy=on_busy, busy_timeout="100ms") as sessions:
        session, graph = sessions.open("t"), sessions.attach(agents.tool_graph(), **parts)
        with session:
            graph.invoke(human("look up tea"), session.config())
            await graph.ainvoke(human("hello"), session.config())
            with ThreadPoolExecutor(1) as threads, pytest.raises(SessionBusy):
                threads.submit(sessions.get("t").__enter__).result()
        graph.invoke(human("bye"), session.config())
        assert {run.outcome for run in session.runs()} == {"ok"}
        assert "you said bye" in [message.text for message in session.messages(branch="all")]


async def test_a_block_that_is_cancelled_as_it_begins_leaves_no_run_behind(sessions: Sessions) -> None:
    for number in itertools.count():
        session = sessions.open(f"t{number}")
        task = asyncio.create_task(session.__aenter__())
        await asyncio.sleep(0)
        if task.cancel():  # else the storage's thread was faster, which a task notices at once from Python 3.14 on
            break
    with pytest.raises(asyncio.CancelledError):
        await task
    say(session, "behind")
    assert [outcome for outcome, _ in runs_of(session)] in ([], ["interrupted"])
