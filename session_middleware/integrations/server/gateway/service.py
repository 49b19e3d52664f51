"""The session gateway: sessions over HTTP, each with a process of an MCP server, whose calls it records.

A session of another user is *not found*. *Permission denied* is for what a user knows of and may not do: to change a
session that the user's group may only read, to list the sessions of others, or to do anything once revoked.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Query, Request
from fastapi.routing import APIRoute
from mcp_types import CallToolResult
from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json
from starlette.responses import JSONResponse, Response

from session_middleware import Sessions, errors
from session_middleware.integrations.callers import Caller
from session_middleware.integrations.fastapi_errors import body_of, status_of
from session_middleware.integrations.server.gateway.mcp_processes import McpProcess, McpProcesses
from session_middleware.integrations.server.gateway.peers import Peers
from session_middleware.integrations.server.gateway.settings import Gateway
from session_middleware.integrations.server.identity import Access, CurrentCaller
from session_middleware.integrations.server.request_types import Document
from session_middleware.lifecycle import OPEN
from session_middleware.session import Session

_SENTENCES: dict[type[errors.SessionError], str] = {
    errors.SessionNotFound: "Session not found",
    errors.SessionExists: "Session already exists",
    errors.SessionExpired: "Session expired",
    errors.SessionAccessDenied: "Permission denied",
    errors.ResourceHeld: "Another server process has this session; try again, or send its requests there",
    errors.PathTemplateError: "The session has no group, which the folder of the MCP server needs",
}
_OWN = (errors.ToolNotFound, errors.InvalidToolArguments, errors.ToolServerFailed, errors.ToolTimedOut)
_STATUSES = {errors.ResourceHeld: 503, errors.PathTemplateError: 422}


def _problem(error: errors.SessionError, session_id: str | None) -> Response:
    """The response to an error: its class, a sentence without facts of the host, and the id of the session."""
    body = body_of(error)
    sentence = next((text for kind, text in _SENTENCES.items() if isinstance(error, kind)), None)
    body["detail"] = str(error) if isinstance(error, _OWN) else sentence or body["detail"]
    status = _STATUSES.get(type(error)) or status_of(error)
    headers = {"Retry-After": "1"} if isinstance(error, errors.SessionBusy | errors.SessionLimitReached) else None
    named = session_id if session_id is not None else getattr(error, "session_id", None)
    return JSONResponse({**body, "session_id": named}, status, headers=headers)


def _json(body: dict[str, Any]) -> Response:
    """A response whose numbers JSON can have: a tool may return infinity, or no number."""
    return Response(to_json(body, inf_nan_mode="null"), media_type="application/json")


class _Route(APIRoute):
    """A route whose errors name the session."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def respond(request: Request) -> Response:
            try:
                return await handle(request)
            except errors.SessionError as error:
                if status_of(error) >= 500 and not isinstance(error, (*_OWN, *_STATUSES)):
                    raise  # which is logged
                return _problem(error, request.path_params.get("session_id"))

        return respond


router = APIRouter(route_class=_Route)


