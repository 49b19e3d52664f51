"""The routes of a thread's state: reading it now and at a checkpoint, updating it, and its history."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from starlette.responses import Response

from session_middleware import Session
from session_middleware.errors import SessionBusy, SessionError
from session_middleware.integrations.server.identity import Access
from session_middleware.integrations.server.problems import problems
from session_middleware.integrations.server.request_types import Id
from session_middleware.integrations.server.serialization import (
    StateResponse,
    checkpoint_json,
    error_json,
    snapshot_of,
    state_json,
)
from session_middleware.integrations.server.server_state import CurrentServer, Server
from session_middleware.integrations.server.threads.fields import (
    check_checkpoint,
    config_of,
    find_assistant_of,
    get_assistant_of,
    read_state,
)
from session_middleware.integrations.server.threads.models import (
    ConfigNamed,
    HistorySearch,
    StateAtCheckpoint,
    StateChange,
    StateChanged,
    Superstep,
    ThreadState,
)

logger = logging.getLogger("session_middleware")

router = APIRouter(prefix="/threads/{thread_id}", tags=["threads"], responses=problems(400, 404, 409, 410, 422))

Select = Annotated[list[str] | None, Query(description="fields, and as `values.messages` single values")]


@contextmanager
def _of_the_client() -> Iterator[None]:
    """Answer what a graph refuses as the fault of the request, which gave the values, the node or the checkpoint."""
    try:
        yield
    except (SessionError, HTTPException):
        raise
    except Exception as error:  # reducers, channels and nodes are the host's code: they may raise anything
        logger.info("a graph refused the state that a client gave", exc_info=error)
        raise HTTPException(422, f"the graph refused it: {error_json(error)['message']}") from error


def selected(state: Mapping[str, Any], select: Sequence[str] | None) -> dict[str, Any]:
    """The fields that a client wants; ``values.messages`` is one key of the values."""
    if not select:
        return dict(state)
    found = {name: value for name, value in state.items() if name in select}
    keys = {name.removeprefix("values.") for name in select if name.startswith("values.")}
    if keys and "values" not in select and isinstance(state["values"], Mapping):
        found["values"] = {name: value for name, value in state["values"].items() if name in keys}
    return found


async def _state(
    server: Server, session: Session, checkpoint: Mapping[str, Any], *, subgraphs: bool, select: Any
) -> Response:
    with _of_the_client():
        state = await read_state(server, session, config_of(session, checkpoint), subgraphs=subgraphs)
    return StateResponse(selected(state_json(state), select))


@router.get("/state", response_model=ThreadState)
@router.get("/state/{checkpoint_id}", response_model=ThreadState)
async def read_state_at(
    server: CurrentServer,
    access: Access,
    thread_id: Id,
    checkpoint_id: Id | None = None,
    subgraphs: bool = False,
    select: Select = None,
) -> Response:
    """The state at a checkpoint, or the latest one, with `subgraphs` those of the subgraphs that are waiting too."""
    session = await access.aget(thread_id)
    return await _state(server, session, {"checkpoint_id": checkpoint_id}, subgraphs=subgraphs, select=select)


@router.post("/state/checkpoint", response_model=ThreadState)
async def read_state_of(server: CurrentServer, access: Access, thread_id: Id, given: StateAtCheckpoint) -> Response:
    """The state at a checkpoint, also of a subgraph."""
    session = await access.aget(thread_id)
    named = given.checkpoint.model_dump()
    return await _state(server, session, named, subgraphs=given.subgraphs, select=given.select)


@router.post("/state", response_model=StateChanged)
async def update_state(server: CurrentServer, access: Access, thread_id: Id, given: StateChange) -> Response:
    """Write to the state as a node would, at the latest checkpoint or an earlier one, which begins a branch."""
    session = await access.aget(thread_id)
    if session.is_running:
        raise SessionBusy(session.id, run_id=None, process=None)
    named = {} if given.checkpoint is None else given.checkpoint.model_dump()
    if given.checkpoint_id is not None:
        named["checkpoint_id"] = given.checkpoint_id
    config = config_of(session, named | {"checkpoint_ns": named.get("checkpoint_ns") or ""})
    await check_checkpoint(server, config)
    with _of_the_client():
        changed = await get_assistant_of(server, session).graph.aupdate_state(config, given.values, given.as_node)
    found = checkpoint_json(changed) or {}
    return StateResponse({"checkpoint": found, "configurable": found, "checkpoint_id": found.get("checkpoint_id")})


@router.get("/history", response_model=list[ThreadState])
async def read_history(
    server: CurrentServer,
    access: Access,
    thread_id: Id,
    limit: Annotated[int, Query(ge=1, le=1000)] = 10,
    before: Id | None = None,
    select: Select = None,
) -> Response:
    """The states of a thread, latest first."""
    session = await access.aget(thread_id)
    return await _history(server, session, HistorySearch(limit=limit, before=before, select=select))


@router.post("/history", response_model=list[ThreadState])
async def search_history(server: CurrentServer, access: Access, thread_id: Id, wanted: HistorySearch) -> Response:
    """The states of a thread or of a subgraph, latest first."""
    return await _history(server, await access.aget(thread_id), wanted)


async def _history(server: Server, session: Session, wanted: HistorySearch) -> Response:
    checkpoint = {} if wanted.checkpoint is None else wanted.checkpoint.model_dump()
    config = config_of(session, checkpoint | {"checkpoint_ns": checkpoint.get("checkpoint_ns") or ""})
    before = None
    if wanted.before is not None:
        at = wanted.before.configurable if isinstance(wanted.before, ConfigNamed) else wanted.before
        before = config_of(session, {"checkpoint_id": at} if isinstance(at, str) else at.model_dump())
    limits: Any = {"filter": wanted.metadata, "before": before, "limit": wanted.limit or 10}
    assistant = find_assistant_of(server, session)
    with _of_the_client():
        if assistant is not None:
            states = [state async for state in assistant.graph.aget_state_history(config, **limits)]
        else:
            states = [snapshot_of(saved) async for saved in server.sessions.checkpointer.alist(config, **limits)]
    return StateResponse([selected(state_json(state), wanted.select) for state in states])


# Supersteps


async def apply_supersteps(server: Server, session: Session, supersteps: Sequence[Superstep]) -> None:
    """Write the states of another thread, step by step, as its copy."""
    if not supersteps:
        return
    graph = get_assistant_of(server, session).graph
    with _of_the_client():
        updates = [[each.update() for each in step.updates] for step in supersteps]
        await graph.abulk_update_state(config_of(session, {"checkpoint_ns": ""}), updates)
