"""Following a session while it goes on, in this process and from another."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import tool

from session_middleware import Sessions
from session_middleware.errors import InvalidArgument
from session_middleware.models import Message, Run, ToolCall
from session_middleware.recording import follow
from session_middleware.storage.types import Record
from tests.support import agents
from tests.support.agents import human
from tests.support.postgres import Server, end_connections
from tests.support.processes import Process


def is_answer(entry: Record) -> bool:
    return isinstance(entry, Message) and entry.role == "assistant" and bool(entry.text)


def run_ended(entry: Record) -> bool:
    return isinstance(entry, Run) and entry.outcome != "running"


def latest(entries: list[Record]) -> list[Record]:
    """The last that was told of each record, in order."""
    return [entry for _, entry in sorted({entry.seq: entry for entry in entries}.items())]


def test_what_is_there_comes_first_and_it_ends_when_nothing_more_comes(sessions: Sessions) -> None:
    sessions.attach(agents.tool_graph()).invoke(human("look up tea"), sessions.config("t"))
    session = sessions.get("t")
    assert list(session.follow(timeout="1ms")) == session.timeline()


def test_it_goes_on_from_an_order_number(sessions: Sessions) -> None:
    sessions.attach(agents.tool_graph()).invoke(human("look up tea"), sessions.config("t"))
    session = sessions.get("t")
    first = session.timeline()[3].seq
    assert list(session.follow(after=first, timeout="1ms")) == session.timeline(after=first)


def test_it_ends_when_asked(sessions: Sessions) -> None:
    sessions.attach(agents.chat()).invoke(human("hi"), sessions.config("t"))
    assert is_answer(list(sessions.get("t").follow(until=is_answer))[-1])


@pytest.mark.usefixtures("each_engine")
async def test_what_comes_is_told_as_it_comes(sessions: Sessions) -> None:
    graph = sessions.attach(agents.tool_graph())
    session = sessions.open("t")
    turn = asyncio.create_task(graph.ainvoke(human("look up tea"), sessions.config("t")))
    found = [entry async for entry in session.afollow(until=run_ended)]
    await turn
    assert latest(found) == sessions.get("t").timeline(limit=len(latest(found)))


@pytest.mark.usefixtures("each_engine")
def test_a_call_that_was_going_on_is_told_again_when_it_has_ended(sessions: Sessions) -> None:
    told = threading.Event()

    @tool
    def price(thing: str) -> str:
        """What a thing costs."""
        assert told.wait(20)
        return "3"

    graph = sessions.attach(agents.tool_graph(price))
    session = sessions.open("t")
    turn = threading.Thread(target=graph.invoke, args=(human("both tea"), sessions.config("t")))
    turn.start()
    calls = []
    for entry in session.follow(until=run_ended):
        if isinstance(entry, ToolCall) and entry.name == "price":
            calls.append(entry)
            told.set()
    turn.join()
    assert [(call.status, call.result) for call in calls] == [("running", None), ("ok", "3")]
    assert len({call.seq for call in calls}) == 1


@pytest.mark.usefixtures("each_engine")
def test_going_on_tells_of_what_was_not_finished_before(sessions: Sessions) -> None:
    seen: list[Record] = []

    @tool
    def look_up(thing: str) -> str:
        """Take a look at the record, stop following, and follow again."""
        seen.extend(session.follow(timeout="1ms"))
        stand.append(session._following(seen[-1].seq, None, past_end=False))
        assert stand[0].poll().new == []
        return "nice"

    stand: list[Any] = []
    graph = sessions.attach(agents.tool_graph(look_up))
    session = sessions.open("t")
    graph.invoke(human("look up tea"), sessions.config("t"), durability="sync")
    rest = stand[0].poll().new
    again = {entry.seq for entry in rest} & {entry.seq for entry in seen}
    assert again == {entry.seq for entry in seen if isinstance(entry, (Run, ToolCall))}
    assert latest(seen + rest) == session.timeline()
    assert run_ended(rest[-1])


@pytest.mark.usefixtures("each_engine")
def test_it_ends_with_the_session(sessions: Sessions) -> None:
    found = sessions.open("t").follow()
    assert next(found).kind == "opened"  # type: ignore[union-attr]
    sessions.delete("t")
    assert list(found) == []


@pytest.mark.usefixtures("each_engine")
def test_it_goes_on_past_the_end_of_a_session_until_that_is_deleted(sessions: Sessions) -> None:
    session = sessions.open("t")
    found = session.follow(past_end=True)
    session.complete()
    sessions.open("t")
    assert [next(found).kind for _ in range(3)] == ["opened", "completed", "reopened"]  # type: ignore[union-attr]
    sessions.delete("t")
    assert list(found) == []
    with pytest.raises(InvalidArgument, match="past_end"):
        session.follow(past_end=None)  # type: ignore[arg-type]


@pytest.mark.sessions(idle_timeout="1h")
@pytest.mark.usefixtures("each_engine")
def test_it_ends_when_the_session_has_expired(sessions: Sessions, clock: Any) -> None:
    found = sessions.open("t").follow()
    assert next(found).kind == "opened"  # type: ignore[union-attr]
    clock.advance(hours=2)
    assert list(found) == []


def test_it_follows_a_memory_database_too() -> None:
    with Sessions(":memory:") as sessions:
        session = sessions.open("t")
        found = session.follow(timeout="5s")
        assert next(found).kind == "opened"  # type: ignore[union-attr]
        sessions.attach(agents.chat()).invoke(human("hi"), sessions.config("t"))
        assert any(is_answer(entry) for entry in session.follow(until=is_answer))
        assert type(next(found)).__name__ == "Event"


WRITER = """
import sys
from session_middleware import Sessions
from tests.support import agents
with Sessions(sys.argv[1]) as sessions:
    graph = sessions.attach(agents.tool_graph())
    for _ in range(5):
        graph.invoke(agents.human("look up tea"), sessions.config("t"))
