"""A connection to PostgreSQL, as the operations in SQL need it.

It uses libpq through `psycopg.pq`, in pipeline mode: a cursor for each statement costs about ten times as much, and a
round trip for each statement costs more than the statement does.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from itertools import zip_longest
from typing import Any, NoReturn

import psycopg
from psycopg import abc, errors, pq
from psycopg.adapt import Loader, Transformer
from psycopg.types.numeric import NumericBinaryLoader
from psycopg.waiting import Ready, Wait

from session_middleware.storage.postgres.translation import translated
from session_middleware.storage.sql.connection import Lock, Retry, Shared, Transaction

_SUCCEEDED = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY)
_SAVEPOINTS = ("SAVEPOINT", "RELEASE", "ROLLBACK")
_QUEUE = 500  # statements that are sent together at most
_ROWS = 100  # that are read from a result at a time
_NO_ROW, _LOCKED = "SM001", "SM002"  # raised by functions of `library.sql`
_CONFLICTS = (errors.DeadlockDetected, errors.SerializationFailure)
_MOST_LOCKS = 1_000  # of a transaction, because the server's table of locks is small; one that needs more locks all
_ACQUIRE = "SELECT expect_lock(acquire_lock(?, ?, ?))"
_ACQUIRE_IN_ORDER = "SELECT acquire_locks(?, ?)"
_ACQUIRE_FREE = "SELECT value FROM json_each(?) WHERE acquire_lock(value, false, false)"


class RetryLocked(BaseException):
    """An operation needs a further lock, and waiting could cause a deadlock.

    It is repeated with these locks, acquired in order at the beginning; ``None``: all.
    """

    def __init__(self, locks: Collection[Lock] | None) -> None:
        self.locks = locks


class RetryStatements(BaseException):
    """A failed statement has ended the transaction. It is repeated with a savepoint for each statement."""


class _Flag(Loader):
    """A boolean is 0 or 1, as SQLite has it."""

    format = pq.Format.BINARY

    def load(self, data: abc.Buffer) -> int:
        return bytes(data)[0]


class _Sum(NumericBinaryLoader):
    """A sum of integers is an integer."""

    def load(self, data: abc.Buffer) -> Any:
        value = super().load(data)
        return int(value) if value == int(value) else float(value)


class PostgresCursor:
    """The result of a statement. It is received from the server when it is first looked at."""

    __slots__ = ("_connection", "_result", "_rows")

    def __init__(self, connection: PostgresConnection) -> None:
        self._connection = connection
        self._result: pq.abc.PGresult | None = None
        self._rows: Iterator[tuple[Any, ...]] | None = None

    def fill(self, result: pq.abc.PGresult) -> None:
        self._result = result

    def _received(self) -> pq.abc.PGresult:
        if self._result is None:
            self._connection.receive()
        if self._result is None:
            raise psycopg.InterfaceError("an earlier statement of the transaction has failed")
        return self._result

    @property
    def rowcount(self) -> int:
        return self._received().command_tuples or 0

    @property
    def description(self) -> list[tuple[str]]:
        result = self._received()
        return [((result.fname(n) or b"").decode(),) for n in range(result.nfields)]

    def __iter__(self) -> Iterator[Any]:
        if self._rows is None:
            self._rows = self._read(self._received())
        return self._rows

    def _read(self, result: pq.abc.PGresult) -> Iterator[tuple[Any, ...]]:
        transformer = self._connection.transformer
        for start in range(0, result.ntuples if result.nfields else 0, _ROWS):
            transformer.set_pgresult(result, format=pq.Format.BINARY)  # other cursors have used it since
            for row in transformer.load_rows(start, min(start + _ROWS, result.ntuples), tuple):
                for value in row:
                    if type(value) is str and ("\1" in value or r"\u0001" in value):
                        row = tuple(map(_unescaped, row))
                        break
                yield row

    def fetchone(self) -> Any:
        return next(iter(self), None)

    def fetchmany(self, size: int = 1) -> list[Any]:
        return [row for row, _ in zip(self, range(size), strict=False)]

    def fetchall(self) -> list[Any]:
        return list(self)

    def close(self) -> None:
        pass


@lru_cache(maxsize=4096)
def _name(text: bytes) -> bytes:
    """The name of a prepared statement. A pooler may bring us to a connection where another process prepared it."""
    return blake2b(text, digest_size=16).hexdigest().encode()


class PostgresConnection(Transaction):
    """A connection whose statements are queued, and sent when a result is looked at or the transaction ends.

    A transaction takes one round trip for each result that is looked at, and one for its end. The error of a statement
    is raised by the next round trip: in a transaction that writes, as `RetryStatements`.
    """

    conflict: type[Exception] = errors.UniqueViolation
    rejections: tuple[type[Exception], ...] = (
        psycopg.DataError,
        psycopg.IntegrityError,
        psycopg.InterfaceError,
        psycopg.ProgrammingError,
    )

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self.raw = raw
        self.reset()
        self.changes = 0  # statements that may have changed something
        self.is_writing = False
        self.has_savepoints = False  # a failed statement does not end the transaction
        self.has_all_locks = False
        self.locks: set[Lock] = set()  # of the transaction
        self.has_names = True  # each statement is prepared once, which not every transaction pooler allows
        self._pg = raw.pgconn
        raw.adapters.register_loader("bool", _Flag)
        raw.adapters.register_loader("numeric", _Sum)
        self.transformer = Transformer(raw)
        self._names: dict[bytes, bytes] = {}  # of the prepared statements, by their texts
        self._failures = 0  # of preparing one
        self._prefetched: dict[tuple[str, Any], PostgresCursor] = {}
        self._queued: list[PostgresCursor | bytes] = []  # of statements, and texts of statements to be prepared
        self._sent: list[PostgresCursor | bytes] = []  # whose results are to be received
        self._syncs = 0  # among them
        self._pg.enter_pipeline_mode()

    @property
    def is_optimistic(self) -> bool:
        return not self.has_savepoints

    # Statements

    def execute(self, sql: str, parameters: Any = (), /) -> PostgresCursor:
        if self._prefetched and type(parameters) is tuple and (sql, parameters) in self._prefetched:
            return self._prefetched.pop((sql, parameters))
        text, names, is_writing = translated(sql)
        if is_writing:
            self.changes += 1
            self._prefetched.clear()  # it may change their results
        values = [parameters[name] for name in names] if type(parameters) is dict else parameters
        if not self.has_savepoints:
            return self._send(text, values)
        if sql.startswith(_SAVEPOINTS):
            return self._send_and_receive(text, values)
        self._send(b"SAVEPOINT statement")
        try:
            cursor = self._send_and_receive(text, values)
        except psycopg.Error:
            if not self.raw.broken:
                self._send_and_receive(b"ROLLBACK TO statement")
            raise
        self._send(b"RELEASE statement")
        return cursor

    def prefetch(self, sql: str, parameters: tuple[Any, ...], /) -> None:
        if self.is_optimistic:
            self._prefetched[sql, parameters] = self.execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Any], /) -> None:
        for row in rows:
            self.execute(sql, row)

    def acquire(self, locks: Collection[Lock]) -> None:
        """Acquire locks, and wait for them if there are no others: else waiting could cause a deadlock.

        Raises `RetryLocked`, at the latest with the next result that is looked at.
        """
        may_wait = not self.locks
        self.locks.update(locks)
        if len(self.locks) > _MOST_LOCKS:
            raise RetryLocked(None)
        if may_wait and len(locks) > 1:
            shared = [lock.name for lock in locks if isinstance(lock, Shared)]
            alone = [lock for lock in locks if not isinstance(lock, Shared)]
            self.execute(_ACQUIRE_IN_ORDER, (json.dumps(alone), json.dumps(shared)))
            return
        for lock in locks:
            name = lock.name if isinstance(lock, Shared) else lock
            self.execute(_ACQUIRE, (name, name is not lock, may_wait))

    def lock(self, names: Collection[str], /) -> None:
        if not self.lock_free(names).issuperset(names):
            raise RetryLocked(self.locks.union(names))

    def lock_free(self, names: Collection[str], /) -> set[str]:
        if self.has_all_locks or self.locks.issuperset(names):
            return {*names}
        missing = [name for name in names if name not in self.locks]
        if len(self.locks) + len(missing) > _MOST_LOCKS:
            raise RetryLocked(None)
        self.locks.update(name for (name,) in self.execute(_ACQUIRE_FREE, (json.dumps(missing),)))
        return self.locks.intersection(names)  # type: ignore[return-value]

    def update_row(self, sql: str, parameters: Any, /) -> None:
        self.execute(f"WITH updated AS ({sql} RETURNING 1) SELECT expect_row(count(*)) FROM updated", parameters)

    def _send_and_receive(self, text: bytes, values: Sequence[Any] = ()) -> PostgresCursor:
        cursor = self._send(text, values)
        self.receive()
        return cursor

    def _send(self, text: bytes, values: Sequence[Any] = ()) -> PostgresCursor:
        if len(self._queued) >= _QUEUE:
            self.receive()
        encoded, formats = _encoded(values)
        if self.has_names:
            name = self._names.get(text)
            if name is None:
                # After a failure another name: PgBouncer closes a connection that prepares one name twice.
                name = self._names[text] = _name(text) + (b"_%d" % self._failures if self._failures else b"")
                self._pg.send_prepare(name, text)
                self._queued.append(text)
            self._pg.send_query_prepared(name, encoded, formats, 1)
        else:
            self._pg.send_query_params(text, encoded, None, formats, 1)
        cursor = PostgresCursor(self)
        self._queued.append(cursor)
        return cursor

    def _sync(self) -> None:
        """Have the server execute what is queued, and recover from an error."""
        if self._queued:
            self._pg.pipeline_sync()
            self._syncs += 1
            self._sent += self._queued
            self._queued.clear()

    def receive(self) -> None:
        """Receive the results of all statements, in one round trip. Raises the first error."""
        self._sync()
        (sent, self._sent), (syncs, self._syncs) = (self._sent, []), (self._syncs, 0)
        if not sent:
            return
        error: psycopg.Error | None = None
        try:
            results = self.raw.wait(_results(self._pg, syncs))
        except psycopg.OperationalError as lost:
            results, error = [], lost
        for each, result in zip_longest(sent, results):
            if result is None or result.status not in _SUCCEEDED:
                error = error or _error(self._pg, result)
                if isinstance(each, bytes):
                    self._names.pop(each, None)
                    self._failures += 1
            elif isinstance(each, PostgresCursor):
                each.fill(result)
        if error is not None:
            self._raise(error)

    def _raise(self, error: psycopg.Error) -> NoReturn:
        if error.sqlstate == _NO_ROW or (self.is_writing and isinstance(error, _CONFLICTS)):
            raise Retry from error
        if error.sqlstate == _LOCKED:
            raise RetryLocked({*self.locks}) from error
        has_lost_names = isinstance(error, (errors.DuplicatePreparedStatement, errors.InvalidSqlStatementName))
        if has_lost_names:  # a pooler gave this transaction another connection than the last one
            self.has_names = False
        if has_lost_names or (self.is_writing and not self.has_savepoints and not self.raw.broken):
            raise RetryStatements from error
        raise error

    # Transactions

    def begin(self, mode: bytes, settings: bytes) -> None:
        """Queue the begin of a transaction. Raises `psycopg.OperationalError` if the connection is known to be lost."""
        for _ in range(2):  # the server's last message, then the end of the connection
            self._pg.consume_input()
        self._prefetched.clear()
        self._send(mode)
        self._send(settings)

    def commit(self) -> None:
        self._send_and_receive(b"COMMIT")

    def end(self) -> None:
        """Roll back, unless the transaction was committed. The next transaction receives the result."""
        self.reset()
        self.is_writing = self.has_savepoints = False
        if self._queued or self._pg.transaction_status != pq.TransactionStatus.IDLE:
            with suppress(psycopg.Error, Retry, RetryLocked, RetryStatements):
                self.receive()
            with suppress(psycopg.Error):  # a lost connection
                self._send(b"ROLLBACK")
                self._sync()
                self._pg.flush()

    @property
    def is_open(self) -> bool:
        """Whether a transaction is in progress and has not failed."""
        with suppress(psycopg.Error, Retry, RetryLocked, RetryStatements):
            self.receive()
        return self._pg.transaction_status == pq.TransactionStatus.INTRANS


def _results(connection: pq.abc.PGconn, syncs: int) -> Generator[Wait, Ready | int, list[pq.abc.PGresult]]:
    """Send what libpq has not sent yet, and receive one result for each statement."""
    found: list[pq.abc.PGresult] = []
    while connection.flush():
        if (yield Wait.RW) & Ready.R:
            connection.consume_input()
    while syncs and connection.status == pq.ConnStatus.OK:
        while connection.is_busy():
            yield Wait.R
            connection.consume_input()
        result = connection.get_result()
        if result is not None and result.status == pq.ExecStatus.PIPELINE_SYNC:
            syncs -= 1
        elif result is not None:
            found.append(result)
    return found


# PostgreSQL stores no NUL in a text, and cannot read one in JSON. Each is stored as two other characters.
_ESCAPES = ((b"\1", b"\1\2"), (b"\0", b"\1\1"), (rb"\u0001", rb"\u0001\u0002"), (rb"\u0000", rb"\u0001\u0001"))


def _escape(text: bytes) -> bytes:
    for plain, stored in _ESCAPES:
        text = text.replace(plain, stored)
    return text


def _unescaped(value: Any) -> Any:
    if type(value) is str:
        for plain, stored in reversed(_ESCAPES):
            value = value.replace(stored.decode(), plain.decode())
    return value


def _encoded(parameters: Collection[Any]) -> tuple[list[Any], list[int] | None]:
    """The parameters of libpq: bytes in binary format, others as text of the type that the server infers.

    It is called for each statement, with up to hundreds of values, so it searches all texts at once.
    """
    texts = "".join([value for value in parameters if type(value) is str])
    is_escaped = "\1" in texts or "\0" in texts or r"\u000" in texts
    values: list[Any] = []
    binary: list[int] = []
    for value in parameters:
        kind = type(value)
        if kind is str:
            values.append(_escape(value.encode()) if is_escaped else value.encode())
        elif value is None:
            values.append(None)
        elif kind is int:
            if not _LEAST <= value <= _GREATEST:
                raise OverflowError(f"{value} has more than 64 bits")
            values.append(b"%d" % value)
        elif kind is bytes or kind is bytearray or kind is memoryview:
            binary.append(len(values))
            values.append(bytes(value))
        elif issubclass(kind, str):  # of another class: its text, which may differ from its `str()`
            values.append(_escape(value.encode()))
        else:
            values.append(str(int(value) if kind is bool else value).encode())
    if not binary:
        return values, None
    formats = [0] * len(values)
    for place in binary:
        formats[place] = 1
    return values, formats


_LEAST, _GREATEST = -(2**63), 2**63 - 1


def _error(connection: pq.abc.PGconn, result: pq.abc.PGresult | None) -> psycopg.Error:
    if result is None:
        return psycopg.OperationalError(connection.error_message.decode("utf-8", "replace").strip() or "it was lost")
    fields = (pq.DiagnosticField.MESSAGE_PRIMARY, pq.DiagnosticField.CONSTRAINT_NAME)  # the others repeat values
    parts = [part for field in fields if (part := result.error_field(field))] or [connection.error_message]
    message = " ".join(part.decode("utf-8", "replace").strip() for part in dict.fromkeys(parts))
    state = result.error_field(pq.DiagnosticField.SQLSTATE)
    if connection.status == pq.ConnStatus.BAD or state is None:
        return psycopg.OperationalError(message)
    try:
        return errors.lookup(state.decode())(message)
    except KeyError:
        error = psycopg.DatabaseError(message)
        error.sqlstate = state.decode()
        return error
