"""What the operations in SQL need of a database and its driver. Each engine implements it.

The SQL is written once, in the words of SQLite. A connection to another database translates it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from session_middleware.models import Event
from session_middleware.storage.run import RunContext
from session_middleware.storage.sql.run_write import RunWrite

T = TypeVar("T")
C = TypeVar("C", bound=Collection[str])
UNLIMITED = 2**62  # as a LIMIT


class Shared(NamedTuple):
    """A lock that several transactions may hold at the same time, while none holds it alone."""

    name: str


Lock: TypeAlias = str | Shared  # a session's id names the lock of its family
Locks: TypeAlias = Lock | Collection[Lock] | None  # ``None``: all, so no other process writes
Statement: TypeAlias = tuple[str, Sequence[Any]]  # with its parameters


def lock_found(connection: Connection, find: Callable[[], C]) -> C:
    """Lock the sessions that `find` returns. It is called again, because they may change until they are locked."""
    locked: set[str] = set()
    while not locked.issuperset(found := find()):
        connection.lock(found)
        locked.update(found)
    return found


def among(column: str, texts: Iterable[str]) -> tuple[str, list[str]]:
    """The condition that a column has one of these texts, and its parameters."""
    listed = [*texts]
    with_nul = [text for text in listed if "\0" in text]  # where a text of SQLite's `json_each` ends
    condition = f"{column} IN (SELECT value FROM json_each(?))"
    if not with_nul:
        return condition, [json.dumps(listed)]
    others = [text for text in listed if "\0" not in text]
    return f"({condition} OR {column} IN ({', '.join('?' * len(with_nul))}))", [json.dumps(others), *with_nul]


def index_lock(session_id: str) -> str:
    """The lock of a session's part of the index. It is acquired after the locks of families."""
    return f"\0index {session_id}"


class DamagedRow(Exception):
    """A row holds what this package does not write."""


class Retry(Exception):
    """Raised in an operation whose transaction is to be rolled back and carried out again."""


class CommitThenRaise(Exception):
    """Returned (not raised) by an operation: its transaction is committed, and `error` is raised to its caller."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Cursor(Protocol):
    @property
    def description(self) -> Sequence[Sequence[Any]]: ...
    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchmany(self, size: int = ..., /) -> list[Any]: ...
    def fetchall(self) -> list[Any]: ...
    def close(self) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...


class Transaction(Protocol):
    """What the operations of a connection's transaction have done besides executing statements."""

    watched: frozenset[str] = frozenset()  # kinds of events
    written: list[Event]  # the watched events
    unfinished: list[Any]  # the `SessionWrite` of each operation
    decisions: dict[RunContext, RunWrite]  # of the operations that have succeeded

    def reset(self) -> None:
        self.written, self.unfinished, self.decisions = [], [], {}


class Connection(Transaction, Protocol):
    """A connection in a transaction."""

    conflict: type[Exception]  # the driver's error for a key that is taken
    rejections: tuple[type[Exception], ...]  # the driver's errors for a statement or a value

    @property
    def is_optimistic(self) -> bool: ...  # an error is raised at the latest by the commit, and the operation repeated
    @property
    def changes(self) -> int: ...  # grows with each row that the connection inserts, updates or deletes
    def execute(self, sql: str, parameters: Any = ..., /) -> Cursor: ...
    def executemany(self, sql: str, rows: Iterable[Any], /) -> object: ...

    def prefetch(self, sql: str, parameters: tuple[Any, ...], /) -> None:
        """Announce a reading statement that may follow before the next change, to send it along with the next one."""

    def lock(self, names: Collection[str], /) -> None:
        """Acquire locks until the end of the transaction. If one is not free, the operation is repeated with all."""

    def lock_free(self, names: Collection[str], /) -> set[str]:
        """Acquire the free ones of these locks until the end of the transaction. Returns their names."""

    def update_row(self, sql: str, parameters: Any, /) -> None:
        """Execute an UPDATE. Raises `Retry` if it changes no row, at the latest when the transaction is committed."""
