"""Whom a memory is for, and what of it is kept and searched: pure functions."""

from __future__ import annotations

import json
from collections import UserDict
from datetime import UTC, datetime
from typing import Any

import pytest
from langgraph.store.base import InvalidNamespaceError, PutOp

from session_middleware.errors import MemoryScopeUnavailable, UnserializableValue
from session_middleware.memory.ops import check_labels, encoded, puts_of, words_of
from session_middleware.memory.scopes import Owners, is_visible, namespace_of, visible_namespaces
from session_middleware.storage.memory_types import text_of

ALICE = Owners(session="t1", user="alice", group="red")
ANONYMOUS = Owners(session="t1")


@pytest.mark.parametrize("nobody", [None, ""])
def test_a_scope_without_an_id_says_which_id_is_missing_and_how_to_give_it(nobody: str | None) -> None:
    with pytest.raises(MemoryScopeUnavailable, match=r"'t1' has no user_id .* sessions.open\(…, user_id=…\)") as caught:
        namespace_of("user", Owners(session="t1", user=nobody))
    assert isinstance(caught.value, ValueError)


def test_an_unknown_scope_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="scope cannot be 'team'; give one of: session, user, group, global"):
        namespace_of("team", ALICE)  # type: ignore[arg-type]


def test_only_scopes_with_an_id_are_visible() -> None:
    assert visible_namespaces(ANONYMOUS) == [("session", "t1"), ("global",)]
    assert visible_namespaces(ALICE) == [("session", "t1"), ("user", "alice"), ("group", "red"), ("global",)]
    assert visible_namespaces(ANONYMOUS, ["user"]) == []


def test_memories_are_kept_for_one_group_and_seen_of_all_of_them() -> None:
    owners = Owners(session="t1", group="red", groups=frozenset({"blue"}))
    assert namespace_of("group", owners) == ("group", "red")
    assert visible_namespaces(owners, ["group"]) == [("group", "blue"), ("group", "red")]
    assert is_visible(("group", "blue", "x"), owners)
    assert not is_visible(("group", "green"), owners)
    with pytest.raises(MemoryScopeUnavailable):
        namespace_of("group", Owners(session="t1", groups=frozenset({"blue"})))


def test_an_id_may_hold_periods_and_other_labels_may_not() -> None:
    check_labels(("user", "alice@example.com"))
    for namespace in [("docs", "a.b"), ("user", "alice", "a.b"), ("a.b",)]:
        with pytest.raises(InvalidNamespaceError, match="contains a period"):
            check_labels(namespace)


@pytest.mark.parametrize("label", ["", "a\0b", "\ud83d", "\ud83d\ude00", 7, None])
def test_a_label_is_text_that_can_be_told_apart(label: Any) -> None:
    with pytest.raises(InvalidNamespaceError):
        check_labels(("user", label))


def test_a_namespace_that_is_a_text_is_not_taken_for_its_letters() -> None:
    with pytest.raises(InvalidNamespaceError, match="use a tuple"):
        check_labels("user")  # type: ignore[arg-type]


def test_the_text_of_a_value_is_its_texts_depth_first() -> None:
    value = {"a": "one", "b": {"c": ["two", {"d": "three"}], "n": 4}, "e": ("four", None), "f": "five"}
    assert text_of(value) == "one\ntwo\nthree\nfour\nfive"
    assert text_of({"n": 1}) == ""
    assert text_of({"text": "cut \ud83d"}) == "cut ?"


def test_an_index_chooses_the_words() -> None:
    value = {"title": "one", "pages": [{"text": "two"}, {"text": "three"}], "secret": "four"}
    assert words_of(value, False) == words_of(value, []) == words_of(value, ["missing"]) == ""
    assert words_of(value, ["title", "pages[*].text"]) == "one\ntwo\nthree"
    assert words_of(value, None) is words_of(value, ["$"]) is None


def test_values_nested_deeper_than_the_stack_have_a_text() -> None:
    value: Any = "deep"
    for _ in range(20_000):
        value = [value]
    assert text_of({"v": value}) == "deep"


def test_a_value_is_encoded_whole() -> None:
    for value in ({"a": [1, None, {"b": "é \ud83d"}]}, {"c": "日本", "n": 2**70}, {}, UserDict(c=(1, 2.5))):
        assert json.loads(encoded(("n",), "k", value)) == json.loads(json.dumps(dict(value)))
    assert encoded(("n",), "k", {"n": float("nan"), 1: float("inf")}) == '{"n": NaN, "1": Infinity}'


def _cycle() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, "datetime"),
        ({"x": {1, 2}}, "set"),
        ({("a", "b"): 1}, "tuple"),
        (_cycle(), "Circular"),
        (["a"], "is a list, not a dict"),
        ("a", "is a str, not a dict"),
    ],
    ids=["datetime", "set", "tuple key", "cycle", "list", "text"],
)
def test_what_json_cannot_keep_is_named_with_its_place(value: Any, reason: str) -> None:
    with pytest.raises(UnserializableValue, match=reason) as caught:
        encoded(("docs",), "k", value)
    assert "memory 'k' in ('docs',)" in str(caught.value)
    with pytest.raises(UnserializableValue, match=reason) as caught:
        puts_of([PutOp(("docs",), "j", {}), PutOp(("docs",), "k", value)], None, embed=False)
    assert "memory 'k' in ('docs',)" in str(caught.value)
