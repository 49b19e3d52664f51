"""LangGraph's filter operators on plain values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_middleware.storage.filters import check_filter, passes

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
