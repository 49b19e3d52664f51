"""The tables as values, parsed from `schema.py`: their columns, their keys, and their rows in the order of the keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from session_middleware.storage.sql.connection import Connection
from session_middleware.storage.sql.schema import TABLES

Row = tuple[Any, ...]

_TYPES: dict[str, Any] = {"TEXT": str, "INTEGER": int, "REAL": int | float, "BLOB": bytes}
_TABLE = re.compile(r"\s*CREATE TABLE (\w+) \(\s*(.*)\)", re.DOTALL)
_COLUMN = re.compile(r"^\s*(\w+) (TEXT|INTEGER|REAL|BLOB)\b(.*)$", re.MULTILINE)
_KEY = re.compile(r"PRIMARY KEY \(([^)]*)\)")


class Column(NamedTuple):
    kind: Any  # a type, for `isinstance`
    is_required: bool


class Table(NamedTuple):
    name: str
    columns: Mapping[str, Column]
    key: tuple[str, ...]

    def page(self, where: str = "TRUE", *, after: Row | None = None, limit: int, columns: str = "") -> tuple[str, Row]:
        """The statement that selects the rows with the next keys, each with its key in front, and its values."""
        key, marks = ", ".join(self.key), ", ".join("?" * len(self.key))
        later = "" if after is None else f" AND ({key}) > ({marks})"
        sql = f"SELECT {key}, {columns or f'{self.name}.*'} FROM {self.name} WHERE {where}{later}"
        return f"{sql} ORDER BY {key} LIMIT {limit}", after or ()

    def rows(
        self,
        fetch: Callable[[str, Row], list[Row]],
        where: str = "TRUE",
        values: Row = (),
        *,
        limit: int,
        columns: str = "",
    ) -> Iterator[tuple[Row, Row]]:
        """Pairs of key and row in the order of the keys, read in pages of `limit` rows."""
        after: Row | None = None
        while True:
            sql, at = self.page(where, after=after, limit=limit, columns=columns)
            found = fetch(sql, (*values, *at))
            for row in found:
                yield row[: len(self.key)], row[len(self.key) :]
            if len(found) < limit:
                return
            after = found[-1][: len(self.key)]

    def insert(self, columns: Iterable[str], tail: str = "") -> str:
        names = tuple(columns)
        return f"INSERT INTO {self.name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) {tail}"


def fetched(connection: Connection, sql: str, values: Row) -> list[Row]:
    return connection.execute(sql, values).fetchall()


@cache
def tables() -> dict[str, Table]:
    """All tables by name."""
    found = {}
    for created in filter(None, map(_TABLE.match, TABLES)):
        name, text = created.groups()
        columns = {
            column: Column(_TYPES[kind], "NOT NULL" in rest or "PRIMARY KEY" in rest)
            for column, kind, rest in _COLUMN.findall(text)
        }
        key = tuple(stated[1].split(", ")) if (stated := _KEY.search(text)) else (next(iter(columns)),)
        found[name] = Table(name, columns, key)
    return found
