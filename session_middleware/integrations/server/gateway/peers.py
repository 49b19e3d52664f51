"""Forwarding calls to the server process that has the MCP process of a session.

Each server process listens at an address of its own, which it names in the lease of the resource, with a secret. So
only a process that reads the database can call there, and the caller that it names is believed.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from session_middleware.errors import ResourceHeld, ToolServerFailed
from session_middleware.integrations.callers import is_loopback
from session_middleware.storage.processes import is_near

_UNLIMITED = httpx.Limits(max_connections=None, keepalive_expiry=2.0)  # less than that of the other side

Answer = Callable[[dict[str, Any]], Awaitable[Response]]


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        """Leave the signals to the server that this one is inside of."""
        return nullcontext()


class Peers:
    """The other server processes of this database, and the address at which they reach this one."""

    def __init__(self, host: str, answer: Answer, *, timeout_seconds: float) -> None:
        self._host, self._answer, self._secret = host, answer, secrets.token_urlsafe(32)
        self._timeout = httpx.Timeout(timeout_seconds, connect=5.0)
        self._client: httpx.AsyncClient | None = None  # one, because to make one takes 50 ms
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._url = ""

    def holder(self) -> str:
        """The address and the secret, as a text for `ResourceHeld.holder`. Begins to listen."""
        if self._server is None:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            self._listening = listening = socket.create_server((self._host, 0), family=family)
            port = listening.getsockname()[1]
            self._url = f"http://[{self._host}]:{port}" if ":" in self._host else f"http://{self._host}:{port}"
            asgi = Starlette(routes=[Route("/", self._receive, methods=["POST"])])
            config = uvicorn.Config(asgi, log_config=None, lifespan="off", access_log=False, proxy_headers=False)
            self._server = _Server(config)
            self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        return json.dumps({"url": self._url, "secret": self._secret})

    async def _receive(self, request: Request) -> Response:
        if not hmac.compare_digest(
            request.headers.get("authorization", "").encode(), f"Bearer {self._secret}".encode()
        ):
            return JSONResponse({"detail": "forbidden"}, 403)
        return await self._answer(json.loads(await request.body()))

    async def forward(self, held: ResourceHeld, body: dict[str, Any]) -> Response:
        """The response of the process that has the resource.

        Raises:
            ResourceHeld: it cannot be reached from here.
            ToolServerFailed: it ended during the call.
        """
        peer = json.loads(held.holder or "{}")
        host = httpx.URL(peer.get("url", "")).host
        if not host or (is_loopback(host) and not is_near(held.process or "")):
            raise held
        headers = {"Authorization": f"Bearer {peer['secret']}"}
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=self._timeout, limits=_UNLIMITED, trust_env=False)
        try:
            response = await self._client.post(peer["url"], content=json.dumps(body), headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout):  # it has just ended
            raise held from None
        except httpx.TransportError as error:
            raise ToolServerFailed("ended during the call, which may have had its effect") from error
        kept = {name: response.headers[name] for name in ("content-type", "retry-after") if name in response.headers}
        return Response(response.content, response.status_code, headers=kept)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
            self._listening.close()
