"""Reading on after what was read: whatever became of that message, what follows comes, and nothing a second time."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import InvalidArgument, Session, Sessions
from session_middleware.models import Message, ModelCall
from tests.support import agents

pytestmark = pytest.mark.usefixtures("each_engine")


@pytest.fixture
def session(sessions: Sessions) -> Session:
    session = sessions.open("t")
    for letter in "abcdef":
        say(session, letter)
    return session


def say(session: Session, text: str, id: str | None = None) -> None:
    session.add({"role": "user", "content": text, "id": id or text})


def texts(session: Session, **which: Any) -> list[str]:
    return [message.text for message in session.messages(**which)]


def seq_of(session: Session, text: str) -> int:
    return next(m.seq for m in session.messages(branch="all", all_versions=True) if m.text == text)


def test_what_follows_a_message_that_was_edited_follows_each_of_its_versions(session: Session) -> None:
    cursor = seq_of(session, "c")
    say(session, "C", id="c")
    say(session, "g")
    for after in (cursor, seq_of(session, "C")):
        assert texts(session, after=after) == ["d", "e", "f", "g"]
        assert texts(session, after=after, limit=2) == ["d", "e"]
    assert texts(session, after=cursor, all_versions=True) == ["C", "d", "e", "f", "g"]


def test_what_follows_a_message_that_was_deleted_comes_wherever_it_stood(session: Session) -> None:
    cursor = seq_of(session, "c")
    session.delete_message("c")
    assert texts(session, after=cursor) == ["d", "e", "f"]
    last = seq_of(session, "f")
    session.delete_message("f")
    assert texts(session, after=last) == []
    say(session, "g")
    assert texts(session, after=last) == ["g"]


@pytest.mark.parametrize("edits", [[], ["e"]])
def test_what_follows_a_message_that_was_edited_and_deleted_is_what_stood_behind_it(
    session: Session, edits: list[str]
) -> None:
    say(session, "C", id="c")
    for edited in edits:  # the session has others whose place is not their seq, or none
        say(session, edited.upper(), id=edited)
    cursors = [seq_of(session, "c"), seq_of(session, "C")]
    session.delete_message("c")
    for cursor in cursors:
        assert [text.lower() for text in texts(session, after=cursor)] == ["d", "e", "f"]


def test_what_follows_a_message_that_was_left_behind_is_where_the_conversation_went(session: Session) -> None:
    left = [seq_of(session, text) for text in ("d", "f")]
    history = [{"role": "user", "content": letter} for letter in "abcxyz"]
    session.add_history(history)
    for cursor in left:
        assert texts(session, after=cursor) == ["x", "y", "z"]
        assert texts(session, after=cursor, branch="main") == (["e", "f"] if cursor == left[0] else [])
    assert texts(session, after=seq_of(session, "b")) == ["c", "x", "y", "z"]
    assert texts(session, after=seq_of(session, "x"), branch="main") == ["d", "e", "f"]
    session.add_history([{"role": "user", "content": letter} for letter in "nobody"])
    assert texts(session, after=left[0]) == list("nobody")


def test_a_message_deleted_on_a_branch_that_was_left_is_no_place_to_begin_again(session: Session) -> None:
    session.add_history([{"role": "user", "content": letter} for letter in "abcxyz"])
    cursor = seq_of(session, "e")
    session.delete_message("e")
    assert texts(session, after=cursor) == ["x", "y", "z"]


async def test_pages_by_seq_go_on_after_a_message_that_is_gone(session: Session) -> None:
    session.record_tool("look", result="seen", tool_call_id="c1")
    cursor = seq_of(session, "f")
    session.delete_message("f")
    assert [call.name for call in await session.atool_calls(after=cursor)] == ["look"]
    assert [event.kind for event in await session.aevents(after=cursor)] == ["message_deleted"]
    assert [type(entry).__name__ for entry in await session.atimeline(after=cursor)] == ["ToolCall", "Event"]
    assert list(session.follow(after=cursor, timeout="1ms")) == session.timeline(after=cursor)
    assert await session.amessages(after=cursor) == []


def test_tool_calls_are_paged_from_both_ends(session: Session) -> None:
    for name in "vwxyz":
        session.record_tool(name)
    last = session.tool_calls(last=2)
    assert [call.name for call in last] == ["y", "z"]
    assert [call.name for call in session.tool_calls(last=2, before=last[0].seq)] == ["w", "x"]
    assert [call.name for call in session.tool_calls(limit=2, before=last[0].seq)] == ["v", "w"]
    with pytest.raises(InvalidArgument, match="last=… for the last ones"):
        session.tool_calls(limit=1, last=1)


def test_a_cursor_from_the_timeline_is_a_cursor_for_messages(session: Session) -> None:
    session.record_tool("look", result="seen")
    cursor = session.timeline()[-1].seq
    say(session, "g")
    say(session, "B", id="b")
    assert texts(session, after=cursor) == ["g"]


@pytest.mark.parametrize("shape", ["plain", "edited", "on a branch"])
async def test_a_conversation_is_read_from_its_end_by_pages_that_leave_nothing_out(
    shape: str, session: Session
) -> None:
    if shape == "edited":
        say(session, "C", id="c")
    elif shape == "on a branch":
        session.add_history([{"role": "user", "content": letter} for letter in "abcxyz"])
    whole = session.messages()
    for size in (1, 2, 4, 6, 9):
        found = page = session.messages(last=size)
        assert len(page) == min(size, 6)
        while page:
            page = await session.amessages(last=size, before=page[0].seq)
            found = page + found
        assert found == whole
    assert session.messages(last=0) == []
    assert session.messages(before=whole[0].seq) == []
    assert session.messages(after=whole[0].seq, before=whole[4].seq) == whole[1:4]
    assert session.messages(after=whole[0].seq, before=whole[4].seq, limit=2) == whole[1:3]
    assert session.messages(after=whole[0].seq, before=whole[4].seq, last=2) == whole[2:4]
    assert session.messages(after=whole[4].seq, before=whole[1].seq) == []


def test_what_precedes_a_message_that_was_edited_or_deleted_is_what_stood_before_it(session: Session) -> None:
    cursors = [seq_of(session, "c")]
    for edited in (False, True):
        if edited:
            say(session, "E", id="e")
            say(session, "C", id="c")
            cursors.append(seq_of(session, "C"))
        for cursor in cursors:
            assert texts(session, before=cursor) == ["a", "b"]
            assert texts(session, last=1, before=cursor) == ["b"]
    session.delete_message("c")
    for cursor in cursors:
        assert texts(session, before=cursor) == ["a", "b"]


def test_a_timeline_is_read_from_its_end(session: Session) -> None:
    session.record_tool("look", result="seen")
    whole = session.timeline()
    assert session.timeline(last=3) == whole[-3:]
    assert session.timeline(last=3, before=whole[-3].seq) == whole[-6:-3]
    assert session.timeline(before=whole[2].seq) == whole[:2]
    assert session.timeline(after=whole[2].seq, before=whole[5].seq, limit=1) == whole[3:4]


def test_a_page_without_subgraphs_has_the_conversation_of_the_outermost_graph(sessions: Sessions) -> None:
    def alone(state: MessagesState) -> dict[str, Any]:
        agents.Scripted().invoke("a prompt that is in no state")
        return {"messages": [AIMessage("from the parent")]}

    def team(state: MessagesState) -> dict[str, Any]:
        agents.tool_graph().invoke({"messages": "look up tea"})
        return {"messages": [AIMessage("from the team")]}

    builder = StateGraph(MessagesState).add_node(team).add_node(alone)
    graph = builder.add_edge(START, "team").add_edge("team", "alone").compile()
    sessions.attach(graph).invoke({"messages": "hello"}, sessions.config("g"))
    session = sessions.get("g")
    assert len(session.messages()) > 4
    shown = session.messages(subgraphs=False)
    assert [message.text for message in shown] == ["hello", "from the team", "from the parent"]
    assert session.messages(subgraphs=False, last=2) == shown[1:]
    assert session.messages(subgraphs=False, branch="all") == shown
    assert session.messages(subgraphs=False, last=1, before=session.timeline()[-1].seq) == shown[1:2]
    of_root = session.timeline(subgraphs=False)
    assert [record for record in of_root if isinstance(record, Message)] == shown
    assert {type(record).__name__ for record in of_root} == {"Event", "Run", "Message", "ModelCall"}
    assert [record.node for record in of_root if isinstance(record, ModelCall)] == ["alone"]
    assert session.timeline(subgraphs=False, last=2) == of_root[-2:]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"last": 1, "limit": 1}, "limit=… for the first"), ({"last": -1}, "0 or more"), ({"before": "x"}, "page after")],
)
def test_a_wrong_page_says_what_is_right(wrong: dict[str, Any], says: str, session: Session) -> None:
    for read in (session.messages, session.timeline):
        with pytest.raises(InvalidArgument, match=says):
            read(**wrong)
