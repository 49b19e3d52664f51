"""The filters of LangGraph's stores, applied to plain Python values.

Neither the keys nor the values of a filter become SQL.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from session_middleware.errors import InvalidMemoryArgument

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {"$eq": operator.eq, "$ne": operator.ne, **_ORDERS}


def check_filter(filter: Mapping[str, Any] | None) -> None:
    """Raise `InvalidMemoryArgument` for an unknown operator, whether or not there is a value to compare."""
    for wanted in (filter or {}).values():
        _check(wanted)


def _check(wanted: Any) -> None:
    if isinstance(wanted, list | tuple):
        for each in wanted:
            _check(each)
    elif not isinstance(wanted, Mapping):
        return
    elif not _has_operators(wanted):
        check_filter(wanted)
    elif unknown := next((name for name in wanted if name not in _OPERATORS), None):
        raise InvalidMemoryArgument("a filter operator", unknown, wanted=f"one of: {', '.join(_OPERATORS)}")


def passes(value: Mapping[str, Any], filter: Mapping[str, Any] | None) -> bool:
    """Whether a value matches all keys of a filter.

    A dict of ``$`` operators compares; any other dict is a filter for a nested dict. A key with dots that the value
    does not have is a path: ``"a.b"`` is the value of ``"b"`` in ``"a"``. Lists match when they have the same length
    and each element matches; tuples are lists, as in JSON. Text that is a number is ordered as a number. `check_filter`
    finds unknown operators, once for all values.
    """
    return not filter or all(_matches(_at(value, key), wanted) for key, wanted in filter.items())


def _at(value: Mapping[str, Any], key: Any) -> Any:
    if key in value or not isinstance(key, str) or "." not in key:
        return value.get(key)
    found: Any = value
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _matches(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_matches, found, wanted))
    if not isinstance(wanted, Mapping):
        return bool(found == wanted)
    if _has_operators(wanted):
        return all(_compare(found, name, operand) for name, operand in wanted.items())
    return isinstance(found, Mapping) and passes(found, wanted)


def _has_operators(wanted: Mapping[str, Any]) -> bool:
    return any(isinstance(key, str) and key.startswith("$") for key in wanted)


def _compare(found: Any, name: str, operand: Any) -> bool:
    if isinstance(operand, tuple):
        operand = list(operand)
    if name in _ORDERS and (isinstance(found, str) or isinstance(operand, str)):
        numbers = _number(found), _number(operand)
        found, operand = numbers if None not in numbers else (found, operand)
    try:
        return bool(_OPERATORS[name](found, operand))
    except TypeError:  # the two have no order, such as text and a number
        return False


def _number(value: Any) -> Any:
    """The number that a value is, also as text; ``None`` for anything else."""
    if not isinstance(value, str):
        return value if isinstance(value, int | float) else None
    try:
        return float(value)
    except ValueError:
        return None
