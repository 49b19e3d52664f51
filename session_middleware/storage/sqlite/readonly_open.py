"""Reading a file without writing to it, nor beside it.

SQLite reads a file with a write-ahead log only together with the log's index, which it makes where it
is not there; unless it is told that nobody changes the file. That is so while there is no log, and
whether it stayed so is seen afterwards.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

from session_middleware.errors import StorageError
from session_middleware.storage.sqlite.files import beside
from session_middleware.storage.sqlite.wal import BUSY_SECONDS

T = TypeVar("T")

_TRIES = 100  # each is in the way of somebody who has opened, written and closed the file meanwhile


class FileVersion(NamedTuple):
    """What a file was like; another one when it was changed."""

    changed: int
    size: int
    log_size: int  # 0: there is none, or nothing is in it


def version_of(path: str) -> FileVersion:
    try:
        stat = Path(path).stat()
    except FileNotFoundError as error:
        raise StorageError(path, "it is not there any more", advice="put it back, or name another one") from error
    try:
        return FileVersion(stat.st_mtime_ns, stat.st_size, Path(beside(path, "-wal")).stat().st_size)
    except FileNotFoundError:
        return FileVersion(stat.st_mtime_ns, stat.st_size, 0)


def read_unlocked(path: str, operation: Callable[[sqlite3.Connection], T]) -> T:
    """Carry out `operation`, which only reads, on one state of a file that is there. It may be carried out again."""
    for _ in range(_TRIES):
        before = version_of(path)
        how = "mode=ro" if before.log_size else "immutable=1"
        uri = f"{Path(path).absolute().as_uri()}?{how}"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
                connection.execute("BEGIN")
                result = operation(connection)
        except sqlite3.Error as error:
            if version_of(path) != before:
                continue
            if before.log_size and "unable to open" in str(error):
                raise _unreadable(path) from error
            raise
        if before.log_size or version_of(path) == before:
            return result
    raise StorageError(path, "it is changed all the time while it is read", advice="try again")


def _unreadable(path: str) -> StorageError:
    return StorageError(
        path,
        "its last changes are in a write-ahead log, which cannot be read where nothing can be written",
        advice=f"copy it, with {Path(path).name}-wal, to a folder that may be written to",
    )
