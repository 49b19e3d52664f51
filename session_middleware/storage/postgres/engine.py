"""The storage in one PostgreSQL database."""

from __future__ import annotations

from session_middleware.models import Clock, NewId
from session_middleware.settings import SessionSettings
from session_middleware.storage.postgres.database import PostgresDatabase
from session_middleware.storage.sql.engine import SqlStorage


class PostgresStorage(SqlStorage):
    def __init__(self, url: str, settings: SessionSettings, *, clock: Clock, new_id: NewId) -> None:
        super().__init__(PostgresDatabase(url, synchronous=settings.synchronous), settings, clock=clock, new_id=new_id)
