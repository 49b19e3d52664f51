"""The files of a database: private when they are made, and the same ones for as long as they are open.

An open connection keeps its file when that is deleted, or when another takes its place: what is written
then is gone, or lands beside what other processes read. SQLite does not notice, so the inodes behind the
paths are compared: in each transaction that writes, and for each new connection, those of all files (5 µs), and in
each that reads that of the database.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from session_middleware.errors import StorageError

PRIVATE = 0o600  # of the user alone
_creating = threading.Lock()  # closing a file would release the locks that another thread has on it by then

_Inode = tuple[int, int]


def beside(path: str, end: str) -> str:
    """What SQLite puts beside a database (``"-wal"``, ``"-shm"``): where the file is that a link leads to."""
    return os.path.realpath(path) + end


def create_private(path: str | Path) -> None:
    """Make an empty file that only this user may read, whatever the umask; one that is there stays as it is."""
    with _creating:
        try:
            file = os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE)
        except FileExistsError:
            return
        except OSError as error:
            advice = "check that the folder exists and may be written to"
            raise StorageError(str(path), f"it cannot be created ({error.strerror})", advice=advice) from error
        try:
            if hasattr(os, "fchmod"):
                os.fchmod(file, PRIVATE)
        finally:
            os.close(file)


class OpenFiles:
    """A database's file, its write-ahead log and that one's index, which exist while it is open."""

    def __init__(self, path: str) -> None:
        self._path = path
        # A file that was moved and left a link to where it is now has another log there, for others.
        self._look = os.stat if os.path.islink(path) else os.lstat  # noqa: PTH114
        self._opened: list[tuple[str, _Inode]] = [(path, self._inode(path))]

    def opened(self) -> None:
        """The writer was opened, and has made what belongs to the file. Raises as `check` does."""
        del self._opened[1:]
        self.check()
        for path in (beside(self._path, "-wal"), beside(self._path, "-shm")):
            if Path(path).exists():
                self._opened.append((path, self._inode(path)))

    def check(self, *, log: bool = True) -> None:
        """Raises `StorageError` if one was deleted or moved, or if another file is in its place.

        Without its log a connection that is open reads on, and reads what was written.
        """
        for path, inode in self._opened if log else self._opened[:1]:
            if self._inode(path) != inode:
                raise self._lost(path, "another file is in its place")

    def _inode(self, path: str) -> _Inode:
        try:
            found = self._look(path)  # half the time of Path.stat
        except OSError as error:
            raise self._lost(path, "it was deleted or moved") from error
        return found.st_dev, found.st_ino

    def _lost(self, path: str, what: str) -> StorageError:
        return StorageError(
            path,
            f"{what} while it was open",
            advice="put back the file that was there, or open a new Sessions(...); nothing is written until then",
        )
