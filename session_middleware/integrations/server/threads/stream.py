"""The stream of a thread: the events of its runs, those that are to come too, until the client leaves.

Each run is followed by a task of its own. They share a short queue, so a client that does not read stops them, and what
that does to a run is said in `runs.log`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from session_middleware import Session
from session_middleware.errors import SessionError
from session_middleware.integrations.server.identity import Access
from session_middleware.integrations.server.problems import problems
from session_middleware.integrations.server.runs.job import error_of
from session_middleware.integrations.server.runs.log import PAUSE_SECONDS, Event, position_of
from session_middleware.integrations.server.runs.notes import RunNote
from session_middleware.integrations.server.runs.responses import (
    NOT_KEPT,
    ClosingStream,
    LastEventId,
    Runs,
    error_frame,
    farewell_frame,
)
from session_middleware.integrations.server.runs.service import RunService
from session_middleware.integrations.server.serialization import json_bytes
from session_middleware.integrations.server.streams import Streaming
from session_middleware.models import utc_now

_LOOK_SECONDS = 0.25  # between two looks for new runs
_LATE = timedelta(minutes=1)  # until a note that was made is committed, and between the clocks of machines
_AHEAD = 100  # events that wait for the client

ThreadMode = Literal["run_modes", "lifecycle", "state_update"]
Item = tuple[RunNote, Event | None]  # an event of a run; None: its end

router = APIRouter(tags=["runs"], responses=problems(404, 422))


@router.get("/threads/{thread_id}/stream", response_class=ClosingStream)
async def join_thread_stream(
    thread_id: str,
    runs: Runs,
    access: Access,
    streaming: Streaming,
    stream_mode: Annotated[list[ThreadMode] | None, Query()] = None,
    last_event_id: LastEventId = None,
) -> StreamingResponse:
    """The events of the thread's runs from now on, or after the event with this id."""
    session = await access.aget(thread_id)
    is_all = "run_modes" in (stream_mode or ["run_modes"])

    async def body() -> AsyncIterator[bytes]:
        try:
            async with aclosing(_Followers(runs, session, last_event_id)) as followers:
                while True:
                    item = await followers.next()
                    if item is None:
                        yield b": heartbeat\r\n\r\n"
                        continue
                    note, event = item
                    if event is None:
                        done = json_bytes({"status": "run_done", "run_id": note.run_id})
                        yield b"event: metadata\r\ndata: %b\r\n\r\n" % done
                    elif is_all or event.name == "metadata":
                        yield event.frame()
        except SessionError as error:  # such as that the thread was deleted
            yield error_frame(error_of(error))

    return ClosingStream(streaming.while_allowed(body(), farewell=farewell_frame), headers=NOT_KEPT)


class _Followers:
    """The tasks that follow the runs of one thread for one client."""

    def __init__(self, runs: RunService, session: Session, last_event_id: str | None) -> None:
        self._runs, self._session = runs, session
        self._position = None if last_event_id is None else position_of(last_event_id)
        self._since = utc_now().isoformat()
        self._items: asyncio.Queue[Item] = asyncio.Queue(_AHEAD)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._looking = asyncio.create_task(self._look())

    async def next(self) -> Item | None:
        """The next event, or ``None`` in a longer pause. Raises `SessionError` if the thread cannot be read."""
        if self._looking.done():
            self._looking.result()
        try:
            return await asyncio.wait_for(self._items.get(), PAUSE_SECONDS)
        except TimeoutError:
            return None

    async def aclose(self) -> None:
        tasks = [self._looking, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        since = None  # at first all
        while True:
            looked = utc_now()
            for note in await self._runs.list_noted(self._session, since):
                is_missed = self._position is not None and note.owner is not None
                is_new = note.run_id not in self._tasks and not note.is_hidden
                if is_new and (is_missed or note.is_active or note.created_at >= self._since):
                    self._tasks[note.run_id] = asyncio.create_task(self._follow(note))
            since = looked - _LATE
            await asyncio.sleep(_LOOK_SECONDS)

    async def _follow(self, note: RunNote) -> None:
        is_from_now = self._position is None and note.created_at < self._since
        async with aclosing(self._runs.follow(note, None if is_from_now else "0-0")) as events:
            async for event in events:
                if event is not None and (self._position is None or (event.at_ms, event.seq) > self._position):
                    await self._items.put((note, event))
        if note.is_active or note.updated_at >= self._since:
            await self._items.put((note, None))
