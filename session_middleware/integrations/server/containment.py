"""Filters of LangGraph's searches: a document that contains another one, as PostgreSQL's ``@>`` decides it."""

from __future__ import annotations

from typing import Any


def contains(document: Any, part: Any) -> bool:
    """Whether the document has all of `part`: its keys with what they contain, and the elements of its lists."""
    if isinstance(part, dict):
        return isinstance(document, dict) and all(
            key in document and contains(document[key], value) for key, value in part.items()
        )
    if isinstance(part, list):
        return isinstance(document, list) and all(any(contains(each, one) for each in document) for one in part)
    return (type(document) is type(part) and document == part) or _are_equal_numbers(document, part)


def _are_equal_numbers(a: Any, b: Any) -> bool:
    are_numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (a, b))
    return are_numbers and a == b
