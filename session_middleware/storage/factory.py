"""Opens the storage engine that a storage URL names."""

from __future__ import annotations

import os
from pathlib import Path

from session_middleware.errors import InvalidSettings, StorageError
from session_middleware.models import Clock
from session_middleware.settings import SessionSettings
from session_middleware.storage.sql.engine import SqlStorage
from session_middleware.storage.sqlite.engine import SqliteStorage


def open_storage(settings: SessionSettings, clock: Clock) -> SqlStorage:
    if not is_postgres(settings.storage_url):
        return SqliteStorage(file_path(settings.storage_url), settings, clock=clock)
    try:
        from session_middleware.storage.postgres.database import PostgresStorage
    except ImportError as error:
        problem = f"storage_url: postgresql:// needs further packages ({error})"
        raise InvalidSettings([f"{problem}; run: pip install 'session-middleware[postgres]'"]) from error
    return PostgresStorage(settings.storage_url, settings, clock=clock)


def is_postgres(url: str) -> bool:
    return url.startswith(("postgresql://", "postgres://"))


def file_path(url: str) -> str:
    """The path of the SQLite file that a storage URL names, or ``":memory:"``. The file need not exist.

    Raises:
        InvalidSettings: the URL has another scheme than ``sqlite``.
        StorageError: the operating system cannot have a file with this path.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "sqlite":
        raise InvalidSettings(
            [f"storage_url: {scheme}:// is not supported; name a file, ':memory:', or postgresql://host/database"]
        )
    path = rest.removeprefix("/") or ":memory:" if separator else url
    if not path.strip():
        raise StorageError(path, "the path is empty", advice="name a file, such as sessions.db, or ':memory:'")
    if path.endswith(("/", os.sep)):
        raise StorageError(path, "it is a folder", advice=f"name a file in it, such as {path}sessions.db")
    try:
        file = str(Path(path).expanduser()) if path.startswith("~") else path
        os.stat(file)  # noqa: PTH116  # `Path.exists` hides some errors
    except (FileNotFoundError, NotADirectoryError):
        return file
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL character, or an unknown home folder
        raise StorageError(repr(path), f"it cannot be looked up ({error})", advice="choose another path") from error
    return file
