"""Runs whole storage calls off the event loop.

The threads belong to the storage, so long calls in the loop's default executor cannot delay storage calls, nor the
reverse. A call that has started is finished even when its ``await`` is cancelled, so no transaction is left open.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from session_middleware.errors import StorageError
from session_middleware.storage.write_queue import BatchExecutor, WriteQueue

P = ParamSpec("P")
R = TypeVar("R")


async def run_apart(call: Callable[[], R]) -> R:
    """Run a call on a new thread. For calls that wait for a `StorageExecutor`'s threads to end."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="session-apart")
    future = thread.submit(contextvars.copy_context().run, call)
    thread.shutdown(wait=False)
    return await asyncio.wrap_future(future)


class StorageExecutor:
    """`run` awaits calls on several threads; `write` and `submit` enqueue calls for one writer thread."""

    def __init__(self, name: str, run_batch: BatchExecutor, *, threads: int = 16) -> None:
        self._name = name
        self._run_batch = run_batch
        self._size = threads
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="session-storage")
        self._queue = WriteQueue(self._run_batch)

    async def run(self, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        self._restart_after_fork()
        context = contextvars.copy_context()
        try:
            future = self._threads.submit(partial(context.run, call, *args, **kwargs))
        except RuntimeError as error:
            raise self._closed() from error
        return await asyncio.wrap_future(future)

    async def write(self, call: Callable[[], R], *, patient: bool = False) -> R:
        """Run a call that writes, on the writer thread, and return when its commit, shared with others, is done.

        Args:
            call: The whole operation. It is run again when another call's failure rolls back the transaction.
            patient: No caller waits for the result, so the call waits briefly for another call's commit.
        """
        self._restart_after_fork()
        try:
            result: R = await self._queue.run(call, patient=patient)
        except RuntimeError as error:
            if not self._queue.is_closed:
                raise
            raise self._closed() from error
        return result

    def submit(self, call: Callable[[], R]) -> Future[R]:
        """Enqueue a call for the writer thread, which runs calls in this order, and do not wait."""
        self._restart_after_fork()
        try:
            return self._queue.submit(call)
        except RuntimeError as error:
            raise self._closed() from error

    @property
    def is_writing(self) -> bool:
        """True on the writer thread, which must not wait for its own queue."""
        return self._queue.is_mine

    def _restart_after_fork(self) -> None:
        if os.getpid() != self._process:  # threads do not survive a fork
            self._start()

    def _closed(self) -> StorageError:
        return StorageError(self._name, "it was closed", advice="open it again")

    def close(self) -> None:
        self._queue.close()
        self._threads.shutdown(wait=True)


class _Offloading(Protocol):
    _offload: StorageExecutor


S = TypeVar("S", bound=_Offloading)


def async_twin(
    method: Callable[Concatenate[S, P], R], convert: Callable[[Any], Any] | None = None
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """The asynchronous twin of a method: the same signature, and the name with the prefix ``a``.

    The twin runs the whole method, or a subclass's override, on a thread of the storage, and there also `convert`,
    a function of the result.
    """
    name = method.__name__

    @wraps(method)
    async def twin(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        call = getattr(self, name)
        run = call if convert is None else lambda *args, **kwargs: convert(call(*args, **kwargs))
        result: R = await self._offload.run(run, *args, **kwargs)
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
