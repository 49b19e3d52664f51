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
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple
from urllib.parse import quote

from session_middleware.errors import PathTemplateError
from session_middleware.storage.executor import StorageExecutor

logger = logging.getLogger("session_middleware")


class Key(NamedTuple):
    session_id: str
    incarnation: int  # of the id; another incarnation gets other resources
    name: str


_CLOSING_SECONDS = 10.0  # to wait for an asynchronous resource of another loop to close
_LONGEST_PART = 150  # characters of one value in a path; most file systems allow 255 in a name


@dataclass(eq=False)
class _Resource:
    """One resource. The first caller opens it, while others wait."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    process: int = field(default_factory=os.getpid)  # a forked process does not close its parent's resources
    is_open: bool = False
    value: Any = None
    close: Callable[[Any], Any] | None = None
    task: _Task | None = None

    def close_once(self) -> None:
        with self.lock:
            is_open, self.is_open = self.is_open, False
        if self.task is not None:
            self.task.close()
        elif is_open and self.close is not None:
            try:
                self.close(self.value)
            except Exception as error:  # noqa: BLE001  # a fault of the app's function must not stop the session's end
                _log(error)


class _Task:
    """The task that opens an asynchronous resource, and closes it when `close` is called."""

    def __init__(self, open: Callable[[], Awaitable[Any]], close: Callable[[Any], Awaitable[None]] | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[Any] = self.loop.create_future()
        self.closed: Future[None] = Future()
        self._closing = asyncio.Event()
        self._task = self.loop.create_task(self._run(open, close))

    async def _run(self, open: Callable[[], Awaitable[Any]], close: Callable[[Any], Awaitable[None]] | None) -> None:
        try:
            self.opened.set_result(value := await open())
            try:
                await self._closing.wait()
            finally:
                if close is not None:
                    await close(value)
        except BaseException as error:
            if not self.opened.done():
                self.opened.set_exception(error)
            elif isinstance(error, Exception):
                _log(error)  # a fault of the app's function
            if not isinstance(error, Exception):
                raise
        finally:
            self.closed.set_result(None)

    def close(self) -> None:
        """Close the resource once it is open. Waits for it, except on the resource's own loop."""
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self._closing.set)
        try:
            is_own_loop = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            is_own_loop = False
        if not is_own_loop and self.loop.is_running() and self.opened.done():
            try:
                self.closed.result(_CLOSING_SECONDS)
            except TimeoutError:
                logger.warning("a session's resource did not close within %.0f s", _CLOSING_SECONDS)


class Resources:
    """The open resources of one `Sessions` in this process."""

    def __init__(self, offload: StorageExecutor, *, limit: int) -> None:
        self._offload = offload
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Key, _Resource] = OrderedDict()
        self._finalizer = weakref.finalize(self, _close_all, self._open)  # also at exit

    def get(self, key: Key, open: Callable[[], Any], close: Callable[[Any], Any] | None) -> Any:
        resource = self._entry(key)
        with resource.lock:
            if not resource.is_open:
                try:
                    resource.value, resource.close, resource.is_open = open(), close, True
                except BaseException:
                    self._drop(key, resource)
                    raise
        self._make_room()
        return resource.value

    async def aget(
        self, key: Key, open: Callable[[], Awaitable[Any]], close: Callable[[Any], Awaitable[None]] | None
    ) -> Any:
        resource = await self._offload.run(self._entry, key)
        if resource.task is None and not resource.is_open:
            resource.task = _Task(open, close)
        if resource.task is not None:
            try:
                resource.value = await asyncio.shield(resource.task.opened)
            except Exception:
                self._drop(key, resource)
                raise
            resource.is_open = True
        await self._offload.run(self._make_room)
        return resource.value

    def close(self, session_ids: Collection[str]) -> None:
        """Close the resources of these sessions."""
        self.close_where(lambda key: key.session_id in session_ids)

    def close_where(self, matches: Callable[[Key], bool]) -> None:
        with self._lock:
            keys = list(self._open)
        for key in filter(matches, keys):
            with self._lock:
                resource = self._open.pop(key, None)
            _close(resource)

    def close_all(self) -> None:
        _close_all(self._open)

    async def aclose_all(self) -> None:
        """`close_all`, which also waits for resources of this loop."""
        own = [resource for resource in self._open.values() if resource.process == os.getpid()]
        await self._offload.run(self.close_all)
        for resource in own:
            if resource.task is not None:
                await asyncio.wrap_future(resource.task.closed)

    def _entry(self, key: Key) -> _Resource:
        """The resource, open or not. Resources of earlier incarnations are closed first, since they may conflict."""
        self.close_where(lambda other: other.session_id == key.session_id and other.incarnation < key.incarnation)
        with self._lock:
            resource = self._open.get(key)
            if resource is None or resource.process != os.getpid():
                resource = self._open[key] = _Resource()
            self._open.move_to_end(key)
            return resource

    def _drop(self, key: Key, resource: _Resource) -> None:
        with self._lock:
            if self._open.get(key) is resource:
                del self._open[key]

    def _make_room(self) -> None:
        with self._lock:
            surplus = [self._open.popitem(last=False)[1] for _ in range(len(self._open) - self._limit)]
        for resource in surplus:
            _close(resource)


def _close(resource: _Resource | None) -> None:
    if resource is not None and resource.process == os.getpid():
        resource.close_once()


def _close_all(resources: OrderedDict[Key, _Resource]) -> None:
    while resources:
        _close(resources.popitem()[1])


def _log(error: Exception) -> None:
    logger.warning("closing a session's resource raised %r", error, exc_info=error)


# Paths


def path_of(template: str, values: dict[str, str | None]) -> Path:
    """A path from a template with ``{session_id}``, ``{user_id}`` and ``{group_id}``.

    Characters other than letters, digits, ``-`` and ``_`` are percent-encoded, so that a value is always one
    component of the path, and different values give different paths.

    Raises:
        PathTemplateError: a name is unknown, or the session has no value for it.
    """
    for _, name, _, _ in Formatter().parse(template):
        if name is not None and name not in values:
            raise PathTemplateError(template, f"{{{name}}} is not one of {', '.join(values)}")
        if name is not None and values[name] is None:
            raise PathTemplateError(template, f"the session has no {name}")
    return Path(template.format_map({name: _safe(value or "") for name, value in values.items()})).expanduser()


def _safe(value: str) -> str:
    text = quote(value, safe="").replace(".", "%2E").replace("~", "%7E")
    return text if len(text) <= _LONGEST_PART else f"{text[:100]}-{hashlib.sha256(value.encode()).hexdigest()[:32]}"
