"""The transactions of a process that write to PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import psycopg

from session_middleware.storage.postgres.connection import PostgresConnection, RetryStatements
from session_middleware.storage.sql.writer import BatchAborted, Writer, WriteRequest

_ALL = 7_236_000  # the advisory lock of a transaction that may write to every session


class PostgresWriter(Writer):
    connection: PostgresConnection
    errors = (psycopg.Error,)

    def __init__(
        self,
        begin: Callable[[str], PostgresConnection],
        give_back: Callable[[PostgresConnection], None],
        mapped: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__()
        self.mapped = mapped
        self.watched: frozenset[str] = frozenset()
        self._begin_transaction = begin
        self._give_back = give_back
        self._has_connection = self._has_savepoints = False

    def _commit(self, batch: Sequence[WriteRequest[Any]]) -> None:
        try:
            super()._commit(batch)
        except RetryStatements:
            if len(batch) > 1:
                raise BatchAborted from None
            self._has_savepoints = True
            try:
                super()._commit(batch)
            finally:
                self._has_savepoints = False

    def _begin(self, batch: Sequence[WriteRequest[Any]]) -> None:
        is_durable = any(request.durable for request in batch)
        self.connection = self._begin_transaction("" if is_durable else "; SET LOCAL synchronous_commit TO off")
        self._has_connection = True
        self.connection.watched = self.watched
        self.connection.script(f"SELECT pg_advisory_xact_lock({_ALL})")
        self.connection.is_writing = True
        self.connection.has_savepoints = self._has_savepoints

    def _end(self) -> None:
        self.connection.script("COMMIT")

    def _committed(self) -> None:
        self._release()

    def _abort(self) -> None:
        self._release()

    def _release(self) -> None:
        if self._has_connection:
            self._has_connection = False
            self._give_back(self.connection)

    def _is_open(self) -> bool:
        return self.connection.is_open

    def _changes(self) -> int:
        return self.connection.changes
