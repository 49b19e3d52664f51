"""A connection to PostgreSQL, as the operations in SQL need it.

It uses libpq through `psycopg.pq`, because a cursor for each statement costs about ten times as much.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psycopg
from psycopg import errors, pq

from session_middleware.models import Event
from session_middleware.storage.postgres.translation import translated

_SUCCEEDED = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY)
_SAVEPOINTS = ("SAVEPOINT", "RELEASE", "ROLLBACK")


class RetryExclusively(BaseException):
    """An operation needs a further lock, and waiting could cause a deadlock. It is repeated with the exclusive lock."""


class RetryStatements(BaseException):
    """A failed statement has ended the transaction. It is repeated with a savepoint for each statement."""


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _numeric(data: bytes) -> int | float:
    """A sum of integers: digits to the base of 10,000."""
    count, weight, sign, _ = struct.unpack("!hhHh", data[:8])
    digits = struct.unpack(f"!{count}h", data[8:])
    value = sum(digit * 10000 ** (weight - place) for place, digit in enumerate(digits))
    value = -value if sign == 0x4000 else value
    return int(value) if value == int(value) else float(value)


_READERS: dict[int, Callable[[bytes], Any]] = {  # by the number of the type; others are text
    16: lambda data: int(data != b"\0"),  # as SQLite has it
    17: lambda data: data,
    20: _integer,
    21: _integer,
    23: _integer,
    701: lambda data: struct.unpack("!d", data)[0],
    1700: _numeric,
}


class PostgresCursor:
    """The result of a statement."""

    def __init__(self, result: pq.abc.PGresult) -> None:
        self.rowcount = result.command_tuples or 0
        columns = range(result.nfields)
        self.description = [((result.fname(n) or b"").decode(),) for n in columns]
        readers = [_READERS.get(result.ftype(n), _text) if result.fformat(n) else _text for n in columns]
        value = result.get_value
        self._rows: Iterator[tuple[Any, ...]] = iter(
            [
                tuple([None if (data := value(row, n)) is None else readers[n](data) for n in columns])
                for row in range(result.ntuples if columns else 0)
            ]
        )

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchmany(self, size: int = 1) -> list[Any]:
        return [row for row, _ in zip(self._rows, range(size), strict=False)]

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def close(self) -> None:
        pass


class PostgresConnection:
    conflict: type[Exception] = errors.UniqueViolation
    rejections: tuple[type[Exception], ...] = (
        psycopg.DataError,
        psycopg.IntegrityError,
        psycopg.InterfaceError,
        psycopg.ProgrammingError,
    )

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self.raw = raw
        self.watched: frozenset[str] = frozenset()
        self.written: list[Event] = []
        self.unfinished: list[Any] = []
        self.changes = 0  # rows that were inserted, updated and deleted
        self.is_writing = False
        self.has_savepoints = False  # a failed statement does not end the transaction
        self._pg = raw.pgconn
        self._names: dict[bytes, bytes] = {}

    def execute(self, sql: str, parameters: Any = (), /) -> PostgresCursor:
        if not self.has_savepoints:
            return self._first_try(sql, parameters)
        if sql.startswith(_SAVEPOINTS):
            return self.script(sql)
        self.script("SAVEPOINT statement")
        try:
            cursor = self._execute(sql, parameters)
        except psycopg.Error:
            self.script("ROLLBACK TO statement")
            raise
        self.script("RELEASE statement")
        return cursor

    def _first_try(self, sql: str, parameters: Any) -> PostgresCursor:
        try:
            return self.script(sql) if sql.startswith(_SAVEPOINTS) else self._execute(sql, parameters)
        except psycopg.Error as error:
            if self.is_writing and not self.raw.broken:
                raise RetryStatements from error
            raise

    def executemany(self, sql: str, rows: Iterable[Any], /) -> None:
        for row in rows:
            self.execute(sql, row)

    def script(self, sql: str) -> PostgresCursor:
        """Execute statements of PostgreSQL's dialect without parameters, in one round trip."""
        return PostgresCursor(self._checked(self._pg.exec_(sql.encode())))

    @property
    def is_in_transaction(self) -> bool:
        return self._pg.transaction_status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

    @property
    def is_open(self) -> bool:
        """Whether a transaction is in progress and has not failed."""
        return self._pg.transaction_status == pq.TransactionStatus.INTRANS

    def _execute(self, sql: str, parameters: Any) -> PostgresCursor:
        text, names = translated(sql)
        values, formats = _encoded([parameters[name] for name in names] if type(parameters) is dict else parameters)
        cursor = PostgresCursor(self._checked(self._pg.exec_prepared(self._prepared(text), values, formats, 1)))
        if not cursor.description:
            self.changes += cursor.rowcount
        return cursor

    def _prepared(self, text: bytes) -> bytes:
        name = self._names.get(text)
        if name is None:
            name = b"s%d" % len(self._names)
            self._checked(self._pg.prepare(name, text))
            self._names[text] = name
        return name

    def _checked(self, result: pq.abc.PGresult) -> pq.abc.PGresult:
        if result.status not in _SUCCEEDED:
            raise _error(self._pg, result)
        return result


# PostgreSQL stores no NUL in a text, and cannot read one in JSON. Each is stored as two other characters.
_ESCAPES = ((b"\1", b"\1\2"), (b"\0", b"\1\1"), (rb"\u0001", rb"\u0001\u0002"), (rb"\u0000", rb"\u0001\u0001"))


def escaped(value: str) -> bytes:
    text = value.encode()
    if b"\0" in text or b"\1" in text or rb"\u000" in text:
        for plain, stored in _ESCAPES:
            text = text.replace(plain, stored)
    return text


def _text(data: bytes) -> str:
    if b"\1" in data or rb"\u0001" in data:
        for plain, stored in reversed(_ESCAPES):
            data = data.replace(stored, plain)
    return data.decode()


def _encoded(parameters: Iterable[Any]) -> tuple[list[Any], list[int]]:
    """The parameters of libpq: bytes in binary format, others as text of the type that the server infers."""
    values: list[Any] = []
    for value in parameters:
        kind = type(value)
        if value is None:
            values.append(None)
        elif kind is str:
            values.append(escaped(value))
        elif kind is bytes or kind is bytearray or kind is memoryview:
            values.append(bytes(value))
        elif kind is bool:
            values.append(b"1" if value else b"0")
        elif kind is int and not -(2**63) <= value < 2**63:
            raise OverflowError(f"{value} has more than 64 bits")
        else:
            values.append(str(value).encode())
    return values, [int(isinstance(value, bytes | bytearray | memoryview)) for value in parameters]


def _error(connection: pq.abc.PGconn, result: pq.abc.PGresult) -> psycopg.Error:
    fields = (
        pq.DiagnosticField.MESSAGE_PRIMARY,
        pq.DiagnosticField.CONSTRAINT_NAME,
    )  # other fields repeat stored values
    parts = [part for field in fields if (part := result.error_field(field))] or [connection.error_message]
    message = " ".join(part.decode("utf-8", "replace").strip() for part in dict.fromkeys(parts))
    state = result.error_field(pq.DiagnosticField.SQLSTATE)
    if connection.status == pq.ConnStatus.BAD or state is None:
        return psycopg.OperationalError(message)
    try:
        return errors.lookup(state.decode())(message)
    except KeyError:
        return psycopg.DatabaseError(message)
