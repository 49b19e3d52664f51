"""Resources: expensive objects of a session, such as a server process or a database connection.

A resource is opened at its first use in this process. Later runs get the same object. It is closed when the
session ends, when the limit is reached and it is the least recently used, and at exit. One task opens and
closes an asynchronous resource, because cancel scopes require that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple
from urllib.parse import quote

from session_middleware.errors import PathTemplateError
from session_middleware.storage.executor import StorageExecutor, is_on_a_loop

logger = logging.getLogger("session_middleware")

_CLOSING_SECONDS = 10.0  # to wait for an asynchronous resource of another loop to close
_LONGEST_PART = 150  # characters of one value in a path; most file systems allow 255 in a name


class Key(NamedTuple):
    session_id: str
    incarnation: int  # of the id; another incarnation gets other resources
    name: str


class _Resource:
    """A resource. The caller that creates it opens it; others wait for `opened`."""

    def __init__(self, on_close: Callable[[Any], Any] | None, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.process = os.getpid()  # a forked process does not close its parent's resources
        self.opened: Future[Any] = Future()
        self.closed: Future[None] = Future()
        self.loop = loop  # of an asynchronous resource
        self.task: asyncio.Task[None] | None = None  # the event loop has no strong reference to it
        self._on_close = on_close
        self._closing = asyncio.Event()

    def open(self, open: Callable[[], Any]) -> None:
        try:
            self.opened.set_result(open())
        except BaseException as error:
            self.opened.set_exception(error)
            raise

    async def serve(self, open: Callable[[], Awaitable[Any]]) -> None:
        """Open an asynchronous resource, and close it after `close` was called or the task was cancelled."""
        try:
            self.opened.set_result(value := await open())
            try:
                await self._closing.wait()
            finally:
                if self._on_close is not None:
                    await self._on_close(value)
        except BaseException as error:
            if not self.opened.done():
                self.opened.set_exception(error)
            elif isinstance(error, Exception):
                _log(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self.closed.set_result(None)

    def close(self) -> None:
        """Close it once it is open. Waits for an asynchronous one, except on an event loop."""
        if self.process != os.getpid():
            return
        if self.loop is None:
            self.opened.add_done_callback(self._close_opened)
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._closing.set)
            if not is_on_a_loop() and self.loop.is_running() and self.opened.done():
                try:
                    self.closed.result(_CLOSING_SECONDS)
                except TimeoutError:
                    logger.warning("a session's resource did not close within %.0f s", _CLOSING_SECONDS)

    def _close_opened(self, opened: Future[Any]) -> None:
        if self._on_close is not None and opened.exception() is None:
            try:
                self._on_close(opened.result())
            except Exception as error:  # noqa: BLE001  # a fault of the app's function must not stop the session's end
                _log(error)


class Resources:
    """The open resources of one `Sessions` in this process, the least recently used first."""

    def __init__(self, offload: StorageExecutor, *, limit: int) -> None:
        self._offload, self._limit = offload, limit
        self._lock = threading.Lock()
        self._open: dict[Key, _Resource] = {}
        weakref.finalize(self, _close_all, self._open)  # also at exit

    def get(self, key: Key, open: Callable[[], Any], close: Callable[[Any], Any] | None) -> Any:
        self._make_way(key)
        resource = self._entry(key, new := _Resource(close))
        if resource is new:
            resource.open(open)
        return resource.opened.result()

    async def aget(
        self, key: Key, open: Callable[[], Awaitable[Any]], close: Callable[[Any], Awaitable[None]] | None
    ) -> Any:
        loop = asyncio.get_running_loop()
        await self._offload.run(self._make_way, key)
        resource = self._entry(key, new := _Resource(close, loop))
        if resource is new:  # no `await` before: a cancelled call would leave a resource that is never opened
            resource.task = loop.create_task(resource.serve(open))
        return await asyncio.shield(asyncio.wrap_future(resource.opened))

    def close(self, session_ids: Collection[str]) -> None:
        """Close the resources of these sessions."""
        self.close_where(lambda key: key.session_id in session_ids)

    def close_where(self, matches: Callable[[Key], bool]) -> None:
        with self._lock:
            keys = list(self._open)
        for key in filter(matches, keys):
            with self._lock:
                resource = self._open.pop(key, None)
            if resource is not None:
                resource.close()

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
    while resources:
        resources.popitem()[1].close()


def _log(error: Exception) -> None:
    logger.warning("closing a session's resource raised %r", error, exc_info=error)


def path_of(template: str, values: dict[str, str | None]) -> Path:
    """A path from a template with ``{session_id}``, ``{user_id}`` and ``{group_id}``.

    Characters other than letters, digits, ``-`` and ``_`` are percent-encoded, so that a value is always one
    component of the path, and different values give different paths.
    """
    for _, name, _, _ in Formatter().parse(template):
        if name is not None and values.get(name) is None:
            problem = (
                f"the session has no {name}" if name in values else f"{{{name}}} is not one of {', '.join(values)}"
            )
            raise PathTemplateError(template, problem)
    return Path(template.format_map({name: _escaped(value or "") for name, value in values.items()})).expanduser()


def _escaped(value: str) -> str:
    text = quote(value, safe="").replace(".", "%2E").replace("~", "%7E")
    return text if len(text) <= _LONGEST_PART else f"{text[:100]}-{hashlib.sha256(value.encode()).hexdigest()[:32]}"
