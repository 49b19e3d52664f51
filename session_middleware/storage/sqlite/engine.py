"""The storage in one SQLite file."""

from __future__ import annotations

from session_middleware.models import Clock, NewId, Problem
from session_middleware.settings import SessionSettings
from session_middleware.storage.sql.engine import SqlStorage
from session_middleware.storage.sqlite.database import SqliteDatabase
from session_middleware.storage.sqlite.integrity import checks
from session_middleware.storage.sqlite.readonly import open_database


class SqliteStorage(SqlStorage):
    _database: SqliteDatabase

    def __init__(self, path: str, settings: SessionSettings, *, clock: Clock, new_id: NewId) -> None:
        super().__init__(open_database(path, synchronous=settings.synchronous), settings, clock=clock, new_id=new_id)

    def check(self, *, repair: bool, deep: bool = False) -> list[Problem]:
        self._database.version()  # raises if the file or its WAL was replaced
        found = self._database.read(lambda connection: checks.find(connection, self._rules, deep=deep))
        if not repair or not checks.is_repairable(found):
            return found
        return [self._repair(problem) for problem in found]  # each in its own transaction, so that runs are not blocked

    def _repair(self, problem: Problem) -> Problem:
        return self._database.write(lambda connection: checks.repair(connection, problem, self._rules), durable=False)
