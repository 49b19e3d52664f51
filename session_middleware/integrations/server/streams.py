"""Open streams, each of which ends when its caller is no longer allowed: revoked, or with a token that has expired.

A request is checked when it begins; a stream may outlast that check by hours. A route that streams declares
`Streaming` and wraps what it sends:

    @router.get("/numbers")
    async def numbers(streaming: Streaming) -> EventSourceResponse:
        return EventSourceResponse(streaming.while_allowed(some_events(), farewell=as_event))
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar
from weakref import WeakKeyDictionary

from fastapi import Depends, HTTPException
from starlette.requests import HTTPConnection

from session_middleware import Sessions
from session_middleware.errors import StorageError
from session_middleware.integrations.callers import Caller
from session_middleware.integrations.server.identity import CurrentCaller

logger = logging.getLogger("session_middleware")

T = TypeVar("T")

_INTERVAL_SECONDS = 0.5  # between two checks of the users that have open streams
_REVOKED = {"error": "UserRevoked", "detail": "user revoked"}
_ENDED = {"error": "ServerEnded", "detail": "the server has ended; try again later"}
_EXPIRED = {"error": "TokenExpired", "detail": "token expired"}


class Stream:
    """One request that is answered by a stream."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self._why_ended: dict[str, str] | None = None
        self._waiting: asyncio.Timeout | None = None  # for the next item

    def end(self, why: dict[str, str]) -> None:
        """End `while_allowed`, also while it waits for an item. On the loop of the stream."""
        self._why_ended = self._why_ended or why
        if self._waiting is not None:
            self._waiting.reschedule(0)

    async def while_allowed(
        self, items: AsyncIterable[T], *, farewell: Callable[[dict[str, str]], T] | None = None
    ) -> AsyncIterator[T]:
        """Yield `items` until they end or the caller is no longer allowed, and close them.

        Waiting for an item is cancelled within about a second after the user was revoked, in any process, and when the
        token expires. The generator `items` sees the cancellation as that of a client that has left.

        Args:
            farewell: makes a last item of the reason, ``{"error": "UserRevoked", "detail": …}``, ``TokenExpired`` or
                ``ServerEnded``, so that a client does not take the end for that of the items.
        """
        iterator = aiter(items)
        try:
            while self._why_ended is None:
                try:
                    async with asyncio.timeout(None) as self._waiting:
                        item = await anext(iterator)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    if self._why_ended is None:  # it is one of the items' own
                        raise
                    break
                finally:
                    self._waiting = None
                yield item
        finally:
            if (close := getattr(iterator, "aclose", None)) is not None:
                await close()
        if farewell is not None:
            yield farewell(self._why_ended)


class OpenStreams:
    """The open streams of a process; those of each event loop are watched by a task, while there are any."""

    def __init__(self, sessions: Sessions, *, per_user: int | None = None) -> None:
        self._sessions = sessions
        self._per_user = per_user
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, set[Stream]] = WeakKeyDictionary()
        self._tasks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = WeakKeyDictionary()

    def count(self) -> int:
        return sum(map(len, list(self._open.values())))

    def end(self) -> None:
        """End those of the running loop, because the server ends."""
        for stream in tuple(self._open.get(asyncio.get_running_loop(), ())):
            stream.end(_ENDED)

    async def opened(self, caller: Caller) -> AsyncIterator[Stream]:
        """Yield the stream of one request, for as long as that lasts.

        Raises:
            HTTPException: 429 if the user has as many streams already as are allowed.
        """
        loop = asyncio.get_running_loop()
        streams, stream = self._open.setdefault(loop, set()), Stream(caller)
        theirs = sum(each.caller.user_id == caller.user_id for each in streams)
        if self._per_user is not None and theirs >= self._per_user:
            raise HTTPException(429, "too many open streams; close one first", headers={"Retry-After": "1"})
        streams.add(stream)
        task = self._tasks.get(loop)
        if task is None or task.done():
            self._tasks[loop] = loop.create_task(self._watch(streams))
        expiry = None
        if caller.expires_at is not None:
            left = (caller.expires_at - datetime.now(UTC)).total_seconds()
            expiry = loop.call_later(left, stream.end, _EXPIRED)
        try:
            yield stream
        finally:
            streams.discard(stream)
            if expiry is not None:
                expiry.cancel()

    async def _watch(self, streams: set[Stream]) -> None:
        is_reachable = True
        while streams:
            await asyncio.sleep(_INTERVAL_SECONDS)
            users = {stream.caller.user_id for stream in streams}
            try:
                revoked = set(await self._sessions.alist_revoked(users)) if users else set()
                is_reachable = True
            except StorageError as error:  # a database that restarts is no reason to cut everybody off
                if is_reachable:
                    logger.warning("the users of open streams cannot be checked (%s); trying again", error)
                is_reachable = False
                continue
            for stream in [each for each in streams if each.caller.user_id in revoked]:
                stream.end(_REVOKED)


async def _stream(connection: HTTPConnection, caller: CurrentCaller) -> AsyncIterator[Stream]:
    streams: OpenStreams = connection.app.state.server.streams
    async for stream in streams.opened(caller):
        yield stream


Streaming = Annotated[Stream, Depends(_stream)]  # of the current request, whose caller it identifies too
