"""What the operations in SQL need of a database and its driver. Each engine implements it.

The SQL is written once, in the words of SQLite. A connection to another database translates it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from session_middleware.models import Event

T = TypeVar("T")
Undo = Callable[[], None]
UNLIMITED = 2**62  # as a LIMIT


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


class Connection(Protocol):
    """A connection in a transaction."""

    conflict: type[Exception]  # the driver's error for a key that is taken
    rejections: tuple[type[Exception], ...]  # the driver's errors for a statement or a value
    watched: frozenset[str]  # kinds of events
    written: list[Event]  # the watched events of this transaction
    unfinished: list[Any]  # the `SessionWrite` of each operation of this transaction

    def execute(self, sql: str, parameters: Any = ..., /) -> Cursor: ...
    def executemany(self, sql: str, rows: Iterable[Any], /) -> object: ...


class Database(Protocol):
    path: str  # names the database in messages
    is_writable: bool

    def close(self) -> None: ...

    def read(self, operation: Callable[[Connection], T]) -> T:
        """Run `operation` on one snapshot of the database; inside a write, on the state of its transaction."""
        ...

    def version(self) -> int:
        """A number that differs after each commit of any process."""
        ...

    def write(
        self,
        operation: Callable[[Connection], T],
        *,
        of: str | None = None,
        durable: bool = True,
        patient: bool = False,
        joins: bool = False,
        undo: Undo | None = None,
    ) -> T:
        """Run `operation` in a transaction, and return when it is committed. A write inside a write joins it.

        Args:
            operation: Is run a second time if the first transaction is rolled back.
            of: The session that is written to; no other process writes to its family at the same time. ``None``:
                no other process writes at all. Empty: the operation needs no lock.
            durable: The commit survives a power failure. Otherwise it survives ``kill -9``, and survives a power
                failure only after the next durable commit.
            patient: No caller waits for this write, so it may wait briefly for another write's commit.
            joins: What other operations have left unfinished in the transaction need not be finished before.
            undo: Restores values in memory when the transaction is rolled back.
        """
        ...

    def together(self, calls: Sequence[Callable[[], Any]], *, durable: bool = True) -> list[Callable[[], Any]]:
        """Run whole calls in order, in one transaction, and acknowledge them after its commit.

        Returns for each call a function that returns its result or raises its error. A call that fails does not
        affect the others.
        """
        ...

    def watch(self, kinds: frozenset[str], on_events: Callable[[], object]) -> None:
        """Queue the events of these kinds that are committed from now on, for `take_event`.

        `on_events` is called after each commit that has queued some, on any thread, and must not wait.
        """
        ...

    def take_event(self) -> Event | None: ...

    def erase(self) -> int:
        """Remove deleted content from the disk, and return the bytes released. In an operation: after its commit."""
        ...

    def is_erased(self) -> bool:
        """Whether no deleted content is left on the disk."""
        ...
