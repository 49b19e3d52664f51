"""`SessionStore` does as LangGraph's own store, and inside a graph keeps to what the run owns."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.config import get_store
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore
from typing_extensions import TypedDict

from session_middleware.errors import InvalidIdentity, MemoryAccessDenied, UnserializableValue
from session_middleware.memory.indexer import MemoryIndexer
from session_middleware.memory.store import SessionStore
from session_middleware.storage.protocol import Storage
from tests.support.pairwise import KINDS, engines_in_turns

of_each_kind = pytest.mark.parametrize("storage_url", KINDS, indirect=True)


@pytest.fixture
def store(parts: MemoryIndexer) -> SessionStore:
    return SessionStore(parts)


# As LangGraph's own store

labels = st.sampled_from(["a", "b", "ab", "user", "é'\"%_"])
namespaces = st.lists(labels, min_size=1, max_size=3).map(tuple)
keys = st.sampled_from(["k", "K", "k%", ""])
scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["x", "y", "x'"])
inner = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from(["p", "q"]), scalars, max_size=2)
values = st.dictionaries(st.sampled_from(["f", "g", "n'"]), inner, max_size=3)
equal = inner | st.fixed_dictionaries({}, optional={"$eq": inner, "$ne": inner})
orders = st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), st.integers(-3, 3), min_size=1)
filters = st.none() | st.dictionaries(st.sampled_from(["f", "g", "n'", "other"]), equal, max_size=2)
pages = {"limit": st.integers(0, 6), "offset": st.integers(0, 4)}
paths = st.lists(labels | st.just("*"), min_size=1, max_size=3).map(tuple)
conditions = st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), paths)

puts = st.tuples(namespaces, keys, st.none() | values).map(lambda fields: PutOp(*fields))
operations: st.SearchStrategy[Op] = st.one_of(
    puts,
    puts,
    st.tuples(namespaces, keys).map(lambda fields: GetOp(*fields)),
    st.tuples(st.just(()) | namespaces, filters, st.just(1000)).map(lambda fields: SearchOp(*fields)),
)
listings = st.builds(
    ListNamespacesOp,
    st.none() | st.lists(conditions, max_size=2).map(tuple),
    st.none() | st.integers(1, 3),
    **pages,
)

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def plain(result: Any) -> Any:
    """A result without its times, and without the order LangGraph does not promise."""
    if isinstance(result, list):
        return sorted((plain(item) for item in result), key=repr)
    return result if result is None else (result.namespace, result.key, result.value)


def emptied(store: SessionStore) -> SessionStore:
    store.batch([PutOp(item.namespace, item.key, None) for item in store.search((), limit=10_000)])
    return store


@of_each_kind
@quick
@given(batches=st.lists(st.lists(operations, max_size=6), max_size=6))
def test_batches_do_as_in_langgraphs_own_store(store: SessionStore, batches: list[list[Op]]) -> None:
    ours, theirs = emptied(store), InMemoryStore()
    for batch in batches:
        assert [plain(result) for result in ours.batch(batch)] == [plain(result) for result in theirs.batch(batch)]


@quick
@given(
    items=st.dictionaries(keys, values, max_size=5),
    filter=st.none() | st.dictionaries(st.sampled_from(["f", "g"]), equal, max_size=1),
    limit=st.integers(0, 6),
    offset=st.integers(0, 4),
)
def test_pages_of_a_namespace_are_as_in_langgraphs_own_store(
    store: SessionStore, items: dict[str, Any], filter: dict[str, Any] | None, limit: int, offset: int
) -> None:
    ours, theirs = emptied(store), InMemoryStore()
    found = []
    for either in (ours, theirs):
        for key, value in items.items():
            either.put(("n",), key, value)
        page = either.search(("n",), filter=filter, limit=limit, offset=offset)
        found.append([(item.key, item.value) for item in page])
    assert found[0] == found[1]


@quick
@given(numbers=st.lists(st.integers(-3, 3) | st.floats(-3, 3), max_size=5), order=orders)
def test_numbers_are_compared_as_in_langgraphs_own_store(
    store: SessionStore, numbers: list[float], order: dict[str, Any]
) -> None:
    ours, theirs = emptied(store), InMemoryStore()
    for either in (ours, theirs):
        either.batch([PutOp(("n",), str(position), {"n": number}) for position, number in enumerate(numbers)])
    assert plain(ours.search(("n",), filter={"n": order})) == plain(theirs.search(("n",), filter={"n": order}))


@quick
@given(stored=st.lists(namespaces, max_size=8), op=listings)
def test_namespaces_are_listed_as_in_langgraphs_own_store(
    store: SessionStore, stored: list[tuple[str, ...]], op: ListNamespacesOp
) -> None:
    ours, theirs = emptied(store), InMemoryStore()
    for either in (ours, theirs):
        either.batch([PutOp(namespace, "k", {}) for namespace in stored])
    assert ours.batch([op]) == theirs.batch([op])


@of_each_kind
def test_a_batch_reads_what_was_there_before_its_puts_and_the_last_put_wins(store: SessionStore) -> None:
    store.put(("n",), "k", {"v": 0})
    results = store.batch(
        [PutOp(("n",), "k", {"v": 1}), GetOp(("n",), "k"), PutOp(("n",), "k", {"v": 2}), SearchOp(("n",))]
    )
    assert (results[0], results[1].value, results[3][0].value) == (None, {"v": 0}, {"v": 0})  # type: ignore[union-attr,index]
    assert store.get(("n",), "k").value == {"v": 2}  # type: ignore[union-attr]


@of_each_kind
def test_a_large_batch_does_as_its_puts_one_by_one(store: SessionStore) -> None:
    for n in range(0, 250, 3):
        store.put(("n",), f"k{n}", {"text": "old", "v": n})
    kinds: list[dict[str, Any]] = [{}, {"index": False}, {"ttl": 5.0}, {"index": ["text"]}]
    puts = [PutOp(("n",), f"k{n}", {"text": f"new {n}", "v": n}, **kinds[n // 60 % 4]) for n in range(250)]
    store.batch([*puts, PutOp(("n",), "k7", None), PutOp(("n",), "k8", {"text": "newest"})])
    found = {item.key: item.value for item in store.search(("n",), limit=300)}
    expected = {op.key: op.value for op in puts if op.key != "k7"} | {"k8": {"text": "newest"}}
    assert found == expected
    assert store.search(("n",), query="old") == []
    indexed = {op.key for op in puts if op.index is not False} - {"k7", "k8"}
    assert {item.key for item in store.search(("n",), query="new", limit=300)} == indexed


def test_a_query_ranks_by_words_and_sets_the_score(store: SessionStore) -> None:
    store.put(("n",), "far", {"text": "an apple fell from a tall old tree"})
    store.put(("n",), "near", {"deep": [{"text": "apple tree"}]})
    store.put(("n",), "not", {"text": "pear"})
    found = store.search(("n",), query="apple tree?")
    assert [item.key for item in found] == ["near", "far"]
    assert found[0].score is not None
    assert [item.score for item in store.search(("n",), query="")] == [None, None, None]


def test_an_index_says_which_words_are_found(store: SessionStore) -> None:
    store.put(("n",), "none", {"text": "apple"}, index=False)
    store.put(("n",), "title", {"title": "apple", "body": "pear"}, index=["title"])
    assert [item.key for item in store.search(("n",), query="apple")] == ["title"]
    assert store.search(("n",), query="pear") == []


def test_what_json_cannot_keep_stops_its_whole_batch(store: SessionStore) -> None:
    with pytest.raises(UnserializableValue, match=r"memory 'bad' in \('n',\) .*datetime"):
        store.batch([PutOp(("n",), "good", {}), PutOp(("n",), "bad", {"at": datetime.now(UTC)})])
    assert store.list_namespaces() == []


def test_a_key_that_is_not_unicode_is_refused_and_one_with_nul_is_kept(store: SessionStore) -> None:
    for call in (lambda: store.put(("n",), "\ud83d", {}), lambda: store.get(("n",), "\ud83d")):
        with pytest.raises(UnserializableValue, match="surrogate"):
            call()
    store.put(("n",), "a\0b", {"text": "cut \ud83d apple"})
    assert store.get(("n",), "a\0b").value == {"text": "cut \ud83d apple"}  # type: ignore[union-attr]
    assert len(store.search(("n",), query="apple")) == 1


@engines_in_turns("storage_url", namespace=[(), ("langgraph",), ("a.b",), ("",), ("a", 1), "user", ("user", "a\0")])
def test_namespaces_langgraph_refuses_are_refused(store: SessionStore, namespace: Any) -> None:
    with pytest.raises(InvalidNamespaceError):
        store.put(namespace, "k", {})


async def test_an_owner_may_be_an_email_address(store: SessionStore) -> None:
    namespace = ("user", "alice@example.com")
    store.put(namespace, "k", {"v": 1})
    await store.aput(namespace, "l", {"v": 2})
    assert store.get(namespace, "k") == await store.aget(namespace, "k")
    assert len(store.search(namespace)) == len(await store.asearch(namespace)) == 2
    assert store.list_namespaces(prefix=namespace, suffix=("alice@example.com",)) == [namespace]
    assert await store.alist_namespaces(prefix=namespace) == [namespace]
    store.delete(namespace, "k")
    await store.adelete(namespace, "l")
    assert store.search(namespace) == []


# Inside a graph


class State(TypedDict, total=False):
    out: Any


ALICE = {"configurable": {"thread_id": 1, "user_id": "alice", "group_id": "red", "group_ids": ["green"]}}
Node = Callable[[SessionStore], Any]


def run(store: SessionStore, node: Node, config: Any = ALICE) -> Any:
    def call(state: State) -> State:
        return {"out": node(get_store())}  # type: ignore[arg-type]

    graph = StateGraph(State).add_node("call", call).add_edge(START, "call").compile(store=store)
    return graph.invoke({}, config)["out"]


async def arun(store: SessionStore, node: Node, config: Any = ALICE) -> Any:
    async def call(state: State, runtime: Runtime) -> State:
        return {"out": await node(runtime.store)}  # type: ignore[arg-type]

    graph = StateGraph(State).add_node("call", call).add_edge(START, "call").compile(store=store)
    return (await graph.ainvoke({}, config))["out"]


OWN = [
    *(("session", "1"), ("user", "alice"), ("user", "alice", "prefs"), ("group", "red"), ("group", "green", "x")),
    *(("global",), ("docs", "bob")),
]
OTHERS = [("session", "2"), ("user", "bob"), ("user", "alice2", "prefs"), ("group", "blue"), ("user",), ("session",)]


@engines_in_turns("storage_url", namespace=OWN)
async def test_a_run_uses_its_own_memories(store: SessionStore, storage: Storage, namespace: tuple[str, ...]) -> None:
    def node(store: SessionStore) -> Any:
        store.put(namespace, "k", {"v": 1})
        return store.get(namespace, "k").value, len(store.search(namespace))  # type: ignore[union-attr]

    async def anode(store: SessionStore) -> Any:
        await store.aput(namespace, "k", {"v": 2})
        return (await store.aget(namespace, "k")).value, len(await store.asearch(namespace))  # type: ignore[union-attr]

    assert run(store, node) == ({"v": 1}, 1)
    assert await arun(store, anode) == ({"v": 2}, 1)
    assert storage.get_memories([(namespace, "k")])[0].session_id == "1"  # type: ignore[union-attr]


@engines_in_turns("storage_url", namespace=OTHERS)
async def test_a_run_is_refused_what_others_own(store: SessionStore, namespace: tuple[str, ...]) -> None:
    store.put(namespace, "k", {"v": 1})
    nodes: list[Node] = [
        lambda store: store.get(namespace, "k"),
        lambda store: store.put(namespace, "k", {"v": 2}),
        lambda store: store.delete(namespace, "k"),
        lambda store: store.search(namespace),
        lambda store: store.batch([PutOp(("global",), "k", {}), GetOp(namespace, "k")]),
    ]
    for node in nodes:
        with pytest.raises(MemoryAccessDenied):
            run(store, node)
    anodes: list[Node] = [
        lambda store: store.aget(namespace, "k"),
        lambda store: store.aput(namespace, "k", {"v": 2}),
        lambda store: store.adelete(namespace, "k"),
        lambda store: store.asearch(namespace),
    ]
    for node in anodes:
        with pytest.raises(MemoryAccessDenied):
            await arun(store, node)
    assert store.get(namespace, "k").value == {"v": 1}  # type: ignore[union-attr]
    assert store.list_namespaces() == [namespace]


async def test_a_run_that_looks_everywhere_sees_its_own_and_what_nobody_owns(store: SessionStore) -> None:
    for namespace in OWN + OTHERS:
        store.put(namespace, "k", {"text": "apple"})
    for query in (None, "apple"):
        found = run(store, lambda store, query=query: store.search((), query=query, limit=100))  # type: ignore[misc]
        assert sorted(item.namespace for item in found) == sorted(OWN)
    assert run(store, lambda store: store.list_namespaces()) == sorted(OWN)
    assert run(store, lambda store: store.list_namespaces(prefix=("user", "bob"))) == []
    assert run(store, lambda store: store.list_namespaces(prefix=("user",), max_depth=2)) == [("user", "alice")]
    assert await arun(store, lambda store: store.alist_namespaces()) == sorted(OWN)
    assert len(store.search((), limit=100)) == len(OWN + OTHERS)


def test_a_run_without_a_user_reaches_no_user(store: SessionStore) -> None:
    store.put(("user", "None"), "k", {"v": 1})
    config = {"configurable": {"thread_id": "1"}}
    with pytest.raises(MemoryAccessDenied):
        run(store, lambda store: store.get(("user", "None"), "k"), config)
    assert run(store, lambda store: store.search(()), config) == []


def test_a_user_without_a_thread_is_guarded_too(store: SessionStore) -> None:
    with pytest.raises(MemoryAccessDenied):
        run(store, lambda store: store.get(("user", "bob"), "k"), {"configurable": {"user_id": "alice"}})


def test_an_owner_that_only_looks_the_same_is_another(store: SessionStore) -> None:
    store.put(("user", "\U0001f600"), "k", {"v": 1})
    with pytest.raises((InvalidNamespaceError, InvalidIdentity)):
        run(
            store,
            lambda store: store.get(("user", "\ud83d\ude00"), "k"),
            {"configurable": {"user_id": "\ud83d\ude00"}},
        )
