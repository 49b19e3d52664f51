"""Runs one whole storage call off the event loop.

The threads are the storage's own, so neither a long model call in the loop's default executor nor a
full one of these can hold the other up. A call that has begun is finished even when its ``await``
is cancelled: a transaction is never left half-way.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Literal, ParamSpec, TypeVar

from session_middleware.errors import StorageError

P = ParamSpec("P")
R = TypeVar("R")


class Offload:
    """Two executors: `run` awaits calls on several threads; `submit` is one thread, in order.

    As many writes as there are threads can share one commit; a thread is made when it is first needed.
    """

    def __init__(self, name: str = "sessions", *, threads: int = 64) -> None:
        self._name = name
        self._threads = threads
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._calls = ThreadPoolExecutor(self._threads, thread_name_prefix="session-storage")
        self._queue = ThreadPoolExecutor(1, thread_name_prefix="session-record")

    async def run(self, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        context = contextvars.copy_context()
        return await asyncio.wrap_future(self._hand_to("_calls", partial(context.run, call, *args, **kwargs)))

    def submit(self, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Hand over without waiting; calls are carried out one after the other, in this order."""
        return self._hand_to("_queue", partial(call, *args, **kwargs))

    def _hand_to(self, threads: Literal["_calls", "_queue"], call: Callable[[], R]) -> Future[R]:
        if os.getpid() != self._process:  # this is a fork, and threads do not come along
            self._start()
        executor: ThreadPoolExecutor = getattr(self, threads)
        try:
            return executor.submit(call)
        except RuntimeError as error:  # the threads were shut down
            raise StorageError(self._name, "it was closed", advice="open a new Sessions(...)") from error

    def close(self) -> None:
        self._queue.shutdown(wait=True)
        self._calls.shutdown(wait=True)
