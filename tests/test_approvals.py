"""What an app and an operator do with sessions that wait for an answer, were cut off, or have labelled runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from session_middleware import SessionAccessDenied, SessionNotFound, Sessions
from tests.conftest import OpenSessions
from tests.support import processes

pytestmark = pytest.mark.sessions(sweep_interval=None)


def asking() -> Any:
    def pay(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(str(interrupt("may I?")))]}

    return StateGraph(MessagesState).add_node("pay", pay).add_edge(START, "pay").compile()


def waiting(sessions: Sessions, *thread_ids: str, **identity: Any) -> Any:
    graph = sessions.attach(asking())
    for thread_id in thread_ids:
        graph.invoke({"messages": "pay"}, sessions.config(thread_id, **identity))
    return graph


def asked(sessions: Any, session_id: str) -> list[tuple[Any, ...]]:
    return [(one.value, one.status, one.answer) for one in sessions.get(session_id).questions()]


def test_each_user_finds_the_own_sessions_that_wait(sessions: Sessions) -> None:
    waiting(sessions, "a1", "a2", user_id="alice")
    waiting(sessions, "b1", user_id="bob")
    sessions.open("b2", user_id="bob")
    bob = sessions.for_user("bob")
    assert [one.id for one in bob.list(waiting=True)] == ["b1"]
    assert [one.id for one in bob.list(waiting=False)] == ["b2"]
    assert bob.get("b1").waiting_for()[0].value == "may I?"
    with pytest.raises(SessionNotFound):
        bob.get("a1")
    assert "waits since" in bob.explain("b1").text
    with pytest.raises(ValueError, match="waiting"):
        bob.list(waiting="yes")  # type: ignore[arg-type]


def test_another_user_cannot_answer(sessions: Sessions) -> None:
    graph = waiting(sessions, "t", user_id="alice")
    with pytest.raises(SessionAccessDenied):
        graph.invoke(Command(resume="yes"), sessions.config("t", user_id="mallory"))
    assert asked(sessions, "t") == [("may I?", "open", None)]
    assert sessions.get("t").waiting_count == 1


def test_a_question_stands_in_the_timeline_and_is_followed_until_its_answer(sessions: Sessions) -> None:
    graph = waiting(sessions, "t", user_id="alice")
    session = sessions.get("t")
    line = next(one for one in session.timeline() if "may I?" in one.line).line
    assert line == "pay: may I? → not answered yet"
    followed = session.follow(timeout="5s")
    seen = [next(followed).line for _ in session.timeline()]
    graph.invoke(Command(resume="yes"), session.config())
    seen += [next(followed).line for _ in range(2)]
    assert [one for one in seen if "may I?" in one] == [line, "pay: may I? → yes (by alice)"]
    followed.close()


@pytest.mark.usefixtures("each_engine")
def test_a_fork_waits_for_the_same_question(sessions: Sessions) -> None:
    graph = waiting(sessions, "t")
    sessions.get("t").fork(id="fork")
    assert [one.id for one in sessions.list(waiting=True)] == ["fork", "t"]
    graph.invoke(Command(resume="yes"), sessions.config("fork"))
    assert (asked(sessions, "fork"), asked(sessions, "t")) == (
        [("may I?", "answered", "yes")],
        [("may I?", "open", None)],
    )
    graph.invoke(Command(resume="no"), sessions.config("t"))
    checkpoint = sessions.get("t").questions()[0].checkpoint_id
    again = sessions.get("t").fork(at=checkpoint)
    assert asked(sessions, again.id) == [("may I?", "open", None)]
    graph.invoke(Command(resume="perhaps"), again.config())
    assert asked(sessions, again.id) == [("may I?", "answered", "perhaps")]
    assert sessions.get("t").messages()[-1].text == "no"
    assert sessions.check(deep=True) == []


@pytest.mark.usefixtures("each_engine")
def test_another_branch_has_its_own_question(sessions: Sessions) -> None:
    graph = waiting(sessions, "t")
    session = sessions.get("t")
    graph.invoke(None, session.edit(session.messages()[0].message_id, "pay more"))
    assert asked(sessions, "t") == [("may I?", "dropped", None), ("may I?", "open", None)]
    session.switch("main")
    assert asked(sessions, "t") == [("may I?", "open", None), ("may I?", "dropped", None)]
    graph.invoke(Command(resume="yes"), session.config())
    assert asked(sessions, "t")[0] == ("may I?", "answered", "yes")
    assert [message.text for message in session.messages()] == ["pay", "yes"]
    assert sessions.check(deep=True) == []


@pytest.mark.usefixtures("each_engine")
def test_a_forgotten_user_answered_nothing(sessions: Sessions) -> None:
    graph = waiting(sessions, "t")
    graph.invoke(Command(resume="yes"), sessions.config("t", user_id="bob"))
    assert sessions.get("t").questions()[0].answered_by == "bob"
    assert sessions.forget_user("bob").traces >= 1
    assert sessions.get("t").questions()[0].answered_by == "forgotten"


def test_questions_are_deleted_and_exported_with_their_session(sessions: Sessions, tmp_path: Path) -> None:
    graph = waiting(sessions, "t", "u")
    sessions.export(tmp_path / "all.jsonl")
    with Sessions(tmp_path / "other.db", sweep_interval=None) as other:
        other.import_from(tmp_path / "all.jsonl")
        assert [one.id for one in other.list(waiting=True)] == [one.id for one in sessions.list(waiting=True)]
        other.attach(asking()).invoke(Command(resume="yes"), other.config("t"))
        assert asked(other, "t") == [("may I?", "answered", "yes")]
        assert other.check(deep=True) == []
    sessions.delete("t")
    assert [one.id for one in sessions.list(waiting=True)] == ["u"]
    graph.invoke({"messages": "pay"}, sessions.config("t"))
    assert len(asked(sessions, "t")) == 1
    assert sessions.check(deep=True) == []


def test_a_wrong_count_of_questions_is_repaired(sessions: Sessions) -> None:
    waiting(sessions, "t")
    sessions._storage._database.write(lambda connection: connection.execute("UPDATE sessions SET waiting_count = 7"))  # type: ignore[attr-defined]
    [problem] = sessions.check(repair=True)
    assert (problem.kind, problem.repaired) == ("counter", True)
    assert sessions.get("t").waiting_count == 1


# Runs that were cut off

CRASH = """
import os, sys
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from session_middleware import Sessions

