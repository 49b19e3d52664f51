"""Between rows and values: JSON columns and times."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import ValidationError

from session_middleware.display.text import shortened
from session_middleware.models import Value, from_text
from session_middleware.storage.jsonable import REPLACED, clean, to_json
from session_middleware.storage.sql.connection import Cursor, DamagedRow

__all__ = ["Malformed", "clean", "flags_of", "namespace_text", "read_column", "to_json", "value_of", "values_of"]

V = TypeVar("V", bound=Value)


class Malformed(DamagedRow):
    """A row has a value that this package does not write. The message names its session."""

    def __init__(self, model: type[Value], session_id: str, *, column: str, problem: str) -> None:
        self.session_id = session_id
        super().__init__(f"malformed {column} in a row of {model.__name__}, session {session_id!r}: {problem}")


_JSON_COLUMNS = frozenset(
    {"tags", "metadata", "context", "client", "content", "tool_calls", "arguments", "result", "artifact"}
    | {"flags", "detail", "pinned", "extra", "value", "answer"}
)

_READ_COLUMNS = _JSON_COLUMNS | {"preview"}
_PREVIEW = 120  # characters

_building = threading.Lock()  # pydantic 2.11 leaves a model unusable for a moment if two threads build it at once


@lru_cache(maxsize=1024)
def namespace_text(namespace: tuple[str, ...]) -> str:
    """A namespace as JSON in ASCII: distinct for distinct namespaces, and a prefix is a range of texts."""
    return json.dumps(namespace, separators=(",", ":"))


def flags_of(flags: Iterable[str], *texts: str | None) -> str | None:
    """The flags of a row as JSON, with one more if a character of its texts was invalid and replaced."""
    found = [*flags, "invalid:unicode"] if REPLACED in "".join(filter(None, texts)) else list(flags)
    return to_json(list(dict.fromkeys(found))) if found else None


def value_of(model: type[V], cursor: Cursor, row: tuple[Any, ...]) -> V:
    """A row as a value of `model`, without the columns that are no fields. Raises `Malformed`."""
    columns = tuple([described[0] for described in cursor.description])
    found: dict[str, Any] = {}
    column = ""
    try:
        for place, column, is_plain in _fields_among(model, columns):
            if (value := row[place]) is not None:
                found[column] = value if is_plain else read_column(column, value)
        return model(**found)
    except (TypeError, ValueError, RecursionError) as error:
        problem = str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            column, problem = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        named = dict(zip(columns, row, strict=True))
        session_id = str(named.get("session_id", named.get("id")))
        raise Malformed(model, session_id, column=column, problem=problem) from error


@lru_cache(maxsize=256)
def _fields_among(model: type[Value], columns: tuple[str, ...]) -> list[tuple[int, str, bool]]:
    """The places and names of the columns that are fields, and whether the stored value is the field's."""
    with _building:
        if not model.__pydantic_complete__:
            model.model_rebuild()
    fields = [(place, name) for place, name in enumerate(columns) if name in model.model_fields]
    return [(place, name, name not in _READ_COLUMNS and not name.endswith("_at")) for place, name in fields]


def read_column(column: str, value: Any) -> Any:
    """The value of a column of JSON, of times or of a preview, which are known by their names."""
    if column == "preview":
        return shortened(value.partition("\0")[0], _PREVIEW)  # where SQLite's `substr` ends
    if column in _JSON_COLUMNS:
        return json.loads(value)
    if not column.endswith("_at"):
        return value
    moment = from_text(value)
    if moment.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone")
    return moment


def values_of(model: type[V], cursor: Cursor) -> list[V]:
    return [value_of(model, cursor, row) for row in cursor.fetchall()]
