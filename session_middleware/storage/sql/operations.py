"""The base of the parts of the SQL engine: the database, the engine's context, and the admitted transaction."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from session_middleware.storage.sql.connection import Database
from session_middleware.storage.sql.engine_context import EngineContext


class Operations:
    """`SqlStorage` sets these. Each part implements the methods of `Storage` for one noun."""

    name: str
    _database: Database
    _rules: EngineContext
    _run_admitted: Callable[..., Any]  # admits a `RunContext` and runs an operation, in one transaction

    def _now(self) -> datetime:
        return self._rules.clock()
