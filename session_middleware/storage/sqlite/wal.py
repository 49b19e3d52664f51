"""Checkpointing of the write-ahead log: writing it back into the database file.

SQLite's automatic checkpoints are off, because SQLite 3.7.0 to 3.51.2 can damage a database when two connections
checkpoint at once (https://sqlite.org/wal.html, "the WAL-reset bug"). Before 3.51.3 a lock of this package admits one
process at a time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from session_middleware.storage.sqlite.connection import BUSY_SECONDS

try:
    import fcntl
except ImportError:  # Windows, where a folder cannot be locked
    fcntl = None  # type: ignore[assignment]

FIXED_IN = (3, 51, 3)
_PAGES = 1000  # in the log before a checkpoint: SQLite's default
_SIZE_LIMIT_BYTES = 16 * 1024 * 1024  # to which a log is truncated after a long reader has ended


class Wal:
    """The write-ahead log of one file. The caller holds the writer's lock."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self._path = path
        self._log = f"{path}-wal"
        self._connection = connection
        self._changes = connection.total_changes  # at the last checkpoint
        self._interval = 256  # changes between checkpoints, adapted to about `_PAGES` pages
        self._size = 0
        self._is_blocked = False  # by a reader of an older snapshot; each commit tries again, as in SQLite
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute(f"PRAGMA journal_size_limit={_SIZE_LIMIT_BYTES}")

    def committed(self) -> None:
        """Checkpoint if the log has grown enough since the last checkpoint."""
        changes = self._connection.total_changes - self._changes
        try:
            size = os.stat(self._log).st_size  # noqa: PTH116 - half the time of Path.stat
        except FileNotFoundError:  # the next transaction raises
            return
        if not self._is_blocked and changes < self._interval and size - self._size < _PAGES * 4096:
            return
        with self._exclusive() as is_exclusive:
            if not is_exclusive:
                return  # another process checkpoints
            try:
                _, pages, done = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error:  # such as a full disk: the commit is safe in the log, and the next one tries again
                return
        self._changes, self._size = self._connection.total_changes, size
        self._is_blocked = done < pages
        if not self._is_blocked:
            self._interval = max(1, min(10_000, _PAGES * changes // max(pages, 1)))

    def empty(self) -> None:
        """Checkpoint and truncate the log, unless a reader needs it."""
        with self._exclusive(wait=True):
            self._connection.execute("PRAGMA busy_timeout=0")  # do not wait for readers while writers wait
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")

    @contextmanager
    def _exclusive(self, *, wait: bool = False) -> Iterator[bool]:
        """Whether no other process checkpoints in this folder during the block.

        The lock is on the folder: a lock on the database file is lost whenever SQLite closes that file.
        """
        if sqlite3.sqlite_version_info >= FIXED_IN or fcntl is None:
            yield True
            return
        folder = os.open(Path(self._path).absolute().parent, os.O_RDONLY)
        try:
            is_exclusive = True
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                is_exclusive = False
            yield is_exclusive
        finally:
            os.close(folder)