class GatewayService:
    """The calls of this server process, and those that other ones forward."""

    def __init__(self, sessions: Sessions, settings: Gateway) -> None:
        self.sessions = sessions
        self.processes = McpProcesses(sessions, settings)
        seconds = settings.seconds("start_timeout") + settings.seconds("call_timeout") + 5
        self._peers = Peers(settings.listen, self._answer_peer, timeout_seconds=seconds)

    async def respond(
        self,
        caller: Caller,
        session_id: str,
        tool: str | None,
        arguments: dict[str, Any],
        *,
        is_forwarded: bool = False,
    ) -> Response:
        """Call a tool of the session, or list the tools if none is named; here, or where its process is."""
        session = await usable(caller.access(self.sessions), session_id)
        for attempt in (1, 2):
            try:
                process = await self.processes.of(session, holder=self._peers.holder())
                break
            except errors.ResourceHeld as held:
                if is_forwarded:
                    raise
                user = asdict(replace(caller, expires_at=None))  # which was verified here
                body = {"caller": user, "session_id": session.id, "tool": tool, "arguments": arguments}
                try:
                    return await self._peers.forward(held, body)
                except errors.ResourceHeld:
                    if attempt == 2:
                        raise
        if tool is None:
            return _json({"session_id": session.id, "tools": await listed(process)})
        return _json(await called(process, session, tool, arguments))

    async def _answer_peer(self, body: dict[str, Any]) -> Response:
        given = body["caller"]
        caller = Caller(given["user_id"], tuple(given["group_ids"]), is_operator=given["is_operator"])
        try:
            return await self.respond(caller, body["session_id"], body["tool"], body["arguments"], is_forwarded=True)
        except errors.SessionError as error:
            return _problem(error, body["session_id"])

    async def once(self, caller: Caller, tool: str | None, arguments: dict[str, Any]) -> Response:
        """A call without a session: it has a session and a folder of its own, which end with it."""
        session = await caller.access(self.sessions).aopen(purpose="stateless call", **_owner(caller))
        folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="mcp-")
        try:
            async with self.processes.alone(session, Path(folder)) as process:
                if tool is None:
                    return _json({"tools": await listed(process)})
                return _json(await called(process, session, tool, arguments))
        finally:
            await asyncio.shield(session.acomplete())
            await asyncio.to_thread(_remove, folder)

    async def close(self) -> None:
        await self.processes.close()
        await self._peers.close()


