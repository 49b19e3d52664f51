"""One PostgreSQL database: its connections, and its transactions.

A process writes over one connection at a time; its operations share commits, as with SQLite. Several processes write
at the same time, each holding the lock of what it writes to until its commit. A transaction is READ COMMITTED, so
each statement sees what was committed before the lock was acquired. A reader has one snapshot and waits for no lock.

Each transaction names the schema itself and leaves nothing set, so a pooler may give each to another connection.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

import psycopg
from psycopg import errors
from psycopg_pool import ConnectionPool, PoolTimeout
from pydantic import ValidationError

from session_middleware.errors import StorageError
from session_middleware.models import Clock, Event, NewId
from session_middleware.settings import SessionSettings, without_secrets
from session_middleware.storage.postgres import schema
from session_middleware.storage.postgres.connection import PostgresConnection
from session_middleware.storage.postgres.writer import PostgresWriter
from session_middleware.storage.sql.connection import DamagedRow, Undo
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


class PostgresDatabase:
    is_writable = True

    def __init__(self, url: str, *, synchronous: str = "full") -> None:
        self._synchronous = synchronous
        self.path = without_secrets(url)
        self._url = url
        self._closed = False
        self._watched: frozenset[str] = frozenset()
        self._on_events: Callable[[], object] = lambda: None
        self._inherited: list[object] = []  # of the parent process; referenced, so never closed here
        with self.mapped():
            self._migrate()
        self._open()

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
        self._process = os.getpid()
        self._pool = ConnectionPool(
            self._url,
            connection_class=_Raw,
            kwargs={"autocommit": True, "connect_timeout": _CONNECT_SECONDS},
            min_size=0,
            max_size=_CONNECTIONS,
            timeout=_WAIT_SECONDS,
            open=True,
        )
        self._writer = PostgresWriter(self.begin, self.give_back, self.mapped, synchronous=self._synchronous)
        self._writer.watched, self._writer.on_events = self._watched, self._on_events

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

    def read(self, operation: Callable[[PostgresConnection], T]) -> T:
        if self._writer.is_mine:
            self._writer.finish_writes()
            return operation(self._writer.connection)
        self._check_open()
        with self.mapped():
            connection = self.begin("ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                return operation(connection)
            finally:
                self.give_back(connection)

    def version(self) -> int:
        sql = "SELECT pg_catalog.pg_current_snapshot()::text"
        return hash(self.read(lambda connection: connection.execute(sql).fetchone()))

    def write(
        self,
        operation: Callable[[PostgresConnection], T],
        *,
        of: str | None = None,
        durable: bool = True,
        patient: bool = False,
        joins: bool = False,
        undo: Undo | None = None,
    ) -> T:
        self._check_open()
        return self._writer.write(operation, of=of, durable=durable, patient=patient, joins=joins, undo=undo)

    def together(self, calls: Sequence[Callable[[], Any]], *, durable: bool = True) -> list[Callable[[], Any]]:
        self._check_open()
        return self._writer.together(calls, durable=durable)

    # Events

    def watch(self, kinds: frozenset[str], on_events: Callable[[], object]) -> None:
        self._watched = self._writer.watched = kinds
        self._on_events = self._writer.on_events = on_events

    def take_event(self) -> Event | None:
        with suppress(IndexError):
            return self._writer.events.popleft()
        return None

    # Erasing

    def erase(self) -> int:
        return 0  # deleted rows stay on the server's disk until its next vacuum

    def is_erased(self) -> bool:
        return False

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(self.path, "it was closed", advice="open a new Sessions(...)")
        if os.getpid() != self._process:  # connections must not be used across a fork
            self._inherited += [self._pool, self._writer]
            self._open()

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Map the driver's errors in the block to `StorageError`."""
        try:
            yield
        except psycopg.Error as error:
            raise storage_error(self.path, error) from error
        except (DamagedRow, UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
            advice = "delete that session, or restore a backup"
            raise StorageError(self.path, f"it is damaged ({error})", advice=advice) from error
        except UnicodeEncodeError as error:
            problem = f"a text that is not valid unicode cannot be stored ({error})"
            raise StorageError(self.path, problem, advice="replace the lone surrogates in it") from error


def storage_error(name: str, error: psycopg.Error) -> StorageError:
    """An error of PostgreSQL as `StorageError`, without a password."""
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
