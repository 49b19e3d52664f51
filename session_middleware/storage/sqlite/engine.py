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
        found, repaired = self._find(deep=deep), dict[Problem, Problem]()
        while repair and (due := [each for each in checks.repairable(found) if each not in repaired]):
            for problem in due:  # each in its own transaction, so that runs are not blocked
                repaired[problem] = self._repair(problem)
            found = self._find(deep=deep)  # a repair may uncover further problems, such as orphans of orphans
        return [done for problem, done in repaired.items() if problem not in found] + found

    def _find(self, *, deep: bool) -> list[Problem]:
        return self._database.read(lambda connection: checks.find(connection, self._rules, deep=deep))

    def _repair(self, problem: Problem) -> Problem:
        return self._database.write(lambda connection: checks.repair(connection, problem, self._rules), durable=False)
