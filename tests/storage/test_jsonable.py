"""Values that JSON has no form for are recorded as faithfully as can be, with a mark, and never fail."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy
import pytest
from pydantic import BaseModel

from session_middleware.storage.jsonable import plain, to_json


@dataclass
class Point:
    x: int
    y: Any = None


class Color(Enum):
    RED = "red"


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        return "hostile"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ([Hostile()], [{"__repr__": "hostile", "__type__": "Hostile"}]),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        (Point(1, Color.RED), {"x": 1, "y": "red", "__type__": "Point"}),
        (b"ab", {"__repr__": "b'ab'", "__type__": "bytes"}),
        (numpy.array([1, 2]), [1, 2]),
        (numpy.float32(0.5), 0.5),
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00+00:00"),
        (Path("a/b"), "a/b"),
        ({1: "one", None: 2}, {"1": "one", "null": 2}),
        ({("a", 1): 2}, {"('a', 1)": 2}),
        (float("nan"), "nan"),
        ([float("inf"), 1.5], ["inf", 1.5]),
        ("\ud800", "\ufffd"),
        (Odd(), {"__repr__": "<Odd, whose repr failed with RuntimeError>", "__type__": "Odd"}),
        (len, {"__repr__": "<built-in function len>", "__type__": "builtin_function_or_method"}),
    ],
)
def test_a_value_becomes_what_is_nearest_to_it(value: Any, kept: Any) -> None:
    assert plain(value) == kept


def test_what_is_kept_is_json_for_anyone() -> None:
    text = to_json({"a": float("nan"), "b": b"\xff", "c": "ü"})
    assert json.loads(str(text), parse_constant=pytest.fail)["c"] == "ü"


def test_a_cycle_and_great_depth_are_told_of() -> None:
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    assert "__repr__" in plain(cycle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert "__type__" in plain(deep)


def test_great_values_that_are_no_text_are_cut_and_say_so() -> None:
    kept = plain(bytes(5_000_000))
    assert kept["__cut__"]
    assert len(kept["__repr__"]) == 10_000
    assert plain(numpy.zeros(1_000_000))["__type__"] == "ndarray"


class Proxy:
    """Stands for something far away: whatever it is asked goes there, and takes its time."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"it was asked for {name}")

    def __bool__(self) -> bool:
        raise AssertionError("it was asked whether it is true")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("it was compared")

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return "a proxy"


class Holding(BaseModel):
    held: Any


@pytest.mark.parametrize("claims", [dict, list, str, BaseModel, datetime, numpy.ndarray, Color, Path, Point])
def test_nothing_is_called_on_a_value_that_only_claims_to_be_of_a_class(claims: type[Any]) -> None:
    mock = MagicMock(spec=claims)
    assert plain({"a": [mock]})["a"][0]["__type__"] == "MagicMock"
    assert mock.mock_calls == []


def test_a_mock_and_a_proxy_are_kept_as_what_they_look_like() -> None:
    mock = MagicMock()
    assert plain(mock)["__type__"] == "MagicMock"
    assert mock.mock_calls == []
    assert "__repr__" in plain(Holding(held=mock))["held"]
    assert mock.mock_calls == []
    assert plain([Proxy()]) == [{"__repr__": "a proxy", "__type__": "Proxy"}]
    assert plain({("a", 1): Proxy()}) == {"('a', 1)": {"__repr__": "a proxy", "__type__": "Proxy"}}
