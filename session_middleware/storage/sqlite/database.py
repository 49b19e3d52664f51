"""One SQLite file: how it is opened, read and written.

Several threads and processes share the file. All writers of a process share one connection and its commits
(`writer.py`). Readers have their own connections and never wait for a writer. The write-ahead log is written
back by `wal.py`. No operation leaves a transaction open, whatever it raises.

A file that this process may not write to is opened for reading: each read opens it again, because a connection
to an immutable file does not notice changes.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from session_middleware.errors import StorageError
from session_middleware.storage.executor import THREADS
from session_middleware.storage.sql.database import DATA_ERRORS, Database
from session_middleware.storage.sql.writer import Writer
from session_middleware.storage.sqlite.connection import (
    BUSY_SECONDS,
    SqliteConnection,
    connect,
    read_unlocked,
    storage_error,
)
from session_middleware.storage.sqlite.files import OpenFiles, beside, check_path, create_private, may_write
from session_middleware.storage.sqlite.wal import Wal
from session_middleware.storage.sqlite.writer import SqliteWriter

T = TypeVar("T")

_MAPPED = "PRAGMA mmap_size=268435456"
_SHOWN_TABLES = 6  # of another program, in an error


class SqliteDatabase(Database):
    mapped_errors = (sqlite3.Error, *DATA_ERRORS)
    _writer: Any  # `SqliteWriter`, if the file is writable

    def __init__(self, path: str, *, synchronous: str = "full") -> None:
        self.in_memory = path == ":memory:"
        super().__init__(path if self.in_memory else str(Path(path).absolute()), synchronous=synchronous)
        self.files, self._needs_migration = None, True
        with self.mapped():
            if not self.in_memory:
                self._needs_migration = check_file(path)
                create_private(self.path)
                self.files = OpenFiles(self.path)
        self.is_writable = self.in_memory or may_write(Path(self.path))
        try:
            self._open_process()
        except StorageError as error:
            is_denied = isinstance(error.__cause__, sqlite3.OperationalError) and not self.in_memory
            if not is_denied or may_write(Path(self.path).parent):
                raise
            self.is_writable = False
            self._open_process()

    def storage_error(self, error: Exception) -> StorageError:
        return storage_error(self.path, error)

    def refusal(self) -> StorageError:
        file = Path(self.path)
        subject = "it" if not may_write(file) else f"its folder ({file.parent})"
        problem = f"{subject} may not be written to by this process"
        advice = "grant write access to the file and its folder, or write to a copy; reading works without it"
        return StorageError(self.path, problem, advice=advice)

    def _open(self) -> None:
        self._readers: deque[SqliteConnection] = deque()
        self._writer = Writer(self)
        if self.is_writable:
            with self.mapped():
                self._writer = self._open_writer()
        elif self._needs_migration:
            raise self.refusal()

    def _open_writer(self) -> SqliteWriter:
        connection, log = connect(self.path), None
        try:
            connection.execute(_MAPPED)
            connection.execute("PRAGMA secure_delete=ON")  # deleted text is overwritten with zeros
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only has an effect before the first page is written
            if self.files is not None:
                _switch_to_wal(connection)
            if self._needs_migration:
                _migrate(connection)
                self._needs_migration = False
            if self.files is not None:
                self.files.opened()
                log = Wal(os.path.realpath(self.path), connection)
        except BaseException:
            connection.close()
            raise
        return SqliteWriter(self, connection, log)

    def _connect_reader(self) -> SqliteConnection:
        connection = connect(self.path)
        try:
            connection.execute(_MAPPED)
            if self.files is not None:
                self.files.check()  # it is the file that is open already
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        if self._process != os.getpid() and not self.in_memory:
            self._closed = True  # the connections are the parent's
            return
        with self._writer.lock:
            if self._closed:
                return
            self._closed = True
            while self._readers:
                self._readers.pop().close()
            if self.is_writable:
                self._writer.close()

    def _read(self, operation: Callable[[SqliteConnection], T]) -> T:
        if self.files is None:
            with self._writer.lock:
                return operation(self._writer.connection)
        if not self.is_writable:
            return read_unlocked(self.path, operation)
        self.files.check()
        try:
            connection = self._readers.pop()
        except IndexError:
            connection = self._connect_reader()
        try:
            connection.execute("BEGIN")
            result = operation(connection)
            connection.execute("ROLLBACK")
        except BaseException:
            connection.close()
            raise
        if self._closed or len(self._readers) >= THREADS:  # opening one takes longer than a read
            connection.close()
        else:
            self._readers.append(connection)
        return result

    # Erasing

    def erase(self) -> int:
        """Release unused pages in small steps, so no writer waits long, and empty the log unless a reader needs it."""
        writer, freed = self._writer, 0
        if writer.is_mine:
            writer.erases_after_commit = True
            return 0
        while self.is_writable:
            with writer.lock, self.mapped():
                released = writer.release_pages()
            freed += released
            if not released:
                break
        return freed

    def compact(self) -> int:
        writer, before = self._writer, self._size()
        if not self.is_writable:
            raise self.refusal()
        with writer.lock, self.mapped():
            writer.rebuild()
        return before - self._size()

    def _size(self) -> int:
        """The bytes of the file and its log."""
        files = (Path(self.path), Path(beside(self.path, "-wal")))
        return 0 if self.in_memory else sum(file.stat().st_size for file in files if file.exists())

    def is_erased(self) -> bool:
        """Whether the write-ahead log is empty. A reader of an older snapshot keeps the log and its content."""
        log = Path(beside(self.path, "-wal"))
        return self.in_memory or not log.exists() or log.stat().st_size == 0


# Opening


def _switch_to_wal(connection: SqliteConnection) -> None:
    """Retry the switch: the busy timeout does not cover it, so simultaneous first openings raise "locked"."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _migrate(connection: SqliteConnection) -> None:
    from sqlite_utils import Database as Migrated

    from session_middleware.storage.sqlite.migrations import migrations

    connection.execute("BEGIN IMMEDIATE")
    try:
        migrations.apply(Migrated(connection, execute_plugins=False, recursive_triggers=False))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


