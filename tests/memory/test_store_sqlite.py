"""`SessionStore` beside LangGraph's SQLite store: the same answers, except where the docs say otherwise."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.store.base import ListNamespacesOp, MatchCondition, PutOp
from langgraph.store.sqlite import SqliteStore

from session_middleware.memory.indexer import MemoryIndexer
from session_middleware.memory.store import SessionStore
from session_middleware.storage.executor import StorageExecutor
from session_middleware.storage.protocol import Storage
from tests.conftest import Clock

labels = st.sampled_from(["a", "b", "ab", "c"])
namespaces = st.lists(labels, min_size=1, max_size=3).map(tuple)
keys = st.sampled_from(["k", "l", "m%", "n'_"])
scalars = st.booleans() | st.integers(-3, 3) | st.sampled_from(["x", "y", "x'%_"])
values = st.dictionaries(st.sampled_from(["f", "g", "h"]), scalars, max_size=3)
filters = st.dictionaries(st.sampled_from(["f", "g", "other"]), st.integers(-3, 3) | st.sampled_from(["x", "x'%_"]))
numbers = st.sampled_from(["$eq", "$gt", "$gte", "$lt", "$lte"])
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def store(storage: Storage, clock: Clock, new_id: Callable[[], str]) -> Iterator[SessionStore]:
    offload = StorageExecutor(storage.name, storage.run_batch, threads=2)
    parts = MemoryIndexer(storage, offload, clock=clock, new_id=new_id)
    yield SessionStore(parts)
    parts.close()
    offload.close()


def theirs_of(items: list[tuple[Any, ...]]) -> SqliteStore:
    store = SqliteStore(sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None))
    store.setup()
    fill(store, items)
    return store


def emptied(store: SessionStore) -> SessionStore:
    store.batch([PutOp(item.namespace, item.key, None) for item in store.search((), limit=10_000)])
    return store


def fill(store: Any, items: list[tuple[Any, ...]]) -> None:
    for namespace, key, value in items:
        store.put(namespace, key, value)


def plain(found: Any) -> Any:
    return sorted(((item.namespace, item.key, item.value) for item in found), key=repr)


items_of = st.lists(st.tuples(namespaces, keys, values), max_size=10)


@quick
@given(items=items_of, prefix=namespaces, filter=filters)
def test_searches_with_filters_find_the_same(
    store: SessionStore, items: list[tuple[Any, ...]], prefix: tuple[str, ...], filter: dict[str, Any]
) -> None:
    theirs = theirs_of(items)
    fill(emptied(store), items)
    expected = [
        item for item in plain(theirs.search(prefix, filter=filter, limit=100)) if not_equal_types(item, filter)
    ]
    assert plain(store.search(prefix, filter=filter, limit=100)) == expected


def not_equal_types(item: Any, filter: dict[str, Any]) -> bool:
    """SQLite's JSON has true equal 1, and so has Python; text never equals a number in either."""
    return all(item[2].get(key) == value for key, value in filter.items())


@quick
@given(values=st.lists(st.integers(-3, 3), max_size=8), operator=numbers, bound=st.integers(-3, 3))
def test_operators_compare_the_same(store: SessionStore, values: list[int], operator: str, bound: int) -> None:
    items = [(("n",), str(place), {"v": value}) for place, value in enumerate(values)]
    theirs = theirs_of(items)
    fill(emptied(store), items)
    where = {"v": {operator: bound}}
    assert plain(store.search(("n",), filter=where, limit=100)) == plain(theirs.search(("n",), filter=where, limit=100))


texts_and_numbers = st.integers(-12, 12) | st.floats(-12, 12, allow_nan=False) | st.booleans()


@quick
@given(
    values=st.lists(texts_and_numbers | texts_and_numbers.map(lambda n: json.dumps(n)), max_size=8),
    operator=numbers.filter(lambda name: name != "$eq"),
    bound=st.integers(-12, 12),
)
def test_numbers_written_as_text_compare_the_same(
    store: SessionStore, values: list[Any], operator: str, bound: int
) -> None:
    values = [value for value in values if value not in ("true", "false")]  # these are 0 to SQLite, and no number here
    items = [(("n",), str(place), {"v": value}) for place, value in enumerate(values)]
    theirs = theirs_of(items)
    fill(emptied(store), items)
    where = {"v": {operator: bound}}
    assert plain(store.search(("n",), filter=where, limit=100)) == plain(theirs.search(("n",), filter=where, limit=100))


nested = st.recursive(
    st.integers(-2, 2) | st.sampled_from(["x", "y"]) | st.none() | st.lists(st.integers(0, 1), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=6,
)
wanted = st.integers(-2, 2) | st.sampled_from(["x", "y"]) | st.none() | st.lists(st.integers(0, 1), max_size=2)
operands = st.sampled_from(["$eq", "$gt", "$gte", "$lt", "$lte"])


@quick
@given(
    values=st.lists(st.dictionaries(st.sampled_from(["a", "b"]), nested, max_size=2), max_size=6),
    key=st.sampled_from(["a", "a.b", "a.b.a", "b.a"]),
    wanted=wanted | st.tuples(operands, st.sampled_from(["x", "y"])).map(lambda pair: dict([pair])),
)
def test_keys_with_dots_reach_the_same(
    store: SessionStore, values: list[dict[str, Any]], key: str, wanted: Any
) -> None:
    items = [(("n",), str(place), value) for place, value in enumerate(values)]
    if isinstance(wanted, dict):  # to SQLite, an object or a list is text, and a number before all text
        items = [item for item in items if isinstance(at(item[2], key), str | None)]
    theirs = theirs_of(items)
    fill(emptied(store), items)
    assert plain(store.search(("n",), filter={key: wanted}, limit=100)) == plain(
        theirs.search(("n",), filter={key: wanted}, limit=100)
    )


def at(value: Any, key: str) -> Any:
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


@quick
@given(
    items=items_of,
    conditions=st.lists(
        st.builds(
            MatchCondition,
            st.sampled_from(["prefix", "suffix"]),
            st.lists(labels | st.just("*"), min_size=1, max_size=3).map(tuple),
        ),
        max_size=2,
    ),
    depth=st.none() | st.integers(1, 3),
)
def test_namespaces_are_listed_the_same(
    store: SessionStore, items: list[tuple[Any, ...]], conditions: list[MatchCondition], depth: int | None
) -> None:
    theirs = theirs_of(items)
    fill(emptied(store), items)
    op = ListNamespacesOp(tuple(conditions) or None, depth, 100, 0)
    assert sorted(store.batch([op])[0]) == sorted(set(theirs.batch([op])[0]))  # type: ignore[arg-type,type-var]


@quick
@given(items=items_of, gone=st.lists(st.tuples(namespaces, keys), max_size=5))
def test_puts_and_deletes_leave_the_same(
    store: SessionStore, items: list[tuple[Any, ...]], gone: list[tuple[Any, ...]]
) -> None:
    theirs = theirs_of(items)
    fill(emptied(store), items)
    for either in (theirs, store):
        for namespace, key in gone:
            either.delete(namespace, key)
    for namespace, key, _ in items:
        ours, other = store.get(namespace, key), theirs.get(namespace, key)
        assert (ours and ours.value) == (other and other.value)
