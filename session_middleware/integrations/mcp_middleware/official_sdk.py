"""The middleware for servers of the official SDK: `MCPServer`, and the low-level `Server`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent

from session_middleware import Sessions
from session_middleware.integrations.mcp_middleware.recorded_call import CallRecorder, Identify, Refused, note_result
from session_middleware.models import Identity
from session_middleware.recording.tool_execution import ToolExecution

_PROTOCOL = "io.modelcontextprotocol/"  # the prefix of the keys in ``_meta`` that each request needs
_MOST_PAGES = 100


class MCPSessionMiddleware:
    """``MCPServer("weather", middleware=[MCPSessionMiddleware(sessions)])``, or append it to ``server.middleware``.

    Args:
        sessions: The storage of the record. Several servers may share its database.
        identity: The user of all calls, as on stdio, or a function of the Starlette request (``None`` on stdio) that
            returns the user's id, an `Identity` with groups, or ``None``; it may be asynchronous. By default the
            subject of the token that the server has verified. A caller without a user has access to sessions
            without an owner only.
        argument: The name of the argument. ``None``: sessions are named in ``_meta`` only. A tool that has an
            argument of this name keeps it, and its calls name sessions in ``_meta``.
        on_unknown: ``"refuse"`` a call that names a session that does not exist, or ``"open"`` the session.
        on_missing: ``"run"`` a call that names no session without recording it, or ``"refuse"`` it.
    """

    def __init__(
        self,
        sessions: Sessions,
        *,
        identity: Identify | Identity | str | None = None,
        argument: str | None = "session_id",
        on_unknown: Literal["refuse", "open"] = "refuse",
        on_missing: Literal["run", "refuse"] = "run",
    ) -> None:
        self._recorder = CallRecorder(sessions, identity, argument, on_unknown, on_missing)
        self._own: dict[str, bool] = {}  # by tool: whether it has an argument of our name

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if ctx.method == "tools/list" and ctx.request_id is not None:
            return self._advertised(await call_next(ctx))
        if ctx.method == "tools/call" and (params := _valid(ctx.params)) is not None:
            return await self._call(ctx, params, call_next)
        return await call_next(ctx)

    async def _call(
        self, ctx: ServerRequestContext[Any, Any], params: Mapping[str, Any], call_next: CallNext
    ) -> HandlerResult:
        name, arguments = params["name"], params.get("arguments") or {}
        meta = params.get("_meta")
        is_own = self._recorder.argument in arguments and await self._is_own(ctx, name, call_next)
        call = self._recorder.call_of(
            name, arguments, meta if isinstance(meta, Mapping) else {}, ctx.request, is_own=is_own
        )
        if len(call.arguments) != len(arguments):
            ctx = replace(ctx, params={**params, "arguments": call.arguments})
        try:
            return await self._recorder.run(call, lambda: call_next(ctx), _note)
        except Refused as refused:
            return CallToolResult(content=[TextContent(text=str(refused))], is_error=True)

    async def _is_own(self, ctx: ServerRequestContext[Any, Any], name: str, call_next: CallNext) -> bool:
        """Whether the tool has an argument of our name; by the server's list of tools, which is read once."""
        if name not in self._own:
            sent = (ctx.params or {}).get("_meta") or {}
            meta = {key: value for key, value in sent.items() if str(key).startswith(_PROTOCOL)}
            params: dict[str, Any] = {"_meta": meta}
            for _ in range(_MOST_PAGES):
                try:
                    listed = await call_next(replace(ctx, method="tools/list", params=params))
                except MCPError:  # a server that lists no tools
                    break
                self._advertised(listed)
                cursor = listed.get("nextCursor") if isinstance(listed, Mapping) else None
                if cursor is None:
                    break
                params = {"_meta": meta, "cursor": cursor}
        return self._own.setdefault(name, False)

    def _advertised(self, listed: HandlerResult) -> HandlerResult:
        """The server's tools with our argument in their schemas."""
        if not isinstance(listed, dict) or not isinstance(listed.get("tools"), list):
            return listed
        self._own |= {tool["name"]: self._recorder.declares(tool.get("inputSchema")) for tool in listed["tools"]}
        tools = [{**tool, "inputSchema": self._recorder.advertise(tool.get("inputSchema"))} for tool in listed["tools"]]
        return {**listed, "tools": tools}


def _valid(params: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The parameters, if they are valid as far as they are used here; the SDK refuses others."""
    named = params is not None and isinstance(params.get("name"), str)
    return params if named and isinstance((params or {}).get("arguments"), Mapping | None) else None


def _note(execution: ToolExecution, result: HandlerResult) -> None:
    answer = result if isinstance(result, Mapping) else {}
    content = answer.get("content")
    if not isinstance(content, list) and answer.get("resultType") != "input_required":
        execution.result = result  # of an extension, such as the handle of a task
        return
    note_result(
        execution,
        content or [],
        answer.get("structuredContent"),
        is_error=bool(answer.get("isError")),
        needs_input=answer.get("resultType") == "input_required",
    )