def _remove(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _owner(caller: Caller) -> dict[str, Any]:
    return {"user_id": caller.user_id} if caller.is_operator else {}


async def usable(access: Access, session_id: str) -> Session:
    """The session, if it is open. Raises `SessionNotFound`, `SessionExpired` or `SessionClosed`."""
    session = await access.aget(session_id)
    if session.status == "expired":
        raise errors.SessionExpired(session.id, since=session.expires_at)
    if session.status not in OPEN:
        raise errors.SessionClosed(session.id, status=session.status)
    return session


async def listed(process: McpProcess) -> list[dict[str, Any]]:
    """The tools of the process, as MCP describes them."""
    return [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in await process.list_tools()]


async def called(process: McpProcess, session: Session, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a tool, and record the call: its start before the tool runs, then its result and duration."""
    await process.check(tool, arguments)
    async with session, session.tool_execution(tool, arguments) as execution:
        found = await process.call(tool, arguments)
        execution.result = value = _value(found)
        if found.is_error:
            execution.error = str(value)
    content = [part.model_dump(mode="json", by_alias=True, exclude_none=True) for part in found.content]
    return {
        "session_id": session.id,
        "tool": tool,
        "is_error": bool(found.is_error),
        "result": value,
        "content": content,
        "structured_content": found.structured_content,
        "process_started_at": process.started_at.isoformat(),
    }


def _value(found: CallToolResult) -> Any:
    """The structured content, without the key that SDKs put around a plain value; else the text; else all parts."""
    structured = found.structured_content
    if structured is not None:
        return structured["result"] if structured.keys() == {"result"} else structured
    if all(part.type == "text" for part in found.content):
        return "\n".join(getattr(part, "text", "") for part in found.content)
    return [part.model_dump(mode="json", by_alias=True, exclude_none=True) for part in found.content]


def _service(request: Request) -> GatewayService:
    service: GatewayService = request.app.state.gateway
    return service


Service = Annotated[GatewayService, Depends(_service)]
Arguments = Annotated[Document | None, Body()]


class Start(BaseModel):
    """A session to begin. Without an id it gets one that cannot be guessed."""

    model_config = ConfigDict(extra="forbid")

    session_id: str | None = None
    group_id: str | None = None
    title: str | None = None
    purpose: str | None = None
    tags: list[str] | None = None
    metadata: Document | None = None
    if_exists: Literal["raise", "resume"] = "raise"


_SHOWN = (
    *("user_id", "group_id", "status", "title", "purpose", "tags", "created_at", "last_active_at", "expires_at"),
    *("is_running", "tool_call_count", "error_count"),
)


def _shown(session: Session) -> dict[str, Any]:
    return {"session_id": session.id, **{name: getattr(session, name) for name in _SHOWN}}


def _kept_alive(session: Session, idle_after: float) -> dict[str, Any]:
    """The session, and how often a client pings that wants to keep it and its process."""
    seconds = idle_after
    if session.expires_at is not None:
        seconds = min(seconds, (session.expires_at - session.last_active_at).total_seconds())
    return {**_shown(session), "ping_seconds": max(seconds / 3, 0.1)}


@router.post("/session/start", status_code=201)
async def start(
    caller: CurrentCaller, access: Access, service: Service, response: Response, body: Start | None = None
) -> dict[str, Any]:
    """Open a session, 201, or with ``"if_exists": "resume"`` resume one, 200.

    The process of its MCP server starts when a tool is called or the tools are listed.
    """
    given = body or Start()
    options = given.model_dump(exclude={"session_id"}, exclude_none=True)
    session = await access.aopen(given.session_id, **_owner(caller), **options)
    if session.opened_as != "opened":
        response.status_code = 200
    return _kept_alive(session, service.sessions.settings.idle_after.total_seconds())


@router.get("/session/{session_id:path}/tools")
async def list_tools(session_id: str, caller: CurrentCaller, service: Service) -> Response:
    """The tools of the session's MCP server, as the protocol describes them."""
    return await service.respond(caller, session_id, None, {})


@router.post("/session/{session_id:path}/tools/{tool}")
async def call_tool(
    session_id: str, tool: str, caller: CurrentCaller, service: Service, arguments: Arguments = None
) -> Response:
    """Call a tool with the arguments in the body. An error of the tool itself is a result with ``is_error``."""
    return await service.respond(caller, session_id, tool, arguments or {})


@router.post("/session/{session_id:path}/ping")
async def ping(session_id: str, access: Access, service: Service) -> dict[str, Any]:
    """Keep the session, and its process, from becoming idle."""
    session = await usable(access, session_id)
    await session.aping()
    return _kept_alive(await access.aget(session_id), service.sessions.settings.idle_after.total_seconds())


@router.post("/session/{session_id:path}/close")
async def close(session_id: str, access: Access) -> dict[str, Any]:
    """Complete the session, and end its process. To close it again changes nothing."""
    session = await access.aget(session_id)
    if session.status != "completed":
        session = await (await usable(access, session_id)).acomplete()
    return _shown(session)


@router.get("/session/{session_id:path}/status")
async def status(session_id: str, access: Access) -> dict[str, Any]:
    """The session as it is now, also if it has ended."""
    return _shown(await access.aget(session_id))


@router.get("/sessions")
async def list_sessions(
    caller: CurrentCaller,
    access: Access,
    user_id: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: str | None = None,
) -> dict[str, Any]:
    """The sessions of the caller, and for an operator all or those of one user; the latest activity first.

    The next page begins `after` the id of the last session of this one.
    """
    if user_id is not None and not caller.is_operator and user_id != caller.user_id:
        raise errors.SessionAccessDenied("", user_id=caller.user_id)
    last = None if after is None else await access.aget(after)
    found = await access.alist(user_id=user_id, limit=limit, after=last)
    return {"sessions": [_shown(session) for session in found]}


@router.get("/tools")
async def list_tools_once(caller: CurrentCaller, service: Service) -> Response:
    """The tools of the MCP server, without a session."""
    return await service.once(caller, None, {})


@router.post("/tools/{tool}")
async def call_tool_once(tool: str, caller: CurrentCaller, service: Service, arguments: Arguments = None) -> Response:
    """Call a tool in a process and a folder of its own, which end with the call."""
    return await service.once(caller, tool, arguments or {})
