"""The writes of one process, which share commits.

An operation that arrives during a commit waits. The next thread to acquire the lock carries out all waiting
operations in one transaction. If one of them fails after it has written, the transaction is rolled back, and each
operation is carried out in a transaction of its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from session_middleware.errors import StorageError
from session_middleware.models import Event
from session_middleware.storage.sql.connection import CommitThenRaise, Connection, DamagedRow, Undo

T = TypeVar("T")

PATIENCE_SECONDS = 0.002  # how long a write that nobody waits for may wait for another's commit
_BATCH = 128  # operations in one transaction, at most


class BatchAborted(BaseException):
    """An operation has failed half-way in a transaction that others have a part in."""


class WriteRequest(Generic[T]):
    """An operation waiting to be carried out, and what came of it."""

    __slots__ = ("_done", "durable", "error", "is_done", "of", "operation", "refused", "result", "undo")

    def __init__(
        self, operation: Callable[[Any], T], *, durable: bool, patient: bool = False, of: str | None = ""
    ) -> None:
        self.operation = operation
        self.durable = durable
        self.of = of
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
    """An engine's writer has a connection during a transaction, and begins and ends transactions."""

    connection: Connection
    errors: tuple[type[Exception], ...]  # the driver's errors
    mapped: Callable[[], AbstractContextManager[None]]  # maps them to `StorageError`

    def __init__(self) -> None:
        self.events: deque[Event] = deque()  # watched, committed, and not yet taken
        self.on_events: Callable[[], object] = lambda: None  # called after a commit of events, with the lock held
        self.lock = threading.Lock()  # held by the thread that carries out a batch
        self._waiting: deque[WriteRequest[Any]] = deque()
        self._thread: int | None = None  # the thread that carries out a batch
        self._current: WriteRequest[Any] | None = None
        self._is_alone = True  # the batch is of one

    def _begin(self, batch: Sequence[WriteRequest[Any]]) -> None:
        """Begin a transaction. An exception ends it before anything is written."""
        raise NotImplementedError

    def _end(self) -> None:
        """Commit."""
        raise NotImplementedError

    def _abort(self) -> None:
        """Roll back, unless the transaction has ended. Raises no error of the driver."""
        raise NotImplementedError

    def _committed(self) -> None:
        """Called after each commit, with the lock held."""

    def _lock(self, of: str | None) -> None:
        """Acquire the lock of what an operation writes to, until the end of the transaction."""

    def _is_open(self) -> bool:
        """Whether the transaction can go on after an error."""
        raise NotImplementedError

    def _changes(self) -> int:
        """A number that grows with each row that the connection changes."""
        raise NotImplementedError

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is inside an operation, where it sees what is not yet committed."""
        return self._thread == threading.get_ident()

    def write(
        self,
        operation: Callable[[Any], T],
        *,
        of: str | None = None,
        durable: bool,
        patient: bool,
        undo: Undo | None = None,
    ) -> T:
        if self.is_mine:
            return self._carry_out_inside(operation, undo, of)
        ticket = WriteRequest(operation, durable=durable, patient=patient, of=of)
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
                ticket.result = self._carry_out_inside(ticket.operation, None, ticket.of)
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
            except BatchAborted:
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
            with self.mapped():
                self._begin(batch)
                self._thread, self._is_alone = threading.get_ident(), len(batch) == 1
                try:
                    for ticket in batch:
                        self._carry_out_one(ticket)
                finally:
                    self._thread = self._current = None  # which would keep alive what it was called with
                events = [*self.connection.written]
                self._end()
                self.events.extend(events)
                self.connection.written.clear()
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
            if events:
                self.on_events()

    def _carry_out_one(self, ticket: WriteRequest[Any]) -> None:
        self._current = ticket
        before, written = self._changes(), len(self.connection.written)
        try:
            self._lock(ticket.of)
            ticket.result = ticket.operation(self.connection)
        except Exception as error:  # it is raised again, to whoever's operation it is
            ticket.error = error
            if error is ticket.refused:
                return
            if self._is_alone:
                raise
            if self._has_spoiled(error, before):
                ticket.error = None
                raise BatchAborted from error
            del self.connection.written[written:]
            self._take_back(ticket)

    def _carry_out_inside(self, operation: Callable[[Any], T], undo: Undo | None, of: str | None) -> T:
        """A write in a call that is carried out: a part of its transaction, and undone alone if it fails."""
        assert self._current is not None
        if undo is not None:
            self._current.undo.append(undo)
        before, written = self._changes(), len(self.connection.written)
        if self._is_alone:
            self.connection.execute("SAVEPOINT inside")
        try:
            with self.mapped():
                self._lock(of)
                result = operation(self.connection)
        except Exception as error:
            if undo is not None:
                undo()
            del self.connection.written[written:]
            if not self._is_alone and self._has_spoiled(error, before):
                raise BatchAborted from error
            if self._is_alone and self._is_open():  # which a full disk has ended
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
        return isinstance(error, (StorageError, DamagedRow, *self.errors)) or self._changes() != changes_before

    def _roll_back(self, batch: Sequence[WriteRequest[Any]]) -> None:
        self._abort()
        for ticket in reversed(batch):
            self._take_back(ticket)
            ticket.result = ticket.error = ticket.refused = None

    def _take_back(self, ticket: WriteRequest[Any]) -> None:
        for undo in reversed(ticket.undo):
            undo()
