"""The deep check of a PostgreSQL database, in one snapshot, while it is in use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg

from session_middleware.models import Problem
from session_middleware.storage.postgres.connection import PostgresConnection
from session_middleware.storage.sql.checks import find, without_moved
from session_middleware.storage.sql.connection import Cursor
from session_middleware.storage.sql.contents import Contents
from session_middleware.storage.sql.engine_context import EngineContext
from session_middleware.storage.sql.tables import tables

_PAGE = 500  # rows, all of which libpq holds in memory


def find_deep(connection: PostgresConnection, rules: EngineContext) -> list[Problem]:
    connection.has_savepoints = True  # a row that cannot be read does not end the transaction
    return without_moved([*_Contents(connection).check(deep=True), *find(connection, rules)])


class _Contents(Contents):
    errors = (psycopg.InternalError, psycopg.DataError)  # damaged pages are internal errors

    def rows(self, table: str, where: str, values: tuple[Any, ...]) -> Iterator[tuple[Cursor, tuple[Any, ...]]]:
        if where:
            yield from super().rows(table, where, values)
            return
        names, key = [*tables()[table].columns], ", ".join(tables()[table].key)
        places = [names.index(name) for name in tables()[table].key]
        later, after = "", ()
        while True:
            page = list(super().rows(table, f"{later} ORDER BY {key} LIMIT {_PAGE}", after))
            yield from page
            if len(page) < _PAGE:
                return
            later = f"WHERE ({key}) > ({', '.join('?' * len(places))})"
            after = tuple(page[-1][1][place] for place in places)
