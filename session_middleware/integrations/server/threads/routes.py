"""The routes of threads: each is a session of the caller. See `states` for the state of one."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Header, HTTPException, Query
from starlette.responses import Response

from session_middleware import Session, SessionNotFound, Sessions
from session_middleware.errors import SessionAccessDenied, SessionExists
from session_middleware.integrations.callers import Caller
from session_middleware.integrations.server.assistants import page_headers
from session_middleware.integrations.server.identity import Access, CurrentCaller
from session_middleware.integrations.server.problems import problems
from session_middleware.integrations.server.request_types import Id
from session_middleware.integrations.server.serialization import StateResponse
from session_middleware.integrations.server.server_state import CurrentServer, Server
from session_middleware.integrations.server.threads import search
from session_middleware.integrations.server.threads.fields import details_of, thread_json
from session_middleware.integrations.server.threads.models import (
    Pruned,
    Thread,
    ThreadCreate,
    ThreadFilter,
    ThreadPart,
    ThreadPatch,
    ThreadPrune,
    ThreadSearch,
    ThreadWithTtl,
)
from session_middleware.integrations.server.threads.states import apply_supersteps
from session_middleware.user_sessions import UserSessions

router = APIRouter(prefix="/threads", tags=["threads"], responses=problems(422, 429))
_OF_ONE = problems(404, 409, 410, 422, 429)


async def open_new(
    access: Sessions | UserSessions, caller: Caller, thread_id: str | None = None, **options: Any
) -> Session:
    """A new session of the caller, whose id is a UUID unless the client chose one. Raises `SessionExists`."""
    chosen = str(uuid4()) if thread_id is None else thread_id
    if isinstance(access, UserSessions):
        return await access.aopen(chosen, if_exists="raise", **options)
    if await access.afind(chosen) is not None:  # of any owner, whom an operator may not become by opening it
        raise SessionExists(chosen)
    return await access.aopen(chosen, if_exists="raise", user_id=caller.user_id, **options)


@router.post("", response_model=Thread, responses=problems(400, 404, 409, 410))
async def create_thread(server: CurrentServer, access: Access, caller: CurrentCaller, given: ThreadCreate) -> Response:
    """Open a session, or with ``"do_nothing"`` return the one that has the id."""
    options = details_of(given.metadata or {}) | given.time_options
    found = None
    if given.if_exists == "do_nothing" and given.thread_id is not None:
        found = await access.afind(given.thread_id)
    if found is None:
        try:
            found = await open_new(access, caller, given.thread_id, **options)
        except SessionExists:
            if given.if_exists != "do_nothing":
                raise
            found = await access.aget(given.thread_id)  # another request has opened it meanwhile
        else:
            await _apply_supersteps(server, found, given)
    return StateResponse(await thread_json(server, await access.aget(found.id)))


async def _apply_supersteps(server: Server, session: Session, given: ThreadCreate) -> None:
    """Write the states of another thread. The thread is deleted again if the graph refuses them."""
    try:
        await apply_supersteps(server, session, given.supersteps or [])
    except HTTPException:
        await session.adelete()
        raise


@router.post("/search", response_model=list[ThreadPart])
async def search_threads(server: CurrentServer, access: Access, wanted: ThreadSearch) -> Response:
    """The caller's threads, latest activity first."""
    page, has_more = await search.search(server, access, wanted)
    fields: list[str] = [*(wanted.select or ())]
    found = []
    for session in page:
        shown = await thread_json(server, session, fields=fields)
        if wanted.extract:
            shown["extracted"] = await search.extracted(server, session, wanted.extract)
        found.append(shown)
    return StateResponse(found, headers=page_headers((wanted.offset or 0) + len(found), has_more=has_more))


@router.post("/count")
async def count_threads(server: CurrentServer, access: Access, wanted: ThreadFilter) -> int:
    """The number of the caller's threads."""
    return await search.count(server, access, wanted)


@router.post("/prune")
async def prune_threads(access: Access, given: ThreadPrune) -> Pruned:
    """Delete threads, or with ``"keep_latest"`` all but their latest checkpoints. Unknown threads are left out."""
    pruned = 0
    for thread_id in dict.fromkeys(given.thread_ids):
        try:
            session = await access.aget(thread_id)
            if given.strategy == "delete":
                await session.adelete()
            else:
                await session.aprune()
        except (SessionNotFound, SessionAccessDenied):
            continue
        pruned += 1
    return Pruned(pruned_count=pruned)


@router.get("/{thread_id}", response_model=ThreadWithTtl, responses=_OF_ONE)
async def read_thread(
    server: CurrentServer,
    access: Access,
    thread_id: Id,
    include: Annotated[str, Query(description="`ttl`: with the time to live")] = "",
) -> Response:
    """A thread with its latest values."""
    session = await access.aget(thread_id)
    with_ttl = "ttl" in (part.strip() for part in include.split(","))
    return StateResponse(await thread_json(server, session, with_ttl=with_ttl))


@router.patch("/{thread_id}", response_model=Thread, responses=_OF_ONE | {204: {"description": "As preferred."}})
async def update_thread(
    server: CurrentServer,
    access: Access,
    thread_id: Id,
    given: ThreadPatch,
    prefer: Annotated[str | None, Header()] = None,
) -> Response:
    """Replace keys of a thread's metadata, or its time to live. ``null`` removes a key."""
    session = await access.aget(thread_id)
    options = details_of(given.metadata or {}, session.metadata) | given.time_options
    changed = await session.aupdate(**options)
    if prefer == "return=minimal":
        return Response(status_code=204)
    return StateResponse(await thread_json(server, changed))


@router.delete("/{thread_id}", status_code=204, responses=_OF_ONE)
async def delete_thread(access: Access, thread_id: Id) -> None:
    """Delete a thread with its state, record and memories."""
    deleted = await access.adelete(thread_id)
    if not any(deleted):
        raise HTTPException(404, "there is no such thread")


@router.post("/{thread_id}/copy", response_model=Thread, responses=_OF_ONE)
async def copy_thread(server: CurrentServer, access: Access, thread_id: Id) -> Response:
    """Fork a session with its whole history. The copy has a new id."""
    session = await access.aget(thread_id)
    copy = await session.afork(id=str(uuid4()))
    return StateResponse(await thread_json(server, copy))
