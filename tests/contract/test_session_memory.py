"""What a session remembers, recalls and forgets, over every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from session_middleware.errors import MemoryScopeUnavailable, UnserializableValue
from session_middleware.memory.session_memory import SessionMemory
from session_middleware.memory.store import SessionStore
from session_middleware.storage.offload import Offload
from session_middleware.storage.port import Storage
from tests.conftest import Clock


@pytest.fixture
def offload(storage: Storage) -> Iterator[Offload]:
    offload = Offload(storage.name, storage.together, threads=2)
    yield offload
    offload.close()


@pytest.fixture
def memory_of(storage: Storage, offload: Offload, new_id: Callable[[], str]) -> Callable[..., SessionMemory]:
    def make(session_id: str, user_id: str | None = None, group_id: str | None = None) -> SessionMemory:
        return SessionMemory(storage, offload, session_id=session_id, user_id=user_id, group_id=group_id, new_id=new_id)

    return make


def test_a_text_is_remembered_under_a_new_key(memory_of: Callable[..., SessionMemory], clock: Clock) -> None:
    memory = memory_of("t1").remember("I like apples", metadata={"source": "chat"})
    assert memory.model_dump(exclude_none=True) == {
        "text": "I like apples",
        "value": {"text": "I like apples", "metadata": {"source": "chat"}},
        "key": "id-1",
        "scope": "session",
        "session_id": "t1",
        "created_at": clock.now,
        "updated_at": clock.now,
    }


def test_metadata_is_not_found_by_its_words(memory_of: Callable[..., SessionMemory]) -> None:
    memory = memory_of("t1")
    memory.remember("I like apples", metadata={"source": "chat"})
    assert memory.recall("chat") == []
    [found] = memory.recall("apple")
    assert (found.text, found.value["metadata"]) == ("I like apples", {"source": "chat"})


def test_a_dict_is_remembered_as_it_is_with_its_texts_joined(memory_of: Callable[..., SessionMemory]) -> None:
    value = {"likes": ["apples", "pears"], "n": 2}
    memory = memory_of("t1").remember(value, "tastes")
    assert (memory.value, memory.text, memory.key) == (value, "apples\npears", "tastes")


def test_recall_reaches_every_scope_of_the_session_and_no_other(memory_of: Callable[..., SessionMemory]) -> None:
    alice, bob = memory_of("t1", "alice", "red"), memory_of("t2", "bob", "red")
    for owner, memory in (("alice", alice), ("bob", bob)):
        for scope in ("session", "user", "group", "global"):
            memory.remember(f"apple of {owner}", f"{owner}-{scope}", scope=scope)  # type: ignore[arg-type]
    shared = {"alice-group", "bob-group", "alice-global", "bob-global"}
    assert {found.key for found in alice.recall("apple", 20)} == shared | {"alice-session", "alice-user"}
    assert {found.key for found in alice.recall("apple", scopes=["user"])} == {"alice-user"}
    [mine] = [found for found in bob.recall("apple", 20) if found.key == "alice-group"]
    assert (mine.scope, mine.session_id) == ("group", "t1")


def test_another_session_of_the_user_recalls_what_the_user_is_remembered_by(
    memory_of: Callable[..., SessionMemory],
) -> None:
    memory_of("t1", "alice").remember("allergic to nuts", scope="user")
    [found] = memory_of("t2", "alice").recall("nuts allergy allergic")
    assert (found.text, found.session_id) == ("allergic to nuts", "t1")
    assert memory_of("t3", "bob").recall("nuts") == memory_of("t4").recall("nuts") == []


def test_recall_gives_the_k_best_over_all_scopes(memory_of: Callable[..., SessionMemory]) -> None:
    memory = memory_of("t1", "alice")
    memory.remember("one apple among so many other kinds of fruit in this garden", "long")
    memory.remember("apple", "short", scope="user")
    found = memory.recall("apple", 1)
    assert [item.key for item in found] == ["short"]
    assert found[0].score is not None


@pytest.mark.parametrize("query", ["", "  ", "?!…", '"'])
def test_a_query_without_words_recalls_nothing(memory_of: Callable[..., SessionMemory], query: str) -> None:
    memory = memory_of("t1")
    memory.remember("apple")
    assert memory.recall(query) == []


def test_what_is_forgotten_is_gone(memory_of: Callable[..., SessionMemory]) -> None:
    memory = memory_of("t1", "alice")
    memory.remember("apple", "k", scope="user")
    assert memory.forget("k") is False
    assert memory.forget("k", scope="user") is True
    assert memory.forget("k", scope="user") is False
    assert memory.recall("apple") == []


def test_memories_are_listed_first_kept_first_and_without_a_limit(memory_of: Callable[..., SessionMemory]) -> None:
    memory = memory_of("t1")
    for n in range(30):
        memory.remember(f"fact {n}")
    memory.remember("for all", "g", scope="global")
    assert [item.text for item in memory.list()] == [f"fact {n}" for n in range(30)]
    assert [item.key for item in memory.list(["user", "global"])] == ["g"]


def test_a_scope_without_an_id_takes_no_memories(memory_of: Callable[..., SessionMemory]) -> None:
    memory = memory_of("t1")
    with pytest.raises(MemoryScopeUnavailable, match="user_id"):
        memory.remember("apple", scope="user")
    with pytest.raises(MemoryScopeUnavailable, match="group_id"):
        memory.forget("k", scope="group")
    assert memory.list(["user"]) == []


def test_a_session_recalls_what_the_store_keeps_below_its_namespaces(
    memory_of: Callable[..., SessionMemory], storage: Storage, offload: Offload
) -> None:
    store = SessionStore(storage, offload)
    store.put(("user", "alice", "prefs"), "k", {"fruit": "apple"})
    store.put(("user", "alice"), "hidden", {"fruit": "apple"}, index=False)
    memory = memory_of("t1", "alice")
    assert [item.key for item in memory.recall("apple")] == ["k"]
    assert [item.text for item in memory.list(["user"])] == ["apple", "apple"]
    assert store.get(("session", "t1"), memory.remember("pear").key) is not None


async def test_every_method_has_an_async_twin(memory_of: Callable[..., SessionMemory]) -> None:
    memory = memory_of("t1", "alice")
    kept = await memory.aremember("apple", scope="user", metadata={"n": 1})
    assert await memory.arecall("apple", scopes=["user"]) == memory.recall("apple")
    assert await memory.alist(["user"]) == [kept]
    assert await memory.aforget(kept.key, scope="user") is True
    assert await memory.alist(["user"]) == []


def test_what_cannot_be_remembered_is_refused(memory_of: Callable[..., SessionMemory]) -> None:
    memory = memory_of("t1")
    refused: list[tuple[Any, dict[str, Any]]] = [
        ({"x": object()}, {}),
        (7, {}),
        ("apple", {"metadata": {"x": object()}}),
        ("apple", {"key": "\ud83d"}),
    ]
    for what, rest in refused:
        with pytest.raises(UnserializableValue):
            memory.remember(what, **rest)
    assert memory.list() == []