"""


def test_another_process_is_followed(sessions: Sessions, each_engine: str) -> None:
    session = sessions.open("t")
    writer = Process("-c", WRITER, each_engine)
    ended = 0
    found = []
    for entry in session.follow(timeout="100s"):
        found.append(entry)
        ended += run_ended(entry)  # one that is over when it is first seen is told before what was said in it
        if ended == 5 and len({each.seq for each in found if isinstance(each, Message)}) == 20:
            break
    assert writer.communicate() == ("", "")
    whole = session.timeline()
    assert [entry.seq for entry in latest(found)] == [entry.seq for entry in whole[: len(latest(found))]]


def test_looks_come_less_often_the_longer_nothing_comes_and_stop_at_the_timeout() -> None:
    pauses = follow._pauses(None)
    waits = [next(pauses) for _ in range(8)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.01, 0.25)
    assert next(follow._pauses(timedelta(0)), None) is None


def test_nothing_is_held_while_a_follower_waits_for_its_next_record(sessions: Sessions, tmp_path: Path) -> None:
    graph = sessions.attach(agents.chat())
    graph.invoke(human("hi"), sessions.config("t"))
    found = sessions.get("t").follow(timeout="1ms")
    next(found)
    sessions.delete("other")
    graph.invoke(human("hi"), sessions.config("other"))
    assert sessions.delete("other").sessions == 1
    assert (tmp_path / "sessions.db-wal").stat().st_size == 0  # the log could be emptied: nobody reads from it


def test_a_follower_that_learns_of_changes_reads_only_after_one(postgres_url: str) -> None:
    """Two `Sessions` are as two processes: neither knows of the other's commits."""
    with Sessions(postgres_url, sweep_interval=None) as ours, Sessions(postgres_url, sweep_interval=None) as others:
        session = ours.open("t")
        following, changed = session._following(0, None, past_end=False), threading.Event()
        watch = following.watch(changed.set)
        assert changed.wait(30)  # with the first notice the earlier changes are read
        assert watch.is_live
        following.poll()
        changed.clear()
        assert not following.is_due(has_changed=changed.is_set())
        others.get("t").update(title="a title")
        assert changed.wait(30)
        others.attach(agents.chat()).invoke(human("hi"), others.config("t"))
        assert any(is_answer(entry) for entry in session.follow(until=is_answer, timeout="30s"))
        watch.close()


def test_a_follower_polls_behind_a_pooler_where_notices_do_not_arrive(pooled_url: str) -> None:
    with Sessions(pooled_url, sweep_interval=None) as ours, Sessions(pooled_url, sweep_interval=None) as others:
        session = ours.open("t")
        found = session.follow(until=is_answer, timeout="30s")
        assert next(found).kind == "opened"  # type: ignore[union-attr]
        others.attach(agents.chat()).invoke(human("hi"), others.config("t"))
        assert is_answer(list(found)[-1])
        assert not session._following(0, None, past_end=False).watch(lambda: None).is_live


def test_a_follower_hears_of_changes_again_after_its_connection_was_lost(postgres_server: Server) -> None:
    with postgres_server.database() as url, Sessions(url, sweep_interval=None) as sessions:
        session, changed = sessions.open("t"), threading.Event()
        watch = session._following(0, None, past_end=False).watch(changed.set)
        assert changed.wait(30)
        changed.clear()
        end_connections(url)
        assert changed.wait(30)  # what was not reported meanwhile may have changed
        assert watch.is_live
