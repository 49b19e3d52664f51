"""LangGraph's filter operators on plain values."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.store.base import PutOp
from langgraph.store.sqlite import SqliteStore

from session_middleware.storage.filters import _at, check_filter, passes

VALUE = {
    "digits": "10",
    "a.b": 1,
    "n": 5,
    "t": "m",
    "none": None,
    "tags": ["a", "b"],
    "deep": {"x": 1, "y": {"z": "q"}},
    "flag": True,
}


@pytest.mark.parametrize(
    "filter",
    [
        None,
        {},
        {"n": 5},
        {"t": "m", "flag": True},
        {"none": None},
        {"missing": None},
        {"n": {"$gt": 4, "$lte": 5}},
        {"n": {"$ne": 6}},
        {"t": {"$lt": "n"}},
        {"tags": ["a", "b"]},
        {"tags": ("a", "b")},
        {"tags": {"$eq": ("a", "b")}},
        {"tags": ["a", {"$gte": "b"}]},
        {"deep": {"y": {"z": "q"}}},
        {"deep": {"x": {"$lt": 2}}},
        {"deep": {}},
        {"missing": {"$ne": 1}},
        {"digits": {"$gt": 2}},
        {"digits": {"$gt": "9", "$lte": "10.0"}},
        {"n": {"$gt": "4"}},
        {"flag": {"$gt": 0}},
        {"deep.x": 1},
        {"deep.y.z": {"$gte": "q"}},
        {"deep.y": {"z": "q"}},
        {"deep": {"y.z": "q"}},
        {"deep.missing.z": None},
        {"n.x": {"$ne": 1}},
        {"a.b": 1},
        {"tags": {"$eq": ["a", "b"], "$ne": ["a"]}},
        {"deep": {"$eq": {"x": 1, "y": {"z": "q"}}}},
    ],
)
def test_these_hold(filter: dict[str, Any] | None) -> None:
    assert passes(VALUE, filter)


@pytest.mark.parametrize(
    "filter",
    [
        {"n": 6},
        {"n": "5"},
        {"n": 5, "t": "x"},
        {"missing": 1},
        {"n": {"$gt": 5}},
        {"n": {"$gt": 1, "$lt": 5}},
        {"tags": ["a"]},
        {"tags": ["b", "a"]},
        {"tags": "a"},
        {"t": ["m"]},
        {"deep": {"y": "q"}},
        {"n": {"x": 1}},
        {"n": {}},
        {"digits": {"$lt": 2}},
        {"digits": 10},
        {"deep.x": {"$gt": 1}},
        {"deep.y": "q"},
        {"tags.x": 1},
        {"tags": {"$gt": 0}},
        {"tags": {"$lt": 9}},
    ],
)
def test_these_do_not_hold(filter: dict[str, Any]) -> None:
    assert not passes(VALUE, filter)


@pytest.mark.parametrize(
    "filter", [{"n": {"$gt": "four"}}, {"t": {"$lt": 9}}, {"none": {"$gte": 0}}, {"deep": {"$lt": 1}}]
)
def test_what_has_no_order_holds_for_no_comparison(filter: dict[str, Any]) -> None:
    assert not passes(VALUE, filter)


@pytest.mark.parametrize(
    "filter", [{"n": {"$in": [5]}}, {"n": {"$gt": 1, "x": 2}}, {"a": {"b": {"$regex": "a"}}}, {"n": [1, {"$not": 2}]}]
)
def test_an_unknown_operator_is_an_error_that_lists_the_known_ones(filter: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a filter operator cannot be .*; give one of: \$eq, \$ne"):
        check_filter(filter)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text("ab", max_size=2), _json, max_size=3))
def test_every_value_passes_itself_as_a_filter(value: dict[str, Any]) -> None:
    assert passes(value, value)


# As LangGraph's SQLite store


def as_in_sqlite(values: list[dict[str, Any]], filter: dict[str, Any]) -> bool:
    store = SqliteStore(sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None))
    store.setup()
    store.batch([PutOp(("n",), str(place), value) for place, value in enumerate(values)])
    found = {item.key for item in store.search(("n",), filter=filter, limit=100)}
    return found == {str(place) for place, value in enumerate(values) if passes(value, filter)}


numbers = st.integers(-12, 12) | st.floats(-12, 12, allow_nan=False)


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(numbers | st.booleans() | numbers.map(json.dumps), max_size=8),
    operator=st.sampled_from(["$gt", "$gte", "$lt", "$lte"]),
    bound=st.integers(-12, 12),
)
def test_numbers_written_as_text_compare_as_in_sqlite(values: list[Any], operator: str, bound: int) -> None:
    assert as_in_sqlite([{"v": value} for value in values], {"v": {operator: bound}})


nested = st.recursive(
    st.integers(-2, 2) | st.sampled_from(["x", "y"]) | st.none() | st.lists(st.integers(0, 1), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=6,
)
wanted = st.integers(-2, 2) | st.sampled_from(["x", "y"]) | st.none() | st.lists(st.integers(0, 1), max_size=2)
operators = st.sampled_from(["$eq", "$gt", "$gte", "$lt", "$lte"])


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(st.dictionaries(st.sampled_from(["a", "b"]), nested, max_size=2), max_size=6),
    key=st.sampled_from(["a", "a.b", "a.b.a", "b.a"]),
    wanted=wanted | st.tuples(operators, st.sampled_from(["x", "y"])).map(lambda pair: dict([pair])),
)
def test_keys_with_dots_reach_the_same_as_in_sqlite(values: list[dict[str, Any]], key: str, wanted: Any) -> None:
    if isinstance(wanted, dict):  # to SQLite, an object or a list is text, and a number before all text
        values = [value for value in values if isinstance(_at(value, key), str | None)]
    assert as_in_sqlite(values, {key: wanted})
