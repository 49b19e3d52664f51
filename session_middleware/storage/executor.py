"""Runs whole storage calls off the event loop.

The threads are the storage's own, so neither a long model call in the loop's default executor nor a
full one of these can hold the other up. A call that has begun is finished even when its ``await``
is cancelled: a transaction is never left half-way.
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
    """Run a call that waits for an `StorageExecutor`'s threads to end, on a thread of its own."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="session-apart")
    future = thread.submit(contextvars.copy_context().run, call)
    thread.shutdown(wait=False)
    return await asyncio.wrap_future(future)


class StorageExecutor:
    """`run` awaits calls on several threads; `write` and `submit` append them to one `WriteQueue`, in order."""

    def __init__(self, name: str, together: BatchExecutor, *, threads: int = 16) -> None:
        self._name = name
        self._together = together
        self._size = threads
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="session-storage")
        self._lane = WriteQueue(self._together)

    async def run(self, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        self._mind_forks()
        context = contextvars.copy_context()
        try:
            future = self._threads.submit(partial(context.run, call, *args, **kwargs))
        except RuntimeError as error:
            raise self._closed() from error
        return await asyncio.wrap_future(future)

    async def write(self, call: Callable[[], R], *, patient: bool = False) -> R:
        """Carry out a call that writes, and share its commit with others.

        Args:
            call: The whole operation. It may be carried out again when another's failure has undone it.
            patient: Nobody waits for this one, so it may wait a moment for another's commit.
        """
        self._mind_forks()
        try:
            result: R = await self._lane.run(call, patient=patient)
        except RuntimeError as error:
            if not self._lane.is_closed:
                raise
            raise self._closed() from error
        return result

    def submit(self, call: Callable[[], R]) -> Future[R]:
        """Hand over without waiting; calls are carried out one after the other, in this order."""
        self._mind_forks()
        try:
            return self._lane.submit(call)
        except RuntimeError as error:
            raise self._closed() from error

    @property
    def is_writing(self) -> bool:
        """Whether the calling thread carries out what was written or submitted, so that it must not wait for more."""
        return self._lane.is_mine

    def _mind_forks(self) -> None:
        if os.getpid() != self._process:  # this is a fork, and threads do not come along
            self._start()

    def _closed(self) -> StorageError:
        return StorageError(self._name, "it was closed", advice="open a new Sessions(...)")

    def close(self) -> None:
        self._lane.close()
        self._threads.shutdown(wait=True)


class _Offloading(Protocol):
    _offload: StorageExecutor


S = TypeVar("S", bound=_Offloading)


def async_twin(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """The asynchronous version of a method: the same signature, and the name with the prefix ``a``.

    It runs the whole method, a subclass's if that overrides it, on one of the storage's threads.
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
