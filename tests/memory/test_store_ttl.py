"""Time to live in the store: what is over is not there, swept or not; reading gives it all of its time again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.store.base import GetOp, PutOp, SearchOp

from session_middleware import Sessions
from session_middleware.memory.indexer import MemoryIndexer
from session_middleware.memory.store import SessionStore
from tests.conftest import Clock


@pytest.fixture
def store_of(parts: MemoryIndexer) -> Callable[..., SessionStore]:
    return lambda **ttl: SessionStore(parts, ttl=ttl or None)  # type: ignore[arg-type]


@pytest.fixture
def store(store_of: Callable[..., SessionStore]) -> SessionStore:
    return store_of()


def is_there(store: SessionStore, key: str = "k") -> bool:
    """As every way of reading has it, none of which gives it more time."""
    got = store.get(("n",), key, refresh_ttl=False) is not None
    listed = key in [item.key for item in store.search(("n",), refresh_ttl=False)]
    found = key in [item.key for item in store.search(("n",), query="apple", refresh_ttl=False)]
    assert got == listed == found
    return got


def test_what_is_over_is_not_there_before_the_sweep(store: SessionStore, clock: Clock) -> None:
    store.put(("n",), "k", {"text": "apple"}, ttl=5)
    clock.advance(minutes=4, seconds=59)
    assert is_there(store)
    clock.advance(seconds=1)
    assert not is_there(store)
    assert store.list_namespaces() == []
    assert store.sweep_ttl() == 1
    assert store.sweep_ttl() == 0


def test_reading_gives_it_all_of_its_time_again_unless_told_not_to(store: SessionStore, clock: Clock) -> None:
    store.put(("n",), "k", {"text": "apple"}, ttl=10)
    for read in (
        lambda: store.get(("n",), "k"),
        lambda: store.search(("n",)),
        lambda: store.search(("n",), query="apple"),
        lambda: store.batch([GetOp(("n",), "k")]),
        lambda: store.batch([SearchOp(("n",))]),
    ):
        clock.advance(minutes=9)
        read()
    clock.advance(minutes=9)
    assert is_there(store)
    store.get(("n",), "k", refresh_ttl=False)
    clock.advance(minutes=1)
    assert not is_there(store)


async def test_the_async_methods_do_as_the_others(store: SessionStore, clock: Clock) -> None:
    await store.aput(("n",), "k", {"text": "apple"}, ttl=10)
    clock.advance(minutes=9)
    await store.aget(("n",), "k", refresh_ttl=False)
    await store.asearch(("n",), refresh_ttl=False)
    clock.advance(minutes=1)
    assert await store.aget(("n",), "k") is None


def test_the_settings_say_what_is_meant_when_nothing_is_said(
    store_of: Callable[..., SessionStore], clock: Clock
) -> None:
    store = store_of(default_ttl=10, refresh_on_read=False)
    store.put(("n",), "k", {"text": "apple"})
    store.put(("n",), "forever", {"text": "apple"}, ttl=None)
    clock.advance(minutes=9)
    store.get(("n",), "k")
    store.get(("n",), "k", refresh_ttl=True)
    clock.advance(minutes=9)
    assert is_there(store)
    clock.advance(minutes=1)
    assert not is_there(store)
    assert is_there(store, "forever")


def test_what_is_put_after_the_end_is_a_new_item(store: SessionStore, clock: Clock) -> None:
    store.put(("n",), "k", {"text": "apple"}, ttl=5)
    clock.advance(minutes=6)
    store.put(("n",), "k", {"text": "pear"})
    item = store.get(("n",), "k")
    assert item is not None
    assert (item.created_at, item.updated_at) == (clock.now, clock.now)
    assert store.search(("n",), query="apple") == []


def test_a_sweep_of_the_sessions_sweeps_the_store(tmp_path: Path, clock: Clock) -> None:
    with Sessions(tmp_path / "s.db", clock=clock, memory_ttl={"default_ttl": 5}) as sessions:
        sessions.store.put(("n",), "k", {"text": "the-secret-word"})
        clock.advance(minutes=5)
        sessions.sweep(dry_run=True)
        sessions.sweep()
        files = list(tmp_path.glob("s.db*"))
        assert [file.name for file in files if b"the-secret-word" in file.read_bytes()] == []


steps = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abc"), st.none() | st.integers(1, 5)),
    st.tuples(st.just("get"), st.sampled_from("abc"), st.booleans()),
    st.tuples(st.just("search"), st.just(""), st.booleans()),
    st.tuples(st.just("wait"), st.just(""), st.integers(1, 4)),
    st.tuples(st.just("sweep"), st.just(""), st.none()),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(steps, max_size=20))
def test_it_is_there_exactly_until_its_time_is_over(
    store: SessionStore, clock: Clock, steps: list[tuple[str, str, Any]]
) -> None:
    store.batch([PutOp(("n",), key, None) for key in "abc"])
    ends: dict[str, tuple[float, int | None]] = {}  # the minute it ends, and how long it lives
    minute = 0.0
    for step, key, value in steps:
        there = {k for k, (end, _) in ends.items() if end > minute}
        if step == "put":
            store.put(("n",), key, {"text": "apple"}, ttl=value)
            ends[key] = (minute + value if value else float("inf"), value)
        elif step == "get":
            assert (store.get(("n",), key, refresh_ttl=value) is not None) == (key in there)
        elif step == "search":
            assert {item.key for item in store.search(("n",), query="apple", refresh_ttl=value)} == there
        elif step == "wait":
            clock.advance(minutes=value)
            minute += value
        else:
            store.sweep_ttl()
        for k in there & ({key} if step == "get" else {*ends} if step == "search" else set()):
            if value and (lives := ends[k][1]):
                ends[k] = (minute + lives, lives)
