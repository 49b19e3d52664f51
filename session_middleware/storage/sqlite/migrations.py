"""How the tables in a file came to be."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from session_middleware.storage.sql.schema import TABLES

migrations = Migrations("session_middleware")


@migrations()
def m001_initial(db: Database) -> None:
    for statement in TABLES:
        db.execute(statement)
