"""A database that this process may read and not write: a copy on a read-only disk, or another user's.

All that reads works, and writing says why it does not. Each read opens the file anew, since without a
log nothing tells a connection that the file was changed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from session_middleware.errors import StorageError
from session_middleware.storage.sqlite.database import SqliteDatabase, absolute, check_file, is_pending
from session_middleware.storage.sqlite.readonly_open import read_unlocked, version_of
from session_middleware.storage.sqlite.writer import WriteRequest

T = TypeVar("T")


def open_database(path: str, *, synchronous: str) -> SqliteDatabase:
    """For reading only where it may not be written to. Raises `StorageError`."""
    file = Path(path)
    if path == ":memory:" or not file.is_file() or (_may_write(file) and _may_write(file.absolute().parent)):
        return SqliteDatabase(path, synchronous=synchronous)
    if not _may_write(file):
        return ReadOnlyDatabase(path)
    try:
        return SqliteDatabase(path, synchronous=synchronous)  # its log may be there already
    except StorageError as error:
        if not isinstance(error.__cause__, sqlite3.OperationalError):
            raise
    return ReadOnlyDatabase(path)


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


class ReadOnlyDatabase(SqliteDatabase):
    is_writable = False

    def __init__(self, path: str) -> None:
        self.path = absolute(path)
        self.in_memory = False
        self._closed = False
        with self.mapped():
            check_file(path)
            if self.read(is_pending):
                self._refuse()

    def close(self) -> None:
        self._closed = True

    def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()
        with self.mapped():
            return read_unlocked(self.path, operation)

    def version(self) -> int:
        self._check_open()
        return hash(version_of(self.path))

    def write(self, *_: Any, **__: Any) -> NoReturn:
        self._check_open()
        self._refuse()

    def _refuse(self) -> NoReturn:
        file = Path(self.path)
        what = "it" if not _may_write(file) else f"its folder ({file.absolute().parent})"
        raise StorageError(
            self.path,
            f"{what} may not be written to by this process",
            advice="give it write access to the file and its folder, or copy the file; reading works without",
        )

    def together(self, calls: Sequence[Callable[[], Any]], *, durable: bool = True) -> list[WriteRequest[Any]]:
        return [_carried_out(call, durable=durable) for call in calls]

    def watch(self, kinds: frozenset[str]) -> None:
        """Nothing is committed here."""

    def has_events(self) -> bool:
        return False

    def take_event(self) -> None:
        return None

    @property
    def is_inside(self) -> bool:
        return False

    def erase(self) -> int:
        return 0


def _carried_out(call: Callable[[], Any], *, durable: bool) -> WriteRequest[Any]:
    ticket: WriteRequest[Any] = WriteRequest(lambda _: None, durable=durable)
    try:
        ticket.result = call()
    except BaseException as error:  # noqa: BLE001  # the caller's, as in a batch
        ticket.end(error)
    else:
        ticket.end()
    return ticket
