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
    _write: Callable[..., Any]  # records the buffered entries of a run, and those of the operation

    def _now(self) -> datetime:
        return self._rules.clock()

    def _read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **named: P.kwargs) -> T:
        """Run a query on one snapshot."""
        return self._database.read(lambda connection: query(connection, *args, **named))

    def _change(
        self,
        operation: Callable[Concatenate[Connection, EngineContext, str, P], T],
        session_id: str,
        *args: P.args,
        **named: P.kwargs,
    ) -> T:
        """Run an operation on one session in a transaction."""
        return self._database.write(
            lambda connection: operation(connection, self._rules, session_id, *args, **named), of=session_id
        )


def reading_by_rules(read: Callable[Concatenate[Connection, EngineContext, P], T]) -> Callable[Concatenate[Any, P], T]:
    """As `reading`, from a function that needs the settings or the clock."""

    @wraps(read)
    def method(self: Operations, /, *args: P.args, **options: P.kwargs) -> T:
        return self._database.read(lambda connection: read(connection, self._rules, *args, **options))

    return method


def changing(
    change: Callable[Concatenate[Connection, EngineContext, str, P], T],
) -> Callable[Concatenate[Any, str, P], T]:
    """Make a method of `Operations` from a function that changes one session, in a transaction."""

    @wraps(change)
    def method(self: Operations, session_id: str, /, *args: P.args, **options: P.kwargs) -> T:
        return self._change(change, session_id, *args, **options)

    return method


def reading(read: Callable[Concatenate[Connection, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Make a method of `Operations` from a function that reads one snapshot of the database."""

    @wraps(read)
    def method(self: Operations, /, *args: P.args, **options: P.kwargs) -> T:
        return self._database.read(lambda connection: read(connection, *args, **options))

    return method
