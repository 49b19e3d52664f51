"""Buffered entries are written before a session is read, and what is remembered of sessions is bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, StateGraph

from session_middleware import SessionClosed, Sessions, StorageError
from session_middleware.models import Identity
from session_middleware.recording.checkpoint_listener import _MAX_SESSIONS, RecordingListener
from session_middleware.storage.run import RunContext, RunState
from tests.support.agents import Runner, ainvoke, chat, human, invoke, said

pytestmark = pytest.mark.usefixtures("each_engine")


def buffered(sessions: Sessions, session_id: str) -> RunContext:
    """An admitted run of the session with one message that is not written yet."""
    sessions.open(session_id)
    context = RunContext(session_id, Identity(), run_id=f"run of {session_id}", state=RunState(announced=True))
    buffer = sessions.recorder.buffer
    buffer.storage.append(context)
    buffer.add(context, buffer.describe([HumanMessage("hi")]))
    return context


READS: dict[str, Callable[[Sessions], Any]] = {
    "find": lambda sessions: sessions.find("t"),
    "get": lambda sessions: sessions.get("t"),
    "explain": lambda sessions: sessions.explain("t"),
    "fork": lambda sessions: sessions.get("t").fork(),
    "get by a user": lambda sessions: sessions.for_user("alice").find("t"),
    "messages": lambda sessions: sessions.get("t").messages(),
    "stats": lambda sessions: sessions.get("t").stats(),
}


@pytest.mark.parametrize("read", READS)
def test_a_read_of_one_session_writes_what_that_session_has_buffered_and_no_other(
    read: str, sessions: Sessions
) -> None:
    own, other = buffered(sessions, "t"), buffered(sessions, "other")
    READS[read](sessions)
    assert (len(own.notes.entries), len(other.notes.entries)) == (0, 1)
    assert said(sessions.get("t")) == [("user", "hi")]
    assert [session.message_count for session in sessions.list()] == [1, 1] + [1] * (read == "fork")


def test_the_writes_of_unfinished_steps_are_remembered_of_a_bounded_number_of_sessions(sessions: Sessions) -> None:
    listener = RecordingListener(sessions.recorder.buffer)
    for number in range(_MAX_SESSIONS + 9):
        key = (str(number), "", "1")
        listener.wrote(
            RunContext(key[0], Identity()), key, [("messages", [HumanMessage("hi")])], path="", outermost_id="1"
        )
    assert listener._channels.cache_info().currsize == _MAX_SESSIONS


@pytest.mark.parametrize("runner", [invoke, ainvoke], ids=lambda runner: runner.__name__)
async def test_a_run_whose_session_is_deleted_before_its_first_checkpoint_keeps_no_entries(
    runner: Runner, sessions: Sessions
) -> None:
    deletes = False

    def add(messages: list[Any], new: list[Any]) -> list[Any]:
        if deletes:
            sessions.checkpointer.delete_thread("t")
        return [*messages, *new]

    State = TypedDict("State", {"messages": Annotated[list[Any], add]})  # noqa: UP013  # a class would not see `add`
    builder = StateGraph(State).add_node("answer", lambda _: {"messages": [AIMessage("hello")]})
    graph = sessions.attach(builder.add_edge(START, "answer").compile())
    await runner(graph, human("hi"), sessions.config("t"))
    deletes = True
    with pytest.raises(SessionClosed, match="deleted"):
        await runner(graph, human("hi"), sessions.config("t"))
    sessions.recorder.drain()
    assert [context for context in sessions.recorder.buffer._open.values() if context.notes.entries] == []
    assert sessions.find("t") is None


@pytest.mark.parametrize("runner", [invoke, ainvoke], ids=lambda runner: runner.__name__)
async def test_a_run_of_closed_sessions_raises_and_logs_nothing(
    runner: Runner, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    graph = sessions.attach(chat())
    sessions.close()
    with pytest.raises(StorageError, match="it was closed"):
        await runner(graph, human("hi"), sessions.config("t"))
    assert (caplog.records, sessions.recorder.faults) == ([], 0)
