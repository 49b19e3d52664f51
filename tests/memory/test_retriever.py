"""A session's memory as a retriever: langchain-tests' own suite, and the session found in the config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_tests.integration_tests import RetrieversIntegrationTests
from langgraph.graph import START, MessagesState, StateGraph

from session_middleware import Sessions
from session_middleware.errors import InvalidSessionId, SessionAccessDenied
from session_middleware.memory.retriever import MemoryRetriever


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    with Sessions(":memory:") as sessions:
        yield sessions


class TestStandard(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[MemoryRetriever]:
        return MemoryRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        sessions = Sessions(":memory:")
        session = sessions.open("t", user_id="alice")
        for n in range(5):
            session.memory.remember(f"cherry number {n}")
        return {"sessions": sessions, "memory": session.memory}

    @property
    def retriever_query_example(self) -> str:
        return "cherries"


def texts(found: Any) -> list[str]:
    return [document.page_content for document in found]


def fill(sessions: Sessions) -> BaseRetriever:
    sessions.open("a", user_id="alice").memory.remember("alice picks cherries", scope="user")
    sessions.open("b", user_id="bob").memory.remember("bob eats cherries", scope="user")
    return sessions.retriever(k=3)


def test_the_session_is_the_configs(sessions: Sessions) -> None:
    retriever = fill(sessions)
    assert texts(retriever.invoke("cherries", sessions.config("a", user_id="alice"))) == ["alice picks cherries"]
    assert texts(retriever.invoke("cherries", sessions.config("b", user_id="bob"))) == ["bob eats cherries"]


async def test_the_session_is_the_configs_in_async_calls(sessions: Sessions) -> None:
    retriever = fill(sessions)
    assert texts(await retriever.ainvoke("cherries", sessions.config("b", user_id="bob"))) == ["bob eats cherries"]
    configs = [sessions.config("a", user_id="alice"), sessions.config("b", user_id="bob")]
    many = await retriever.abatch(["cherries"] * 2, configs)
    assert [texts(found) for found in many] == [["alice picks cherries"], ["bob eats cherries"]]


def test_it_is_found_from_within_a_graph_and_a_chain(sessions: Sessions) -> None:
    retriever = fill(sessions)
    seen: list[list[str]] = []
    chain = retriever | RunnableLambda(texts)
    builder = StateGraph(MessagesState)
    builder.add_node("look", lambda state: seen.append(chain.invoke("cherries")) or {})
    builder.add_edge(START, "look")
    sessions.attach(builder.compile()).invoke({"messages": "hi"}, sessions.config("a", user_id="alice"))
    assert seen == [["alice picks cherries"]]


def test_a_document_says_where_it_came_from(sessions: Sessions) -> None:
    retriever = fill(sessions)
    [document] = retriever.invoke("cherries", sessions.config("a", user_id="alice"))
    assert document.metadata["from"] == "memory"
    assert (document.metadata["kind"], document.metadata["scope"], document.metadata["session_id"]) == (
        "item",
        "user",
        "a",
    )


def test_scopes_and_kinds_are_as_asked(sessions: Sessions) -> None:
    fill(sessions)
    config = sessions.config("a", user_id="alice")
    assert sessions.retriever(scopes=["session"]).invoke("cherries", config) == []
    assert sessions.retriever(kinds=["message"]).invoke("cherries", config) == []
    fixed = sessions.retriever(session=sessions.get("b"))
    assert texts(fixed.invoke("cherries")) == ["bob eats cherries"]


def test_nobody_is_answered_for_somebody_else(sessions: Sessions) -> None:
    retriever = fill(sessions)
    with pytest.raises(SessionAccessDenied):
        retriever.invoke("cherries", sessions.config("a", user_id="bob"))
    with pytest.raises(InvalidSessionId):
        retriever.invoke("cherries")
