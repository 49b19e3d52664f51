"""The routes of the page. Each reads through `Access` only, so a caller sees no session that is not the caller's.

Ids are in the query of an address and not in its path, because they may be any text, such as ``..`` and ``a/b``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from session_middleware.errors import InvalidArgument, SessionError, SessionNotFound
from session_middleware.integrations import cursors
from session_middleware.integrations.server.identity import Access, CurrentCaller
from session_middleware.integrations.server.page import branches, conversation, formatting, listing, trace, usage
from session_middleware.integrations.server.page.conversation import Place
from session_middleware.integrations.server.page.rendering import Page
from session_middleware.integrations.server.streams import Streaming
from session_middleware.memory.results import SearchHit
from session_middleware.models import SessionOrder
from session_middleware.session import Session
from session_middleware.storage.types import Record, UsageBy

logger = logging.getLogger("session_middleware")
router = APIRouter()

_HEARTBEAT_SECONDS = 15
_GREATEST_SEQ = 2**63 - 1
_LONGEST_NAME = 1_024  # of a branch
_HITS = 20
_END = ServerSentEvent("", event="end")  # the page is read once more, which says why
_IMAGES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
_PARTS = ("text", "content", "tool_calls", "arguments", "result", "error", "value", "answer", "detail")

Seq = Annotated[int | None, Query(ge=1, le=_GREATEST_SEQ)]
SessionId = Annotated[str, Query(alias="id")]
View = Literal["conversation", "trace", "branches", "usage", "lifecycle"]


def _page(request: Request, caller: CurrentCaller) -> Page:
    return Page(request, caller)


CurrentPage = Annotated[Page, Depends(_page)]


async def _session(access: Access, session_id: SessionId) -> Session:
    """The session of the request. Raises `HTTPException` 404, or 410 if it was the caller's and has been deleted."""
    try:
        return await access.aget(session_id)
    except SessionNotFound:
        explained = await access.aexplain(session_id)
        if explained.status == "unknown":
            raise
        raise HTTPException(410, explained.text) from None


CurrentSession = Annotated[Session, Depends(_session)]


# The list


@router.get("/")
async def sessions(
    page: CurrentPage,
    caller: CurrentCaller,
    access: Access,
    q: str = "",
    status: str = "",
    user: str = "",
    group: str = "",
    tag: str = "",
    label: str = "",
    waiting: str = "",
    order: SessionOrder = "activity",
    after: str = "",
) -> Response:
    user = user if caller.is_operator else ""  # all that others see is theirs
    query = listing.ListQuery(q, status, user, group, tag, label, waiting in ("1", "on", "true"), order, after)
    found: Sequence[Session] = []
    hits: Sequence[SearchHit] = []
    total, problem = 0, None
    try:
        place = cursors.place_of(query.after, order)
        found = await access.alist(order=order, limit=listing.PAGE + 1, after=place, **query.filters)
        total = await access.acount(**query.filters)
        if query.searches_messages:
            hits = await access.asearch(query.q, user_id=query.filters.get("user_id"), limit=_HITS + 1)
    except InvalidArgument as error:
        problem = str(error)
    rows = found[: listing.PAGE]
    following = cursors.cursor_of(rows[-1], order) if len(found) > listing.PAGE else ""
    return page.response(
        "list.html",
        status=200 if problem is None else 422,
        query=query,
        rows=rows,
        total=total,
        following=following,
        problem=problem,
        hits=hits[:_HITS],
        has_more_hits=len(hits) > _HITS,
        searched=query.searches_messages,
        statuses=listing.STATUSES,
        orders=listing.ORDERS,
        waiting_total=await access.acount(waiting=True),
    )


@router.get("/usage")
async def usage_page(
    page: CurrentPage, access: Access, by: UsageBy = "model", days: Literal["7", "30", "90", "all"] = "30"
) -> Response:
    report = await usage.usage_report(access, by, days, page.now)
    return page.response(
        "usage.html",
        by=by,
        days=days,
        report=report,
        groupings=usage.GROUPINGS,
        periods=usage.PERIODS,
        waiting_total=await access.acount(waiting=True),
    )


# One session