KNOWN_MIGRATIONS = frozenset({"m001_initial"})  # a copy: `migrations` imports sqlite-utils; a test compares them


def _applied(connection: SqliteConnection) -> frozenset[str]:
    if "_sqlite_migrations" not in _tables(connection):
        return frozenset()
    rows = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = 'session_middleware'")
    return frozenset(name for (name,) in rows)


def _tables(connection: SqliteConnection) -> frozenset[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    return frozenset(name.lower() for (name,) in rows)  # as SQLite compares them


def check_file(path: str) -> bool:
    """Whether a file needs a migration. Raises as `check_path`, and `StorageError` for a file of another program."""
    check_path(path)
    file = Path(path)
    if not file.exists() or file.stat().st_size == 0:
        return True
    applied, tables, is_langgraphs = read_unlocked(path, _contents)
    if applied - KNOWN_MIGRATIONS:
        problem = "it was written by a newer session-middleware"
        raise StorageError(path, problem, advice="upgrade the package to open it")
    if applied or not tables:
        return bool(KNOWN_MIGRATIONS - applied)
    names = ", ".join(sorted(tables)[:_SHOWN_TABLES])
    names += f" and {len(tables) - _SHOWN_TABLES} more" if len(tables) > _SHOWN_TABLES else ""
    if is_langgraphs:
        problem = f"it holds the checkpoints of LangGraph's own saver (tables {names})"
        advice = f"copy them into a new file: session-middleware import-checkpoints {path} --db NEW_FILE"
    else:
        problem = f"it holds another program's tables ({names})"
        advice = "choose a separate file for sessions, to which you may add tables; this one was not changed"
    raise StorageError(path, problem, advice=advice)


def _contents(connection: SqliteConnection) -> tuple[frozenset[str], frozenset[str], bool]:
    """The applied migrations, the tables except SQLite's, and whether the tables are those of LangGraph's saver."""
    tables = frozenset(name for name in _tables(connection) if not name.startswith("sqlite_"))
    columns = {row[1] for row in connection.execute("PRAGMA table_info(checkpoints)")}
    return _applied(connection), tables, "writes" in tables and "thread_id" in columns
