"""One SQLite file: how it is opened, read and written.

Several threads and processes share the file. All writers of a process share one connection and its commits
(`writer.py`). Readers have their own connections and never wait for a writer. The write-ahead log is written
back by `wal.py`. No operation leaves a transaction open, whatever it raises.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from session_middleware.errors import StorageError
from session_middleware.models import Event
from session_middleware.storage.sql.connection import DamagedRow, Undo
from session_middleware.storage.sqlite.connection import SqliteConnection
from session_middleware.storage.sqlite.files import OpenFiles, beside, create_private
from session_middleware.storage.sqlite.readonly_open import read_unlocked
from session_middleware.storage.sqlite.wal import BUSY_SECONDS, Wal
from session_middleware.storage.sqlite.writer import SqliteWriter

T = TypeVar("T")

_VACUUM_PAGES = 1000  # released at a time, which takes a few milliseconds
_SHOWN_TABLES = 6  # of another program, in an error
_IDLE_READERS = 8  # connections kept open for the next reader


class SqliteDatabase:
    is_writable = True
    _watched: frozenset[str] = frozenset()

    def __init__(self, path: str, *, synchronous: str = "full") -> None:
        self.in_memory = path == ":memory:"
        self.path = path if self.in_memory else absolute(path)
        self._synchronous = synchronous
        self._readers: deque[SqliteConnection] = deque()
        self._version_connection: SqliteConnection | None = None
        self._version_lock = threading.Lock()
        self._closed = False
        self._erases_after_commit = False
        self._on_events: Callable[[], object] = lambda: None
        self._process = os.getpid()
        self._inherited: list[SqliteConnection] = []  # of the parent process; referenced, so never closed here
        with self.mapped():
            if not self.in_memory:
                check_file(path)
                create_private(self.path)
            self._files = None if self.in_memory else OpenFiles(self.path)
            self._writer = self._open_writer()

    def close(self) -> None:
        if self._process != os.getpid() and not self.in_memory:
            self._closed = True  # the connections are the parent's
            return
        with self._writer.lock:
            if self._closed:
                return
            self._closed = True
            with self._version_lock:
                if self._version_connection is not None:
                    self._version_connection.close()
            while self._readers:
                self._readers.pop().close()
            self._writer.connection.close()

    # Reading

    def read(self, operation: Callable[[SqliteConnection], T]) -> T:
        """Run `operation` on one snapshot of the database; inside a write, on the state of its transaction."""
        if self._writer.is_mine:
            self._writer.finish_writes()
            return operation(self._writer.connection)
        self._check_open()
        if self.in_memory:
            with self._writer.lock, self.mapped():
                return operation(self._writer.connection)
        self._reopen_after_fork()
        with self.mapped():
            self._check_files(log=False)
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

    def _reader(self) -> SqliteConnection:
        try:
            return self._readers.pop()
        except IndexError:
            return self._connect_checked()

    def version(self) -> int:
        """A number that changes with each commit of any process, for the cost of one PRAGMA."""
        self._check_open()
        if self.in_memory:
            return self._writer.connection.total_changes
        self._reopen_after_fork()
        with self.mapped(), self._version_lock:
            self._check_files()
            if self._version_connection is None:  # its own: `data_version` ignores commits of the same connection
                self._version_connection = self._connect_checked()
            return int(self._version_connection.execute("PRAGMA data_version").fetchone()[0])

    # Writing

    def write(
        self,
        operation: Callable[[SqliteConnection], T],
        *,
        of: str | None = None,
        durable: bool = True,
        patient: bool = False,
        joins: bool = False,
        undo: Undo | None = None,
    ) -> T:
        """Run `operation` in a transaction, and return when it is committed.

        Args:
            operation: Is run a second time if the first transaction is rolled back.
            durable: Sync the commit as the ``synchronous`` setting says. Otherwise the commit survives
                ``kill -9``, and survives a power failure only after the next durable commit.
            patient: No caller waits for this write, so it waits briefly for another write's commit.
            undo: Restores values in memory when the transaction is rolled back.
        """
        self._check_open()
        self._reopen_after_fork()
        return self._writer.write(operation, of=of, durable=durable, patient=patient, joins=joins, undo=undo)

    def together(self, calls: Sequence[Callable[[], Any]], *, durable: bool = True) -> list[Callable[[], Any]]:
        """Run whole calls in order, in one transaction, and acknowledge them after its commit.

        A call that fails does not affect the others.
        """
        self._reopen_after_fork()
        return self._writer.together(calls, durable=durable)

    def watch(self, kinds: frozenset[str], on_events: Callable[[], object]) -> None:
        """Queue the events of these kinds for `take_event`, and call `on_events` after each commit with some."""
        self._watched = self._writer.connection.watched = kinds
        self._writer.on_events = self._on_events = on_events

    def take_event(self) -> Event | None:
        self._reopen_after_fork()
        with suppress(IndexError):
            return self._writer.events.popleft()
        return None

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread is inside an operation, which may still be rolled back."""
        return self._writer.is_mine

    # Erasing

    def erase(self) -> int:
        """Remove deleted content from the files, and return the bytes released to the file system.

        Unused pages are released in small steps, so no writer waits long, and the write-ahead log is emptied
        unless a reader needs it. Inside an operation, erasing is deferred until the commit.
        """
        if self._writer.is_mine:
            self._erases_after_commit = True
            return 0
        freed = 0
        while True:
            with self._writer.lock, self.mapped():
                released = self._release_pages()
                freed += released
                if not released:
                    self._empty_log()
                    return freed

    def _release_pages(self) -> int:
        connection = self._writer.connection
        page, before = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "freelist_count"))
        connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")  # `execute` stops at the first page
        after = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return int((before - after) * page)

    def _empty_log(self) -> None:
        if self._log is not None:
            self._log.empty(self._writer.connection)

    def _after_commit(self) -> None:
        if self._log is not None:
            self._log.committed()
        if self._erases_after_commit:
            self._erases_after_commit = False
            while self._release_pages():
                pass
            self._empty_log()

    def is_erased(self) -> bool:
        """Whether the write-ahead log is empty. A reader of an older snapshot keeps the log and its content."""
        log = Path(beside(self.path, "-wal"))
        return self.in_memory or not log.exists() or log.stat().st_size == 0

    # Opening

    def _open_writer(self) -> SqliteWriter:
        connection = self._connect()
        try:
            connection.execute("PRAGMA secure_delete=ON")  # deleted text is overwritten with zeros
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only has an effect before the first page is written
            if not self.in_memory:
                _switch_to_wal(connection)
            if is_pending(connection):
                _migrate(connection)
            if self._files is not None:
                self._files.opened()
            self._log = None if self.in_memory else Wal(os.path.realpath(self.path), connection)
        except BaseException:
            connection.close()
            raise
        connection.watched = self._watched
        writer = SqliteWriter(
            connection,
            synchronous=self._synchronous,
            mapped=self.mapped,
            begun=self._check_files,
            committed=self._after_commit,
        )
        writer.on_events = self._on_events
        return writer

    def _connect(self) -> SqliteConnection:
        connection = sqlite3.connect(
            # `rw`: a deleted file is not created again
            ":memory:" if self.in_memory else f"{Path(self.path).as_uri()}?mode=rw",
            uri=not self.in_memory,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
            factory=SqliteConnection,
        )
        connection.execute("PRAGMA mmap_size=268435456")
        return connection

    def _connect_checked(self) -> SqliteConnection:
        """A further connection, to the same file as the open ones."""
        connection = self._connect()
        try:
            self._check_files()
        except BaseException:
            connection.close()
            raise
        return connection

    def _reopen_after_fork(self) -> None:
        """Open new connections in a forked child, because SQLite connections must not be used across a fork."""
        if os.getpid() != self._process and not self.in_memory:
            self._process = os.getpid()
            self._inherited += [self._writer.connection, *self._readers]
            self._inherited += [self._version_connection] if self._version_connection else []
            self._readers.clear()
            self._version_connection, self._version_lock = None, threading.Lock()
            with self.mapped():
                self._writer = self._open_writer()

    def _check_files(self, *, log: bool = True) -> None:
        if self._files is not None:
            self._files.check(log=log)

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(self.path, "it was closed", advice="open it again")

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Map the driver's errors in the block to `StorageError`."""
        try:
            yield
        except (sqlite3.Error, DamagedRow) as error:
            raise storage_error(self.path, error) from error
        except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:  # of a damaged row
            raise StorageError(self.path, f"it is damaged ({error})", advice="restore a backup") from error
        except UnicodeEncodeError as error:
            problem = f"a text that is not valid unicode cannot be stored ({error})"
            raise StorageError(self.path, problem, advice="replace the lone surrogates in it") from error


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
    from sqlite_utils import Database

    from session_middleware.storage.sqlite import migrations

    connection.execute("BEGIN IMMEDIATE")
    try:
        migrations.apply(Database(connection, execute_plugins=False, recursive_triggers=False))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


