"""Resources: what is expensive and belongs to a session while it lives, such as a server process or a database handle.

Opened at its first use in this process, the same object over later runs, and closed when the session
ends, when room is needed for another (the least recently used goes), and when the process ends. An
asynchronous one is opened and closed by one task of its own, as cancel scopes want it.
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
    incarnation: int  # of that id: the next session with it is given nothing that was opened for this one
    name: str


_CLOSING_SECONDS = 10.0  # how long the closing of an asynchronous resource is waited for on another loop
_LONGEST_PART = 150  # characters of a path that a value may fill; most file systems take 255 in a name


@dataclass(eq=False)
class _Resource:
    """One resource: opened once, by the first that asks for it, while others wait."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    process: int = field(default_factory=os.getpid)  # a fork closes nothing of its parent's
    is_open: bool = False
    value: Any = None
    close: Callable[[Any], Any] | None = None
    task: _Task | None = None

    def end(self) -> None:
        with self.lock:
            is_open, self.is_open = self.is_open, False
        if self.task is not None:
            self.task.end()
        elif is_open and self.close is not None:
            try:
                self.close(self.value)
            except Exception as error:  # noqa: BLE001  # of the app's own function; the session ends all the same
                _log(error)


class _Task:
    """The task that opens an asynchronous resource, and closes it in the end."""

    def __init__(self, open: Callable[[], Awaitable[Any]], close: Callable[[Any], Awaitable[None]] | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[Any] = self.loop.create_future()
        self.closed: Future[None] = Future()
        self._end = asyncio.Event()
        self._task = self.loop.create_task(self._live(open, close))

    async def _live(self, open: Callable[[], Awaitable[Any]], close: Callable[[Any], Awaitable[None]] | None) -> None:
        try:
            self.opened.set_result(value := await open())
            try:
                await self._end.wait()
            finally:
                if close is not None:
                    await close(value)
        except BaseException as error:
            if not self.opened.done():
                self.opened.set_exception(error)
            elif isinstance(error, Exception):
                _log(error)  # of the app's own function; the session ends all the same
            if not isinstance(error, Exception):
                raise
        finally:
            self.closed.set_result(None)

    def end(self) -> None:
        """Have it closed, once it is open; and wait for that where that does not hold up its own loop."""
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self._end.set)
        try:
            on_it = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            on_it = False
        if not on_it and self.loop.is_running() and self.opened.done():
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
        self._held: OrderedDict[Key, _Resource] = OrderedDict()
        self._finalizer = weakref.finalize(self, _close_all, self._held)  # also when the process ends

    def get(self, key: Key, open: Callable[[], Any], close: Callable[[Any], Any] | None) -> Any:
        resource = self._enter(key)
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
        resource = await self._offload.run(self._enter, key)
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
        """Close what these sessions have open."""
        self.close_where(lambda key: key.session_id in session_ids)

    def close_where(self, is_meant: Callable[[Key], bool]) -> None:
        with self._lock:
            keys = list(self._held)
        for key in filter(is_meant, keys):
            with self._lock:
                resource = self._held.pop(key, None)
            _end(resource)

    def close_all(self) -> None:
        _close_all(self._held)

    async def aclose_all(self) -> None:
        """As `close_all`, and wait for those that are closed on this loop."""
        held = [resource for resource in self._held.values() if resource.process == os.getpid()]
        await self._offload.run(self.close_all)
        for resource in held:
            if resource.task is not None:
                await asyncio.wrap_future(resource.task.closed)

    def _enter(self, key: Key) -> _Resource:
        """The resource, open or not; what sessions with this id had open before is closed, for it may be in the way."""
        self.close_where(lambda other: other.session_id == key.session_id and other.incarnation < key.incarnation)
        with self._lock:
            resource = self._held.get(key)
            if resource is None or resource.process != os.getpid():
                resource = self._held[key] = _Resource()
            self._held.move_to_end(key)
            return resource

    def _drop(self, key: Key, resource: _Resource) -> None:
        with self._lock:
            if self._held.get(key) is resource:
                del self._held[key]

    def _make_room(self) -> None:
        with self._lock:
            surplus = [self._held.popitem(last=False)[1] for _ in range(len(self._held) - self._limit)]
        for resource in surplus:
            _end(resource)


def _end(resource: _Resource | None) -> None:
    if resource is not None and resource.process == os.getpid():
        resource.end()


def _close_all(held: OrderedDict[Key, _Resource]) -> None:
    while held:
        _end(held.popitem()[1])


def _log(error: Exception) -> None:
    logger.warning("closing a session's resource raised %r", error, exc_info=error)


# Paths


def path_of(template: str, values: dict[str, str | None]) -> Path:
    """A path from a template over ``{session_id}``, ``{user_id}`` and ``{group_id}``.

    What a value holds beyond letters, digits, ``-`` and ``_`` is percent-encoded, so that no value
    leaves its place in the path and no two values have the same.

    Raises:
        PathTemplateError: a name nobody knows, or one the session has no value for.
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
