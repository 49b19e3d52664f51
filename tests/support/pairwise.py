"""Parametrisation by pairs: few cases, in which every two values of different parameters meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, cycle, product
from typing import Any, TypeVar

import pytest

ENGINES = ["sqlite", "postgres"]  # the parameters of the fixtures `each_engine` and `storage_url`
KINDS = [*ENGINES, "memory"]  # more parameters of `storage_url`
T = TypeVar("T", bound=Callable[..., Any])
_FIXTURES = {"each_engine", "storage_url", "run", "invoke", "settle"}


def pairwise(**axes: Iterable[Any]) -> Callable[[T], T]:
    """Parametrise a test so that each pair of values of two parameters occurs in at least one case.

    An error that depends on one parameter, or on how two of them combine, is found as by the full product. The axes in
    `_FIXTURES` are those fixtures': the test is run with each engine in some of its cases, instead of in all.
    """
    names, values = list(axes), [list(axis) for axis in axes.values()]
    rows = _rows([len(axis) for axis in values])
    cases = [[values[axis][choice] for axis, choice in enumerate(row)] for row in rows]
    fixtures = [name for name in names if name in _FIXTURES]
    return _parametrised(names, cases, ["-".join(map(_name, case)) for case in cases], fixtures)


def engines_in_turns(fixture: str = "each_engine", **axis: Iterable[Any]) -> Callable[[T], T]:
    """Parametrise a test by the values of one parameter, each with one engine: what it holds has no SQL of its own."""
    ((name, values),) = axis.items()
    cases = list(zip(cycle(ENGINES), values))
    return _parametrised([fixture, name], cases, [f"{engine}-{_name(value)}" for engine, value in cases], [fixture])


def _parametrised(names: list[str], cases: Sequence[Any], ids: list[str], fixtures: list[str]) -> Callable[[T], T]:
    def mark(test: T) -> T:
        marked: T = pytest.mark.parametrize(names, cases, ids=ids, indirect=fixtures)(test)
        return pytest.mark.usefixtures(*fixtures)(marked) if fixtures else marked

    return mark


def _rows(sizes: list[int]) -> list[list[int]]:
    """The cases, as indexes of the values: a row starts with a missing pair, and takes the values that add most."""
    missing = {
        ((a, x), (b, y)): None
        for a, b in combinations(range(len(sizes)), 2)
        for x, y in product(range(sizes[a]), range(sizes[b]))
    }
    rows = []
    while missing:
        chosen = dict(next(iter(missing)))
        for axis in range(len(sizes)):
            if axis not in chosen:
                gains = [
                    sum(_pair((axis, x), other) in missing for other in chosen.items()) for x in range(sizes[axis])
                ]
                chosen[axis] = gains.index(max(gains))
        for one, other in combinations(sorted(chosen.items()), 2):
            missing.pop((one, other), None)
        rows.append([chosen[axis] for axis in range(len(sizes))])
    return rows


def _pair(one: tuple[int, int], other: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return (one, other) if one < other else (other, one)


def _name(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_name, value))
    return str(getattr(value, "__name__", value))
