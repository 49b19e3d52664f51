"""MCP servers of two SDKs with the session middleware, for the tests: in a test, or as ``python mcp_app.py``.

Their tools know nothing of sessions. As a program: ``sdk|fastmcp stdio DATABASE``, as the user alice, or
``sdk|fastmcp http DATABASE …``, which prints its port and serves each database at ``/0/mcp``, ``/1/mcp`` …
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import uvicorn
from fastmcp import Context as FastMCPContext
from fastmcp import FastMCP
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
from fastmcp.utilities.types import Image as FastMCPImage
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp_types import CallToolResult, TextContent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from session_middleware import Sessions
from session_middleware.integrations.mcp_middleware import MCPSessionMiddleware
from session_middleware.integrations.mcp_middleware.fastmcp import FastMCPSessionMiddleware

PICTURE = bytes(range(256)) * 8
LONG = "tea " * 250_000
TOKENS = {user: {"client_id": "app", "sub": user, "scopes": []} for user in ("alice", "bob")}  # the token is the name


def sdk_server(sessions: Sessions, *, auth: bool = False, **options: Any) -> MCPServer:
    settings: Any = {"issuer_url": "http://127.0.0.1", "resource_server_url": "http://127.0.0.1"}
    security: dict[str, Any] = (
        {"auth": AuthSettings(**settings), "token_verifier": StaticTokenVerifier(TOKENS)} if auth else {}
    )
    server = MCPServer("sdk", middleware=[MCPSessionMiddleware(sessions, **options)], log_level="CRITICAL", **security)
    add_tools(server)

    @server.tool()
    def picture() -> Image:
        return Image(data=PICTURE, format="png")

    @server.tool()
    async def slow(ctx: Context) -> str:
        await ctx.report_progress(1, 2)
        await ctx.report_progress(2, 2)
        return "done"

    return server


def fastmcp_server(sessions: Sessions, *, auth: bool = False, **options: Any) -> FastMCP[Any]:
    server: FastMCP[Any] = FastMCP("fastmcp", auth=StaticTokenVerifier(TOKENS) if auth else None)
    server.add_middleware(FastMCPSessionMiddleware(sessions, **options))
    add_tools(server)

    @server.tool()
    def picture() -> FastMCPImage:
        return FastMCPImage(data=PICTURE, format="png")

    @server.tool()
    async def slow(ctx: FastMCPContext) -> str:
        await ctx.report_progress(1, 2)
        await ctx.report_progress(2, 2)
        return "done"

    return server


MAKE = {"sdk": sdk_server, "fastmcp": fastmcp_server}


def add_tools(server: Any) -> None:
    @server.tool()
    def search(q: str) -> dict[str, Any]:
        return {"found": q}

    @server.tool()
    def own(session_id: str) -> str:
        return f"my own {session_id}"

    @server.tool()
    def long() -> str:
        return LONG

    @server.tool()
    def crash() -> str:
        raise ValueError("no tea")

    @server.tool()
    def fail() -> CallToolResult:
        return CallToolResult(content=[TextContent(text="no tea today")], is_error=True)

    @server.tool()
    async def hang() -> str:
        await asyncio.Event().wait()
        raise AssertionError

    @server.tool()
    def die() -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


async def _user_of(request: Request | None) -> str | None:
    return request and request.user.access_token.claims["sub"]


def _serve(kind: str, databases: list[str]) -> None:
    apps, opened = [], []
    for database in databases:
        opened.append(Sessions(database, sweep_interval=None))
        server: Any = MAKE[kind](opened[-1], auth=True, **({"identity": _user_of} if kind == "fastmcp" else {}))
        apps.append(server.streamable_http_app() if kind == "sdk" else server.http_app())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for app in apps:
                await stack.enter_async_context(app.router.lifespan_context(app))
            print(listening.getsockname()[1], flush=True)
            yield
            for sessions in opened:
                await sessions.aclose()

    listening = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[Mount(f"/{n}", each) for n, each in enumerate(apps)], lifespan=lifespan)
    uvicorn.Server(uvicorn.Config(app, log_level="critical")).run(sockets=[listening])


if __name__ == "__main__":
    logging.disable()
    kind, transport, *databases = sys.argv[1:]
    if transport == "http":
        _serve(kind, databases)
    else:
        MAKE[kind](Sessions(databases[0], sweep_interval=None), identity="alice").run("stdio")
