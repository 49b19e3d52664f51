"""Resources: expensive objects of a session, such as a server process or a database connection.

A resource is opened at its first use in this process. Later runs get the same object. It is closed when the
session ends, when the limit is reached and it is the least recently used, and at exit. One task opens and
closes an asynchronous resource, because cancel scopes require that. An exclusive resource is open in one process
at a time: a lease in the database, which `ExclusiveUse` acquires before it is opened, and releases after it is closed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from session_middleware.errors import PathTemplateError, ResourceHeld, StorageError
from session_middleware.runtime.background import BackgroundWorker
from session_middleware.storage.executor import StorageExecutor, is_on_a_loop
from session_middleware.storage.protocol import Storage
from session_middleware.storage.run import Lease

logger = logging.getLogger("session_middleware")

_CLOSING_SECONDS = 10.0  # to wait for an asynchronous resource of another loop to close
_LONGEST_PART = 150  # characters of one value in a path; most file systems allow 255 in a name
_OTHERS = re.compile(r"[^a-z0-9_-]")  # than the characters that stand for themselves in a path


class Key(NamedTuple):
    session_id: str
    incarnation: int  # of the id; another incarnation gets other resources
    name: str


class ExclusiveUse:
    """The lease on a resource. `holder` is a text that other processes get in `ResourceHeld`."""

    def __init__(self, storage: Storage, background: BackgroundWorker, key: Key, holder: str | None) -> None:
        self._storage, self._background, self._key, self._holder = storage, background, key, holder
        self._duty = f"\0resource {json.dumps(key)}"
        self._lease: Lease | None = None

    def acquire(self) -> None:
        """Raises `ResourceHeld`."""
        while (context := self._storage.acquire_duty(self._duty, holder=self._holder)) is None:
            if (held := self._storage.find_active_run(self._duty)) is not None:
                raise ResourceHeld(self._key.session_id, self._key.name, process=held.process, holder=held.run_id)
        self._lease = context.lease
        self._background.begin(context)  # which renews the lease

    def is_held(self) -> bool:
        """Whether no other process has taken over, as after a pause of this one that was longer than a lease."""
        found = self._storage.find_active_run(self._duty)
        return found is not None and self._lease is not None and found.number == self._lease.number

    def release(self) -> None:
        if self._lease is not None:
            self._background.end(self._lease)
            with suppress(StorageError):  # it is closed: the lease ends with this process
                self._background.release_ended_leases(with_row=False)


class _Resource:
    """A resource. The caller that creates it opens it; others wait for `opened`."""

    def __init__(
        self,
        on_close: Callable[[Any], Any] | None,
        loop: asyncio.AbstractEventLoop | None = None,
        use: ExclusiveUse | None = None,
    ) -> None:
        self.process = os.getpid()  # a forked process does not close its parent's resources
        self.opened: Future[Any] = Future()
        self.closed: Future[None] = Future()
        self.loop = loop  # of an asynchronous resource
        self.task: asyncio.Task[None] | None = None  # the event loop has no strong reference to it
        self.use = use
        self._on_close = on_close
        self._closing = asyncio.Event()

    def open(self, open: Callable[[], Any]) -> None:
        try:
            if self.use is not None:
                self.use.acquire()
            self.opened.set_result(open())
        except BaseException as error:
            self._release()
            self.opened.set_exception(error)
            raise

    async def serve(
        self, open: Callable[[], Awaitable[Any]], offload: StorageExecutor, after: _Resource | None
    ) -> None:
        """Open an asynchronous resource, and close it after `close` was called or the task was cancelled.

        Args:
            after: an earlier one under the same key, which is being closed.
        """
        try:
            if after is not None:
                await after.has_closed()
            if self.use is not None:
                await offload.run(self.use.acquire)
            self.opened.set_result(value := await open())
            try:
                await self._closing.wait()
            finally:
                if self._on_close is not None:
                    await self._on_close(value)
        except BaseException as error:
            await self._arelease(offload)
            if not self.opened.done():
                self.opened.set_exception(error)
            elif isinstance(error, Exception):
                _log(error)
            if not isinstance(error, Exception):
                raise
        else:
            await self._arelease(offload)
        finally:
            self.closed.set_result(None)

    def begin_close(self) -> None:
        """Close it once it is open. An asynchronous one is closed by its own task."""
        if self.process != os.getpid():
            return
        if self.loop is None:
            self.opened.add_done_callback(self._close_opened)
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._closing.set)

    async def has_closed(self) -> None:
        """Wait for the task of an asynchronous one."""
        if self.loop is not None and self.process == os.getpid() and not self.loop.is_closed():
            await asyncio.shield(asyncio.wrap_future(self.closed))

    def wait_closed(self, until: float) -> None:
        """Wait for the task of an asynchronous one, except on an event loop, until this monotonic time."""
        is_served = self.loop is not None and self.loop.is_running() and self.process == os.getpid()
        if is_served and not is_on_a_loop() and self.opened.done():
            try:
                self.closed.result(max(0.0, until - time.monotonic()))
            except TimeoutError:
                logger.warning("a session's resource did not close within %.0f s", _CLOSING_SECONDS)

    def _close_opened(self, opened: Future[Any]) -> None:
        if opened.exception() is None:
            try:
                if self._on_close is not None:
                    self._on_close(opened.result())
            except Exception as error:  # noqa: BLE001  # a fault of the app's function must not stop the session's end
                _log(error)
            self._release()

    def _release(self) -> None:
        if self.use is not None:
            self.use.release()

    async def _arelease(self, offload: StorageExecutor) -> None:
        if self.use is not None:
            with suppress(StorageError):  # it is closed: the lease ends with this process
                await offload.run(self.use.release)


class Resources:
    """The open resources of one `Sessions` in this process, the least recently used first."""

    def __init__(self, offload: StorageExecutor, *, limit: int) -> None:
        self._offload, self._limit = offload, limit
        self._lock = threading.Lock()
        self._open: dict[Key, _Resource] = {}
        self._closing: weakref.WeakValueDictionary[Key, _Resource] = weakref.WeakValueDictionary()
        weakref.finalize(self, _close_all, self._open)  # also at exit

    def get(
        self,
        key: Key,
        open: Callable[[], Any],
        close: Callable[[Any], Any] | None,
        use: ExclusiveUse | None = None,
    ) -> Any:
        self._make_way(key)
        resource = self._entry(key, new := _Resource(close, use=use))
        if resource is new:
            resource.open(open)
        value = resource.opened.result()
        if resource is not new and resource.use is not None and not resource.use.is_held():
            self.close_where(key.__eq__)
            return self.get(key, open, close, use)
        return value

    async def aget(
        self,
        key: Key,
        open: Callable[[], Awaitable[Any]],
        close: Callable[[Any], Awaitable[None]] | None,
        use: ExclusiveUse | None = None,
    ) -> Any:
        loop = asyncio.get_running_loop()
        await self._offload.run(self._make_way, key)
        resource = self._entry(key, new := _Resource(close, loop, use))
        if resource is new:  # no `await` before: a cancelled call would leave a resource that is never opened
            resource.task = loop.create_task(resource.serve(open, self._offload, self._closing.get(key)))
        value = await asyncio.shield(asyncio.wrap_future(resource.opened))
        is_ours = resource is new or resource.use is None or await self._offload.run(resource.use.is_held)
        if not is_ours:
            await self.aclose_one(key)
            return await self.aget(key, open, close, use)
        return value

    def close(self, session_ids: Collection[str]) -> None:
        """Close the resources of these sessions."""
        self.close_where(lambda key: key.session_id in session_ids)

    def close_where(self, matches: Callable[[Key], bool]) -> None:
        with self._lock:
            keys = list(self._open)
            closing = {key: self._open.pop(key) for key in filter(matches, keys)}
            self._closing.update(closing)
        _close_each(closing.values())

    async def aclose_one(self, key: Key) -> None:
        """Close one resource, and wait until it is closed."""
        with self._lock:
            resource = self._open.pop(key, None) or self._closing.get(key)
            if resource is None:
                return
            self._closing[key] = resource
        await self._offload.run(resource.begin_close)
        await resource.has_closed()

    def close_all(self) -> None:
        _close_all(self._open)

    async def aclose_all(self) -> None:
        """`close_all`, which also waits for resources of this loop."""
        own = [resource for resource in self._open.values() if resource.process == os.getpid()]
        await self._offload.run(self.close_all)
        for resource in own:
            if resource.loop is not None:
                await asyncio.wrap_future(resource.closed)

    def _make_way(self, key: Key) -> None:
        """Close the resources of earlier incarnations, which may conflict, and those beyond the limit."""
        with self._lock:
            others = [other for other in self._open if other != key]
        surplus = others[: max(0, len(others) + 1 - self._limit)]
        old = [other for other in others if other.session_id == key.session_id and other.incarnation < key.incarnation]
        self.close_where({*surplus, *old}.__contains__)

    def _entry(self, key: Key, new: _Resource) -> _Resource:
        """The resource of this process, or `new`."""
        with self._lock:
            resource = self._open.pop(key, new)
            if resource.process != os.getpid():
                resource = new
            self._open[key] = resource
        if resource is new:
            new.opened.add_done_callback(lambda opened: self._drop(key, new) if opened.exception() else None)
        return resource

    def _drop(self, key: Key, resource: _Resource) -> None:
        with self._lock:
            if self._open.get(key) is resource:
                del self._open[key]


def _close_all(resources: dict[Key, _Resource]) -> None:
    closing = []
    while resources:
        closing.append(resources.popitem()[1])
    _close_each(closing)


def _close_each(resources: Collection[_Resource]) -> None:
    """Close resources at the same time, so that several slow ones do not delay the renewal of leases."""
    for resource in resources:
        resource.begin_close()
    until = time.monotonic() + _CLOSING_SECONDS
    for resource in resources:
        resource.wait_closed(until)


def _log(error: Exception) -> None:
    logger.warning("closing a session's resource raised %r", error, exc_info=error)


def path_of(template: str, values: dict[str, str | None]) -> Path:
    """A path from a template with ``{session_id}``, ``{user_id}`` and ``{group_id}``.

    Characters other than small letters, digits, ``-`` and ``_`` are percent-encoded, so that a value is always one
    component of the path, and different values give different paths, also where a file system ignores case.
    """
    for _, name, _, _ in Formatter().parse(template):
        if name is not None and values.get(name) is None:
            problem = (
                f"the session has no {name}" if name in values else f"{{{name}}} is not one of {', '.join(values)}"
            )
            raise PathTemplateError(template, problem)
    return Path(template.format_map({name: _escaped(value or "") for name, value in values.items()})).expanduser()


def _escaped(value: str) -> str:
    text = _OTHERS.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), value)
    # No encoded value has the sign "=", so the short form of a long value is not the form of another one.
    return text if len(text) <= _LONGEST_PART else f"{text[:100]}={hashlib.sha256(value.encode()).hexdigest()[:32]}"
