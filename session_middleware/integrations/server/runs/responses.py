"""Responses that last as long as a run: its events as server-sent events, or its result."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, cast

from fastapi import Depends, Header, Request
from starlette.responses import StreamingResponse
from starlette.types import Send

from session_middleware import Sessions
from session_middleware.errors import SessionError
from session_middleware.integrations.server.runs.job import error_of
from session_middleware.integrations.server.runs.log import Event
from session_middleware.integrations.server.runs.notes import RunNote
from session_middleware.integrations.server.runs.service import RunService
from session_middleware.integrations.server.serialization import json_bytes
from session_middleware.integrations.server.streams import Stream
from session_middleware.user_sessions import UserSessions


def _service(request: Request) -> RunService:
    return cast("RunService", request.app.state.runs)


Runs = Annotated[RunService, Depends(_service)]
NOT_KEPT = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # by a cache, and by a proxy
LastEventId = Annotated[str | None, Header(alias="last-event-id", max_length=100)]


class ClosingStream(StreamingResponse):
    """A response of server-sent events that closes its iterator, also if the client has gone while it waits."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Send) -> None:
        async with aclosing(cast("Any", self.body_iterator)):
            await super().stream_response(send)


def _is_of(event: Event, modes: frozenset[str]) -> bool:
    name = event.name.split("|")[0].split("/")[0]
    return not modes or name in modes or name in ("metadata", "error")


def stream_response(
    runs: RunService,
    streaming: Stream,
    note: RunNote,
    after: str | None,
    *,
    cancels: bool,
    modes: frozenset[str] = frozenset(),
) -> StreamingResponse:
    """The events of a run after one of them, until its end.

    Args:
        cancels: the run is cancelled if the client leaves before that.
    """

    async def body() -> AsyncIterator[bytes]:
        is_over = False
        try:
            async with aclosing(runs.follow(note, after)) as events:
                async for event in events:
                    if event is None:
                        yield b": heartbeat\r\n\r\n"
                    elif _is_of(event, modes):
                        yield event.frame()
            is_over = True
        except SessionError as error:
            yield error_frame(error_of(error))
        finally:
            if cancels and not is_over:
                runs.cancel_soon(note)

    headers = {**NOT_KEPT, **_locations(note, "stream")}
    return ClosingStream(streaming.while_allowed(body(), farewell=farewell_frame), headers=headers)


def error_frame(error: dict[str, str]) -> bytes:
    """An event `error`, which ends a stream."""
    return b"event: error\r\ndata: %b\r\n\r\n" % json_bytes(error)


def farewell_frame(why: dict[str, str]) -> bytes:
    """The event `error` of a stream that ends with its caller's access."""
    return error_frame({"error": why["error"], "message": why["detail"]})


def result_response(
    runs: RunService, streaming: Stream, access: UserSessions | Sessions, note: RunNote, *, cancels: bool = False
) -> StreamingResponse:
    """The result of a run, after its end. Until then spaces, which JSON allows, keep the connection open."""

    async def body() -> AsyncIterator[bytes]:
        is_over = False
        try:
            async with aclosing(runs.until_done_with_pauses(note)) as waiting:
                async for ended in waiting:
                    if ended is None:
                        yield b"\n"
                    else:
                        is_over = True
                        yield await runs.result(access, ended)
        except SessionError as error:
            yield json_bytes({"__error__": error_of(error)})
        finally:
            if cancels and not is_over:
                runs.cancel_soon(note)

    def farewell(why: dict[str, str]) -> bytes:
        return json_bytes({"__error__": {"error": why["error"], "message": why["detail"]}})

    allowed = streaming.while_allowed(body(), farewell=farewell)
    return ClosingStream(allowed, media_type="application/json", headers=_locations(note, "join"))


def path_of(note: RunNote) -> str:
    return f"/threads/{note.thread_id}/runs/{note.run_id}"


def _locations(note: RunNote, what: str) -> dict[str, str]:
    return {"Location": f"{path_of(note)}/{what}", "Content-Location": path_of(note)}
