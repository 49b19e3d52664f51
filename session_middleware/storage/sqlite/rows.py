"""Between rows and values: JSON columns, times, and what JSON cannot hold."""

from __future__ import annotations

import json
import sqlite3
from datetime import datetime
from typing import Any, TypeVar

from session_middleware.model import Value, from_text, to_text

V = TypeVar("V", bound=Value)

_JSON_COLUMNS = frozenset(
    {"tags", "metadata", "context", "client", "content", "tool_calls", "arguments", "result", "artifact"}
    | {"marks", "detail"}
)


def to_json(value: Any) -> str | None:
    """JSON text; what JSON has no form for is kept as its ``repr`` under ``"__repr__"``, never an error."""
    if value is None:
        return None
    try:
        return clean(json.dumps(value, ensure_ascii=False, default=_describe))
    except (ValueError, TypeError, RecursionError):  # a cycle, or keys that are no strings
        return json.dumps(_describe(value), ensure_ascii=False)


def _describe(value: Any) -> Any:
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if isinstance(value, datetime):
        return to_text(value)
    return {"__repr__": clean(repr(value)), "__type__": type(value).__qualname__}


def clean(text: str) -> str:
    """Text a database can hold: lone surrogates become the replacement character."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def value_of(model: type[V], cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> V:
    """A row as a value of `model`; columns it has no field for are left out."""
    fields = model.model_fields
    found: dict[str, Any] = {}
    for column, value in zip((c[0] for c in cursor.description), row, strict=True):
        if column not in fields or value is None:
            continue
        if column in _JSON_COLUMNS:
            value = json.loads(value)
        elif column.endswith("_at"):
            value = from_text(value)
        found[column] = value
    return model(**found)


def values_of(model: type[V], cursor: sqlite3.Cursor) -> list[V]:
    return [value_of(model, cursor, row) for row in cursor.fetchall()]
