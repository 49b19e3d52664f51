"""One PostgreSQL database: its connections, and its transactions.

A process writes over one connection at a time; its operations share commits, as with SQLite. Several processes write
at the same time, each holding the lock of what it writes to until its commit. A transaction is READ COMMITTED, so
each statement sees what was committed before the lock was acquired. A reader has one snapshot and waits for no lock.

Each transaction names the schema itself and leaves nothing set, so a pooler may give each to another connection.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import psycopg
from psycopg import errors
from psycopg_pool import ConnectionPool, PoolTimeout

from session_middleware.errors import StorageError
from session_middleware.models import Clock, NewId
from session_middleware.settings import SessionSettings, without_secrets
from session_middleware.storage.postgres import schema
from session_middleware.storage.postgres.connection import PostgresConnection
from session_middleware.storage.postgres.writer import PostgresWriter
from session_middleware.storage.sql.database import DATA_ERRORS, Database, data_error
from session_middleware.storage.sql.engine import SqlStorage

T = TypeVar("T")

_CONNECTIONS = 10  # at most, of a process
_WAIT_SECONDS = 30  # for a free connection
_CONNECT_SECONDS = 10
_SETTINGS = "; ".join(
    f"SET LOCAL {setting}"
    for setting in (
        f"search_path TO {schema.NAME}",
        # The statements are written for nested loops in the order of their tables, as SQLite executes them.
        *("join_collapse_limit TO 1", "enable_hashjoin TO off", "enable_mergejoin TO off"),
    )
)


class PostgresStorage(SqlStorage):
    """The storage in one PostgreSQL database."""

    def __init__(self, url: str, settings: SessionSettings, *, clock: Clock, new_id: NewId) -> None:
        super().__init__(PostgresDatabase(url, synchronous=settings.synchronous), settings, clock=clock, new_id=new_id)


class _Raw(psycopg.Connection[Any]):
    ours: PostgresConnection | None = None


class PostgresDatabase(Database):
    mapped_errors = (psycopg.Error, *DATA_ERRORS)

    def __init__(self, url: str, *, synchronous: str = "full") -> None:
        super().__init__(without_secrets(url), synchronous=synchronous)
        self._url = url
        with self.mapped():
            self._migrate()
        self._open_process()

    def _migrate(self) -> None:
        try:
            raw = _Raw.connect(self._url, autocommit=True, connect_timeout=_CONNECT_SECONDS)
        except psycopg.ProgrammingError:  # its text repeats the URL
            problem = "the URL is not valid"
            raise StorageError(self.path, problem, advice="write postgresql://user@host:port/database") from None
        with raw:
            try:
                schema.migrate(PostgresConnection(raw))
            except errors.InsufficientPrivilege as error:
                problem, advice = f"this role may not create its tables ({error})", "open it once as their owner"
                raise StorageError(self.path, problem, advice=advice) from error

    def _open(self) -> None:
        self._pool = ConnectionPool(
            self._url,
            connection_class=_Raw,
            kwargs={"autocommit": True, "connect_timeout": _CONNECT_SECONDS},
            min_size=0,
            max_size=_CONNECTIONS,
            timeout=_WAIT_SECONDS,
            open=True,
        )
        self._writer = PostgresWriter(self.begin, self.give_back, self.mapped_error, synchronous=self._synchronous)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._process == os.getpid():
                self._pool.close()

    # Transactions

    def begin(self, mode: str, then: str = "") -> PostgresConnection:
        """Begin a transaction and execute `then`, in one round trip. An idle connection that was lost is replaced."""
        for left in reversed(range(_CONNECTIONS + 1)):
            raw = self._pool.getconn()
            if raw.ours is None:
                raw.ours = PostgresConnection(raw)
            try:
                raw.ours.script(f"BEGIN {mode}; {_SETTINGS}; {then}")
            except psycopg.OperationalError:
                self._pool.putconn(raw)
                if not left:
                    raise
            except BaseException:
                self.give_back(raw.ours)
                raise
            else:
                return raw.ours
        raise AssertionError

    def give_back(self, connection: PostgresConnection) -> None:
        """End the transaction, unless it has ended, and let other threads use the connection."""
        connection.written.clear()
        connection.is_writing = connection.has_savepoints = False
        with suppress(psycopg.Error):
            if connection.is_in_transaction:
                connection.script("ROLLBACK")
        self._pool.putconn(cast("_Raw", connection.raw))

    def _read(self, operation: Callable[[PostgresConnection], T]) -> T:
        connection = self.begin("ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            return operation(connection)
        finally:
            self.give_back(connection)

    def version(self) -> int:
        sql = "SELECT pg_catalog.pg_current_snapshot()::text"
        return hash(self.read(lambda connection: connection.execute(sql).fetchone()))

    def erase(self) -> int:
        return 0  # deleted rows stay on the server's disk until its next vacuum

    def is_erased(self) -> bool:
        return False

    def storage_error(self, error: Exception) -> StorageError:
        return storage_error(self.path, error)


def storage_error(name: str, error: Exception) -> StorageError:
    """The `StorageError` for an error of PostgreSQL, without a password, or of damaged data."""
    if not isinstance(error, psycopg.Error):
        return data_error(name, error)
    text = " ".join(re.sub(r"password=\S+", "password=…", str(error)).split())
    for kind, problem, advice in (
        (PoolTimeout, "no connection was free", "raise the server's limit, or use fewer threads"),
        (errors.InsufficientPrivilege, f"this role may not do that ({text})", "grant it the rights on the schema"),
        (errors.ReadOnlySqlTransaction, "it is read-only", "name the primary server to write"),
        (errors.DiskFull, "the server's disk is full", "free some space and try again; what was acknowledged is safe"),
        (errors.QueryCanceled, f"the server canceled a statement ({text})", "raise its statement_timeout"),
        (errors.LockNotAvailable, f"a lock was not free ({text})", "try again"),
        (psycopg.OperationalError, f"the connection failed ({text})", "check the URL and that the server runs"),
    ):
        if isinstance(error, kind):
            return StorageError(name, problem, advice=advice)
    return StorageError(name, text, advice="see the exception that caused this one")
