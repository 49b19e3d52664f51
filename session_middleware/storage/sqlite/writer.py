"""The one connection that writes, and how all who come to it share its commits.

Whoever comes while a commit is being synced waits, and the next to get the lock carries out all that
wait in one transaction. That none of them fails is assumed: an operation that fails after it has
changed something spoils the transaction, which is undone, and each is then carried out alone.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Generic, TypeVar

from session_middleware.errors import StorageError
from session_middleware.models import Event
from session_middleware.storage.sql.connection import CommitThenRaise, DamagedRow, Undo
from session_middleware.storage.sqlite.connection import SqliteConnection

T = TypeVar("T")

PATIENCE_SECONDS = 0.002  # how long a write that nobody waits for may wait for another's commit
_BATCH = 128  # operations in one transaction, at most


class _BatchAborted(BaseException):
    """An operation has failed half-way in a transaction that others have a part in."""


class WriteRequest(Generic[T]):
    """An operation waiting to be carried out, and what came of it."""

    __slots__ = ("_done", "durable", "error", "is_done", "operation", "refused", "result", "undo")

    def __init__(self, operation: Callable[[SqliteConnection], T], *, durable: bool, patient: bool = False) -> None:
        self.operation = operation
        self.durable = durable
        self.is_done = False
        self.result: T | None = None
        self.error: BaseException | None = None
        self.refused: Exception | None = None  # it ends so, and what it did is committed
        self.undo: list[Undo] = []  # what makes values in memory what they were, should it be rolled back
        self._done = threading.Event() if patient else None

    def end(self, error: BaseException | None = None) -> None:
        if error is not None:
            self.error = error
        self.is_done = True
        if self._done is not None:
            self._done.set()

    def wait(self, seconds: float) -> None:
        if self._done is not None:
            self._done.wait(seconds)

    def outcome(self) -> T:
        assert self.is_done, "an operation that was not carried out was never acknowledged"
        if self.error is not None:
            raise self.error
        if isinstance(self.result, CommitThenRaise):
            raise self.result.error
        return self.result  # type: ignore[return-value]


class Writer:
    def __init__(
        self,
        connection: SqliteConnection,
        *,
        synchronous: str,
        mapped: Callable[[], AbstractContextManager[None]],
        begun: Callable[[], None],
        committed: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.events: deque[Event] = deque()  # watched, committed, and not yet taken
        self.lock = threading.Lock()  # held by the thread that is carrying out a batch
        self._durable_mode = synchronous.upper()
        self._mode = ""  # the synchronous pragma now in force
        self._mapped = mapped
        self._begun = begun  # called in each transaction before anything is written; what it raises ends it
        self._committed = committed  # called after each commit, with the lock held
        self._waiting: deque[WriteRequest[Any]] = deque()
        self._thread: int | None = None  # that which is carrying out a batch
        self._current: WriteRequest[Any] | None = None
        self._is_alone = True  # the batch is of one

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is inside an operation, where it sees what is not yet committed."""
        return self._thread == threading.get_ident()

    def write(
        self, operation: Callable[[SqliteConnection], T], *, durable: bool, patient: bool, undo: Undo | None = None
    ) -> T:
        if self.is_mine:
            return self._carry_out_inside(operation, undo)
        ticket = WriteRequest(operation, durable=durable, patient=patient)
        if undo is not None:
            ticket.undo.append(undo)
        self._waiting.append(ticket)
        if patient:
            ticket.wait(PATIENCE_SECONDS)
        self._see_to(ticket)
        return ticket.outcome()

    def together(self, calls: Sequence[Callable[[], Any]], *, durable: bool) -> list[Callable[[], Any]]:
        """Carry out whole calls, in order, in as few transactions as can be; a write inside one joins it."""
        tickets = [WriteRequest(lambda _, call=call: call(), durable=durable) for call in calls]  # type: ignore[misc]
        if self.is_mine:  # inside such a call: they join it, and an error is raised at once
            for ticket in tickets:
                ticket.result = self._carry_out_inside(ticket.operation, None)
                ticket.end()
            return [ticket.outcome for ticket in tickets]
        self._waiting.extend(tickets)
        for ticket in tickets:
            self._see_to(ticket)
        return [ticket.outcome for ticket in tickets]

    def _see_to(self, ticket: WriteRequest[Any]) -> None:
        """Have it carried out, by this thread if no other has done so."""
        while not ticket.is_done:
            with self.lock:
                if not ticket.is_done:
                    self._carry_out(ticket)

    def _carry_out(self, own: WriteRequest[Any]) -> None:
        batch: list[WriteRequest[Any]] = []
        try:
            while self._waiting and len(batch) < _BATCH:
                batch.append(self._waiting[0])
                self._waiting.popleft()
            try:
                self._commit(batch)
            except _BatchAborted:
                for ticket in batch:
                    self._commit([ticket])
        except BaseException:  # this thread is being stopped; the others' operations go on with the next
            for ticket in reversed(batch):
                if ticket is not own and not ticket.is_done:
                    self._waiting.appendleft(ticket)
            own.end()
            raise

    def _commit(self, batch: Sequence[WriteRequest[Any]]) -> None:
        """One transaction: it is committed, or none of them has done anything."""
        try:
            with self._mapped():
                self._set_synchronous(any(ticket.durable for ticket in batch))
                self.connection.execute("BEGIN IMMEDIATE")
                self._begun()
                self._thread, self._is_alone = threading.get_ident(), len(batch) == 1
                try:
                    for ticket in batch:
                        self._carry_out_one(ticket)
                finally:
                    self._thread = self._current = None  # which would keep alive what it was called with
                self.connection.execute("COMMIT")
                self._pass_on_events()
        except Exception as error:  # noqa: BLE001  # it is raised again, to each of those who wait
            self._roll_back(batch)
            for ticket in batch:
                ticket.end(error)
        except BaseException:
            self._roll_back(batch)
            raise
        else:
            for ticket in batch:
                ticket.end()
            self._committed()

    def _pass_on_events(self) -> None:
        self.events.extend(self.connection.written)
        self.connection.written.clear()

    def _carry_out_one(self, ticket: WriteRequest[Any]) -> None:
        self._current = ticket
        before, written = self.connection.total_changes, len(self.connection.written)
        try:
            ticket.result = ticket.operation(self.connection)
        except Exception as error:  # it is raised again, to whoever's operation it is
            ticket.error = error
            if error is ticket.refused:
                return
            if self._is_alone:
                raise
            if self._has_spoiled(error, before):
                ticket.error = None
                raise _BatchAborted from error
            del self.connection.written[written:]
            self._take_back(ticket)

    def _carry_out_inside(self, operation: Callable[[SqliteConnection], T], undo: Undo | None) -> T:
        """A write in a call that is carried out: a part of its transaction, and undone alone if it fails."""
        assert self._current is not None
        if undo is not None:
            self._current.undo.append(undo)
        before, written = self.connection.total_changes, len(self.connection.written)
        if self._is_alone:
            self.connection.execute("SAVEPOINT inside")
        try:
            with self._mapped():
                result = operation(self.connection)
        except Exception as error:
            if undo is not None:
                undo()
            del self.connection.written[written:]
            if not self._is_alone and self._has_spoiled(error, before):
                raise _BatchAborted from error
            if self._is_alone and self.connection.in_transaction:  # which a full disk has ended
                self.connection.execute("ROLLBACK TO inside")
                self.connection.execute("RELEASE inside")
            raise
        if self._is_alone:
            self.connection.execute("RELEASE inside")
        if isinstance(result, CommitThenRaise):
            self._current.refused = result.error
            raise result.error
        return result

    def _has_spoiled(self, error: Exception, changes_before: int) -> bool:
        return (
            isinstance(error, StorageError | DamagedRow | sqlite3.Error)
            or self.connection.total_changes != changes_before
        )

    def _roll_back(self, batch: Sequence[WriteRequest[Any]]) -> None:
        with suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        self.connection.written.clear()
        for ticket in reversed(batch):
            self._take_back(ticket)
            ticket.result = ticket.error = ticket.refused = None

    def _take_back(self, ticket: WriteRequest[Any]) -> None:
        for undo in reversed(ticket.undo):
            undo()

    def _set_synchronous(self, durable: bool) -> None:
        mode = self._durable_mode if durable else "NORMAL"
        if mode != self._mode:
            self.connection.execute(f"PRAGMA synchronous={mode}")
            self._mode = mode
