"""The writes of one process, which share commits.

An operation that arrives during a commit waits. The next thread to acquire the lock carries out all waiting
operations in one transaction. If one of them fails after it has written, the transaction is rolled back, and each
operation is carried out in a transaction of its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from session_middleware.errors import StorageError
from session_middleware.storage.sql.connection import CommitThenRaise, Connection, DamagedRow, Locks, Retry
from session_middleware.storage.sql.run_write import publish
from session_middleware.storage.sql.session_state import close_writes, end_writes, finish_writes

if TYPE_CHECKING:
    from session_middleware.storage.sql.database import Database

T = TypeVar("T")

_BATCH = 128  # operations in one transaction, at most
_ATTEMPTS = 5  # at an operation that is alone in its transaction


class BatchAborted(BaseException):
    """The transaction was rolled back, and its operations are to be carried out again, each alone."""


@dataclass(slots=True, eq=False)
class WriteRequest(Generic[T]):
    """An operation waiting to be carried out, and its outcome."""

    operation: Callable[[Any], T]
    durable: bool
    of: Locks = ""
    joins: bool = True
    done: threading.Event | None = None  # of a patient request
    is_done: bool = False
    result: T | None = None
    error: BaseException | None = None
    refused: Exception | None = None  # its outcome, although what it did is committed

    def end(self, error: BaseException | None = None) -> None:
        self.error, self.is_done = error or self.error, True
        if self.done is not None:
            self.done.set()

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
    patience_seconds = 0.005  # how long a patient write waits for another write, to share its commit

    def __init__(self, database: Database) -> None:
        self._database = database
        self.lock = threading.Lock()  # held by the thread that carries out a batch
        self._waiting: deque[WriteRequest[Any]] = deque()
        self._thread: int | None = None  # the thread that carries out a batch
        self._current: WriteRequest[Any] | None = None
        self._is_alone = True  # the batch is of one
        self._is_repeated = False  # a batch has failed; each write in a call has a savepoint

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

    def _lock(self, of: Locks) -> None:
        """Acquire the locks that an operation needs, until the end of the transaction."""

    def _is_open(self) -> bool:
        """Whether the transaction can go on after an error."""
        raise NotImplementedError

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is inside an operation, where it reads uncommitted rows."""
        return self._thread == threading.get_ident()

    def finish_writes(self) -> None:
        """Let the present operation read what those before it have written in this transaction."""
        finish_writes(self.connection)

    def write(
        self,
        operation: Callable[[Any], T],
        *,
        of: Locks,
        durable: bool,
        patient: bool,
        joins: bool,
    ) -> T:
        if self._thread == threading.get_ident():
            return self._carry_out_inside(operation, of, joins=joins)
        request = WriteRequest(operation, durable, of, joins)
        if patient:
            request.done = threading.Event()
        self._waiting.append(request)
        if request.done is not None:  # wait again if another commit is in progress at the end of the wait
            while not request.done.wait(self.patience_seconds) and self.lock.locked():
                pass
        if not request.is_done:
            self._wait_or_lead(request)
        if request.error is not None or isinstance(request.result, CommitThenRaise):
            return request.outcome()
        return request.result  # type: ignore[return-value]

    def together(self, calls: Sequence[Callable[[], Any]], *, durable: bool, of: Locks = "") -> list[Callable[[], Any]]:
        """Carry out whole calls, in order, in as few transactions as can be; a write inside one joins it."""
        requests = [WriteRequest(lambda _, call=call: call(), of=of, durable=durable) for call in calls]  # type: ignore[misc]
        if self._thread == threading.get_ident():  # inside such a call: they join it, and an error is raised at once
            for request in requests:
                request.result = self._carry_out_inside(request.operation, request.of, joins=request.joins)
                request.end()
        else:
            self._waiting.extend(requests)
            for request in requests:
                self._wait_or_lead(request)
        return [request.outcome for request in requests]

    def _wait_or_lead(self, own: WriteRequest[Any]) -> None:
        """Return when the request is done. The thread that acquires the lock carries out all that wait."""
        while not own.is_done:
            with self.lock:
                if own.is_done:
                    return
                batch: list[WriteRequest[Any]] = []
                while self._waiting and len(batch) < _BATCH:
                    batch.append(self._waiting.popleft())
                try:
                    try:
                        self._commit(batch)
                    except BatchAborted:
                        for request in batch:
                            self._commit_alone(request)
                except BaseException:  # this thread is being stopped; the next one carries out the other operations
                    others = [each for each in reversed(batch) if each is not own and not each.is_done]
                    self._waiting.extendleft(others)
                    own.end()
                    raise

    def _commit_alone(self, request: WriteRequest[Any]) -> None:
        self._is_repeated = True
        try:
            for _ in range(_ATTEMPTS):
                try:
                    self._commit([request])
                    return
                except BatchAborted as aborted:
                    error = aborted.__cause__
            if isinstance(error, Retry) and isinstance(error.__cause__, self.errors):
                error = self._database.mapped_error(error.__cause__)
            request.end(error)
        finally:
            self._is_repeated = False

    def _commit(self, batch: Sequence[WriteRequest[Any]]) -> None:
        """One transaction: it is committed, or none of its operations has done anything."""
        try:
            self._begin(batch)
            connection = self.connection
            connection.watched = self._database.watched
            self._thread, self._is_alone = threading.get_ident(), len(batch) == 1
            try:
                for request in batch:
                    self._carry_out(request)
                for write in dict.fromkeys(connection.unfinished):
                    write.finish()
            except Exception as error:
                if self._is_alone:
                    raise
                raise BatchAborted from error
            finally:
                self._thread = self._current = None  # which would keep alive what it was called with
                if connection.unfinished:
                    close_writes(connection)
            events, decisions = connection.written, connection.decisions
            self._end()
            publish(decisions)
            connection.reset()  # which would keep alive what the operations were called with
        except Exception as error:  # it is raised again, to each of those who wait
            self._roll_back(batch)
            if isinstance(error, Retry):
                raise BatchAborted from error
            # No other variable: a cycle would keep the cursors of the failed statements.
            error = self._database.mapped_error(error)
            for request in batch:
                request.end(error)
        except BaseException:
            self._roll_back(batch)
            raise
        else:
            for request in batch:
                request.is_done = True
                if request.done is not None:
                    request.done.set()
            self._committed()
            if events:
                self._database.on_events(events)

    def _carry_out(self, request: WriteRequest[Any]) -> None:
        self._current, connection = request, self.connection
        before = connection.changes, len(connection.unfinished), len(connection.written)
        try:
            if self._database.locks_sessions:
                self._lock(request.of)
            if connection.unfinished and not request.joins:
                end_writes(connection)
            request.result = request.operation(connection)
        except Exception as error:  # it is raised again, to the caller of the operation
            request.error = error
            if error is request.refused:
                return
            if self._is_alone:
                raise
            if self._has_spoiled(error, before):
                raise BatchAborted from error
            del connection.written[before[2] :]

    def _carry_out_inside(self, operation: Callable[[Any], T], of: Locks, *, joins: bool) -> T:
        """A write in a call that is carried out: a part of its transaction, and undone alone if it fails.

        It has a savepoint only if the call is repeated, because most writes succeed.
        """
        assert self._current is not None
        connection, has_savepoint = self.connection, self._is_repeated
        if has_savepoint:
            finish_writes(connection)
            connection.execute("SAVEPOINT inside")
        before = connection.changes, len(connection.unfinished), len(connection.written)
        try:
            if self._database.locks_sessions:
                self._lock(of)
            if not joins:
                end_writes(connection)
            result = operation(connection)
        except Exception as error:
            error = self._database.mapped_error(error)
            del connection.written[before[2] :]
            if isinstance(error, Retry) or (not has_savepoint and self._has_spoiled(error, before)):
                raise BatchAborted from error
            if has_savepoint and self._is_open():  # which a full disk has ended
                close_writes(connection)
                connection.execute("ROLLBACK TO inside")
                connection.execute("RELEASE inside")
                self._database.on_rollback()
            raise error
        if has_savepoint:
            connection.execute("RELEASE inside")
        if isinstance(result, CommitThenRaise):
            self._current.refused = result.error
            raise result.error
        return result

    def _has_spoiled(self, error: Exception, before: tuple[int, int, int]) -> bool:
        """Whether a failed operation has written something, or the transaction may not go on."""
        is_fatal = isinstance(error, (StorageError, DamagedRow, Retry, *self.errors))
        return is_fatal or (self.connection.changes, len(self.connection.unfinished)) != before[:2]

    def _roll_back(self, batch: Sequence[WriteRequest[Any]]) -> None:
        self._abort()
        self._database.on_rollback()
        for request in batch:
            request.result = request.error = request.refused = None
