"""The one connection of a process that writes to an SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from session_middleware.storage.sql.writer import Writer, WriteRequest
from session_middleware.storage.sqlite.connection import SqliteConnection
from session_middleware.storage.sqlite.wal import Wal

if TYPE_CHECKING:
    from session_middleware.storage.sqlite.database import SqliteDatabase

_VACUUM_PAGES = 1000  # released at a time, which takes a few milliseconds


class SqliteWriter(Writer):
    errors = (sqlite3.Error,)
    connection: SqliteConnection
    _database: SqliteDatabase

    def __init__(self, database: SqliteDatabase, connection: SqliteConnection, wal: Wal | None) -> None:
        super().__init__(database)
        self.connection = connection
        self.erases_after_commit = False
        self._wal = wal
        self._mode = ""  # the synchronous pragma now in force

    def close(self) -> None:
        self.connection.close()

    def _begin(self, batch: Sequence[WriteRequest[Any]]) -> None:
        mode = "NORMAL"
        for request in batch:
            if request.durable:
                mode = self._database.synchronous.upper()
        if mode != self._mode:
            self.connection.execute(f"PRAGMA synchronous={mode}")
            self._mode = mode
        self.connection.execute("BEGIN IMMEDIATE")
        if self._database.files is not None:
            self._database.files.check()

    def _end(self) -> None:
        self.connection.execute("COMMIT")

    def _abort(self) -> None:
        with suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        self.connection.reset()

    def _committed(self) -> None:
        if self._wal is not None:
            self._wal.committed()
        if self.erases_after_commit:
            self.erases_after_commit = False
            while self.release_pages():
                pass

    def _is_open(self) -> bool:
        return self.connection.in_transaction  # a full disk ends it

    def rebuild(self) -> None:
        """Write the file anew without unused pages, and empty the log."""
        self.connection.execute("VACUUM")
        if self._wal is not None:
            self._wal.empty()

    def release_pages(self) -> int:
        """Release some unused pages, and return their bytes. If there are none, empty the log."""
        pragmas = ("page_size", "freelist_count")
        page, before = (self.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas)
        self.connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")  # `execute` stops at one page
        released = before - self.connection.execute("PRAGMA freelist_count").fetchone()[0]
        if not released and self._wal is not None:
            self._wal.empty()
        return int(released * page)
