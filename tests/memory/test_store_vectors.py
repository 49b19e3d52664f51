"""`sessions.store` with an index beside LangGraph's own store: the same order, the same scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings
from langgraph.store.memory import InMemoryStore

from session_middleware import Sessions

LETTERS = "abcd"


def texts_of(value: dict[str, Any]) -> list[str]:
    return [value["title"], value.get("body", ""), *value.get("tags", [])]


quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
words = st.text(LETTERS, min_size=1, max_size=6)
texts = st.lists(words, min_size=1, max_size=3).map(" ".join)
values = st.fixed_dictionaries(
    {"title": texts}, optional={"body": texts, "tags": st.lists(texts, max_size=2), "n": st.integers(0, 3)}
).filter(lambda value: len(set(texts_of(value))) == len(texts_of(value)))  # the same text twice is an error there
namespaces = st.sampled_from([("docs",), ("docs", "a"), ("docs", "b"), ("other",)])
puts = st.lists(st.tuples(namespaces, st.sampled_from("klmno"), values, st.sampled_from([None, None, False])))


class Letters(Embeddings):
    """How often a text has each letter."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[0.01 + text.count(letter) for letter in LETTERS] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def index_of(*fields: str) -> Any:
    return {"dims": len(LETTERS), "embed": Letters(), **({"fields": list(fields)} if fields else {})}


@pytest.fixture(params=[(), ("title",), ("title", "body", "tags[*]")], ids=["all", "one field", "many fields"])
def index(request: pytest.FixtureRequest) -> Any:
    return index_of(*request.param)


@pytest.fixture
def sessions(index: Any) -> Iterator[Sessions]:
    with Sessions(":memory:", index=index, sweep_interval=None) as sessions:
        yield sessions


def emptied(store: Any) -> Any:
    for item in store.search((), limit=1_000):
        store.delete(item.namespace, item.key)
    return store


def fill(store: Any, items: Any) -> Any:
    """Each key once: a value put again leaves vectors of its former fields behind in `InMemoryStore`."""
    once = {(namespace, key): (value, index) for namespace, key, value, index in items}
    for (namespace, key), (value, index) in once.items():
        store.put(namespace, key, value, index)
    return store


def ranked(found: Any) -> Any:
    """With its scores, and what has the same score in any order."""
    scored = [(None if item.score is None else round(item.score, 4), item.namespace, item.key) for item in found]
    assert [each[0] for each in scored] == sorted((each[0] for each in scored), key=lambda s: (s is None, -(s or 0)))
    return sorted(scored, key=repr)


@quick
@given(items=puts, query=texts, prefix=namespaces | st.just(()), filter=st.none() | st.just({"n": {"$gte": 1}}))
def test_all_is_ranked_as_in_langgraphs_store_in_memory(
    sessions: Sessions, index: Any, items: Any, query: str, prefix: Any, filter: Any
) -> None:
    items = [item for item in items if filter is None or "n" in item[2]]  # which it cannot compare
    ours, theirs = fill(emptied(sessions.store), items), fill(InMemoryStore(index=index), items)
    found = [store.search(prefix, query=query, filter=filter, limit=100) for store in (ours, theirs)]
    assert ranked(found[0]) == ranked(found[1])
    for limit in (1, 3):
        pages = [store.search(prefix, query=query, filter=filter, limit=limit) for store in (ours, theirs)]
        assert [each[0] for each in map(_score, pages[0])] == [each[0] for each in map(_score, pages[1])]


def _score(item: Any) -> Any:
    return (None if item.score is None else pytest.approx(item.score, abs=1e-4),)


def test_pages_follow_each_other_past_what_has_no_vector() -> None:
    with Sessions(":memory:", index=index_of()) as sessions:
        for key in "abcdef":
            sessions.store.put(("n",), key, {"text": key}, index=False if key in "be" else None)
        sessions.store.put(("n",), "number", {"n": 1})
        pages = [sessions.store.search(("n",), query="dddc", limit=3, offset=offset) for offset in (0, 3, 6, 9)]
        assert [len(page) for page in pages] == [3, 3, 1, 0]
        found = [item.key for page in pages for item in page]
        assert (found[0], found[-2:], len(set(found))) == ("d", ["b", "e"], 7)
        assert [item.key for item in sessions.store.search(("n",), query=" ", limit=1)] != []


async def test_async_ranks_the_same() -> None:
    with Sessions(":memory:", index=index_of()) as sessions:
        for key in ("aab", "abb", "ccc"):
            await sessions.store.aput(("n",), key, {"text": key})
        found = await sessions.store.asearch(("n",), query="ab")
        assert [item.key for item in found[2:]] == ["ccc"]
        assert found == sessions.store.search(("n",), query="ab")


def test_recall_counts_words_and_meaning_together_still() -> None:
    with Sessions(":memory:", index=index_of()) as sessions:
        memory = sessions.open("t").memory
        memory.remember("aaaa bbbb", "meaning")
        memory.remember("abab cccc dddd", "words")
        [first, *_] = memory.recall("abab", explain=True)
        assert first.parts is not None
        assert first.score > first.parts["vector"]  # type: ignore[operator]
