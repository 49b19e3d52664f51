"""The write-ahead log: when it is written back into the file, and who keeps it from that.

SQLite would do that by itself after each thousand pages. It is done here because SQLite 3.7.0 to
3.51.2 can damage a database when two connections do it at the same moment (https://sqlite.org/wal.html,
"the WAL-reset bug"): below 3.51.3 one process at a time does it, under a lock of our own. And
because only whoever does it notices a reader that has been in the way for long.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, where a folder cannot be locked: SQLite's own lock must do
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("session_middleware")

BUSY_SECONDS = 30.0  # how long to wait for another process's lock
FIXED_IN = (3, 51, 3)
_PAGES = 1000  # in the log before it is written back, as SQLite has it
_KEPT_BYTES = 16 * 1024 * 1024  # what is left of the log when a reader that made it grow has ended
_BLOCKED_SECONDS = 30.0  # how long a reader may be in the way before it is told


class Wal:
    """The write-ahead log of one file, as this process's writer sees it. Calls hold the writer's lock."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._changes = connection.total_changes  # when it was last written back
        self._every = 256  # changes from one time to the next: about `_PAGES` of pages
        self._size = 0
        self._blocked_since: float | None = None
        self._told = False
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute(f"PRAGMA journal_size_limit={_KEPT_BYTES}")

    def committed(self) -> None:
        """Something was committed: it may be time."""
        changes = self._connection.total_changes - self._changes
        is_blocked = self._blocked_since is not None  # then it is tried each time, as SQLite does
        if is_blocked or changes >= self._every or self._bytes() - self._size >= _PAGES * 4096:
            self._write_back(changes)

    def _bytes(self) -> int:
        try:
            return os.stat(f"{self._path}-wal").st_size  # noqa: PTH116
        except FileNotFoundError:
            return 0

    def _write_back(self, changes: int) -> None:
        with self._alone() as is_alone:
            if not is_alone:
                return  # another process is at it
            try:
                _, pages, done = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error:  # a full disk, say: the commit is safe in the log, and the next one tries again
                return
        self._changes, self._size = self._connection.total_changes, self._bytes()
        if done < pages:
            self._blocked()
        else:
            self._blocked_since, self._told = None, False
            self._every = max(1, min(10_000, _PAGES * changes // max(pages, 1)))

    def _blocked(self) -> None:
        now = time.monotonic()
        self._blocked_since = self._blocked_since or now
        if now - self._blocked_since > _BLOCKED_SECONDS and not self._told:
            self._told = True
            logger.warning(
                "%s: a reader has kept one snapshot for %.0f s, so the write-ahead log cannot be written back and"
                " grows (%.0f MB now). Nothing is lost. Look for a program that holds a transaction open on this file.",
                self._path,
                now - self._blocked_since,
                self._bytes() / 1e6,
            )

    def empty(self, connection: sqlite3.Connection) -> None:
        """Write all back and cut the log off, unless a reader still needs it."""
        with self._alone(wait=True):
            connection.execute("PRAGMA busy_timeout=0")  # a reader must not hold up all writers
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")

    @contextmanager
    def _alone(self, *, wait: bool = False) -> Iterator[bool]:
        """Whether no other process writes a log back in this folder now, nor will in the block.

        The folder is locked: a file's lock would be lost whenever SQLite closes that file, and one
        more file would be one more to explain.
        """
        if sqlite3.sqlite_version_info >= FIXED_IN or fcntl is None:
            yield True
            return
        folder = os.open(Path(self._path).absolute().parent, os.O_RDONLY)
        try:
            is_alone = True
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                is_alone = False
            yield is_alone
        finally:
            os.close(folder)
