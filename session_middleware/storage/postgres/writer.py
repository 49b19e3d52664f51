"""The transactions of a process that write to PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import psycopg

from session_middleware.storage.postgres.connection import PostgresConnection, RetryExclusively, RetryStatements
from session_middleware.storage.sql.writer import BatchAborted, Writer, WriteRequest

_ALL = 7_236_000  # an advisory lock: exclusive, or shared by transactions that lock single families
_LOCK_ALL = f"SELECT pg_advisory_xact_lock({_ALL})"
_LOCK_SOME = f"SELECT pg_advisory_xact_lock_shared({_ALL})"


class PostgresWriter(Writer):
    connection: PostgresConnection
    errors = (psycopg.Error,)
    locks_sessions = True
    patience_seconds = 0.01  # longer, because a write that comes too late waits for another commit

    def __init__(
        self,
        begin: Callable[..., PostgresConnection],
        give_back: Callable[[PostgresConnection], None],
        mapped: Callable[[Exception], Exception],
        changed: Callable[[Collection[str] | None], object],
        *,
        synchronous: str,
    ) -> None:
        super().__init__(mapped)
        self._may_be_durable = synchronous == "full"
        self._begin_transaction = begin
        self._give_back = give_back
        self._changed = changed  # called with the sessions that a commit may have changed
        self._has_connection = self._has_savepoints = self._is_exclusive = False
        self._locked: set[str] = set()  # the sessions whose families are locked

    def _commit(self, batch: Sequence[WriteRequest[Any]]) -> None:
        self._has_savepoints, self._is_exclusive = False, any(request.of is None for request in batch)
        while True:
            try:
                return super()._commit(batch)
            except (RetryExclusively, RetryStatements) as retry:
                if len(batch) > 1:
                    raise BatchAborted from None
                self._has_savepoints |= isinstance(retry, RetryStatements)
                self._is_exclusive |= isinstance(retry, RetryExclusively)

    def _begin(self, batch: Sequence[WriteRequest[Any]]) -> None:
        is_durable = self._may_be_durable and any(request.durable for request in batch)
        self.connection = connection = self._begin_transaction(is_durable=is_durable)
        self._has_connection = True
        connection.is_writing = True
        connection.has_savepoints = self._has_savepoints
        connection.execute(_LOCK_ALL if self._is_exclusive else _LOCK_SOME)
        self._locked.clear()

    def _lock(self, of: str | None) -> None:
        """Wait for the first lock only: waiting for further ones could end in a deadlock with another process."""
        if self._is_exclusive or of == "" or of in self._locked:
            return
        if of is None:
            raise RetryExclusively
        self.connection.execute("SELECT lock_family(?, ?)", (of, not self._locked))
        self._locked.add(of)

    def _end(self) -> None:
        self.connection.commit()

    def _committed(self) -> None:
        self._release()
        if self._is_exclusive or self._locked:
            self._changed(None if self._is_exclusive else self._locked)

    def _abort(self) -> None:
        self._release()

    def _release(self) -> None:
        if self._has_connection:
            self._has_connection = False
            self._give_back(self.connection)

    def _is_open(self) -> bool:
        return self.connection.is_open
