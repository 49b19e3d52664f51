"""The database of a command: where it is, whether it is one of this package, and the ids that a shell completes.

It is found without LangGraph, whose import takes most of the time of a short command.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from session_middleware.errors import StorageError
from session_middleware.models import utc_now
from session_middleware.settings import load_settings
from session_middleware.storage.factory import file_path, is_postgres, open_storage
from session_middleware.storage.sqlite.connection import read_unlocked, storage_error
from session_middleware.storage.sqlite.database import check_file
from session_middleware.storage.sqlite.files import check_path

_OWN_TABLES = "SELECT 1 FROM sqlite_master WHERE name IN ('sessions', 'list_items')"


def place_of(db: str | None, *, create: bool = False) -> str:
    """The path or URL of a database that exists, or with `create` of one that may. Raises as `check_database`."""
    url = load_settings(**({} if db is None else {"storage_url": db})).storage_url
    if is_postgres(url):
        return url
    path = file_path(url)
    if not create:
        check_database(path)
    return path


def check_database(path: str) -> None:
    """Check that the path leads to a database of this package, which may be damaged.

    Raises:
        StorageError: it is missing, unreadable, empty, or something else.
    """
    if not Path(path).exists():
        raise StorageError(path, "there is no such database", advice="name one with --db FILE, or run the app first")
    check_path(path)
    try:
        has_sessions = read_unlocked(path, lambda connection: connection.execute(_OWN_TABLES).fetchone() is not None)
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise storage_error(path, error) from error
        return
    if not has_sessions:
        check_file(path)
        advice = "name another one with --db FILE, or run the app first"
        raise StorageError(path, "the database is empty", advice=advice)


# Sessions that a person means


def ids_of(db: str | None, prefix: str, *, limit: int) -> list[str]:
    with closing(open_storage(load_settings(storage_url=place_of(db)), utc_now)) as storage:
        return storage.list_ids(prefix, limit=limit)
