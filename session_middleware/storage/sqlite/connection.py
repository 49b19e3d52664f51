"""Connections of Python's `sqlite3`, as the operations in SQL need them, and the errors that they raise."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from session_middleware.errors import StorageError
from session_middleware.storage.sql.connection import DamagedRow, Retry, Transaction
from session_middleware.storage.sql.database import data_error
from session_middleware.storage.sqlite.files import beside

T = TypeVar("T")

BUSY_SECONDS = 30.0  # the longest wait for another process's lock
_TRIES = 100  # a try fails when another process opened, wrote and closed the file meanwhile


class SqliteConnection(sqlite3.Connection, Transaction):
    changes: int = cast("Any", sqlite3.Connection.total_changes)  # the same property
    is_optimistic = False
    conflict: type[Exception] = sqlite3.IntegrityError
    rejections: tuple[type[Exception], ...] = (
        sqlite3.DataError,
        sqlite3.IntegrityError,
        sqlite3.InterfaceError,
        sqlite3.ProgrammingError,
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reset()

    def prefetch(self, sql: str, parameters: tuple[Any, ...], /) -> None:
        pass

    def lock(self, names: Collection[str], /) -> None:
        """A transaction that writes has the lock of the whole file."""

    def lock_free(self, names: Collection[str], /) -> set[str]:
        return {*names}

    def update_row(self, sql: str, parameters: Any, /) -> None:
        if not self.execute(sql, parameters).rowcount:
            raise Retry


def connect(path: str, mode: str = "mode=rw") -> SqliteConnection:
    """Connect to ``":memory:"``, or to an existing file: a deleted one is not created again."""
    in_memory = path == ":memory:"
    return sqlite3.connect(
        path if in_memory else f"{Path(path).absolute().as_uri()}?{mode}",
        uri=not in_memory,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        factory=SqliteConnection,
    )


def read_unlocked(path: str, operation: Callable[[SqliteConnection], T]) -> T:
    """Run `operation`, which only reads, on one snapshot of an existing file, and create or change no file.

    SQLite reads a file in WAL mode only with the log's index file, and creates a missing one, unless the connection
    declares the file immutable. A file without a log is opened as immutable; afterwards it is checked that the file
    has not changed meanwhile. `operation` may run more than once.
    """
    for _ in range(_TRIES):
        before = version_of(path)
        has_log = before[-1] > 0
        try:
            with closing(connect(path, "mode=ro" if has_log else "immutable=1")) as connection:
                connection.execute("BEGIN")
                result = operation(connection)
        except (sqlite3.Error, DamagedRow) as error:
            if version_of(path) != before:
                continue
            if has_log and "unable to open" in str(error):
                problem = (
                    "its last changes are in a write-ahead log, which cannot be read in a folder without write access"
                )
                advice = f"copy it, with {Path(path).name}-wal, to a folder that may be written to"
                raise StorageError(path, problem, advice=advice) from error
            raise
        if has_log or version_of(path) == before:
            return result
    raise StorageError(path, "other processes changed it during each read", advice="try again")


def version_of(path: str) -> tuple[int, int, int]:
    """A value that differs after each change of a file; the last number is the size of its log."""
    try:
        stat = Path(path).stat()
    except FileNotFoundError as error:
        raise StorageError(path, "it was deleted or moved", advice="put it back, or name another file") from error
    log_size = 0
    with suppress(FileNotFoundError):
        log_size = Path(beside(path, "-wal")).stat().st_size
    return stat.st_mtime_ns, stat.st_size, log_size


_PROBLEMS = (  # a part of the text of SQLite's error, the problem and the advice
    (
        "not a database",
        "it is not an SQLite database, or its first page is damaged",
        "name another file, or restore a backup",
    ),
    ("malformed", "it is damaged", "restore a backup; do not write to it"),
    ("decode to UTF-8", "a row is damaged", "session-middleware check --deep names it; delete its session, or mend it"),
    ("readonly", "it may not be written to", "give this process write access to the file and its folder"),
    ("unable to open", "it cannot be opened", "check that the folder exists and may be written to"),
    ("closed database", "it was closed", "open it again"),
    ("disk is full", "the disk is full", "free some space and try again; what was acknowledged is safe"),
    ("locked", f"another process has held its write lock for {BUSY_SECONDS:.0f} s", "end that process, or try again"),
)


def storage_error(path: str, error: Exception) -> StorageError:
    """The `StorageError` for an error of SQLite, or of damaged data."""
    text = str(error)
    if not isinstance(error, sqlite3.Error):
        return data_error(path, error)
    for part, problem, advice in _PROBLEMS:
        if part in text:
            return StorageError(path, f"{problem} ({text})", advice=advice)
    return StorageError(path, text, advice="see the exception that caused this one")
