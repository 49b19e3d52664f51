"""A connection of Python's `sqlite3`, as the operations in SQL need it."""

from __future__ import annotations

import sqlite3
from array import array
from typing import Any, cast

from session_middleware.models import Event

_PERCENTILES = (50, 95, 99)


class _Latencies:
    """An aggregate for SQL: the percentiles of its values, as one text."""

    def __init__(self) -> None:
        self._values = array("d")
        self.step = self._values.append

    def finalize(self) -> str | None:
        if not self._values:
            return None
        values = sorted(self._values)
        ranks = (-(-len(values) * percent // 100) for percent in _PERCENTILES)
        return " ".join(repr(values[rank - 1]) for rank in ranks)


class SqliteConnection(sqlite3.Connection):
    watched: frozenset[str] = frozenset()
    conflict: type[Exception] = sqlite3.IntegrityError
    rejections: tuple[type[Exception], ...] = (
        sqlite3.DataError,
        sqlite3.IntegrityError,
        sqlite3.InterfaceError,
        sqlite3.ProgrammingError,
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.create_aggregate("latencies", 1, cast("Any", _Latencies))
        self.written: list[Event] = []
        self.unfinished: list[Any] = []
