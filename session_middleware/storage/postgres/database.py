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
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from session_middleware.errors import StorageError
from session_middleware.models import Clock, Problem
from session_middleware.settings import SessionSettings, without_secrets
from session_middleware.storage import jsonl
from session_middleware.storage.atomic_files import replacing
from session_middleware.storage.postgres import schema
from session_middleware.storage.postgres.connection import PostgresConnection, RetryStatements
from session_middleware.storage.postgres.integrity import find_deep
from session_middleware.storage.postgres.notices import CHANNEL, Notices
from session_middleware.storage.postgres.writer import PostgresWriter
from session_middleware.storage.sql.checks import find
from session_middleware.storage.sql.database import DATA_ERRORS, Database, data_error
from session_middleware.storage.sql.engine import SqlStorage
from session_middleware.storage.sql.sessions import imports
from session_middleware.storage.types import Progress, SessionFilter, Watch

T = TypeVar("T")

_CONNECTIONS = 10  # at most, of a process
_WAIT_SECONDS = 30  # for a free connection
# The times detect a connection to a host that has vanished. Parameters of the URL take precedence.
_PARAMETERS = {
    "client_encoding": "UTF8",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
_SETTINGS = {
    "search_path": schema.NAME,
    # The statements are written for nested loops in the order of their tables, as SQLite executes them.
    "join_collapse_limit": "1",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # A plan made while a table was small, or never analysed, would read all of it long after it has grown.
    "enable_seqscan": "off",
    "jit": "off",  # the server would compile the plans that read all of a table, because it takes them for expensive
}


def _set(**settings: str) -> bytes:
    calls = [f"set_config('{name}', '{value}', true)" for name, value in settings.items()]
    return f"SELECT {', '.join(calls)}".encode()


_SET, _SET_UNDURABLE = _set(**_SETTINGS), _set(**_SETTINGS, synchronous_commit="off")
_HAVE_CREATED = "have a role that may run the SQL that this prints: session-middleware migrate --sql"
_BEGIN, _BEGIN_SNAPSHOT = b"BEGIN", b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PostgresStorage(SqlStorage):
    """The storage in one PostgreSQL database."""

    def __init__(self, url: str, settings: SessionSettings, *, clock: Clock) -> None:
        super().__init__(PostgresDatabase(url, synchronous=settings.synchronous), settings, clock=clock)

    def _find(self, *, deep: bool) -> list[Problem]:
        return self._database.read(lambda connection: (find_deep if deep else find)(connection, self._rules))

    def back_up(self, path: Path, *, progress: Progress | None = None) -> None:
        with replacing(path) as temporary:
            self.export_sessions(temporary, SessionFilter(), memories=(), progress=progress)
            with jsonl.reading(
                temporary, advice="mend or delete the session; session-middleware check --deep names it"
            ):
                for line in jsonl.Reading(temporary):
                    imports.check(line)


class PostgresDatabase(Database):
    mapped_errors = (psycopg.Error, *DATA_ERRORS)
    locks_sessions = True
    turn_seconds = 0.1  # only the writers of this process wait

    def __init__(self, url: str, *, synchronous: str = "full") -> None:
        super().__init__(without_secrets(url), synchronous=synchronous)
        self._url = url
        with self.mapped():
            migrated = self._migrate()
        self._open_process()
        self._free.get()
        self._free.put(PostgresConnection(migrated))

    def _migrate(self) -> psycopg.Connection[Any]:
        """Create the tables if they do not exist, and return the connection."""
        try:
            raw = self._connect()
        except psycopg.ProgrammingError:  # its text repeats the URL
            problem = "the URL is not valid"
            raise StorageError(self.path, problem, advice="write postgresql://user@host:port/database") from None
        with ExitStack() as on_error:
            on_error.enter_context(raw)
            try:
                schema.migrate(raw)
            except errors.InsufficientPrivilege as error:
                problem, advice = f"this role may not create its tables ({error})", _HAVE_CREATED
                raise StorageError(self.path, problem, advice=advice) from error
            on_error.pop_all()
        return raw

    def _open(self) -> None:
        self._free: LifoQueue[PostgresConnection | None] = LifoQueue()  # ``None``: one that may be opened
        for _ in range(_CONNECTIONS):
            self._free.put(None)
        self.notices = Notices(self._connect, self._notify)
        self._writer = PostgresWriter(self)

    def close(self) -> None:
        if not self._closed:
            if self._process == os.getpid():
                self.notices.close()
            self._closed = True
            if self._process == os.getpid():
                self._close_free()

    def _close_free(self) -> None:
        with suppress(Empty):
            while True:
                if (connection := self._free.get_nowait()) is not None:
                    connection.raw.close()

    def _connect(self) -> psycopg.Connection[Any]:
        parameters: dict[str, Any] = _PARAMETERS | conninfo_to_dict(self._url)
        return psycopg.connect(autocommit=True, **parameters)

    # Transactions

    def _begin(self, mode: bytes, settings: bytes) -> PostgresConnection:
        """Begin a transaction on the connection that was used last. One that was lost since is replaced."""
        while True:
            try:
                connection = self._free.get(timeout=_WAIT_SECONDS)
            except Empty:
                advice = "use fewer threads, or keep transactions short"
                raise StorageError(self.path, "no connection was free", advice=advice) from None
            is_new = connection is None
            try:
                if connection is None:
                    connection = PostgresConnection(self._connect())
                connection.begin(mode, settings)
            except BaseException as error:
                self._free.put(None)
                if is_new or not isinstance(error, psycopg.OperationalError):
                    raise
            else:
                return connection

    def begin_writing(self, *, is_durable: bool) -> PostgresConnection:
        return self._begin(_BEGIN, _SET if is_durable and self.synchronous == "full" else _SET_UNDURABLE)

    def give_back(self, connection: PostgresConnection) -> None:
        """End the transaction, unless it has ended, and let other threads use the connection."""
        try:
            connection.end()
        finally:
            is_lost = connection.raw.closed or connection.raw.broken
            self._free.put(None if is_lost else connection)
            if self._closed:
                self._close_free()

    def _read(self, operation: Callable[[PostgresConnection], T]) -> T:
        return self._run(operation, _BEGIN_SNAPSHOT, _SET)

    def _run(self, operation: Callable[[PostgresConnection], T], mode: bytes, settings: bytes) -> T:
        while True:
            connection = self._begin(mode, settings)
            try:
                return operation(connection)
            except RetryStatements:  # now without prepared statements
                continue
            finally:
                self.give_back(connection)

    def watch_session(self, session_id: str, on_change: Callable[[], object]) -> Watch:
        self._check_open()
        return self.notices.watch(session_id, on_change)

    def _notify(self, notice: str) -> None:
        def operation(connection: PostgresConnection) -> None:
            connection.execute("SELECT pg_notify(?, ?)", (CHANNEL, notice))
            connection.commit()

        self._run(operation, _BEGIN, _SET_UNDURABLE)

    def renumber(self) -> None:
        def operation(connection: PostgresConnection) -> None:
            for table, column in schema.numbered():
                next_number = f"COALESCE(MAX({column}), 0) + 1"
                sequence = f"pg_get_serial_sequence('{table}', '{column}')"
                connection.execute(f"SELECT setval({sequence}, {next_number}, false) FROM {table}")

        self.write(operation)

    def storage_error(self, error: Exception) -> StorageError:
        return storage_error(self.path, error)


def storage_error(name: str, error: Exception) -> StorageError:
    """The `StorageError` for an error of PostgreSQL, without a password, or of damaged data."""
    if not isinstance(error, psycopg.Error):
        return data_error(name, error)
    text = " ".join(re.sub(r"password=\S+", "password=…", str(error)).split())
    for kind, problem, advice in (
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
