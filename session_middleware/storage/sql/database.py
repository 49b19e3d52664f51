"""The base of an engine's database: one writer in each process, whose operations share commits, and readers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import ValidationError

from session_middleware.errors import StorageError
from session_middleware.models import Event
from session_middleware.storage.sql.connection import DamagedRow, Locks
from session_middleware.storage.sql.writer import Writer
from session_middleware.storage.types import Watch

T = TypeVar("T")

DATA_ERRORS = (DamagedRow, UnicodeError, json.JSONDecodeError, ValidationError)  # raised when a value is converted


def data_error(path: str, error: Exception) -> StorageError:
    """The `StorageError` for one of `DATA_ERRORS`."""
    if isinstance(error, UnicodeEncodeError):
        problem = f"a text that is not valid unicode cannot be stored ({error})"
        return StorageError(path, problem, advice="replace the lone surrogates in it")
    advice = "delete that session, or restore a backup; session-middleware check --deep lists all damaged rows"
    return StorageError(path, f"it is damaged ({error})", advice=advice)


class Database:
    mapped_errors: tuple[type[Exception], ...]  # of the driver, and `DATA_ERRORS`
    in_memory = False
    locks_sessions = False  # an operation on some sessions locks these; else every operation locks the whole database
    turn_seconds = 0.02  # the intended duration of each transaction of a sweep, for whose end other writers wait
    is_writable = True
    _writer: Writer

    def __init__(self, path: str, *, synchronous: str) -> None:
        self.path = path  # names the database in messages
        self.synchronous = synchronous
        self.watched: frozenset[str] = frozenset()  # kinds of events
        self.on_events: Callable[[Sequence[Event]], object] = lambda _: None
        self.on_rollback: Callable[[], object] = lambda: None  # called after each rollback, with the lock held
        self._closed = False
        self._inherited: list[object] = []  # of the parent process; referenced, so never closed here

    def _open(self) -> None:
        """Open this process's connections, and set `_writer`."""
        raise NotImplementedError

    def _open_process(self) -> None:
        self._process = os.getpid()
        self._open()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(self.path, "it was closed", advice="open it again")
        if os.getpid() != self._process and not self.in_memory:  # connections must not be used across a fork
            self._inherited.append({**vars(self)})
            self._open_process()

    def storage_error(self, error: Exception) -> StorageError:
        """The `StorageError` for one of `mapped_errors`."""
        raise NotImplementedError

    def refusal(self) -> StorageError:
        """Why nothing may be written, where `is_writable` is false."""
        raise NotImplementedError

    def mapped_error(self, error: Exception) -> Exception:
        """The error itself, or the `StorageError` that it causes."""
        if not isinstance(error, self.mapped_errors):
            return error
        mapped = self.storage_error(error)
        mapped.__cause__ = error
        return mapped

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Map the errors of the driver and of damaged data in the block to `StorageError`."""
        try:
            yield
        except self.mapped_errors as error:
            raise self.storage_error(error) from error

    def close(self) -> None:
        raise NotImplementedError

    # Reading

    def read(self, operation: Callable[[Any], T]) -> T:
        """Run `operation` on one snapshot of the database; inside a write, on the state of its transaction."""
        if self._writer.is_mine:
            self._writer.finish_writes()
            return operation(self._writer.connection)
        self._check_open()
        try:
            return self._read(operation)
        except self.mapped_errors as error:
            raise self.storage_error(error) from error

    def _read(self, operation: Callable[[Any], T]) -> T:
        raise NotImplementedError

    # Writing

    def write(
        self,
        operation: Callable[[Any], T],
        *,
        of: Locks = None,
        durable: bool = True,
        patient: bool = False,
        joins: bool = False,
    ) -> T:
        """Run `operation` in a transaction, and return when it is committed. A write inside a write joins it.

        Args:
            operation: Is run a second time if the first transaction is rolled back.
            of: The locks that the operation needs: a session's id for its family, to which no other process writes
                at the same time. ``None``: no other process writes at all. Empty: the operation needs no lock.
            durable: The commit survives a power failure. Otherwise it survives ``kill -9``, and survives a power
                failure only after the next durable commit.
            patient: No caller waits for this write, so it may wait briefly for another write's commit.
            joins: What other operations have left unfinished in the transaction need not be finished before.
        """
        if self._closed or os.getpid() != self._process:
            self._check_open()
        if not self.is_writable:
            raise self.refusal()
        return self._writer.write(operation, of=of, durable=durable, patient=patient, joins=joins)

    def together(
        self, calls: Sequence[Callable[[], Any]], *, durable: bool = True, of: Locks = ""
    ) -> list[Callable[[], Any]]:
        """Run whole calls in order, in one transaction, and acknowledge them after its commit.

        Returns for each call a function that returns its result or raises its error. A call that fails does not
        affect the others.
        """
        self._check_open()
        if not self.is_writable:
            raise self.refusal()
        return self._writer.together(calls, durable=durable, of=of)

    def renumber(self) -> None:
        """Let the numbers of new rows follow those of the rows that were inserted with numbers."""

    def watch(self, kinds: frozenset[str], on_events: Callable[[Sequence[Event]], object]) -> None:
        """Call `on_events` after each commit that has events of these kinds, on any thread. It must not wait."""
        self.watched, self.on_events = kinds, on_events

    def watch_session(self, session_id: str, on_change: Callable[[], object]) -> Watch:  # noqa: ARG002
        return Watch()

    # A server has these tasks itself.

    def erase(self) -> int:
        """Remove deleted content from the disk, and return the bytes released. In an operation: after its commit."""
        return 0

    def compact(self) -> int | None:
        """Rebuild the files without unused space, and return the bytes released; ``None``: it is the server's task."""
        return None

    def is_erased(self) -> bool:
        """Whether no deleted content is left on the disk."""
        return False
