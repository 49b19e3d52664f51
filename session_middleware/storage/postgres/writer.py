"""The transactions of a process that write to PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from session_middleware.storage.postgres.connection import (
    PostgresConnection,
    RetryExclusively,
    RetryStatements,
    escaped,
)
from session_middleware.storage.sql.writer import BatchAborted, Writer, WriteRequest

_ALL = 7_236_000  # an advisory lock: exclusive, or shared by transactions that lock single families
_LOCK_ALL = f"SELECT pg_advisory_xact_lock({_ALL})"
_LOCK_SOME = f"SELECT pg_advisory_xact_lock_shared({_ALL})"


def _lock_family(session_id: str, *, may_wait: bool) -> str:
    """A statement for `script`, which takes no parameters: the id is hexadecimal, so that it cannot inject SQL."""
    return f"SELECT lock_family(convert_from(decode('{escaped(session_id).hex()}', 'hex'), 'UTF8'), {may_wait})"


class PostgresWriter(Writer):
    connection: PostgresConnection
    errors = (psycopg.Error,)

    def __init__(
        self,
        begin: Callable[[str, str], PostgresConnection],
        give_back: Callable[[PostgresConnection], None],
        mapped: Callable[[Exception], Exception],
        *,
        synchronous: str,
    ) -> None:
        super().__init__(mapped)
        self._may_be_durable = synchronous == "full"
        self._begin_transaction = begin
        self._give_back = give_back
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
        of = batch[0].of if len(batch) == 1 else ""
        locks = [_LOCK_ALL] if self._is_exclusive else [_LOCK_SOME, *([_lock_family(of, may_wait=True)] if of else [])]
        self.connection = self._begin_transaction(
            "" if is_durable else "; SET LOCAL synchronous_commit TO off", "; ".join(locks)
        )
        self._has_connection = True
        self._locked = {of} if of else set()
        self.connection.is_writing = True
        self.connection.has_savepoints = self._has_savepoints

    def _lock(self, of: str | None) -> None:
        """Wait for the first lock only: waiting for further ones could cause a deadlock with another process."""
        if self._is_exclusive or of == "" or of in self._locked:
            return
        if of is None:
            raise RetryExclusively
        if self.connection.script(_lock_family(of, may_wait=not self._locked)).fetchone()[0] != "t":
            raise RetryExclusively
        self._locked.add(of)

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
