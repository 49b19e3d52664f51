"""What memory is asked with: what is misspelt or of the wrong kind is refused, with what to do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from math import inf, nan
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.store.base import InvalidNamespaceError, PutOp

from session_middleware import Sessions, memory_tools
from session_middleware.errors import InvalidMemoryArgument, SessionError
from session_middleware.integrations.langchain_agents import Recall, SessionMiddleware

pytestmark = pytest.mark.sessions(":memory:")


class Nothing(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return []


OPTIONS: list[tuple[Callable[[Sessions], Any], str]] = [
    (lambda s: s.retriever(scope=["session"]), "has no argument 'scope'; write scopes="),
    (lambda s: s.retriever(kk=1), "has no argument 'kk'; it takes session, k, scopes, kinds"),
    (lambda s: s.augment(Nothing(), foo=1), "has no argument 'foo'; it takes retriever, memory_weight"),
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


NO_DURATIONS: list[Any] = ["soon", "-5m", "", 0, -1, nan, inf, True, [], timedelta(0), timedelta(days=99_999)]
NO_WEIGHTS: list[Any] = [None, "x", -1, nan, inf, True]
ARGUMENTS: list[tuple[Callable[[Any], Any], str]] = [
    (
        lambda m: m.recall("x", scopes=["foo"]),
        "scope cannot be 'foo'; give one of: session, user, group, global",
    ),
    (lambda m: m.recall("x", scopes="user"), "scopes cannot be 'user'; give a list"),
    (lambda m: m.recall("x", kinds=["foo"]), "kind cannot be 'foo'; give one of: item, message"),
    (lambda m: m.recall("x", k="5"), "k cannot be '5'; give a whole number"),
    (lambda m: m.recall("x", k=-1), "k cannot be -1"),
    (lambda m: m.recall("x", since="2020"), "since cannot be '2020'; give a datetime"),
    (lambda m: m.recall("x", since=datetime(2020, 1, 1)), "with a time zone"),
    (lambda m: m.recall("x", filter="x"), "filter cannot be 'x'; give a dict"),
    (lambda m: m.recall(None), "query cannot be None; give text"),
    (lambda m: m.list("user"), "scopes cannot be 'user'"),
    (lambda m: m.remember("x", scope="everyone"), "scope cannot be 'everyone'"),
    (lambda m: m.remember("x", metadata="y"), "metadata cannot be 'y'"),
    (lambda m: m.remember("x", message_id=5), "message_id cannot be 5"),
    (lambda m: m.remember(5), "a memory cannot be 5; give a text or a dict"),
    (lambda m: m.remember(None), "a memory cannot be None"),
    (lambda m: m.remember(" "), "a memory cannot be ' '; give a text"),
    (lambda m: m.remember({}), "a memory cannot be {}"),
    (lambda m: m.remember("x", 5), "key cannot be 5; give text"),
    *((lambda m, ttl=ttl: m.remember("x", ttl=ttl), "ttl cannot be .*; give a duration") for ttl in NO_DURATIONS),
    (lambda m: m.recall("x", window=-1), "window cannot be -1"),
    *((lambda m, one=one: m.recall("x", recency=one), "recency cannot be .*; give a number") for one in NO_WEIGHTS),
    (lambda m: m.select("x", unless_in="x"), "unless_in cannot be 'x'; give a list of texts"),
    (lambda m: m.context_for("x", unless_in=[5]), "an element of unless_in cannot be 5; give text"),
    (lambda m: m.last_said(-1), "count cannot be -1"),
    (lambda m: m.forget(5), "key cannot be 5; give text"),
    (lambda m: m.forget(query=5), "query cannot be 5"),
    (lambda m: m.forget(all="yes"), "give one of: a key"),
    (lambda m: m.promote(5), "key cannot be 5"),
    (lambda m: Recall(scopes=["foo"]), "scope cannot be 'foo'"),  # type: ignore[list-item]
    (lambda m: Recall(k="5"), "k cannot be '5'"),  # type: ignore[arg-type]
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
        lambda: sessions.search("x", marks="**"),  # type: ignore[arg-type]
        lambda: sessions.memory(None),  # type: ignore[arg-type]
        lambda: sessions.retriever(session="t"),  # type: ignore[arg-type]
        lambda: memory_tools("x.db"),  # type: ignore[arg-type]
        lambda: memory_tools(sessions, session="t"),  # type: ignore[arg-type]
        lambda: sessions.scope("x"),  # type: ignore[arg-type]
        lambda: memory_tools(sessions, scopes=["foo"]),  # type: ignore[list-item]
        lambda: memory_tools(sessions, scope="foo"),  # type: ignore[arg-type]
        lambda: sessions.scope(InMemoryVectorStore(DeterministicFakeEmbedding(size=3)), scopes="user"),  # type: ignore[arg-type]
    ):
        with pytest.raises(SessionError):
            call()


@pytest.mark.parametrize(
    "call",
    [
        *(lambda store, ttl=ttl: store.put(("a",), "k", {}, ttl=ttl) for ttl in [*NO_DURATIONS[:-1], 1e300]),
        lambda store: store.put(("a",), "k", {}, index=True),
        lambda store: store.put(("a",), "k", {}, index="a"),
        lambda store: store.search(("a",), limit="5"),
        lambda store: store.search(("a",), offset=-1),
        lambda store: store.search(("a",), filter="x"),
        lambda store: store.search(("a",), query=5),
        lambda store: store.list_namespaces(max_depth="1"),
        lambda store: store.batch(["x"]),
    ],
)
def test_the_store_refuses_an_invalid_argument_and_stores_nothing(sessions: Sessions, call: Any) -> None:
    with pytest.raises(InvalidMemoryArgument):
        call(sessions.store)
    assert sessions.store.search(()) == []


@pytest.mark.parametrize("namespace", [None, 5, "a", {"a": 1}, {"a"}])
def test_the_store_takes_a_tuple_of_labels_for_a_namespace(sessions: Sessions, namespace: Any) -> None:
    store = sessions.store
    for call in (
        lambda: store.put(namespace, "k", {}),
        lambda: store.get(namespace, "k"),
        lambda: store.delete(namespace, "k"),
        lambda: store.search(namespace),
    ):
        with pytest.raises(InvalidNamespaceError, match="is not a namespace; use a tuple of labels"):
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
        with pytest.raises(InvalidMemoryArgument, match="key cannot be None; give text"):
            call()
    assert store.search(("a",)) == []


def test_recall_may_simply_be_wanted(sessions: Sessions) -> None:
    assert SessionMiddleware(sessions, recall=True)._recall == Recall()
    assert SessionMiddleware(sessions, recall=False)._recall is None
