"""The storage in one SQLite file."""

from __future__ import annotations

from pathlib import Path

from session_middleware.models import Clock, Problem
from session_middleware.settings import SessionSettings
from session_middleware.storage.sql.engine import SqlStorage
from session_middleware.storage.sqlite import backups
from session_middleware.storage.sqlite.database import SqliteDatabase
from session_middleware.storage.sqlite.integrity import find
from session_middleware.storage.types import Progress


class SqliteStorage(SqlStorage):
    _database: SqliteDatabase

    def __init__(self, path: str, settings: SessionSettings, *, clock: Clock) -> None:
        super().__init__(SqliteDatabase(path, synchronous=settings.synchronous), settings, clock=clock)

    def _find(self, *, deep: bool) -> list[Problem]:
        return self._database.read(lambda connection: find(connection, self._rules, deep=deep))

    def back_up(self, path: Path, *, progress: Progress | None = None) -> None:
        self._database.read(lambda connection: backups.write(connection, path, self._rules.settings, progress))
