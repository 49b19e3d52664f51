"""The transactions of a process that write to PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg

from session_middleware.storage.postgres.connection import PostgresConnection, RetryLocked, RetryStatements
from session_middleware.storage.sql.connection import Lock, Locks, Shared
from session_middleware.storage.sql.writer import BatchAborted, Writer, WriteRequest

if TYPE_CHECKING:
    from session_middleware.storage.postgres.database import PostgresDatabase

_ALL = 7_236_000  # an advisory lock: held alone by a transaction that has all locks, and shared by the others
_LOCK_ALL = f"SELECT pg_advisory_xact_lock({_ALL})"
_LOCK_SOME = f"SELECT pg_advisory_xact_lock_shared({_ALL})"


class PostgresWriter(Writer):
    errors = (psycopg.Error,)
    patience_seconds = 0.01  # longer, because a write that comes too late waits for another commit

    connection: PostgresConnection
    _database: PostgresDatabase

    def __init__(self, database: PostgresDatabase) -> None:
        super().__init__(database)
        self._has_connection = self._has_savepoints = False
        self._needed: set[Lock] | None = set()  # locks that a repeated operation needs; None: all

    def _commit(self, batch: Sequence[WriteRequest[Any]]) -> None:
        self._has_savepoints, self._needed = False, None if any(request.of is None for request in batch) else set()
        while True:
            try:
                return super()._commit(batch)
            except (RetryLocked, RetryStatements) as retry:
                if len(batch) > 1:
                    raise BatchAborted from None
                if isinstance(retry, RetryStatements):
                    self._has_savepoints = True
                elif self._needed is not None:
                    self._needed = None if retry.locks is None else self._needed.union(retry.locks)

    def _begin(self, batch: Sequence[WriteRequest[Any]]) -> None:
        is_durable = any(request.durable for request in batch)
        self.connection = connection = self._database.begin_writing(is_durable=is_durable)
        self._has_connection = True
        connection.is_writing = True
        connection.has_savepoints = self._has_savepoints
        connection.locks.clear()
        connection.has_all_locks = self._needed is None
        connection.execute(_LOCK_ALL if connection.has_all_locks else _LOCK_SOME)
        if self._needed:
            connection.acquire(self._needed)

    def _lock(self, of: Locks) -> None:
        connection = self.connection
        if connection.has_all_locks or not of:
            if of is None and not connection.has_all_locks:
                raise RetryLocked(None)
            return
        locks = {of} if isinstance(of, (str, Shared)) else {*of}
        if missing := locks - connection.locks:
            connection.acquire(missing)

    def _end(self) -> None:
        self.connection.commit()

    def _committed(self) -> None:
        has_all, locks = self.connection.has_all_locks, {*self.connection.locks}
        self._release()
        if has_all or locks:
            self._database.notices.changed(
                None if has_all else [lock for lock in locks if not isinstance(lock, Shared)]
            )

    def _abort(self) -> None:
        self._release()

    def _release(self) -> None:
        if self._has_connection:
            self._has_connection = False
            self._database.give_back(self.connection)

    def _is_open(self) -> bool:
        return self.connection.is_open
