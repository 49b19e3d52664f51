"""The routes of runs in LangGraph's API: stream, wait, create, list, get, cancel, join and delete.

Paths in ``Location`` are relative to this app, as LangGraph's clients expect: they put their own base URL before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Response
from fastapi.exceptions import HTTPException
from pydantic import BaseModel, ConfigDict
from starlette.responses import StreamingResponse

from session_middleware import Session
from session_middleware.integrations.server.assistants import get_assistant
from session_middleware.integrations.server.identity import Access, CurrentCaller
from session_middleware.integrations.server.runs.notes import RunNote, RunStatus
from session_middleware.integrations.server.runs.request import Action, RunCreate
from session_middleware.integrations.server.runs.responses import (
    LastEventId,
    Runs,
    path_of,
    result_response,
    stream_response,
)
from session_middleware.integrations.server.runs.service import RunService
from session_middleware.integrations.server.server_state import CurrentServer
from session_middleware.integrations.server.streams import Streaming

router = APIRouter(tags=["runs"])


Limit = Annotated[int, Query(ge=1, le=1000)]
Modes = Annotated[list[str] | None, Query(alias="stream_mode")]
Thread = str | None  # without one, a run gets a thread of its own, which `on_completion` deletes or keeps at its end


class _Cancel(BaseModel):
    model_config = ConfigDict(extra="ignore")
    status: Literal["pending", "running", "all"] | None = None
    thread_id: str | None = None
    run_ids: list[UUID] | None = None


# Beginning


@router.post("/runs/stream")
@router.post("/threads/{thread_id}/runs/stream")
async def stream_run(
    asked: RunCreate, runs: Runs, caller: CurrentCaller, access: Access, streaming: Streaming, thread_id: Thread = None
) -> StreamingResponse:
    """Begin a run in a thread, or in one of its own, and stream its events until its end."""
    job = await runs.start(asked, caller, access, thread_id)
    return stream_response(runs, streaming, job.note, "0-0", cancels=asked.on_disconnect == "cancel")


@router.post("/runs/wait")
@router.post("/threads/{thread_id}/runs/wait")
async def wait_for_run(
    asked: RunCreate, runs: Runs, caller: CurrentCaller, access: Access, streaming: Streaming, thread_id: Thread = None
) -> StreamingResponse:
    """Begin a run in a thread, or in one of its own, and respond with its result after its end."""
    job = await runs.start(asked, caller, access, thread_id)
    return result_response(runs, streaming, access, job.note, cancels=asked.on_disconnect == "cancel")


@router.post("/runs")
@router.post("/threads/{thread_id}/runs")
async def create_run(
    asked: RunCreate, runs: Runs, caller: CurrentCaller, access: Access, response: Response, thread_id: Thread = None
) -> dict[str, Any]:
    """The same in the background: the response comes at once, and its `Content-Location` is the path of the run."""
    job = await runs.start(asked, caller, access, thread_id, at_once=True)
    response.headers["Content-Location"] = path_of(job.note)
    return job.note.shown()


@router.post("/runs/batch")
async def create_runs_alone(
    asked: list[RunCreate], server: CurrentServer, runs: Runs, caller: CurrentCaller, access: Access
) -> list[dict[str, Any]]:
    """Begin several runs in the background, each without a thread. None begins if a graph is unknown."""
    for each in asked:  # before the first one begins
        get_assistant(server, each.assistant_id)
    jobs = [await runs.start(each, caller, access, None) for each in asked]
    await runs.flush()
    return [job.note.shown() for job in jobs]


# Reading


@router.get("/threads/{thread_id}/runs")
async def list_runs(
    thread_id: str,
    runs: Runs,
    access: Access,
    limit: Limit = 10,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
    status: RunStatus | Literal["timeout"] | None = None,
    select: Annotated[list[str] | None, Query()] = None,
) -> list[dict[str, Any]]:
    """The runs of a thread, the latest first, also those that Python code has begun."""
    session = await access.aget(thread_id)
    found = await runs.list_runs(session, offset + limit, status)
    shown = [note.shown() for note in found[offset:]]
    return [{name: run[name] for name in run if name in select} for run in shown] if select else shown


@router.get("/threads/{thread_id}/runs/{run_id}")
async def get_run(thread_id: str, run_id: UUID, runs: Runs, access: Access) -> dict[str, Any]:
    """A run by its id."""
    return (await _found(runs, access, thread_id, run_id)).shown()


@router.delete("/threads/{thread_id}/runs/{run_id}", status_code=204)
async def delete_run(thread_id: str, run_id: UUID, runs: Runs, access: Access) -> None:
    """Leave a run out of the list. Its record stays in the session."""
    await _check_may_change(access, thread_id)
    await runs.hide(await _found(runs, access, thread_id, run_id))


@router.get("/threads/{thread_id}/runs/{run_id}/join")
async def join_run(
    thread_id: str,
    run_id: UUID,
    runs: Runs,
    access: Access,
    streaming: Streaming,
    cancel_on_disconnect: bool = False,
) -> StreamingResponse:
    """Respond with the result of a run after its end."""
    note = await _found(runs, access, thread_id, run_id)
    return result_response(runs, streaming, access, note, cancels=cancel_on_disconnect)


@router.get("/threads/{thread_id}/runs/{run_id}/stream")
async def join_stream(
    thread_id: str,
    run_id: UUID,
    runs: Runs,
    access: Access,
    streaming: Streaming,
    stream_mode: Modes = None,
    cancel_on_disconnect: bool = False,
    last_event_id: LastEventId = None,
) -> StreamingResponse:
    """Stream the events of a run: all, or those after `Last-Event-ID`."""
    note = await _found(runs, access, thread_id, run_id)
    return stream_response(
        runs, streaming, note, last_event_id, cancels=cancel_on_disconnect, modes=_modes(stream_mode)
    )


# Ending


@router.post("/threads/{thread_id}/runs/{run_id}/cancel")
async def cancel_run(
    thread_id: str,
    run_id: UUID,
    runs: Runs,
    access: Access,
    streaming: Streaming,
    wait: bool = False,
    action: Action = "interrupt",
) -> Response:
    """End a run. `interrupt` keeps its finished steps; `rollback` restores the thread as it was before."""
    await _check_may_change(access, thread_id)
    note = await _found(runs, access, thread_id, run_id)
    await runs.cancel(note, action)
    return result_response(runs, streaming, access, note) if wait else Response(status_code=202)


@router.post("/runs/cancel", status_code=204)
async def cancel_runs(asked: _Cancel, runs: Runs, access: Access, action: Action = "interrupt") -> None:
    """End several runs: those of a thread by their ids, or all of the caller with a status."""
    if (asked.status is None) == (asked.thread_id is None or asked.run_ids is None):
        raise HTTPException(422, "give either a status, or a thread_id and its run_ids")
    found: list[RunNote] = []
    if asked.thread_id is not None:
        session = await _check_may_change(access, asked.thread_id)
        notes = [await runs.find(session, str(run_id)) for run_id in asked.run_ids or ()]
        found = [note for note in notes if note is not None and note.is_active]
    else:
        statuses = ("pending", "running") if asked.status == "all" else (str(asked.status),)
        for note in await runs.notes.list_active(*statuses):
            if await access.afind(note.thread_id) is not None:
                found.append(note)
    if not found:
        raise HTTPException(404, "there is no run to cancel")
    for note in found:
        await runs.cancel(note, action)


# Their parts


async def _found(runs: RunService, access: Access, thread_id: str, run_id: UUID) -> RunNote:
    note = await runs.find(await access.aget(thread_id), str(run_id))
    if note is None:
        raise HTTPException(404, "the thread has no such run")
    return note


async def _check_may_change(access: Access, thread_id: str) -> Session:
    """The session, if the caller may change it and not only read it."""
    session = await access.aget(thread_id)
    return await session.aupdate()


def _modes(given: Sequence[str] | None) -> frozenset[str]:
    """The stream modes of a query: one, several, or JSON with several, as the clients write it."""
    found: list[str] = []
    for text in filter(None, given or ()):
        try:
            parsed = orjson.loads(text)
        except orjson.JSONDecodeError:
            parsed = text
        found += parsed if isinstance(parsed, list) else [text]
    return frozenset("messages" if mode == "messages-tuple" else str(mode) for mode in found)
