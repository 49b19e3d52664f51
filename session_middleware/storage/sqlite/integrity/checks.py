"""The consistency checks of a file, which may be damaged anywhere."""

from __future__ import annotations

from session_middleware.models import Problem, utc_now
from session_middleware.settings import SessionSettings
from session_middleware.storage.sql.checks import checks, without_moved
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sqlite.connection import SqliteConnection
from session_middleware.storage.sqlite.integrity import contents
from session_middleware.storage.sqlite.integrity.reading import UNREADABLE, inspect, structure, tolerant, unfinished


def check_file(path: str, settings: SessionSettings, *, deep: bool = False) -> list[Problem]:
    """Run `find` on a file, which is only read. Raises `StorageError` if the file cannot be opened."""
    rules = EngineContext(settings, utc_now, new_id=str, path=path)
    return inspect(path, lambda connection: find(connection, rules, deep=deep))


def find(connection: SqliteConnection, rules: EngineContext, *, deep: bool = False) -> list[Problem]:
    """The problems of a database. `deep` reads every row and compares all checksums. Damage never raises.

    Raises:
        sqlite3.OperationalError: the file cannot be opened, or is locked.
    """
    with tolerant(connection) as found:
        of_file = [lambda: structure(connection, deep=deep), lambda: contents.check(connection, deep=deep)]
        for check in [*of_file, *checks(connection, rules)] if len(found) < 2 else ():  # else no table can be read
            try:
                found += check()
            except UNREADABLE as error:
                found.append(unfinished(error))
        return without_moved(found)
