"""Whether a stored value passes a filter: the filters of LangGraph's own stores, on plain Python values.

Filters are data from first to last; neither keys nor values ever become SQL.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {"$eq": operator.eq, "$ne": operator.ne, **_ORDERS}


def passes(value: Mapping[str, Any], filter: Mapping[str, Any] | None) -> bool:
    """All of the filter's keys hold. A dict of ``$`` operators compares; another dict looks inside.

    A key with dots, where there is none of that name, reaches into nested dicts: ``"a.b"`` is what ``"a"`` has
    under ``"b"``. Lists hold when they are as long and each element holds; a tuple is a list, as in JSON. Numbers
    have an order also where they are written as text.

    Raises:
        ValueError: an operator nobody knows.
    """
    return not filter or all(_holds(_at(value, key), wanted) for key, wanted in filter.items())


def _at(value: Mapping[str, Any], key: Any) -> Any:
    if key in value or not isinstance(key, str) or "." not in key:
        return value.get(key)
    found: Any = value
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _holds(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_holds, found, wanted))
    if not isinstance(wanted, Mapping):
        return bool(found == wanted)
    if any(isinstance(key, str) and key.startswith("$") for key in wanted):
        return all(_compare(found, name, operand) for name, operand in wanted.items())
    return isinstance(found, Mapping) and passes(found, wanted)


def _compare(found: Any, name: str, operand: Any) -> bool:
    if name not in _OPERATORS:
        raise ValueError(f"{name!r} is not a filter operator; use one of {', '.join(_OPERATORS)}")
    if isinstance(operand, tuple):
        operand = list(operand)
    if name in _ORDERS and (isinstance(found, str) or isinstance(operand, str)):
        numbers = _number(found), _number(operand)
        found, operand = numbers if None not in numbers else (found, operand)
    try:
        return bool(_OPERATORS[name](found, operand))
    except TypeError:  # no order between the two, as between a word and a number, or with None
        return False


def _number(value: Any) -> Any:
    """A number, also of text that is one; ``None`` of anything else."""
    if not isinstance(value, str):
        return value if isinstance(value, int | float) else None
    try:
        return float(value)
    except ValueError:
        return None
