"""Reading a database without creating or changing any file.

SQLite reads a file in WAL mode only with the log's index file, and creates a missing one, unless the connection
declares the file immutable. A file without a log is opened as immutable; it is checked afterwards that the file
did not change meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

from session_middleware.errors import StorageError
from session_middleware.storage.sql.connection import DamagedRow
from session_middleware.storage.sqlite.connection import SqliteConnection
from session_middleware.storage.sqlite.files import beside
from session_middleware.storage.sqlite.wal import BUSY_SECONDS

T = TypeVar("T")

_TRIES = 100  # a try fails when another process opened, wrote and closed the file meanwhile


class FileVersion(NamedTuple):
    """A value that differs after each change of a file."""

    changed: int
    size: int
    log_size: int  # 0: no log, or an empty one


def version_of(path: str) -> FileVersion:
    try:
        stat = Path(path).stat()
    except FileNotFoundError as error:
        raise StorageError(path, "it was deleted or moved", advice="put it back, or name another file") from error
    try:
        return FileVersion(stat.st_mtime_ns, stat.st_size, Path(beside(path, "-wal")).stat().st_size)
    except FileNotFoundError:
        return FileVersion(stat.st_mtime_ns, stat.st_size, 0)


def read_unlocked(path: str, operation: Callable[[SqliteConnection], T]) -> T:
    """Run `operation`, which only reads, on one snapshot of an existing file. It may run more than once."""
    for _ in range(_TRIES):
        before = version_of(path)
        uri = f"{Path(path).absolute().as_uri()}?{'mode=ro' if before.log_size else 'immutable=1'}"
        try:
            with closing(_connect(uri)) as connection:
                connection.execute("BEGIN")
                result = operation(connection)
        except (sqlite3.Error, DamagedRow) as error:
            if version_of(path) != before:
                continue
            if before.log_size and "unable to open" in str(error):
                problem = (
                    "its last changes are in a write-ahead log, which cannot be read from a folder without write access"
                )
                advice = f"copy it, with {Path(path).name}-wal, to a folder that may be written to"
                raise StorageError(path, problem, advice=advice) from error
            raise
        if before.log_size or version_of(path) == before:
            return result
    raise StorageError(path, "other processes changed it during each read", advice="try again")


def _connect(uri: str) -> SqliteConnection:
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, factory=SqliteConnection)
