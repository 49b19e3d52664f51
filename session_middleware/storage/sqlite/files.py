"""The files of a database: created private, and checked to be the same files while they are open.

A connection whose file was deleted or replaced continues to use the old file: its writes are lost, or do not
reach the file that other processes read. SQLite does not detect this, so the inodes of the paths are compared.
A write transaction and a new connection check all files (5 µs); a read checks the database file.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from session_middleware.errors import StorageError

_PRIVATE = 0o600
_creating = threading.Lock()  # closing a file releases all locks of this process on it

_Inode = tuple[int, int]


def beside(path: str, end: str) -> str:
    """The path of a file that SQLite keeps beside a database, such as ``"-wal"``; symbolic links are resolved."""
    return os.path.realpath(path) + end


def create_private(path: str | Path) -> None:
    """Create an empty file that only this user may read, whatever the umask. An existing file is not changed."""
    with _creating:
        try:
            file = os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, _PRIVATE)
        except FileExistsError:
            return
        except OSError as error:
            advice = "check that the folder exists and may be written to"
            raise StorageError(str(path), f"it cannot be created ({error.strerror})", advice=advice) from error
        try:
            if hasattr(os, "fchmod"):
                os.fchmod(file, _PRIVATE)
        finally:
            os.close(file)


class OpenFiles:
    """A database file, its write-ahead log and the log's index; the last two exist while the database is open."""

    def __init__(self, path: str) -> None:
        self._path = path
        # `lstat` notices a file that was moved and replaced by a link: its log is in another folder then.
        self._stat = os.stat if os.path.islink(path) else os.lstat  # noqa: PTH114
        self._opened: list[tuple[str, _Inode]] = [(path, self._inode(path))]

    def opened(self) -> None:
        """Remember the files that opening the writer has created. Raises as `check` does."""
        del self._opened[1:]
        self.check()
        for path in (beside(self._path, "-wal"), beside(self._path, "-shm")):
            if Path(path).exists():
                self._opened.append((path, self._inode(path)))

    def check(self, *, log: bool = True) -> None:
        """Raise `StorageError` if a file was deleted, moved or replaced.

        Reads need no `log`: an open connection still reads everything from a log that was deleted.
        """
        for path, inode in self._opened if log else self._opened[:1]:
            if self._inode(path) != inode:
                raise self._lost(path, "it was replaced by another file")

    def _inode(self, path: str) -> _Inode:
        try:
            found = self._stat(path)  # half the time of Path.stat
        except OSError as error:
            raise self._lost(path, "it was deleted or moved") from error
        return found.st_dev, found.st_ino

    def _lost(self, path: str, problem: str) -> StorageError:
        return StorageError(
            path,
            f"{problem} while it was open, and nothing is written to it",
            advice="put the file back, or open it again",
        )
