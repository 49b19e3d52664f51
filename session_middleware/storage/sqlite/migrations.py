"""How the tables in a file came to be."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from session_middleware.storage.sql.schema import TABLES

migrations = Migrations("session_middleware")


@migrations()
def m001_initial(db: Database) -> None:
    for statement in TABLES:
        db.execute(statement)


def latest() -> frozenset[str]:
    """The names of all migrations this version of the code knows."""
    return frozenset(migration.name for migration in migrations._migrations)


def apply(db: Database) -> None:
    """Bring the schema up to date. The caller holds the write lock and commits."""
    migrations.apply(db)
