"""The files of a database: created private, and checked to be the same files while they are open.

A connection whose file was deleted or replaced continues to use the old file: its writes are lost, or do not
reach the file that other processes read. SQLite does not detect this, so the inodes of the paths are compared.
Each transaction and each new connection checks the files (5 µs).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from session_middleware.errors import StorageError

_PRIVATE = 0o600
_creating = threading.Lock()  # closing a file releases all locks of this process on it


def beside(path: str, end: str) -> str:
    """The path of a file that SQLite keeps beside a database, such as ``"-wal"``; symbolic links are resolved."""
    return os.path.realpath(path) + end


def may_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


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


def create_private(path: str) -> None:
    """Create an empty file that only this user may read, whatever the umask. An existing file is not changed."""
    with _creating:
        try:
            file = os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, _PRIVATE)
        except FileExistsError:
            return
        except OSError as error:
            advice = "check that the folder exists and may be written to"
            raise StorageError(path, f"it cannot be created ({error.strerror})", advice=advice) from error
        try:
            if hasattr(os, "fchmod"):
                os.fchmod(file, _PRIVATE)
        finally:
            os.close(file)


class OpenFiles:
    """A database file, its write-ahead log and the log's index; the last two exist while the database is open."""

    def __init__(self, path: str) -> None:
        # `lstat` notices a file that was moved and replaced by a link: its log is in another folder then.
        self._stat = os.stat if os.path.islink(path) else os.lstat  # noqa: PTH114 - half the time of Path.stat
        self._opened = [(path, self._stat(path))]

    def opened(self) -> None:
        """Remember the files that opening the writer has created. Raises as `check` does."""
        del self._opened[1:]
        self.check()
        path = self._opened[0][0]
        others = [other for end in ("-wal", "-shm") if Path(other := beside(path, end)).exists()]
        self._opened += [(other, self._stat(other)) for other in others]

    def check(self) -> None:
        """Raise `StorageError` if a file was deleted, moved or replaced."""
        for path, before in self._opened:
            problem, cause = "it was replaced by another file", None
            try:
                now = self._stat(path)
                if now.st_ino == before.st_ino and now.st_dev == before.st_dev:
                    continue
            except OSError as error:
                problem, cause = "it was deleted or moved", error
            problem += " while it was open, and nothing is written to it"
            raise StorageError(path, problem, advice="put the file back, or open it again") from cause
