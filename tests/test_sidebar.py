"""The list of sessions as a sidebar shows it: titles, previews, filters, orders and pages."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage

from session_middleware import InvalidArgument, Sessions, UnknownStatus
from session_middleware.models import SessionInfo, SessionOrder
from session_middleware.storage.titles import title_key, title_of
from tests.conftest import Clock
from tests.support import agents
from tests.support.agents import human

pytestmark = pytest.mark.usefixtures("each_engine")
ORDERS: tuple[SessionOrder, ...] = get_args(SessionOrder)


def ids(found: Any) -> list[str]:
    return [session.id for session in found]


@pytest.mark.parametrize("how", ["attach", "checkpointer", "recorder", "by hand"])
def test_a_title_is_made_from_the_first_message_of_a_user_however_it_is_recorded(how: str, sessions: Sessions) -> None:
    text = "look up\n the  weather in Donaudampfschifffahrtsgesellschaft and tell me whether to take an umbrella"
    config = sessions.config("t", user_id="alice")
    if how == "attach":
        sessions.attach(agents.tool_graph()).invoke(human(text), config)
    elif how == "checkpointer":
        agents.tool_graph(checkpointer=sessions.checkpointer).invoke(human(text), config)
    elif how == "recorder":
        agents.tool_graph().invoke(human(text), config | {"callbacks": [sessions.recorder]})
    else:
        session = sessions.open("t", user_id="alice")
        assert (session.title, session.preview, session.last_message_at) == (None, None, None)
        session.add(HumanMessage(text))
        session.add(AIMessage("Take one."))
    for found in (sessions.get("t"), *sessions.list()):
        assert found.title == "look up the weather in Donaudampfschifffahrtsgesellschaft…"
        last = [each for each in found.messages(branch="all") if each.role == "assistant"][-1]
        assert (found.preview, found.last_message_at) == (last.text, last.created_at)
    sessions.get("t").add(HumanMessage("Something else"))
    assert sessions.get("t").title == "look up the weather in Donaudampfschifffahrtsgesellschaft…"
    assert sessions.get("t").preview == "Something else"


def test_a_title_that_was_given_or_removed_stays(sessions: Sessions) -> None:
    sessions.open("given", title="Tea").add(HumanMessage("first"))
    sessions.open("removed").add(HumanMessage("first"))
    sessions.get("removed").update(title="")
    sessions.get("removed").add(HumanMessage("second"))
    assert {session.id: session.title for session in sessions.list()} == {"given": "Tea", "removed": None}
    long = "".join(chr(0x20000 + number) for number in random.Random(1).sample(range(40_000), 1_024))
    assert sessions.open("i" * 1_024, title=long).title == long
    assert ids(sessions.list(title=long[:256])) == ["i" * 1_024]
    sessions.open("picture").add(HumanMessage([{"type": "text", "text": " "}]))
    sessions.get("picture").add(HumanMessage("What is on it?"))
    assert sessions.get("picture").title == "What is on it?"


def test_neither_title_nor_preview_outlives_a_deleted_message(sessions: Sessions) -> None:
    session = sessions.open("t")
    secret = session.add(HumanMessage("xyzzy " * 50))
    session.add(AIMessage("an answer"))
    assert sessions.get("t").title == ("xyzzy " * 10).strip() + "…"
    session.delete_message(session.messages()[0].message_id)
    assert secret
    assert (sessions.get("t").title, sessions.get("t").preview) == (None, "an answer")
    session.delete_message(session.messages()[0].message_id)
    assert (sessions.get("t").preview, sessions.get("t").last_message_at) == (None, None)


def test_the_preview_is_of_the_branch_that_the_session_is_on(sessions: Sessions) -> None:
    graph, config = sessions.attach(agents.tool_graph()), sessions.config("t")
    for text in ("one", "two"):
        graph.invoke(human(text), config)
    assert sessions.get("t").preview == sessions.get("t").messages()[-1].text
    past = next(state for state in graph.get_state_history(config) if len(state.values.get("messages", ())) == 2)
    graph.invoke(human("three"), past.config)
    session = sessions.get("t")
    assert session.branch != "main"
    assert session.preview == session.messages()[-1].text


def test_sessions_are_filtered_by_statuses_metadata_and_text_in_the_title(sessions: Sessions, clock: Clock) -> None:
    sessions.open("pro", user_id="alice", title="Ünïcode TEA", metadata={"plan": "pro", "seats": 3, "trial": True})
    sessions.open("done", user_id="alice", title="straße", metadata={"plan": "pro", "seats": 4}).complete()
    clock.advance(minutes=10)
    sessions.open("fresh", user_id="bob", title="100% _sure_", metadata={"plan": "free", "trial": False}, tags=["x"])
    for status, wanted in (
        ("open", ["fresh", "pro"]),
        (["active", "idle"], ["fresh", "pro"]),
        ({"idle", "completed"}, ["done", "pro"]),
        (["failed", "expired"], []),
        (["open", "completed", "expired"], ["fresh", "done", "pro"]),
    ):
        assert sorted(ids(sessions.list(status=status))) == sorted(wanted)
        assert sessions.count(status=status) == len(wanted)
    for metadata, wanted in (
        ({"plan": "pro"}, ["pro", "done"]),
        ({"plan": "pro", "seats": 3}, ["pro"]),
        ({"trial": True}, ["pro"]),
        ({"seats": "3"}, []),
        ({"trial": 1}, []),
        ({"$.plan": "pro"}, []),
        ({}, ["fresh", "pro", "done"]),
    ):
        assert sorted(ids(sessions.list(metadata=metadata))) == sorted(wanted)
    for text, wanted in (
        ("ünï", ["pro"]),
        ("ÜNÏ", ["pro"]),
        ("STRASSE", ["done"]),
        ("tea", ["pro"]),
        ("%", ["fresh"]),
        ("_S", ["fresh"]),
        ("' OR 1=1 --", []),
        ("", ["fresh", "pro", "done"]),
    ):
        assert sorted(ids(sessions.list(title=text))) == sorted(wanted)
    alice = sessions.for_user("alice")
    assert ids(alice.list(status="open", title="tea", metadata={"plan": "pro"}, order="title")) == ["pro"]
    assert alice.count(metadata={"plan": "free"}) == 0


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"status": "opened"}, UnknownStatus, "active, idle, expired, completed, failed, abandoned, open"),
        ({"status": ["idle", None]}, UnknownStatus, "None"),
        ({"status": []}, InvalidArgument, "at least one"),
        ({"metadata": {"a": [1]}}, InvalidArgument, "texts, numbers or booleans"),
        ({"metadata": {"a": None}}, InvalidArgument, "texts, numbers or booleans"),
        ({"metadata": {"a": float("nan")}}, InvalidArgument, "texts, numbers or booleans"),
        ({"metadata": "plan"}, InvalidArgument, "a dict"),
        ({"title": 7}, InvalidArgument, "a text"),
        ({"title": "x" * 1025}, InvalidArgument, "a text"),
        ({"order": "name"}, InvalidArgument, "'activity', 'creation', 'title'"),
        ({"after": "t"}, InvalidArgument, "last session of the page before"),
        ({"usr": "alice"}, TypeError, "user_id"),
    ],
)
def test_a_wrong_filter_says_what_is_right(
    wrong: dict[str, Any], error: type[Exception], says: str, sessions: Sessions
) -> None:
    with pytest.raises(error, match=says):
        sessions.for_user("alice").list(**wrong)


@pytest.mark.parametrize("order", ORDERS)
def test_pages_in_each_order_show_each_session_once_also_where_many_are_equal(
    order: SessionOrder, sessions: Sessions, clock: Clock
) -> None:
    titles = ["b", "A", "Ä", "a", None, "É", "é"]
    for number in range(21):
        group = {"group_id": "team", "visibility": "group"} if number % 4 == 0 else {}
        sessions.open(f"s{number * 8 % 21:02}", user_id=f"u{number % 2}", title=titles[number % 7], **group)
        clock.advance(minutes=float(number % 3 == 0))
    reference = {session.id: session for session in sessions.list(limit=None)}
    keys: dict[SessionOrder, Any] = {
        "activity": lambda session: (session.last_active_at, session.id),
        "creation": lambda session: (session.created_at, session.id),
        "title": lambda session: (title_key(session.title or "\U0010ffff"), session.id),
    }
    wanted = ids(sorted(reference.values(), key=keys[order], reverse=order != "title"))
    member = sessions.for_user("u0", ["team", "other"])
    seen_by_member = [one for one in wanted if reference[one].user_id == "u0" or reference[one].group_id == "team"]
    for door, expected in ((sessions, wanted), (member, seen_by_member)):
        found, page = [], door.list(order=order, limit=4)
        while page:
            found += ids(page)
            page = door.list(order=order, limit=4, after=page[-1])
        assert found == expected
        assert door.count() == len(expected)
        assert ids(door.list(order=order, status=["open", "failed"], limit=None)) == expected


def test_a_page_begins_where_the_last_ended_also_when_that_session_is_gone(sessions: Sessions, clock: Clock) -> None:
    for number in range(4):
        sessions.open(f"s{number}", title=f"title {number}")
        clock.advance(seconds=1)
    first = sessions.list(limit=2)
    sessions.delete(first[-1])
    sessions.get("s3").ping()
    assert ids(sessions.list(after=first[-1])) == ["s1", "s0"]
    moment = first[-1].last_active_at  # as a client gives it back, in a cursor
    kept = SessionInfo(id="s2", family_id="s2", created_at=moment, last_active_at=moment)
    assert ids(sessions.list(after=kept)) == ["s1", "s0"]
    by_title = sessions.list(order="title", limit=2)
    sessions.get("s1").update(title="zzz")
    assert ids(sessions.list(order="title", after=by_title[-1])) == ["s3", "s1"]


def test_counts_of_a_session_come_with_the_list(sessions: Sessions) -> None:
    session = sessions.open("t")
    session.record_model_call("gpt-4o-mini", input_tokens=1000, output_tokens=10)
    [found] = sessions.list()
    assert (found.input_tokens, found.output_tokens) == (1000, 10)
    assert found.cost


@given(st.text(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=timedelta(seconds=2))
def test_a_made_title_is_one_short_line_from_the_beginning_of_the_text(text: str) -> None:
    title = title_of(text)
    line = " ".join(text.split())
    assert (title is None) == (not line)
    if title is not None:
        assert len(title) <= 60
        assert title == line or line.startswith(title[:-1])
        assert title == line or title.endswith("…")
