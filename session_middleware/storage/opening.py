"""Which engine a storage URL names."""

from __future__ import annotations

from pathlib import Path

from session_middleware.errors import InvalidSettings
from session_middleware.model import Clock, NewId
from session_middleware.settings import SessionSettings
from session_middleware.storage.port import Storage
from session_middleware.storage.sqlite.engine import SqliteStorage


def open_storage(settings: SessionSettings, clock: Clock, new_id: NewId) -> Storage:
    url = settings.storage_url
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "sqlite":
        raise InvalidSettings([f"storage_url: {scheme}:// is not supported; name a file, or ':memory:'"])
    path = rest.removeprefix("/") or ":memory:" if separator else url
    if path.startswith("~"):
        path = str(Path(path).expanduser())
    return SqliteStorage(path, settings, clock=clock, new_id=new_id)
