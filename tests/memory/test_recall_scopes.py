"""Recall over all scopes finds what each of them would have found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import Sessions
from session_middleware.memory.session_memory import SessionMemory
from tests.support.embeddings import SubjectEmbeddings


@pytest.fixture(params=["indexed", "not indexed", "by vectors"])
def sessions(request: pytest.FixtureRequest) -> Iterator[Sessions]:
    index: dict[str, Any] = {"index": {"embed": SubjectEmbeddings(), "dims": 4}}
    with Sessions(":memory:", sweep_interval=None, **(index if request.param == "by vectors" else {})) as sessions:
        builder = StateGraph(MessagesState)
        builder.add_node("node", lambda state: {})
        builder.add_edge(START, "node")
        graph = sessions.attach(builder.compile())
        sessions.open("shared", user_id="alice", group_id="team", visibility="group-write")
        for text, thread_id, who in (
            ("my own puppy", "bobs", {"user_id": "bob"}),
            ("the puppy of the team", "shared", {"user_id": "alice", "group_id": "team"}),
            ("the puppy of alice", "alices", {"user_id": "alice"}),
            ("the puppy of nobody", "nobodys", {}),
        ):
            graph.invoke({"messages": text}, sessions.config(thread_id, **who))
        if request.param != "not indexed":
            sessions.index_memory()
        yield sessions


def texts(memory: SessionMemory, **options: Any) -> set[str]:
    return {found.text for found in memory.recall("puppy", **options)}


def test_in_a_session_shared_with_them_a_user_finds_their_own_messages_too(sessions: Sessions) -> None:
    memory = sessions.for_user("bob", ["team"]).get("shared").memory
    assert texts(memory) == {"my own puppy", "the puppy of the team"}
    assert texts(memory, scopes=["user"]) == {"my own puppy"}
    assert texts(memory, scopes=["session"]) == {"the puppy of the team"}
    assert {found.scope for found in memory.recall("my own puppy", 1)} == {"user"}


def test_in_a_session_of_nobody_a_user_finds_their_own_messages_too(sessions: Sessions) -> None:
    memory = sessions.memory(sessions.config("nobodys", user_id="bob"))
    assert texts(memory) == {"my own puppy", "the puppy of nobody"}


def test_in_a_session_of_their_own_a_user_finds_all_they_said(sessions: Sessions) -> None:
    assert texts(sessions.get("bobs").memory) == {"my own puppy"}
    assert texts(sessions.get("alices").memory) == {"the puppy of the team", "the puppy of alice"}
