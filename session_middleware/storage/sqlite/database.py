"""One SQLite file: how it is opened, read and written.

All that makes several threads and processes get along on one file is here. Writers queue for one
connection; operations that wait while a commit is being synced are carried out together by the next
to come, in one transaction with a savepoint each, and share its fsync. Readers have connections of
their own and never wait for a writer. No operation leaves a transaction open, whatever it raises.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from session_middleware.errors import StorageError

T = TypeVar("T")

BUSY_SECONDS = 30.0  # how long to wait for another process's write lock
_LOG_BYTES = 16 * 1024 * 1024  # what is left of the write-ahead log when a reader that made it grow has ended
_SIZES = ("page_size", "freelist_count")
_IDLE_READERS = 8  # connections kept open for the next reader


class Refusal(Exception):
    """Returned (not raised) by an operation that commits what it did, then has its caller refused."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Ticket(Generic[T]):
    """An operation waiting to be carried out, and what came of it."""

    __slots__ = ("done", "durable", "error", "operation", "result")

    def __init__(self, operation: Callable[[sqlite3.Connection], T], durable: bool) -> None:
        self.operation = operation
        self.durable = durable
        self.done = False
        self.result: T | None = None
        self.error: BaseException | None = None

    def outcome(self) -> Any:
        assert self.done, "an operation that was not carried out was never acknowledged"
        if self.error is not None:
            raise self.error
        if isinstance(self.result, Refusal):
            raise self.result.error
        return self.result


class SqliteDatabase:
    def __init__(self, path: str, *, synchronous: str = "full") -> None:
        self.path = path
        self.in_memory = path == ":memory:"
        self._durable_mode = synchronous.upper()
        self._mode = ""  # the synchronous pragma now in force on the writer
        self._lock = threading.Lock()  # held by the thread that is carrying out a batch
        self._waiting: deque[_Ticket[Any]] = deque()
        self._readers: deque[sqlite3.Connection] = deque()
        self._closed = False
        self._process = os.getpid()
        self._inherited: list[sqlite3.Connection] = []
        with self.mapped():
            if not self.in_memory:
                _check_file(path)
            self._writer = self._open()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            while self._readers:
                self._readers.pop().close()
            self._writer.close()

    # Reading

    def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Carry out `operation` on one snapshot of the database."""
        if self.in_memory:
            with self._lock, self.mapped():
                self._check_open()
                return operation(self._writer)
        self._check_open()
        self._mind_forks()
        with self.mapped():
            connection = self._reader()
            try:
                connection.execute("BEGIN")
                result = operation(connection)
                connection.execute("ROLLBACK")
            except BaseException:
                connection.close()
                raise
            if self._closed or len(self._readers) >= _IDLE_READERS:
                connection.close()
            else:
                self._readers.append(connection)
            return result

    def _reader(self) -> sqlite3.Connection:
        try:
            return self._readers.pop()
        except IndexError:
            return self._connect()

    # Writing

    def write(self, operation: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Carry out `operation` in a transaction, and return when it is committed.

        `durable`: the commit is synced as the ``synchronous`` setting says; else it survives
        ``kill -9`` but maybe not a power cut, until the next durable commit.
        """
        self._mind_forks()
        ticket: _Ticket[T] = _Ticket(operation, durable)
        self._waiting.append(ticket)
        with self._lock:
            if not ticket.done:
                self._carry_out(ticket)
        outcome: T = ticket.outcome()
        return outcome

    def _carry_out(self, own: _Ticket[Any]) -> None:
        batch: list[_Ticket[Any]] = []
        try:
            while self._waiting:
                batch.append(self._waiting[0])
                self._waiting.popleft()
            with self.mapped():
                self._check_open()
                self._set_synchronous(any(ticket.durable for ticket in batch))
                self._writer.execute("BEGIN IMMEDIATE")
                for ticket in batch:
                    self._carry_out_one(ticket, alone=len(batch) == 1)
                self._writer.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  # it is raised again, to each of those who wait
            self._roll_back()
            for ticket in batch:
                ticket.result, ticket.error, ticket.done = None, ticket.error or error, True
        except BaseException:  # this thread is being stopped; the others' operations go on with the next
            self._roll_back()
            for ticket in reversed(batch):
                if ticket is not own:
                    ticket.result = ticket.error = None
                    self._waiting.appendleft(ticket)
            raise
        else:
            for ticket in batch:
                ticket.done = True

    def _carry_out_one(self, ticket: _Ticket[Any], *, alone: bool) -> None:
        if alone:
            ticket.result = ticket.operation(self._writer)
            return
        self._writer.execute("SAVEPOINT operation")
        try:
            with self.mapped():
                ticket.result = ticket.operation(self._writer)
        except Exception as error:  # it is raised again, to whoever's operation it is
            if not self._writer.in_transaction:  # a full disk ends the whole transaction
                raise
            ticket.error = error
            self._writer.execute("ROLLBACK TO operation")
        self._writer.execute("RELEASE operation")

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def _set_synchronous(self, durable: bool) -> None:
        mode = self._durable_mode if durable else "NORMAL"
        if mode != self._mode:
            self._writer.execute(f"PRAGMA synchronous={mode}")
            self._mode = mode

    def erase(self) -> int:
        """Leave nothing of what was deleted in the files; how many bytes the file system got back.

        Unused pages are cut off, and the write-ahead log is emptied, unless a reader still needs it.
        """
        with self._lock, self.mapped():
            page, unused = (self._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in _SIZES)
            self._writer.executescript("PRAGMA incremental_vacuum")  # `execute` would stop at its first page
            left = self._writer.execute("PRAGMA freelist_count").fetchone()[0]
            if not self.in_memory:
                self._writer.execute("PRAGMA busy_timeout=0")  # a reader must not hold up all writers
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                self._writer.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        return int((unused - left) * page)

    # Opening

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        try:
            connection.execute("PRAGMA secure_delete=ON")  # deleted text is overwritten with zeros
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file: before its first page is written
            if not self.in_memory:
                _switch_to_wal(connection)
            if _pending(connection):
                _migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        connection.execute("PRAGMA mmap_size=268435456")
        connection.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}")
        return connection

    def _mind_forks(self) -> None:
        """A connection must not be used across a fork: the child opens its own, and leaves its parent's alone."""
        if os.getpid() != self._process and not self.in_memory:
            self._process = os.getpid()
            self._inherited += [self._writer, *self._readers]
            self._lock, self._mode = threading.Lock(), ""
            self._waiting.clear()
            self._readers.clear()
            with self.mapped():
                self._writer = self._open()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(self.path, "it was closed", advice="open a new Sessions(...)")

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Driver errors in the block become `StorageError`."""
        try:
            yield
        except sqlite3.Error as error:
            raise _explain(self.path, error) from error
        except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:  # a row is not what was written
            raise StorageError(self.path, f"it is damaged ({error})", advice="restore a backup") from error
        except UnicodeEncodeError as error:
            problem = f"a text that is not valid unicode cannot be stored ({error})"
            raise StorageError(self.path, problem, advice="replace the lone surrogates in it") from error


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """The busy timeout does not cover this switch: simultaneous first openings would fail with "locked"."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _migrate(connection: sqlite3.Connection) -> None:
    from sqlite_utils import Database

    from session_middleware.storage.sqlite import schema

    connection.execute("BEGIN IMMEDIATE")
    try:
        schema.apply(Database(connection, execute_plugins=False, recursive_triggers=False))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


