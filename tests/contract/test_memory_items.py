"""Items by namespace and key, and word search, over every engine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from session_middleware.errors import StorageError
from session_middleware.models import Identity
from session_middleware.storage.memory_types import MemoryItemPut, MemoryPut, MemoryQuery, StoredMemory
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import RunContext
from session_middleware.storage.types import SessionDetails
from tests.conftest import Clock
from tests.support.memories import put_of

HOSTILE = [
    "it's",
    'say "hi"',
    "100%",
    "under_score",
    "'; DROP TABLE memories; --",
    "naïve 日本語 \U0001f600",
    "a*",
    "NEAR",
    "x -y",
    "a,b",
    '["a","b"]',
    "back\\slash",
    "(",
    "col:umn",
    "^a",
    "new\nline",
]


def put(storage: Storage, namespace: tuple[str, ...], key: str, text: str | None = "", /, **value: Any) -> None:
    storage.put_memories([put_of(namespace, key, value or {"text": text}, text)])


def search(storage: Storage, *namespaces: tuple[str, ...], prefix: bool = True, **rest: Any) -> list[StoredMemory]:
    return storage.search_memories(MemoryQuery(namespaces, prefix=prefix, **rest))


def keys(found: list[StoredMemory]) -> list[str]:
    return [item.key for item in found]


def get(storage: Storage, namespace: tuple[str, ...], key: str) -> StoredMemory | None:
    return storage.get_memories([(namespace, key)])[0]


def test_what_is_put_is_got_back_whole(storage: Storage, clock: Clock) -> None:
    value = {"a": [1, 2.5, None, True], "b": {"c": "d"}}
    storage.put_memories([put_of(("n", "m"), "k", value, "words", "t1")])
    assert get(storage, ("n", "m"), "k") == StoredMemory(("n", "m"), "k", value, "words", "t1", clock.now, clock.now)


def test_items_are_got_in_the_order_asked(storage: Storage) -> None:
    put(storage, ("n",), "a", n=1)
    put(storage, ("n",), "b", n=2)
    found = storage.get_memories([(("n",), "b"), (("n",), "missing"), (("n",), "a"), (("n",), "b")])
    assert [item and item.value["n"] for item in found] == [2, None, 1, 2]
    assert storage.get_memories([]) == []


def test_a_key_put_again_keeps_its_created_at_and_its_place(storage: Storage, clock: Clock) -> None:
    first = clock.now
    put(storage, ("n",), "a", v=1)
    put(storage, ("n",), "b", v=1)
    clock.advance(seconds=5)
    put(storage, ("n",), "a", v=2)
    item = get(storage, ("n",), "a")
    assert item is not None
    assert (item.value, item.created_at, item.updated_at) == ({"v": 2}, first, clock.now)
    assert keys(search(storage, ("n",))) == ["a", "b"]


def test_a_value_of_none_deletes_and_deleting_again_does_nothing(storage: Storage) -> None:
    put(storage, ("n",), "a", "apple")
    for _ in range(2):
        storage.put_memories([put_of(("n",), "a", None, None)])
    assert get(storage, ("n",), "a") is None
    assert search(storage, ("n",)) == search(storage, ("n",), query="apple") == []
    assert storage.list_namespaces() == []


def test_puts_go_in_together_or_not_at_all(storage: Storage) -> None:
    puts = [put_of(("n",), "good", {"v": 1}, None), put_of(("n",), "bad \ud83d", {}, None)]
    with pytest.raises(StorageError):
        storage.put_memories(puts)
    assert storage.list_namespaces() == []


def test_the_same_key_in_other_namespaces_is_another_item(storage: Storage) -> None:
    for namespace in [("a",), ("a", "b"), ("ab",), ('a","b',)]:
        put(storage, namespace, "k", where="/".join(namespace))
    assert get(storage, ("a", "b"), "k").value == {"where": "a/b"}  # type: ignore[union-attr]
    assert storage.list_namespaces() == sorted([("a",), ("a", "b"), ("ab",), ('a","b',)])


def test_a_prefix_is_whole_labels(storage: Storage) -> None:
    for namespace in [("a",), ("a", "b"), ("a", "b", "c"), ("ab",), ("a-",), ("a!",), ("b", "a"), ("a,",)]:
        put(storage, namespace, "/".join(namespace))
    assert keys(search(storage, ("a",))) == ["a", "a/b", "a/b/c"]
    assert keys(search(storage, ("a",), prefix=False)) == ["a"]
    assert keys(search(storage, ("a", "b"), ("b",))) == ["a/b", "a/b/c", "b/a"]
    assert len(search(storage, ())) == 8


def test_no_namespaces_find_nothing(storage: Storage) -> None:
    put(storage, ("a",), "k", "apple")
    assert search(storage) == search(storage, prefix=False) == search(storage, query="apple") == []


def test_thousands_of_namespaces_can_be_searched_at_once(storage: Storage) -> None:
    storage.put_memories([put_of((f"n{n}",), "k", {"n": n}, "apple") for n in range(500)])
    namespaces = [(f"n{n}",) for n in range(0, 500, 2)] + [(f"m{n}",) for n in range(40_000)]
    assert len(search(storage, *namespaces, prefix=False, limit=5000)) == 250
    assert len(search(storage, *namespaces, prefix=False, limit=5000, query="apple")) == 250


def test_pages_follow_each_other(storage: Storage) -> None:
    for n in range(7):
        put(storage, ("n",), str(n), n=n)
    for prefix in (True, False):
        pages = [keys(search(storage, ("n",), prefix=prefix, limit=3, offset=offset)) for offset in (0, 3, 6, 9)]
        assert pages == [["0", "1", "2"], ["3", "4", "5"], ["6"], []]
        assert search(storage, ("n",), prefix=prefix, limit=0) == []


def test_a_page_is_of_those_that_pass_the_filter(storage: Storage) -> None:
    for n in range(10):
        put(storage, ("n",), str(n), "apple", n=n)
    found = search(storage, ("n",), filter={"n": {"$gte": 4}}, limit=3, offset=1)
    assert keys(found) == ["5", "6", "7"]
    assert len(search(storage, ("n",), filter={"n": {"$gte": 4}}, query="apple")) == 6


def test_filter_keys_and_values_are_data(storage: Storage) -> None:
    for word in HOSTILE:
        storage.put_memories([put_of(("n",), word, {word: word}, None)])
    for word in HOSTILE:
        assert keys(search(storage, ("n",), filter={word: word})) == [word]


def test_an_unknown_operator_is_a_value_error(storage: Storage) -> None:
    for _ in range(2):  # without an item, and with one
        with pytest.raises(ValueError, match="filter operator"):
            search(storage, ("n",), filter={"v": {"$like": "%"}})
        put(storage, ("n",), "k", v=1)
    assert keys(search(storage, ("n",))) == ["k"]


def test_any_text_is_a_key_a_namespace_and_a_value(storage: Storage) -> None:
    for word in HOSTILE:
        put(storage, ("n", word), word, word)
        put(storage, ("n", word + "x"), word, "other")
    for word in HOSTILE:
        assert get(storage, ("n", word), word).value == {"text": word}  # type: ignore[union-attr]
        assert keys(search(storage, ("n", word))) == [word]
    assert {("n", word) for word in HOSTILE} <= set(storage.list_namespaces())


def test_a_key_may_hold_nul(storage: Storage) -> None:
    put(storage, ("n",), "a\0b", "zero\0apple")
    assert get(storage, ("n",), "a") is None
    assert keys(search(storage, ("n",))) == ["a\0b"]


def test_words_are_found_whatever_is_around_them(storage: Storage) -> None:
    for number, word in enumerate(HOSTILE):
        namespace = ("n", str(number))
        put(storage, namespace, "k", f"{word} apple")
        put(storage, namespace, "other", "pear")
        assert keys(search(storage, namespace, query=f"{word} apple")) == ["k"]


def test_a_query_without_a_word_finds_nothing(storage: Storage) -> None:
    put(storage, ("n",), "k", "apple _ % *")
    for query in ["", "   ", '"', "*", "-", "?!", "()", "'", "%", "_", "\0", "\ud83d"]:
        assert search(storage, ("n",), query=query) == []


def test_the_syntax_of_a_search_engine_is_only_words(storage: Storage) -> None:
    put(storage, ("n",), "k", "not and near text or apple")
    for query in ["NOT NEAR", "apple AND", "NEAR(apple pear)", "text: x", "appl*", '"apple', "NOT near: OR"]:
        assert keys(search(storage, ("n",), query=query)) == ["k"]


def test_the_best_match_comes_first_with_the_greatest_score(storage: Storage) -> None:
    put(storage, ("n",), "one", "the apple fell far from the very old tree in the garden")
    put(storage, ("n",), "two", "red apple pie")
    put(storage, ("n",), "none", "pears")
    found = search(storage, ("n",), query="red apple")
    assert keys(found) == ["two", "one"]
    scores = [item.score for item in found if item.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 2
    assert [item.score for item in search(storage, ("n",))] == [None, None, None]


def test_words_are_found_in_other_forms(storage: Storage) -> None:
    put(storage, ("n",), "k", "She likes Café contexts")
    for query in ("like", "CONTEXT", "cafe"):
        assert keys(search(storage, ("n",), query=query)) == ["k"]


def test_a_search_by_words_stays_in_its_namespaces(storage: Storage) -> None:
    for namespace in [("user", "alice"), ("user", "bob"), ("user", "alice2"), ("user", "alice", "prefs")]:
        put(storage, namespace, "/".join(namespace), "apple")
    assert set(keys(search(storage, ("user", "alice"), query="apple"))) == {"user/alice", "user/alice/prefs"}
    assert keys(search(storage, ("user", "alice"), query="apple", prefix=False)) == ["user/alice"]


def test_an_empty_text_keeps_an_item_out_of_word_search_only(storage: Storage) -> None:
    put(storage, ("n",), "k", "apple")
    put(storage, ("n",), "k", "", text="apple")
    assert search(storage, ("n",), query="apple") == []
    assert keys(search(storage, ("n",))) == ["k"]


def test_without_a_text_an_item_is_found_by_the_texts_in_its_value(storage: Storage) -> None:
    put(storage, ("n",), "k", None, a={"b": ["apple", 1]}, c="pear")
    for query in ("apple", "pear"):
        assert keys(search(storage, ("n",), query=query)) == ["k"]


def test_an_item_put_again_is_found_by_its_new_words_only(storage: Storage) -> None:
    put(storage, ("n",), "k", "apple")
    put(storage, ("n",), "k", "pear")
    assert search(storage, ("n",), query="apple") == []
    assert keys(search(storage, ("n",), query="pear")) == ["k"]


def test_what_a_session_owns_ends_with_it_and_what_it_gave_stays(storage: Storage) -> None:
    context = RunContext("t1", Identity(user_id="alice"), is_run=False)
    storage.open_session(context, SessionDetails())
    puts = [
        put_of(namespace, "k", {"v": 1}, "apple", "t1")
        for namespace in [("session", "t1"), ("session", "t1", "notes"), ("session", "t10"), ("user", "alice")]
    ]
    storage.put_memories(puts)
    assert storage.delete_session("t1").memories == 2
    assert storage.list_namespaces() == [("session", "t10"), ("user", "alice")]
    assert len(search(storage, (), query="apple")) == 2


def test_an_item_in_the_position_of_a_deleted_one_has_only_its_own_words(storage: Storage) -> None:
    for key, text in (("a", "apple"), ("b", "pear")):
        put(storage, ("n",), key, text)
    storage.put_memories([put_of(("n",), f"x{n}", {}, f"filler {n}") for n in range(300)])
    assert keys(search(storage, ("n",), query="pear")) == ["b"]  # by then they are indexed
    storage.put_memories([put_of(("n",), key, None, None) for key in ("b", *(f"x{n}" for n in range(300)))])
    put(storage, ("n",), "c", "plum")
    assert keys(search(storage, ("n",))) == ["a", "c"]
    assert search(storage, ("n",), query="pear filler") == []
    assert keys(search(storage, ("n",), query="plum")) == ["c"]


def test_an_indexed_item_put_again_is_found_at_once(storage: Storage) -> None:
    storage.put_memories([put_of(("n",), f"k{n}", {}, f"filler {n}") for n in range(300)])
    assert len(search(storage, ("n",), query="filler", limit=500)) == 300  # by then they are indexed
    put(storage, ("n",), "k7", "pear")
    assert keys(search(storage, ("n",), query="pear")) == ["k7"]
    assert len(search(storage, ("n",), query="filler", limit=500)) == 299


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.text(st.characters(exclude_categories=["Cs"])),
    label=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    query=st.text(st.characters()),
)
def test_no_text_at_all_upsets_the_engine(storage: Storage, key: str, label: str, query: str) -> None:
    put(storage, ("n", label), key, label)
    assert get(storage, ("n", label), key) is not None
    search(storage, ("n", label), query=query)
    storage.put_memories([put_of(("n", label), key, None, None)])
    assert search(storage, ("n", label)) == []


def test_many_put_again_or_deleted_together_leave_nothing_of_what_they_said(storage: Storage) -> None:
    def put_all(text: str) -> None:
        storage.put_memories([put_of(("n", str(n % 2)), f"k{n}", {}, f"{text} number{n}") for n in range(600)])
        assert len(search(storage, ("n",), query=text, limit=1000)) == 600  # by then they are indexed

    put_all("apple")
    put_all("pear")
    assert search(storage, ("n",), query="apple") == []
    assert keys(search(storage, ("n",), query="number7")) == ["k7"]
    storage.put_memories(
        [MemoryPut(("n", str(m)), [MemoryItemPut(f"k{n}", None, None) for n in range(m, 500, 2)]) for m in range(2)]
    )
    assert len(search(storage, ("n",), query="pear", limit=1000)) == 100
    assert search(storage, ("n",), query="number7") == []
    storage.put_memories([put_of(("n", str(n % 2)), f"k{n}", None, None) for n in range(500, 600)])
    assert search(storage, ("n",), limit=1000) == []