KNOWN_MIGRATIONS = frozenset({"m001_initial"})  # a copy: `migrations` imports sqlite-utils; a test compares them


def is_pending(connection: SqliteConnection) -> bool:
    return bool(KNOWN_MIGRATIONS - _applied(connection))


def _applied(connection: SqliteConnection) -> frozenset[str]:
    if "_sqlite_migrations" not in _tables(connection):
        return frozenset()
    rows = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = 'session_middleware'")
    return frozenset(name for (name,) in rows)


def _tables(connection: SqliteConnection) -> frozenset[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    return frozenset(name.lower() for (name,) in rows)  # as SQLite compares them


def absolute(path: str) -> str:
    """The absolute path. It stays valid when the current folder changes, and SQLite never reads it as a URI."""
    return str(Path(path).absolute())


def check_path(path: str) -> None:
    """Raise `StorageError` unless the path is a readable file or may be one."""
    file = Path(path)
    if file.is_dir():
        raise StorageError(path, "it is a folder", advice="name a file in it, such as sessions.db")
    if not file.parent.is_dir():
        raise StorageError(path, "its folder does not exist", advice=f"create {str(file.parent)!r} first")
    if file.exists() and not file.is_file():
        raise StorageError(path, "it is a device or a pipe", advice="name a file, such as sessions.db")
    if file.exists() and not os.access(file, os.R_OK):
        raise StorageError(path, "it may not be read by this process", advice="grant read access to the file")


def check_file(path: str) -> None:
    """As `check_path`, and raise `StorageError` for a file of another program. A file without tables passes."""
    check_path(path)
    file = Path(path)
    if not file.exists() or file.stat().st_size == 0:
        return
    applied, tables, is_langgraphs = read_unlocked(path, _contents)
    if applied - KNOWN_MIGRATIONS:
        problem = "it was written by a newer session-middleware"
        raise StorageError(path, problem, advice="upgrade the package to open it")
    if applied or not tables:
        return
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


def storage_error(path: str, error: Exception) -> StorageError:
    text = str(error)
    if isinstance(error, DamagedRow):
        advice = "delete that session, or restore a backup; session-middleware check --deep lists all damaged rows"
        return StorageError(path, f"it is damaged ({text})", advice=advice)
    for part, problem, advice in (
        (
            "not a database",
            "it is not an SQLite database, or its first page is damaged",
            "name another file, or restore a backup",
        ),
        ("malformed", "it is damaged", "restore a backup; do not write to it"),
        ("readonly", "it may not be written to", "give this process write access to the file and its folder"),
        ("unable to open", "it cannot be opened", "check that the folder exists and may be written to"),
        ("closed database", "it was closed", "open it again"),
        ("disk is full", "the disk is full", "free some space and try again; what was acknowledged is safe"),
        (
            "locked",
            f"another process has held its write lock for {BUSY_SECONDS:.0f} s",
            "end that process, or try again",
        ),
    ):
        if part in text:
            return StorageError(path, f"{problem} ({text})", advice=advice)
    return StorageError(path, text, advice="see the exception that caused this one")
