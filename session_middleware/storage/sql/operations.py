"""The base of the parts of the SQL engine: the database, the engine's context, and the admitted transaction."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.database import Database
from session_middleware.storage.sql.engine_context import EngineContext

P = ParamSpec("P")
T = TypeVar("T")


class Operations:
    """`SqlStorage` sets these. Each part implements the methods of `Storage` for one noun."""

    name: str
    _database: Database
    _rules: EngineContext
    _run_admitted: Callable[..., Any]  # admits a `RunContext` and runs an operation, in one transaction

    def _now(self) -> datetime:
        return self._rules.clock()


def reading(read: Callable[Concatenate[Connection, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Make a method of `Operations` from a function that reads one snapshot of the database."""

    @wraps(read)
    def method(self: Operations, /, *args: P.args, **options: P.kwargs) -> T:
        return self._database.read(lambda connection: read(connection, *args, **options))

    return method
