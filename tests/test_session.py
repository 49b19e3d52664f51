"""Objects that users hold: after their session was deleted, given a wrong argument name, copied and pickled."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from pydantic import BaseModel

import session_middleware
from session_middleware import Session, SessionClosed, SessionError, SessionNotFound, Sessions, errors
from session_middleware.models import SessionInfo
from tests.conftest import OpenSessions
from tests.support import agents
from tests.support.agents import human
from tests.support.pairwise import pairwise

USES: dict[str, Callable[[Session], Any]] = {
    "messages": lambda s: s.messages(),
    "tool_calls": lambda s: s.tool_calls(),
    "model_calls": lambda s: s.model_calls(),
    "runs": lambda s: s.runs(),
    "events": lambda s: s.events(),
    "branches": lambda s: s.branches(),
    "timeline": lambda s: s.timeline(),
    "stats": lambda s: s.stats(),
    "file": lambda s: s.file("sha256:00"),
    "follow": lambda s: list(s.follow(timeout="1ms")),
    "history": lambda s: s.history().messages,
    "history add": lambda s: s.history().add_messages([HumanMessage("x")]),
    "add": lambda s: s.add(HumanMessage("x")),
    "add_history": lambda s: s.add_history([HumanMessage("x")]),
    "record_tool": lambda s: s.record_tool("search"),
    "with": lambda s: s.__enter__(),
    "remember": lambda s: s.memory.remember("x"),
    "recall": lambda s: s.memory.recall("x"),
    "memories": lambda s: s.memory.list(),
    "update": lambda s: s.update(title="x"),
    "ping": lambda s: s.ping(),
    "pin": lambda s: s.pin(),
    "unpin": lambda s: s.unpin(),
    "complete": lambda s: s.complete(),
    "fail": lambda s: s.fail(),
    "abandon": lambda s: s.abandon(),
    "repair": lambda s: s.repair(),
    "delete_message": lambda s: s.delete_message("x"),
    "delete": lambda s: s.delete(),
    "resource": lambda s: s.resource("x", open=object),
}


def handle(sessions: Sessions, *, guarded: bool) -> Session:
    session: Session = (sessions.for_user("alice") if guarded else sessions).get("t")
    return session


@pairwise(use=USES, guarded=[False, True], reopened=[False, True])
def test_a_session_that_was_deleted_says_so_whatever_is_asked_of_it(
    use: str, guarded: bool, reopened: bool, sessions: Sessions
) -> None:
    sessions.open("t", user_id="alice").add(HumanMessage("old"))
    held = handle(sessions, guarded=guarded)
    sessions.delete("t")
    if reopened:
        sessions.open("t", user_id="alice").add(HumanMessage("new"))
    with pytest.raises((SessionNotFound, SessionClosed), match=r"'t' (was|is) deleted"):
        USES[use](held)
    if reopened:
        now = sessions.get("t")
        assert [message.text for message in now.messages()] == ["new"]
        assert (now.status, now.title, now.pinned, now.client) == ("active", "new", None, {})
    else:
        assert sessions.find("t") is None


async def test_the_same_under_asyncio(sessions: Sessions) -> None:
    held = await sessions.aopen("t")
    await held.adelete()
    with pytest.raises(SessionNotFound, match="was deleted"):
        await held.amessages()
    with pytest.raises(SessionNotFound, match="was deleted"):
        async for _ in held.afollow(timeout="1ms"):
            pass


@pytest.mark.parametrize("guarded", [False, True], ids=["operator", "user"])
def test_following_a_session_ends_when_it_is_deleted_meanwhile(guarded: bool, sessions: Sessions) -> None:
    sessions.open("t", user_id="alice").add(HumanMessage("hi"))
    seen = []
    for entry in handle(sessions, guarded=guarded).follow():
        seen.append(entry)
        if len(seen) == 2:
            sessions.delete("t")
    assert len(seen) == 2


# Names that are nearly right


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: s.open("t", user="alice"), r"open\(\) has no argument 'user'; write user_id="),
        (lambda s: s.open("t", group="staff"), r"write group_id="),
        (lambda s: s.open(thread_id="t"), r"write session_id="),
        (lambda s: s.open("t", titel="x"), r"write title="),
        (lambda s: s.usage(user="alice"), r"usage\(\) has no argument 'user'; write user_id="),
        (lambda s: s.sweep(dryrun=True), r"write dry_run="),
        (lambda s: s.open("t").messages(limits=3), r"write limit="),
        (lambda s: s.open("t").memory.remember("x", scopes="user"), r"write scope="),
        (lambda s: s.for_user("alice").usage(user="bob"), r"no argument 'user'"),
        (lambda s: asyncio.run(s.asearch("x", user="alice")), r"write user_id="),
        (lambda s: s.config(thread_id="t"), r"config\(\) has no argument 'thread_id'; write session_id="),
        (lambda s: s.config(threadid="t"), r"write session_id="),
        (lambda s: s.config("t", user="alice"), r"write user_id="),
        (lambda s: s.open("t").update(colour="x"), r"has no argument 'colour'; it takes title, purpose, tags"),
        (lambda s: s.for_user("alice").open("t", titel="x"), r"write title="),
        (lambda s: asyncio.run(s.aopen("t", user="alice")), r"write user_id="),
    ],
)
def test_an_argument_that_there_is_not_is_answered_with_the_one_that_was_meant(
    call: Callable[[Sessions], Any], said: str, sessions: Sessions
) -> None:
    with pytest.raises(TypeError, match=said):
        call(sessions)


def test_other_names_go_into_the_config_as_they_are(sessions: Sessions) -> None:
    config = sessions.config("t", model_name="small", threads=4, users=["a"])
    assert {"model_name": "small", "threads": 4, "users": ["a"]}.items() <= config["configurable"].items()


def test_methods_keep_their_signatures_and_their_kind() -> None:
    assert "user_id" in inspect.signature(Sessions.open).parameters
    assert inspect.iscoroutinefunction(Sessions.aopen)
    assert not inspect.iscoroutinefunction(Session.messages)


# Copies


def test_sessions_in_hand_can_be_pickled_and_are_their_fields_then(sessions: Sessions) -> None:
    sessions.open("t", user_id="alice", metadata={"deep": {"er": 1}})
    for held in (sessions.list(), sessions.for_user("alice").list()):
        (read,) = pickle.loads(pickle.dumps(held))
        assert type(read) is SessionInfo
        assert dict(read) == dict(held[0])


def test_completion_shows_the_fields_and_methods_of_a_session_and_no_others(sessions: Sessions) -> None:
    session = sessions.open("t")
    methods = {name for name, _ in inspect.getmembers(Session, inspect.isroutine) if not name.startswith("_")}
    shown = {name for name in dir(session) if not name.startswith("_")}
    assert shown == {*SessionInfo.model_fields, *methods, "acting", "columns", "memory"}
    assert not shown & {*dir(BaseModel)}


def test_a_session_is_a_frozen_value(sessions: Sessions) -> None:
    session = sessions.open("t", title="Tea")
    assert session == sessions.get("t")
    assert len({session, sessions.get("t")}) == 1
    assert session != sessions.get("t").update(title="Coffee")
    with pytest.raises(AttributeError, match=r"update\(title=…\)"):
        session.title = "Coffee"
    with pytest.raises(AttributeError):
        del session.title
    assert copy.copy(session).title == session.title == "Tea"


def test_a_deep_copy_of_a_session_works_and_shares_no_fields_with_it(sessions: Sessions) -> None:
    graph = sessions.attach(agents.chat())
    graph.invoke(human("hi"), sessions.config("t"))
    held = sessions.open("t", metadata={"deep": {"er": 1}})
    copied = copy.deepcopy(held)
    assert copied == held
    assert copied.metadata["deep"] is not held.metadata["deep"]
    assert [message.text for message in copied.messages()] == [message.text for message in held.messages()]


def test_what_is_due_can_be_pickled(sessions: Sessions) -> None:
    sessions.open("t")
    due = sessions.sweep(older_than="1ms", dry_run=True)
    assert pickle.loads(pickle.dumps(due)) == list(due) == copy.deepcopy(due)


def test_an_open_database_says_what_to_keep_instead(sessions: Sessions) -> None:
    session = sessions.open("t")
    parts = (sessions.checkpointer, sessions.recorder, sessions.store, session.memory, session.history())
    for held in (sessions, sessions.for_user("alice"), *parts):
        for attempt in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match=r"keep the path, and open it with Sessions\("):
                attempt(held)
    with pytest.raises(TypeError, match=r"keep the path, and open it with Sessions\("):
        copy.deepcopy(sessions.attach(agents.chat()))


FACTS = {  # of the constructors, by their parameters
    "namespace": ("user", "alice"),
    "problems": ["a", "b"],
    "known": ("a", "b"),
    "since": datetime(2026, 1, 1, tzinfo=UTC),
}
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SessionError)]


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not SessionError], ids=lambda kind: kind.__name__)
def test_an_error_reaches_another_process_as_it_was_raised(kind: Any) -> None:
    needed = [each for each in inspect.signature(kind).parameters.values() if each.default is each.empty]
    facts = {each.name: FACTS.get(each.name, each.name) for each in needed}
    error = kind(**facts)
    error.add_note("in a worker")
    for read in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert (type(read), str(read), vars(read)) == (kind, str(error), vars(error))


def test_every_error_that_is_raised_is_a_public_name() -> None:
    assert {kind.__name__ for kind in ERRORS} <= set(session_middleware.__all__)
    for name in session_middleware.__all__:
        assert getattr(session_middleware, name).__name__ == name


async def test_closing_twice_is_allowed_under_asyncio_too() -> None:
    sessions = Sessions(":memory:")
    for _ in range(2):
        await sessions.aclose()
    sessions.close()


def test_the_latest_runs_are_read_alone(sessions: Sessions) -> None:
    session = sessions.open("t")
    for label in ("a", "b", "a"):
        with session:
            session.add({"role": "user", "content": label})
    runs = session.runs()
    assert [session.runs(last=number) for number in (0, 1, 2, 9)] == [[], runs[2:], runs[1:], runs]
    assert session.runs(last=1, after=runs[2].seq) == []
    assert session.runs(last=1, tags=["unknown"]) == []
    with pytest.raises(errors.InvalidArgument, match="last"):
        session.runs(last=1, limit=1)


class Spelled(str, Enum):  # noqa: UP042  # its `str()` is "Spelled.ID"
    ID = "t-1"
    USER = "alice"
    ROLE = "tool"
    TEXT = "said \0 or \1"
    STATUS = "active"


def test_a_member_of_an_enum_of_texts_is_its_text_wherever_it_is_given(
    open_sessions: OpenSessions, each_engine: str
) -> None:
    sessions = open_sessions()
    opened = sessions.open(
        Spelled.ID, user_id=Spelled.USER, title=Spelled.TEXT, purpose=Spelled.ROLE, tags=[Spelled.ID]
    )
    opened.add({"role": Spelled.ROLE, "content": Spelled.TEXT, "tool_call_id": Spelled.ID, "id": Spelled.USER})
    session = sessions.for_user("alice").get("t-1")
    assert (session.title, session.purpose, session.tags) == ("said \0 or \1", "tool", ("t-1",))
    (message,) = session.messages()
    assert (message.role, message.text, message.tool_call_id, message.message_id) == (
        "tool",
        Spelled.TEXT,
        "t-1",
        "alice",
    )
    assert sessions.list(user_id=Spelled.USER, tags=[Spelled.ID], title=Spelled.TEXT) == [session]
    assert sessions.list(status=Spelled.STATUS) == [session]
