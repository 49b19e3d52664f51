"""Whether a stored value passes a filter: LangGraph's operators, on plain Python values.

Filters are data from first to last; neither keys nor values ever become SQL.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def passes(value: Mapping[str, Any], filter: Mapping[str, Any] | None) -> bool:
    """All of the filter's keys hold. A dict of ``$`` operators compares; another dict looks inside.

    Lists hold when they are as long and each element holds; a tuple is a list, as in JSON.

    Raises:
        ValueError: an operator nobody knows.
    """
    return not filter or all(_holds(value.get(key), wanted) for key, wanted in filter.items())


def _holds(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_holds, found, wanted))
    if not isinstance(wanted, Mapping):
        return bool(found == wanted)
    if any(isinstance(key, str) and key.startswith("$") for key in wanted):
        return all(_compare(found, name, operand) for name, operand in wanted.items())
    return isinstance(found, Mapping) and passes(found, wanted)


def _compare(found: Any, name: str, operand: Any) -> bool:
    if isinstance(operand, tuple):
        operand = list(operand)
    if name not in _OPERATORS:
        raise ValueError(f"{name!r} is not a filter operator; use one of {', '.join(_OPERATORS)}")
    try:
        return bool(_OPERATORS[name](found, operand))
    except TypeError:  # no order between the two, as between a text and a number, or with None
        return False
