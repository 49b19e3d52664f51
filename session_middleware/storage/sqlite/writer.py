"""The one connection of a process that writes to an SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from session_middleware.storage.sql.writer import Writer, WriteRequest
from session_middleware.storage.sqlite.connection import SqliteConnection


class SqliteWriter(Writer):
    connection: SqliteConnection
    errors = (sqlite3.Error,)

    def __init__(
        self,
        connection: SqliteConnection,
        *,
        synchronous: str,
        mapped: Callable[[], AbstractContextManager[None]],
        begun: Callable[[], None],
        committed: Callable[[], None],
    ) -> None:
        super().__init__()
        self.connection = connection
        self.mapped = mapped
        self._durable_mode = synchronous.upper()
        self._mode = ""  # the synchronous pragma now in force
        self._begun = begun  # called in each transaction before anything is written; an exception ends it
        self._on_commit = committed

    def _begin(self, batch: Sequence[WriteRequest[Any]]) -> None:
        mode = self._durable_mode if any(request.durable for request in batch) else "NORMAL"
        if mode != self._mode:
            self.connection.execute(f"PRAGMA synchronous={mode}")
            self._mode = mode
        self.connection.execute("BEGIN IMMEDIATE")
        self._begun()

    def _end(self) -> None:
        self.connection.execute("COMMIT")

    def _abort(self) -> None:
        with suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        self.connection.written.clear()

    def _committed(self) -> None:
        self._on_commit()

    def _is_open(self) -> bool:
        return self.connection.in_transaction  # a full disk ends it

    def _changes(self) -> int:
        return self.connection.total_changes