@router.get("/session")
async def session_page(
    page: CurrentPage,
    access: Access,
    session: CurrentSession,
    session_id: SessionId,
    view: View = "conversation",
    before: Seq = None,
    start: Seq = None,
    since: Seq = None,
    branch: Annotated[str | None, Query(max_length=_LONGEST_NAME)] = None,
) -> Response:
    if session.id != session_id:  # it was merged into this one
        return RedirectResponse(page.link("/session", id=session.id, view=view))
    place = Place(before, start, since)
    last = await session.atimeline(last=1)  # before the other reads, so that what comes after it is a change
    shown, first = await _view(view, session, access, place, branch or None, page)
    later = shown.get("talk") and shown["talk"].later
    values: dict[str, Any] = {
        "last_seq": last[0].seq if last else 0,
        "live_address": page.link("/session", id=session.id, view=view, since=first, branch=branch),
        "is_live": place.before is None and later is None,
        "waiting": await session.awaiting_for() if session.waiting_count else [],
    }
    values |= {"session": session, "view": view, "branch": branch, "waiting_total": await access.acount(waiting=True)}
    return page.response(f"session_{view}.html", **values, **shown)


async def _view(
    view: View, session: Session, access: Access, place: Place, branch: str | None, page: Page
) -> tuple[dict[str, Any], int | None]:
    """What a view shows, and the `seq` with which its page begins, if it has pages."""
    if view == "conversation":
        talk = await conversation.conversation_of(session, place, branch)
        return {"talk": talk}, talk.first_seq
    if view == "trace":
        found = await trace.trace_of(session, page.now, place)
        return {"trace": found}, found.first_seq
    if view == "branches":
        return {"branches": await branches.branches_of(session)}, None
    if view == "usage":
        return {"usage": await usage.session_usage(session)}, None
    return {"events": (await session.aevents())[::-1], "explained": await access.aexplain(session.id)}, None


@router.get("/live")
async def live(
    session: CurrentSession,
    streaming: Streaming,
    after: Annotated[int, Query(ge=0, le=_GREATEST_SEQ)] = 0,
    running: bool = False,
) -> Response:
    """An event for each record that is committed, so that the page is read again. Its data is the number of it.

    With `running` there is one at once, because what was unfinished in the page may have finished meanwhile.
    """
    events = streaming.while_allowed(_changes(session, after, at_once=running), farewell=lambda _: _END)
    return EventSourceResponse(events, ping=_HEARTBEAT_SECONDS, headers={"Cache-Control": "no-store"})


async def _changes(session: Session, after: int, *, at_once: bool) -> AsyncIterator[ServerSentEvent]:
    if at_once:
        yield ServerSentEvent(str(after), event="change")
    try:
        async with aclosing(session.afollow(after=after, past_end=True)) as records:  # type: ignore[type-var]
            async for record in records:
                yield ServerSentEvent(str(record.seq), event="change", id=str(record.seq))
    except SessionError:  # the user was revoked, or the session is not here any more; reading it again says so
        pass
    yield _END


# The whole of what a page shows the beginning of


@router.get("/raw")
async def raw(session: CurrentSession, seq: Annotated[int, Query(ge=1, le=_GREATEST_SEQ)], part: str) -> Response:
    found = [record for record in await session.atimeline(after=seq - 1, limit=1) if record.seq == seq]
    if not found or part not in _PARTS or not hasattr(found[0], part):
        raise HTTPException(404)
    record: Record = found[0]
    return PlainTextResponse(formatting.as_text(getattr(record, part)), headers={"Content-Disposition": "inline"})


@router.get("/file")
async def file(session: CurrentSession, hash: str) -> Response:
    """A file of a message: pictures as such, all others to be saved, because they may contain a script."""
    data = await session.afile(hash)
    if data is None:
        raise HTTPException(404)
    media_type = next((name for begin, name in _IMAGES.items() if data.startswith(begin)), None)
    if media_type is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        media_type = "image/webp"
    if media_type is not None:
        return Response(data, media_type=media_type)
    attachment = {"Content-Disposition": 'attachment; filename="file.bin"'}
    return Response(data, media_type="application/octet-stream", headers=attachment)
