"""A database that this process may read and not write, such as a copy on a read-only disk.

Each read opens the file again, because a connection to an immutable file does not notice changes. A write
raises `StorageError`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from session_middleware.errors import StorageError
from session_middleware.storage.sql.writer import WriteRequest
from session_middleware.storage.sqlite.connection import SqliteConnection
from session_middleware.storage.sqlite.database import SqliteDatabase, absolute, check_file, is_pending
from session_middleware.storage.sqlite.readonly_open import read_unlocked, version_of

T = TypeVar("T")


def open_database(path: str, *, synchronous: str) -> SqliteDatabase:
    """Open a database, for reading only where the file or its folder may not be written to."""
    file = Path(path)
    if path == ":memory:" or not file.is_file() or (_may_write(file) and _may_write(file.absolute().parent)):
        return SqliteDatabase(path, synchronous=synchronous)
    if not _may_write(file):
        return ReadOnlyDatabase(path)
    try:
        return SqliteDatabase(path, synchronous=synchronous)  # works if the log and its index exist already
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

    def read(self, operation: Callable[[SqliteConnection], T]) -> T:
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
        subject = "it" if not _may_write(file) else f"its folder ({file.absolute().parent})"
        raise StorageError(
            self.path,
            f"{subject} may not be written to by this process",
            advice="grant write access to the file and its folder, or write to a copy; reading works without it",
        )

    def together(self, calls: Sequence[Callable[[], Any]], *, durable: bool = True) -> list[Callable[[], Any]]:
        return [_finished(call, durable=durable).outcome for call in calls]

    def watch(self, kinds: frozenset[str], on_events: Callable[[], object]) -> None:
        """Does nothing: no event is ever committed."""

    def take_event(self) -> None:
        return None

    @property
    def is_inside(self) -> bool:
        return False

    def erase(self) -> int:
        return 0


def _finished(call: Callable[[], Any], *, durable: bool) -> WriteRequest[Any]:
    request: WriteRequest[Any] = WriteRequest(lambda _: None, durable=durable)
    try:
        request.result = call()
    except BaseException as error:  # noqa: BLE001  # raised to the caller, as in a batch
        request.end(error)
    else:
        request.end()
    return request
