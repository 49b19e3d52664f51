"""Reading on after what was read: whatever became of that message, what follows comes, and nothing a second time."""

from __future__ import annotations

from typing import Any

import pytest

from session_middleware import Session, Sessions

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


def test_a_cursor_from_the_timeline_is_a_cursor_for_messages(session: Session) -> None:
    session.record_tool("look", result="seen")
    cursor = session.timeline()[-1].seq
    say(session, "g")
    say(session, "B", id="b")
    assert texts(session, after=cursor) == ["g"]
