"""The middleware for servers of FastMCP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastmcp.exceptions import ToolError
from fastmcp.server.dependencies import get_http_request
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools.base import InputRequiredToolResult, Tool, ToolResult
from mcp_types import CallToolRequestParams, ListToolsRequest
from starlette.requests import Request

from session_middleware import Sessions
from session_middleware.integrations.mcp_middleware.recorded_call import CallRecorder, Identify, Refused, note_result
from session_middleware.models import Identity
from session_middleware.recording.tool_execution import ToolExecution


class FastMCPSessionMiddleware(Middleware):
    """``mcp.add_middleware(FastMCPSessionMiddleware(sessions))``; the arguments are those of `MCPSessionMiddleware`."""

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

    async def on_list_tools(
        self, context: MiddlewareContext[ListToolsRequest], call_next: CallNext[ListToolsRequest, Sequence[Tool]]
    ) -> Sequence[Tool]:
        return [
            tool.model_copy(update={"parameters": self._recorder.advertise(tool.parameters)})
            for tool in await call_next(context)
        ]

    async def on_call_tool(
        self,
        context: MiddlewareContext[CallToolRequestParams],
        call_next: CallNext[CallToolRequestParams, ToolResult],
    ) -> ToolResult:
        message, arguments = context.message, context.message.arguments or {}
        is_own = self._recorder.argument in arguments and await self._is_own(context)
        call = self._recorder.call_of(message.name, arguments, _meta_of(context), _request(), is_own=is_own)
        inner = context.copy(message=message.model_copy(update={"arguments": call.arguments}))
        try:
            return await self._recorder.run(call, lambda: call_next(inner), _note)
        except Refused as refused:
            raise ToolError(str(refused)) from refused

    async def _is_own(self, context: MiddlewareContext[CallToolRequestParams]) -> bool:
        within = context.fastmcp_context
        tool = None if within is None else await within.fastmcp.get_tool(context.message.name)
        return tool is not None and self._recorder.declares(tool.parameters)


def _meta_of(context: MiddlewareContext[Any]) -> dict[str, Any]:
    within = context.fastmcp_context
    request = None if within is None else within.request_context
    return (None if request is None else request.meta) or {}


def _request() -> Request | None:
    try:
        return get_http_request()
    except RuntimeError:  # not over HTTP
        return None


def _note(execution: ToolExecution, result: ToolResult) -> None:
    if not isinstance(result, ToolResult):
        execution.result = result  # of an extension, such as the handle of a task
        return
    content = [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]
    note_result(
        execution,
        content,
        result.structured_content,
        is_error=result.is_error,
        needs_input=isinstance(result, InputRequiredToolResult),
    )
