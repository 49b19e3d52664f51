"""Memory lives and dies with the session and the user it is for: nothing that is slower brings it back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from langgraph.config import get_store
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import SessionAccessDenied, SessionClosed, SessionNotFound, Sessions
from tests.conftest import Clock

NAMESPACES = (("session", "t"), ("user", "alice"))


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path / "sessions.db", sweep_interval=None)


def graph_of(sessions: Sessions, node: Callable[[Any], None], **options: Any) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("node", lambda state: node(state) or {})
    builder.add_edge(START, "node")
    return sessions.attach(builder.compile(), **options)


def put_after(happens: Callable[[], object], *namespaces: tuple[str, ...]) -> Callable[[Any], None]:
    def node(_: Any) -> None:
        happens()
        for namespace in namespaces:
            with pytest.raises(SessionClosed):
                get_store().put(namespace, "k", {"text": "secret"})

    return node


@pytest.mark.parametrize("parts", [{}, {"checkpointer": False}], ids=["all", "without checkpointer"])
def test_a_run_brings_no_memory_back_of_its_user_who_was_forgotten(sessions: Sessions, parts: dict[str, bool]) -> None:
    graph = graph_of(sessions, put_after(lambda: sessions.forget_user("alice"), *NAMESPACES), **parts)
    with suppress(SessionClosed):  # the run's own checkpoint is refused, too
        graph.invoke({"messages": "hello"}, sessions.config("t", user_id="alice"))
    assert [sessions.store.search(namespace) for namespace in NAMESPACES] == [[], []]
    assert sessions.open("t", user_id="mallory").memory.list() == []


def test_a_run_in_anothers_session_brings_no_memory_back_of_its_user(sessions: Sessions) -> None:
    sessions.open("t", user_id="bob", group_id="team", visibility="group-write")
    forget = put_after(lambda: sessions.forget_user("alice"), ("user", "alice"))
    config = sessions.config("t", user_id="alice", group_ids=["team"])
    graph_of(sessions, forget).invoke({"messages": "hello"}, config)
    assert sessions.store.search(("user", "alice")) == []


def test_a_tool_of_a_run_remembers_nothing_for_a_session_that_was_deleted_and_opened_anew(sessions: Sessions) -> None:
    config = sessions.config("t")

    def node(_: Any) -> None:
        sessions.delete("t")
        sessions.open("t")
        with pytest.raises(SessionClosed):
            sessions.memory(config).remember("secret")

    with pytest.raises(SessionClosed):
        graph_of(sessions, node).invoke({"messages": "hello"}, config)
    assert sessions.open("t").memory.list() == []


def test_a_session_in_hand_remembers_nothing_after_it_was_deleted(sessions: Sessions) -> None:
    session = sessions.open("t")
    sessions.delete("t")
    with pytest.raises(SessionNotFound, match="was deleted"):
        session.memory.remember("secret")
    assert sessions.open("t", user_id="mallory").memory.list() == []
    with pytest.raises(SessionNotFound, match="was deleted"):
        session.memory.remember("secret")


def test_a_session_in_hand_remembers_nothing_for_a_user_who_was_forgotten(sessions: Sessions) -> None:
    session = sessions.open("t", user_id="alice")
    sessions.forget_user("alice")
    with pytest.raises(SessionNotFound, match="was deleted"):
        session.memory.remember("secret", scope="user")
    assert sessions.store.search(("user", "alice")) == []


def test_what_is_remembered_before_a_session_is_there_opens_it_for_whoever_remembers(sessions: Sessions) -> None:
    memory = sessions.memory(sessions.config("t", user_id="alice"))
    memory.remember("first")
    memory.remember("second")
    assert sessions.get("t").user_id == "alice"
    with pytest.raises(SessionAccessDenied):
        sessions.open("t", user_id="mallory")
    sessions.forget_user("alice")
    assert sessions.open("t", user_id="mallory").memory.list() == []


def test_what_is_remembered_for_a_user_opens_no_session(sessions: Sessions) -> None:
    sessions.memory(sessions.config("t", user_id="alice")).remember("tea, not coffee", scope="user")
    assert sessions.find("t") is None


def test_a_graph_with_the_store_alone_keeps_its_session_to_its_user(sessions: Sessions) -> None:
    def put(_: Any) -> None:
        get_store().put(("session", "t"), "k", {"text": "secret"})

    def get(_: Any) -> None:
        get_store().get(("session", "t"), "k")

    alone = {"checkpointer": False, "recorder": False}
    graph_of(sessions, put, **alone).invoke({"messages": "hello"}, sessions.config("t", user_id="alice"))
    with pytest.raises(SessionAccessDenied):
        graph_of(sessions, get, **alone).invoke({"messages": "hello"}, sessions.config("t", user_id="mallory"))


def test_to_remember_does_not_revive_a_session_that_has_expired(tmp_path: Path, clock: Clock) -> None:
    sessions = Sessions(tmp_path / "sessions.db", clock=clock, idle_timeout="1h", sweep_interval=None)
    session = sessions.open("t")
    clock.advance(hours=2)
    session.memory.remember("tea, not coffee")
    assert sessions.get("t").status == "expired"
