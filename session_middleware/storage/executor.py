"""Runs whole storage calls off the event loop.

The threads belong to the storage, so long calls in the loop's default executor cannot delay storage calls, nor the
reverse. A call that has started is finished even when its ``await`` is cancelled, so no transaction is left open.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from session_middleware.errors import StorageError

PATIENCE_SECONDS = 0.005  # the longest wait of a patient call for another call's commit
_BATCH = 64  # the most calls in one transaction
THREADS = 16  # for calls that are not enqueued

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound="Future[Any] | asyncio.Future[Any]")


class BatchExecutor(Protocol):
    def __call__(self, calls: Sequence[Callable[[], Any]], *, durable: bool) -> list[Callable[[], Any]]: ...


class StorageExecutor:
    """`run` awaits calls on several threads; `write` and `submit` enqueue calls for one writer thread."""

    def __init__(self, name: str, run_batch: BatchExecutor, *, threads: int = THREADS) -> None:
        self._name, self._run_batch, self._size = name, run_batch, threads
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="session-storage")
        self._queue = WriteQueue(self._run_batch)

    async def run(self, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        context = contextvars.copy_context()
        run = partial(context.run, call, *args, **kwargs)
        return await asyncio.wrap_future(self._started(lambda: self._threads.submit(run)))

    async def write(self, call: Callable[[], R], *, patient: bool = False) -> R:
        """Run a call that writes, on the writer thread, and return when its commit, shared with others, is done.

        Args:
            call: The whole operation. It is run again when another call's failure rolls back the transaction.
            patient: No caller waits for the result, so the call waits briefly for another call's commit.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        return await self._started(lambda: self._queue.add(call, future, durable=True, patient=patient))

    def submit(self, call: Callable[[], R]) -> Future[R]:
        """Enqueue a call for the writer thread, whose commit needs no sync, and do not wait."""
        return self._started(lambda: self._queue.add(call, Future[R]()))

    def start(self, call: Callable[[], R]) -> Future[R]:
        """Run a call on a thread, and do not wait."""
        return self._started(lambda: self._threads.submit(call))

    @property
    def is_writing(self) -> bool:
        """True on the writer thread, which must not wait for its own queue."""
        return self._queue.is_mine

    def _started(self, start: Callable[[], F]) -> F:
        if os.getpid() != self._process:  # threads do not survive a fork
            self._start()
        try:
            return start()
        except RuntimeError as error:
            raise StorageError(self._name, "it was closed", advice="open it again") from error

    def close(self) -> None:
        self._queue.close()
        self._threads.shutdown(wait=True)


class _QueuedCall(NamedTuple):
    run: Callable[[], Any]
    durable: bool
    patient: bool
    future: Future[Any] | asyncio.Future[Any]

    def begins(self) -> bool:
        """Whether the call was not cancelled."""
        return self.future.set_running_or_notify_cancel() if isinstance(self.future, Future) else not self.future.done()


class WriteQueue:
    """A queue of calls that write, for one thread that serves all event loops.

    The calls that arrive during a commit form the next batch: they run in order and share a transaction. A thread for
    each call would only wait for the commit: measured with 50 tasks, a turn takes 50 % longer that way.
    """

    def __init__(self, run_batch: BatchExecutor) -> None:
        self._run_batch = run_batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="session-writer")
        self._waiting: deque[_QueuedCall] = deque()
        self._lock = threading.Lock()
        self._is_running = False
        self._urgent = threading.Event()  # set while a call that is not patient waits
        self._ident: int | None = None

    @property
    def is_mine(self) -> bool:
        return self._ident == threading.get_ident()

    def add(self, call: Callable[[], Any], future: F, *, durable: bool = False, patient: bool = False) -> F:
        """Enqueue a call, whose outcome the future gets. One that is cancelled before it starts is not run.

        Raises `RuntimeError` after `close`.
        """
        queued = _QueuedCall(partial(contextvars.copy_context().run, call), durable, patient, future)
        with self._lock:
            self._waiting.append(queued)
            if not patient:
                self._urgent.set()
            if not self._is_running:
                self._thread.submit(self._run_waiting)
                self._is_running = True
        return future

    def close(self) -> None:
        self._urgent.set()
        self._thread.shutdown(wait=True)

    def _run_waiting(self) -> None:
        """Run batches until no call waits."""
        self._ident = threading.get_ident()
        while True:
            self._urgent.wait(PATIENCE_SECONDS)
            with self._lock:
                if not self._waiting:
                    self._is_running = False
                    self._urgent.clear()
                    return
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
                if all(queued.patient for queued in self._waiting):
                    self._urgent.clear()
            batch = [queued for queued in batch if queued.begins()]
            awaited: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Callable[[], Any]]]] = {}
            for queued, outcome in zip(batch, self._outcomes(batch), strict=True):
                if isinstance(queued.future, Future):
                    _settle(queued.future, outcome)
                else:
                    awaited.setdefault(queued.future.get_loop(), []).append((queued.future, outcome))
            for loop, outcomes in awaited.items():  # waking a loop for each call would cost more than the call
                with suppress(RuntimeError):  # it was closed
                    loop.call_soon_threadsafe(_settle_all, outcomes)

    def _outcomes(self, batch: Sequence[_QueuedCall]) -> list[Callable[[], Any]]:
        try:
            return self._run_batch([queued.run for queued in batch], durable=any(queued.durable for queued in batch))
        except BaseException as error:  # noqa: BLE001  # raised to each waiting caller; the thread continues
            return [partial(_raise, error)] * len(batch)


def _settle(future: Future[Any] | asyncio.Future[Any], outcome: Callable[[], Any]) -> None:
    try:
        future.set_result(outcome())
    except BaseException as error:  # noqa: BLE001  # raised to the waiting caller
        future.set_exception(error)


def _settle_all(outcomes: Sequence[tuple[asyncio.Future[Any], Callable[[], Any]]]) -> None:
    for future, outcome in outcomes:
        if not future.done():  # else it was cancelled
            _settle(future, outcome)


def _raise(error: BaseException) -> None:
    raise error


class _Offloading(Protocol):
    _offload: StorageExecutor


S = TypeVar("S", bound=_Offloading)


def async_twin(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """The asynchronous twin of a method: the same signature, and the name with the prefix ``a``.

    The twin runs the whole method, or a subclass's override, on a thread of the storage.
    """
    name = method.__name__

    @wraps(method)
    async def twin(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = await self._offload.run(getattr(self, name), *args, **kwargs)
        return result

    twin.__name__ = f"a{name}"
    twin.__qualname__ = f"{method.__qualname__.removesuffix(name)}a{name}"
    twin.__doc__ = f"`{name}`, for asyncio."
    return twin


def is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
