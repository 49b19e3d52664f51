"""The tables, translated to PostgreSQL's dialect, in a schema of their own.

All keys of a table contain one column: the session, the family, the owner or the scope of its rows. Each table can
therefore be divided into hash partitions, or distributed, by this column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import psycopg

from session_middleware.storage.sql.schema import TABLES

NAME = "session_middleware"
_MIGRATION = "m001_initial"
_TABLE = re.compile(r"\s*CREATE TABLE (\w+)")
_NUMBERED = re.compile(r"\b(\w+) INTEGER PRIMARY KEY(?! CHECK)")  # SQLite's rowid
_MEANING = re.compile(r"^\s*(\w+) [A-Z].*? -- (.*)$", re.MULTILINE)
_KEY = re.compile(r"(?:PRIMARY KEY|UNIQUE) \((\w+)|(\w+)(?: [A-Z]+)+ (?:PRIMARY KEY|UNIQUE)")
_WORDS = tuple(
    (re.compile(pattern), word)
    for pattern, word in (
        (r"\bINTEGER\b", "bigint"),
        (r"\bREAL\b", "double precision"),
        (r"\bBLOB\b", "bytea"),
        (r"\)\s*WITHOUT ROWID", ")"),
        (r"\bTEXT\b", 'text COLLATE "C"'),  # ordered by code points
    )
)
_LOCK = 7_236_001  # the advisory lock held while the tables are created


def statements(partitions: int = 0) -> list[str]:
    """The statements that create everything, in order. With `partitions`, each table has so many hash partitions."""
    found = [f"CREATE SCHEMA IF NOT EXISTS {NAME}", f"SET LOCAL search_path TO {NAME}", _read("library.sql")]
    for statement in TABLES:
        if table := _TABLE.match(statement):
            found += map(_translated, _created(table[1], statement, partitions))
            found += _comments(table[1], statement)
        elif not statement.lstrip().startswith("CREATE TRIGGER"):
            found.append(_translated(statement))
    triggers = _read("triggers.sql").format(version_columns=_version_columns())
    migrations = "CREATE TABLE migrations (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
    return [*found, triggers, migrations, f"INSERT INTO migrations (name) VALUES ('{_MIGRATION}')"]


def _created(table: str, statement: str, partitions: int) -> Iterator[str]:
    """Replace a rowid by a number from a sequence, with a plain index. The unique key becomes the primary key."""
    column = None
    if numbered := _NUMBERED.search(statement):
        column = numbered[1]
        yield f"CREATE SEQUENCE {table}_{column}"
        default = f"{column} INTEGER NOT NULL DEFAULT nextval('{table}_{column}')"
        statement = _NUMBERED.sub(default, statement).replace("UNIQUE", "PRIMARY KEY")
    key = _KEY.search(statement)
    assert key
    yield statement + (f" PARTITION BY HASH ({key[1] or key[2]})" if partitions else "")
    if column:
        yield f"ALTER SEQUENCE {table}_{column} OWNED BY {table}.{column}"
        yield f"CREATE INDEX {table}_by_{column} ON {table} ({column})"
    for part in range(partitions):
        values = f"WITH (MODULUS {partitions}, REMAINDER {part})"
        yield f"CREATE TABLE {table}_{part} PARTITION OF {table} FOR VALUES {values}"


def _comments(table: str, statement: str) -> Iterator[str]:
    """Keep what each column means, which SQLite keeps with the text of the table; ``\\d+`` of `psql` shows it."""
    for column, meaning in _MEANING.findall(statement):
        text = meaning.replace("'", "''")
        yield f"COMMENT ON COLUMN {table}.{column} IS '{text}'"


def _translated(statement: str) -> str:
    for pattern, word in _WORDS:
        statement = pattern.sub(word, statement)
    return statement


def script(partitions: int = 0) -> str:
    """One transaction that creates everything, for `psql`."""
    created = (statement.strip().removesuffix(";") for statement in statements(partitions))
    return ";\n".join(["BEGIN", *created, "COMMIT;"])


def numbered() -> list[tuple[str, str]]:
    """The tables whose rows the server numbers, and the columns of the numbers."""
    tables = ((_TABLE.match(statement), _NUMBERED.search(statement)) for statement in TABLES)
    return [(table[1], column[1]) for table, column in tables if table and column]


def _version_columns() -> str:
    """The columns whose change increments the version of a session, from SQLite's trigger."""
    found = re.search(r"TRIGGER sessions_version AFTER UPDATE OF(.*?)ON", ";".join(TABLES), re.DOTALL)
    assert found
    return found[1].strip()


def _read(name: str) -> str:
    return (files(__package__) / name).read_text()


def migrate(connection: psycopg.Connection[Any]) -> None:
    """Create the tables if they do not exist."""
    if not _is_migrated(connection):
        with connection.transaction():
            connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})".encode())
            if not _is_migrated(connection):
                connection.execute(";\n".join(statements()).encode())


def _is_migrated(connection: psycopg.Connection[Any]) -> bool:
    (found,) = connection.execute(f"SELECT to_regclass('{NAME}.migrations') IS NOT NULL".encode()).fetchone() or (None,)
    return bool(found)
