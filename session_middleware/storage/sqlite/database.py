"""One SQLite file: how it is opened, read and written.

What makes several threads and processes get along on one file is here and in `writer.py` (those who
write share one connection and its commits) and `log.py` (the write-ahead log). Readers have
connections of their own and never wait for a writer. No operation leaves a transaction open,
whatever it raises.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from session_middleware.errors import StorageError
from session_middleware.models import Event
from session_middleware.storage.sql.row_mapping import Malformed
from session_middleware.storage.sqlite.change_detector import ChangeDetector
from session_middleware.storage.sqlite.files import OpenFiles, beside, create_private
from session_middleware.storage.sqlite.readonly_open import read_unlocked
from session_middleware.storage.sqlite.wal import BUSY_SECONDS, Wal
from session_middleware.storage.sqlite.writer import Undo, Writer, WriteRequest, WritingConnection

T = TypeVar("T")

_SIZES = ("page_size", "freelist_count")
_PAGES = 1000  # cut off at a time: a few milliseconds
_NAMED = 6  # of another program's tables
_IDLE_READERS = 8  # connections kept open for the next reader


class SqliteDatabase:
    is_writable = True
    _watched: frozenset[str] = frozenset()

    def __init__(self, path: str, *, synchronous: str = "full") -> None:
        self.in_memory = path == ":memory:"
        self.path = path if self.in_memory else absolute(path)
        self._synchronous = synchronous
        self._readers: deque[sqlite3.Connection] = deque()
        self._closed = False
        self._is_to_erase = False  # when the present operation is committed
        self._process = os.getpid()
        self._inherited: list[sqlite3.Connection] = []
        self._watch = ChangeDetector(self._connect_again)
        with self.mapped():
            if not self.in_memory:
                check_file(path)
                create_private(self.path)
            self._files = None if self.in_memory else OpenFiles(self.path)
            self._writer = self._open_writer()

    def close(self) -> None:
        with self._writer.lock:
            if self._closed:
                return
            self._closed = True
            self._watch.close()
            while self._readers:
                self._readers.pop().close()
            self._writer.connection.close()

    # Reading

    def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Carry out `operation` on one snapshot of the database."""
        if self._writer.is_mine:  # it is to see what is written around it
            return operation(self._writer.connection)
        self._check_open()
        if self.in_memory:
            with self._writer.lock, self.mapped():
                return operation(self._writer.connection)
        self._mind_forks()
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

    def version(self) -> int:
        """Differs from what it was if anything was committed meanwhile."""
        self._check_open()
        if self.in_memory:
            return self._writer.connection.total_changes
        with self.mapped():
            self._check_files()
            return self._watch.version()

    def _reader(self) -> sqlite3.Connection:
        try:
            return self._readers.pop()
        except IndexError:
            return self._connect_again()

    # Writing

    def write(
        self,
        operation: Callable[[sqlite3.Connection], T],
        *,
        durable: bool = True,
        patient: bool = False,
        undo: Undo | None = None,
    ) -> T:
        """Carry out `operation` in a transaction, and return when it is committed.

        Args:
            operation: It may be carried out twice, if the first time is rolled back.
            durable: The commit is synced as the ``synchronous`` setting says; else it survives
                ``kill -9`` but maybe not a power cut, until the next durable commit.
            patient: Nobody waits for this one, so it may wait a moment for another's commit.
            undo: Makes values in memory what they were before, when the operation is rolled back.
        """
        self._check_open()
        self._mind_forks()
        return self._writer.write(operation, durable=durable, patient=patient, undo=undo)

    def together(self, calls: Sequence[Callable[[], Any]], *, durable: bool = True) -> list[WriteRequest[Any]]:
        """Carry out whole calls, one after the other; what they write shares a commit.

        None of them is acknowledged before that. One that fails does not concern the others.
        """
        self._mind_forks()
        return self._writer.together(calls, durable=durable)

    def watch(self, kinds: frozenset[str]) -> None:
        """Keep the events of these kinds that are committed from now on, until they are taken."""
        self._watched = self._writer.connection.watched = kinds

    def has_events(self) -> bool:
        return bool(self._writer.events)

    def take_event(self) -> Event | None:
        self._mind_forks()
        with suppress(IndexError):
            return self._writer.events.popleft()
        return None

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread is inside an operation, which may yet be undone."""
        return self._writer.is_mine

    def erase(self) -> int:
        """Leave nothing of what was deleted in the files; how many bytes the file system got back.

        Unused pages are cut off, some at a time so that nobody waits for long, and the write-ahead log is
        emptied, unless a reader still needs it. Inside an operation it is put off until that is committed.
        """
        if self._writer.is_mine:
            self._is_to_erase = True
            return 0
        freed = 0
        while True:
            with self._writer.lock, self.mapped():
                cut = self._cut_off()
                freed += cut
                if not cut:
                    self._empty_log()
                    return freed

    def _cut_off(self) -> int:
        """Give some unused pages back to the file system; how many bytes."""
        connection = self._writer.connection
        page, unused = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in _SIZES)
        connection.executescript(f"PRAGMA incremental_vacuum({_PAGES})")  # `execute` would stop at its first page
        left = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return int((unused - left) * page)

    def _empty_log(self) -> None:
        if self._log is not None:
            self._log.empty(self._writer.connection)

    def _after_commit(self) -> None:
        if self._log is not None:
            self._log.committed()
        if self._is_to_erase:
            self._is_to_erase = False
            while self._cut_off():
                pass
            self._empty_log()

    def is_erased(self) -> bool:
        """Whether the write-ahead log is empty: a reader of an older snapshot keeps it, and what is in it."""
        log = Path(beside(self.path, "-wal"))
        return self.in_memory or not log.exists() or log.stat().st_size == 0

    # Opening

    def _open_writer(self) -> Writer:
        connection = self._open()
        try:
            if self._files is not None:
                self._files.opened()
            self._log = None if self.in_memory else Wal(os.path.realpath(self.path), connection)
        except BaseException:
            connection.close()
            raise
        connection.watched = self._watched
        return Writer(
            connection,
            synchronous=self._synchronous,
            mapped=self.mapped,
            begun=self._check_files,
            committed=self._after_commit,
        )

    def _open(self) -> WritingConnection:
        connection = self._connect()
        try:
            connection.execute("PRAGMA secure_delete=ON")  # deleted text is overwritten with zeros
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file: before its first page is written
            if not self.in_memory:
                _switch_to_wal(connection)
            if is_pending(connection):
                _migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> WritingConnection:
        connection = sqlite3.connect(
            ":memory:"
            if self.in_memory
            else f"{Path(self.path).as_uri()}?mode=rw",  # it is not made anew if it is gone
            uri=not self.in_memory,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
            factory=WritingConnection,
        )
        connection.execute("PRAGMA mmap_size=268435456")
        return connection

    def _connect_again(self) -> sqlite3.Connection:
        """A further connection: it must not be to another file than the others are to."""
        connection = self._connect()
        try:
            self._check_files()
        except BaseException:
            connection.close()
            raise
        return connection

    def _mind_forks(self) -> None:
        """A connection must not be used across a fork: the child opens its own, and leaves its parent's alone."""
        if os.getpid() != self._process and not self.in_memory:
            self._process = os.getpid()
            self._inherited += [self._writer.connection, *self._readers]
            self._readers.clear()
            with self.mapped():
                self._writer = self._open_writer()

    def _check_files(self, *, log: bool = True) -> None:
        if self._files is not None:
            self._files.check(log=log)

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

    from session_middleware.storage.sql import schema

    connection.execute("BEGIN IMMEDIATE")
    try:
        schema.apply(Database(connection, execute_plugins=False, recursive_triggers=False))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


