"""Live updates: the record of a session as server-sent events, as `Session.follow` yields it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query
from pydantic_core import PydanticSerializationError, to_json
from sse_starlette import EventSourceResponse, ServerSentEvent

from session_middleware.errors import SessionError
from session_middleware.integrations.fastapi_errors import body_of
from session_middleware.integrations.server.identity import Access
from session_middleware.integrations.server.streams import Streaming
from session_middleware.session import Session
from session_middleware.storage.timeline import kind_of
from session_middleware.storage.types import Record

router = APIRouter()

_HEARTBEAT_SECONDS = 15  # proxies close a connection that is silent for a minute
_GREATEST_SEQ = 2**63 - 1

_Seq = Annotated[int, Query(ge=0, le=_GREATEST_SEQ)]
_LastEventId = Annotated[int | None, Header(ge=0, le=_GREATEST_SEQ)]


@router.get("/session/{session_id:path}/follow", response_class=EventSourceResponse)
async def follow(
    session_id: str, access: Access, streaming: Streaming, after: _Seq = 0, last_event_id: _LastEventId = None
) -> EventSourceResponse:
    """The record of a session after a sequence number, and then each record of any process as it is committed.

    The name of an event is the kind of its record: message, tool_call, model_call, run, question or event. Its data is
    the record as JSON. A record that was unfinished comes again, with the same `seq`, when it has changed. The id of an
    event is the position to resume from, as `after` or ``Last-Event-ID``: its `seq`, or while an earlier record is
    unfinished the number before that one's, so a client that reconnects misses no change. The stream ends when the
    session is deleted. If it ends otherwise, such as for a revoked user, a last event `error` gives the reason.
    """
    session = await access.aget(session_id)
    start = after if last_event_id is None else last_event_id
    events = streaming.while_allowed(_events(session, start), farewell=_farewell)
    return EventSourceResponse(events, ping=_HEARTBEAT_SECONDS, headers={"Cache-Control": "no-store"})


async def _events(session: Session, after: int) -> AsyncIterator[ServerSentEvent]:
    unfinished: set[int] = set()
    try:
        async with aclosing(session.afollow(after=after, past_end=True)) as records:  # type: ignore[type-var]
            async for record in records:
                after = max(after, record.seq)
                (unfinished.discard if record.is_finished else unfinished.add)(record.seq)
                position = min([after, *(seq - 1 for seq in unfinished)])
                yield ServerSentEvent(_json(record), event=kind_of(record), id=str(position))
    except SessionError as error:  # the user was revoked, the session became another's, or the database failed
        yield _farewell(body_of(error))


def _json(record: Record) -> str:
    row = {"record": kind_of(record), **record.model_dump()}
    try:
        return to_json(row, inf_nan_mode="null").decode()
    except PydanticSerializationError:  # nested deeper than 255 levels
        return json.dumps(row, default=str)


def _farewell(why: dict[str, str]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(why), event="error")