def ask(state):
    interrupt("may I?")

def crash(state):
    os.kill(os.getpid(), 9)

def pay(state):
    interrupt("may I?")
    while answer == ["yes"] and not is_stored():  # LangGraph stores it beside the run
        pass
    crash(state)

def is_stored():
    with Sessions(url, sweep_interval=None) as other:
        found = other.checkpointer.get_tuple(other.config(thread_id, user_id=user_id))
    return "__resume__" in [channel for _, channel, _ in found.pending_writes]

url, thread_id, user_id, node, *answer = sys.argv[1:]
sessions = Sessions(url, sweep_interval=None)
builder = StateGraph(MessagesState)
if node == "pay":
    builder.add_node("pay", pay).add_edge(START, "pay")
    given = Command(resume="yes" if answer == ["yes"] else {answer[0]: "lost"})
else:
    builder.add_node("done", lambda state: {"messages": [AIMessage("one")]})
    builder.add_node("next", {"ask": ask, "crash": crash}[node]).add_edge(START, "done").add_edge("done", "next")
    given = {"messages": "hi"}
sessions.attach(builder.compile()).invoke(given, sessions.config(thread_id, user_id=user_id))
"""


def going_on() -> Any:
    builder = StateGraph(MessagesState).add_node("done", lambda state: {"messages": [AIMessage("one")]})
    builder.add_node("next", lambda state: {"messages": [AIMessage("two")]})
    return builder.add_edge(START, "done").add_edge("done", "next").compile()


def test_an_app_resumes_what_a_dead_process_left_unfinished(each_engine: str, open_sessions: OpenSessions) -> None:
    assert processes.run("-c", CRASH, each_engine, "cut-off", "alice", "crash").returncode == -9
    assert processes.run("-c", CRASH, each_engine, "asking", "alice", "ask").returncode == 0
    sessions = open_sessions()
    sessions.attach(going_on()).invoke({"messages": "hi"}, sessions.config("whole", user_id="alice"))
    assert [one.id for one in sessions.unfinished()] == ["cut-off"]
    assert [one.id for one in sessions.for_user("alice").unfinished()] == ["cut-off"]
    assert sessions.for_user("bob").unfinished() == sessions.unfinished(user_id="bob") == []

    graph = sessions.attach(going_on())
    sessions.sweep()  # which writes the end of dead runs to their rows
    for session in sessions.unfinished():
        graph.invoke(None, session.config())
    assert [one.text for one in sessions.get("cut-off").messages()] == ["hi", "one", "two"]
    assert [one.outcome for one in sessions.get("cut-off").runs()] == ["interrupted", "ok"]
    assert sessions.unfinished() == []
    graph.invoke(Command(resume="yes"), sessions.get("asking").config())  # asked by another process
    assert [one.answer for one in sessions.get("asking").questions()] == ["yes"]


@pytest.mark.parametrize(("answer", "status"), [("yes", "answered"), (None, "open")])
def test_an_answer_by_id_that_a_dead_process_has_lost_is_asked_for_again(
    each_engine: str, open_sessions: OpenSessions, answer: str | None, status: str
) -> None:
    """LangGraph stores a single answer before the run, and answers by ids with the output of their nodes."""
    sessions = open_sessions()
    waiting(sessions, "t", user_id="alice")
    [question] = sessions.get("t").questions()
    arguments = each_engine, "t", "alice", "pay", answer or str(question.interrupt_id)
    assert processes.run("-c", CRASH, *arguments).returncode == -9
    sessions.sweep()  # which writes the end of dead runs to their rows
    assert [one.status for one in sessions.get("t").questions()] == [status]
    assert sessions.count(waiting=True) == (status == "open")
    sessions.attach(asking()).invoke(Command(resume="no") if status == "open" else None, sessions.get("t").config())
    assert asked(sessions, "t") == [("may I?", "answered", answer or "no")]
    assert sessions.check(deep=True) == []


async def test_cancelled_and_running_sessions_are_not_unfinished(sessions: Sessions) -> None:
    began, ends = asyncio.Event(), asyncio.Event()

    async def stay(state: MessagesState) -> None:
        began.set()
        await ends.wait()

    builder = StateGraph(MessagesState).add_node("stay", stay).add_edge(START, "stay")
    run = asyncio.create_task(sessions.attach(builder.compile()).ainvoke({"messages": "hi"}, sessions.config("t")))
    await began.wait()
    assert await sessions.aunfinished(cancelled=True) == []
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    assert await sessions.aunfinished() == []
    assert [one.id for one in await sessions.aunfinished(cancelled=True)] == ["t"]
    sessions.get("t").abandon()
    assert await sessions.aunfinished(cancelled=True) == []


# Labels


def test_the_tags_and_metadata_of_a_run_are_kept_and_found(sessions: Sessions) -> None:
    graph = sessions.attach(going_on())
    for attempt in (1, 2):
        config = sessions.config("t", user_id="alice", group_id="staff")
        labels = {"metadata": {**config["metadata"], "experiment": {"name": "b"}, "attempt": attempt, "owner": "alice"}}
        graph.invoke({"messages": "hi"}, {**config, **labels, "tags": ["beta", f"try-{attempt}"]})
    graph.invoke({"messages": "hi"}, sessions.config("t", user_id="alice", group_id="staff"))
    session = sessions.get("t")
    first, second, last = session.runs()
    assert (first.tags, first.metadata) == (("beta", "try-1"), {"experiment": {"name": "b"}, "attempt": 1})
    assert (last.tags, last.metadata) == ((), {})
    assert session.runs(tags=["beta"]) == [first, second]
    assert session.runs(tags="try-2", metadata={"experiment": {"name": "b"}}) == [second]
    assert session.runs(metadata={"attempt": {"$gte": 1}}, limit=1) == [first]
    assert session.runs(metadata={"attempt": 3}) == []
    with pytest.raises(ValueError, match="a filter operator cannot be"):
        session.runs(metadata={"missing": {"$in": [1]}})
    with pytest.raises(ValueError, match="tags"):
        session.runs(tags=[1])  # type: ignore[list-item]
