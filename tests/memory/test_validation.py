"""What memory is asked with: what is misspelt or of the wrong kind is refused, with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.store.base import PutOp

from session_middleware import Sessions, memory_tools
from session_middleware.errors import InvalidMemoryArgument, SessionError
from session_middleware.integrations.langchain_agents import Recall, SessionMiddleware


class Nothing(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return []


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    with Sessions(":memory:") as sessions:
        yield sessions


OPTIONS: list[tuple[Callable[[Sessions], Any], str]] = [
    (lambda s: s.retriever(scope=["session"]), "has no argument 'scope'; write scopes="),
    (lambda s: s.retriever(kk=1), "has no argument 'kk'; it takes k, scopes, kinds"),
    (lambda s: s.augment(Nothing(), foo=1), "has no argument 'foo'; it takes retriever, k, scopes"),
    (lambda s: s.scope(InMemoryVectorStore(DeterministicFakeEmbedding(size=3))).as_retriever(kk=1), "takes no 'kk'"),
    (lambda s: SessionMiddleware("x.db"), "takes a Sessions and was given 'x.db'; make one"),  # type: ignore[arg-type]
    (lambda s: SessionMiddleware(s, recall=8), "give Recall"),  # type: ignore[arg-type]
    (lambda s: SessionMiddleware(s, context="x"), "give a function"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "expected"), OPTIONS)
def test_an_option_there_is_not_is_told_with_those_there_are(
    sessions: Sessions, call: Callable[[Sessions], Any], expected: str
) -> None:
    with pytest.raises(TypeError, match=expected):
        call(sessions)


ARGUMENTS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda m: m.recall("x", scopes=["foo"]), "no scope 'foo'; use one of session, user, group, global"),
    (lambda m: m.recall("x", scopes="user"), "scopes='user' is a str; give a list"),
    (lambda m: m.recall("x", kinds=["foo"]), "no kind 'foo'; use one of item, message"),
    (lambda m: m.recall("x", k="5"), "k='5' is no count; give a whole number"),
    (lambda m: m.recall("x", k=-1), "k=-1 is no count"),
    (lambda m: m.recall("x", since="2020"), "since='2020' is no moment; give a datetime"),
    (lambda m: m.recall("x", since=datetime(2020, 1, 1)), "with a time zone"),
    (lambda m: m.recall("x", filter="x"), "filter='x' is a str; give a dict"),
    (lambda m: m.recall(None), "query=None is a NoneType; give text"),
    (lambda m: m.list("user"), "scopes='user' is a str"),
    (lambda m: m.remember("x", scope="everyone"), "no scope 'everyone'"),
    (lambda m: m.remember("x", metadata="y"), "metadata='y' is a str"),
    (lambda m: m.remember("x", message_id=5), "message_id=5 is a int"),
    (lambda m: m.remember(5), "is a int, not a dict"),
    (lambda m: m.forget(5), "key=5 is a int; give text"),
    (lambda m: m.forget(query=5), "query=5 is a int"),
    (lambda m: m.forget(all="yes"), "give one of"),
    (lambda m: m.promote(5), "key=5 is a int"),
    (lambda m: Recall(scopes=["foo"]), "no scope 'foo'"),  # type: ignore[list-item]
    (lambda m: Recall(k="5"), "k='5' is no count"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "expected"), ARGUMENTS)
def test_what_memory_cannot_use_is_refused(sessions: Sessions, call: Callable[[Any], Any], expected: str) -> None:
    with pytest.raises(SessionError, match=expected) as caught:
        call(sessions.open("t", user_id="alice").memory)
    assert isinstance(caught.value, TypeError)


def test_the_door_and_the_tools_refuse_it_too(sessions: Sessions) -> None:
    for call in (
        lambda: sessions.search("x", since="2020"),  # type: ignore[arg-type]
        lambda: sessions.search("x", limit="5"),  # type: ignore[arg-type]
        lambda: memory_tools(sessions, scopes=["foo"]),  # type: ignore[list-item]
        lambda: memory_tools(sessions, scope="foo"),  # type: ignore[arg-type]
        lambda: sessions.scope(InMemoryVectorStore(DeterministicFakeEmbedding(size=3)), scopes="user"),  # type: ignore[arg-type]
    ):
        with pytest.raises(SessionError):
            call()


@pytest.mark.parametrize("key", [None, 5])
def test_the_store_takes_a_number_for_its_text_as_langgraph_does_and_nothing_for_no_key(
    sessions: Sessions, key: Any
) -> None:
    store = sessions.store
    if key is not None:
        store.put(("a",), key, {"text": "x"})
        assert store.get(("a",), "5") == store.get(("a",), key)
        return
    for call in (
        lambda: store.put(("a",), key, {"text": "x"}),
        lambda: store.get(("a",), key),
        lambda: store.delete(("a",), key),
        lambda: store.batch([PutOp(("a",), key, {"text": "x"})]),
    ):
        with pytest.raises(InvalidMemoryArgument, match="the memory key None is a NoneType; give a text"):
            call()
    assert store.search(("a",)) == []


def test_recall_may_simply_be_wanted(sessions: Sessions) -> None:
    assert SessionMiddleware(sessions, recall=True)._recall == Recall()
    assert SessionMiddleware(sessions, recall=False)._recall is None