INDEX_TABLES = frozenset(  # what they hold can be made anew from the others
    {"index_scopes", "index_sessions", "index_blocks", "index_postings", "index_stale"} | {"vectors", "vector_models"}
)
OWN_TABLES = frozenset(
    {"sessions", "runs", "messages", "tool_calls", "model_calls", "events", "memories", "branches", "files"}
    | {"conversation_items"}
    | {"checkpoints", "heads", "writes", "lists", "list_items", "blobs"}
    | {"leases", "tombstones", "revoked"}
    | INDEX_TABLES
)
KNOWN_MIGRATIONS = frozenset({"m001_initial"})  # `schema` costs an import of sqlite-utils; a test holds them equal


def is_pending(connection: sqlite3.Connection) -> bool:
    return bool(KNOWN_MIGRATIONS - _applied(connection))


def _applied(connection: sqlite3.Connection) -> frozenset[str]:
    if "_sqlite_migrations" not in _tables(connection):
        return frozenset()
    rows = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = 'session_middleware'")
    return frozenset(name for (name,) in rows)


def _tables(connection: sqlite3.Connection) -> frozenset[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    return frozenset(name.lower() for (name,) in rows)  # as SQLite compares them


def absolute(path: str) -> str:
    """The same file whatever becomes the current folder, and never a URI, which many builds of SQLite look for."""
    return str(Path(path).absolute())


def check_file(path: str) -> None:
    """Refuse what is not ours to write to, before anything on disk is changed. One without tables may become ours."""
    file = Path(path)
    if file.is_dir():
        raise StorageError(path, "it is a folder", advice="name a file in it, such as sessions.db")
    if not file.parent.is_dir():
        raise StorageError(path, "its folder does not exist", advice=f"create {str(file.parent)!r} first")
    if not file.exists():
        return
    if not file.is_file():
        raise StorageError(path, "it is a device or a pipe", advice="name a file, such as sessions.db")
    if file.stat().st_size == 0:
        return
    applied, tables, is_langgraphs = read_unlocked(path, _look)
    if applied - KNOWN_MIGRATIONS:
        raise StorageError(
            path, "it was written by a newer session-middleware", advice="upgrade the package to open it"
        )
    if applied or not tables:
        return
    names = ", ".join(sorted(tables)[:_NAMED]) + (f" and {len(tables) - _NAMED} more" if len(tables) > _NAMED else "")
    if is_langgraphs:
        problem = f"it holds the checkpoints of LangGraph's own saver (tables {names})"
        advice = f"choose a new file, and copy them into it: session-middleware import-checkpoints {path} --db NEW_FILE"
    else:
        problem = f"it holds another program's tables ({names})"
        advice = "choose a file of its own for sessions, to which you may add tables; this one was not touched"
    raise StorageError(path, problem, advice=advice)


def _look(connection: sqlite3.Connection) -> tuple[frozenset[str], frozenset[str], bool]:
    """Our migrations and the tables, without SQLite's own; and whether these are of LangGraph's saver."""
    tables = frozenset(name for name in _tables(connection) if not name.startswith("sqlite_"))
    columns = {row[1] for row in connection.execute("PRAGMA table_info(checkpoints)")}
    return _applied(connection), tables, "writes" in tables and "thread_id" in columns


def _explain(path: str, error: sqlite3.Error) -> StorageError:
    text = str(error)
    if isinstance(error, Malformed):
        advice = "delete that session, or restore a backup; session-middleware check --deep lists all that is damaged"
        return StorageError(path, f"it is damaged ({text})", advice=advice)
    for sign, problem, advice in (
        ("not a database", "it is not an SQLite database", "choose another file; this one was not touched"),
        ("malformed", "it is damaged", "restore a backup; do not write to it"),
        ("readonly", "it may not be written to", "give this process write access to the file and its folder"),
        ("unable to open", "it cannot be opened", "check that the folder exists and may be written to"),
        ("closed database", "it was closed", "open a new Sessions(...)"),
        ("disk is full", "the disk is full", "free some space and try again; what was acknowledged is safe"),
        ("locked", f"another process has held its write lock for {BUSY_SECONDS:.0f} s", "try again, or end it"),
    ):
        if sign in text:
            return StorageError(path, f"{problem} ({text})", advice=advice)
    return StorageError(path, text, advice="see the exception this one came from")