OWN_TABLES = frozenset(
    {"sessions", "runs", "messages", "tool_calls", "model_calls", "events", "memories"}
    | {"checkpoints", "writes", "lists", "list_items", "blobs"}
)
KNOWN_MIGRATIONS = frozenset({"m001_initial"})  # `schema` costs an import of sqlite-utils; a test holds them equal


def _pending(connection: sqlite3.Connection) -> bool:
    return bool(KNOWN_MIGRATIONS - _applied(connection))


def _applied(connection: sqlite3.Connection) -> frozenset[str]:
    if "_sqlite_migrations" not in _tables(connection):
        return frozenset()
    rows = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = 'session_middleware'")
    return frozenset(name for (name,) in rows)


def _tables(connection: sqlite3.Connection) -> frozenset[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    return frozenset(name.lower() for (name,) in rows)  # as SQLite compares them


def _check_file(path: str) -> None:
    """Refuse what is not ours to write to, before anything on disk is changed."""
    file = Path(path)
    if file.is_dir():
        raise StorageError(path, "it is a folder", advice="name a file in it, such as sessions.db")
    if not file.parent.is_dir():
        raise StorageError(path, "its folder does not exist", advice=f"create {str(file.parent)!r} first")
    if not file.exists() or file.stat().st_size == 0:
        return
    log = Path(f"{path}-wal")
    how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"  # which makes no -wal and -shm files
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?{how}", uri=True, timeout=BUSY_SECONDS)
    try:
        applied, tables = _applied(connection), _tables(connection)
    finally:
        connection.close()
    if applied - KNOWN_MIGRATIONS:
        raise StorageError(
            path, "it was written by a newer session-middleware", advice="upgrade the package to open it"
        )
    taken = tables & OWN_TABLES
    if not applied and taken:
        raise StorageError(
            path,
            f"it holds another program's tables ({', '.join(sorted(taken))})",
            advice="choose a file of its own for sessions",
        )


def _explain(path: str, error: sqlite3.Error) -> StorageError:
    text = str(error)
    for sign, problem, advice in (
        ("not a database", "it is not an SQLite database", "choose another file; this one was not touched"),
        ("malformed", "it is damaged", "restore a backup; do not write to it"),
        ("readonly", "it may not be written to", "give this process write access to the file and its folder"),
        ("unable to open", "it cannot be opened", "check that the folder exists and may be written to"),
        ("disk is full", "the disk is full", "free some space and try again; what was acknowledged is safe"),
        ("locked", f"another process has held its write lock for {BUSY_SECONDS:.0f} s", "try again, or end it"),
    ):
        if sign in text:
            return StorageError(path, f"{problem} ({text})", advice=advice)
    return StorageError(path, text, advice="see the exception this one came from")
