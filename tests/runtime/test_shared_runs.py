"""Several `Sessions` of one database in one process that serve the same runs.

LangGraph's server loads a module twice, so the recorder of a graph and its checkpointer may be of two `Sessions`. Each
has a connection of its own, so on PostgreSQL their transactions for one run are concurrent.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import Sessions
from tests.conftest import Clock, OpenSessions
from tests.support.agents import human
from tests.support.pairwise import ENGINES, pairwise

THREADS = 10 if "SESSION_FAULT_ROUNDS" in os.environ else 6
ROUNDS = min(int(os.environ.get("SESSION_FAULT_ROUNDS", "1")), 5)
Pair = tuple[Sessions, Sessions]


def graph(*remembering: Sessions) -> StateGraph[Any]:
    def answer(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        for sessions in remembering:
            sessions.memory(config).remember(state["messages"][-1].text, scope="session")
        return {"messages": [AIMessage("fine")]}

    return StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer")


def of_a_server(first: Sessions, second: Sessions, *remembering: Sessions) -> Any:
    agent = first.attach(graph(*remembering).compile(), checkpointer=False, store=False)
    agent.checkpointer = second.checkpointer
    return agent


def attached_to_both(first: Sessions, second: Sessions, *remembering: Sessions) -> Any:
    return second.attach(graph(*remembering).compile()).with_config(callbacks=[first.recorder])


def nested(first: Sessions, second: Sessions, *remembering: Sessions) -> Any:
    inner = first.attach(graph(*remembering).compile())

    def call(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        inner.invoke({"messages": state["messages"][-1:]}, config)
        return {"messages": [AIMessage("done")]}

    return second.attach(StateGraph(MessagesState).add_node("call", call).add_edge(START, "call").compile())


ARRANGEMENTS: list[Callable[..., Any]] = [of_a_server, attached_to_both, nested]
each_arrangement = pairwise(arranged=ARRANGEMENTS, is_async=[False, True], each_engine=ENGINES)
pytestmark = pytest.mark.slow


@pytest.fixture
def pair(each_engine: str, open_sessions: OpenSessions) -> Callable[..., Pair]:
    return lambda **settings: (open_sessions(**settings), open_sessions(**settings))


def ids() -> Iterator[list[str]]:
    for round_number in range(ROUNDS):
        yield [f"t{round_number}-{number}" for number in range(THREADS)]


def run(agent: Any, pair: Pair, session_ids: list[str], *, is_async: bool) -> None:
    """Run once in each session, by threads that start together. Raises the first error."""
    together, errors = threading.Barrier(len(session_ids)), list[BaseException]()

    def turn(session_id: str) -> None:
        config = pair[1].config(session_id, user_id="alice")
        together.wait()
        try:
            if is_async:
                asyncio.run(agent.ainvoke(human("hi"), config))
            else:
                agent.invoke(human("hi"), config)
        except BaseException as error:  # noqa: BLE001  # raised below
            errors.append(error)

    threads = [threading.Thread(target=turn, args=(session_id,)) for session_id in session_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    for each in pair:
        each.settle()  # under asyncio the end of a run is written afterwards


def kinds(sessions: Sessions, session_id: str) -> list[str]:
    return [event.kind for event in sessions.get(session_id).events()]


@each_arrangement
def test_each_run_enters_its_session_once_and_leaves_it(
    arranged: Callable[..., Any], is_async: bool, pair: Callable[..., Pair], clock: Clock
) -> None:
    first, second = pair()
    agent = arranged(first, second)
    for session_ids in ids():
        run(agent, (first, second), session_ids, is_async=is_async)
        run(agent, (first, second), session_ids, is_async=is_async)
        assert [kinds(second, session_id) for session_id in session_ids] == [["opened", "resumed"]] * THREADS
    clock.advance(days=8)  # a session with a run in progress would not expire
    assert {session.status for session in second.list(limit=None)} == {"expired"}


@each_arrangement
def test_a_run_that_starts_afresh_goes_on_in_every_sessions(
    arranged: Callable[..., Any], is_async: bool, pair: Callable[..., Pair], clock: Clock
) -> None:
    first, second = pair(on_resume="fresh")
    agent = arranged(first, second, first, second)
    for session_ids in ids():
        run(agent, (first, second), session_ids, is_async=is_async)
        clock.advance(days=8)
        run(agent, (first, second), session_ids, is_async=is_async)
        for session_id in session_ids:
            assert kinds(second, session_id) == ["opened"]
            assert [memory.text for memory in second.get(session_id).memory.list()] == ["hi", "hi"]


@each_arrangement
def test_a_run_does_not_wait_for_itself(
    arranged: Callable[..., Any], is_async: bool, pair: Callable[..., Pair]
) -> None:
    first, second = pair(on_busy="reject")
    agent = arranged(first, second)
    for session_ids in ids():
        run(agent, (first, second), session_ids, is_async=is_async)
        run(agent, (first, second), session_ids, is_async=is_async)
    assert [run.outcome for session in second.list(limit=None) for run in session.runs() if run.outcome != "ok"] == []
