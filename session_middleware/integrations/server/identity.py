"""Who is calling: the identity of a request, and the sessions that it has access to.

Without a callable of the host, `LoopbackUser` decides: only programs of this machine are served, all as one user. A web
page that a browser of this machine shows is not such a program, so the names in ``Host`` and ``Origin`` are compared.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends
from fastapi.exceptions import HTTPException
from starlette.requests import HTTPConnection

from session_middleware import Sessions
from session_middleware.integrations.callers import Caller, awaited, is_from_here, is_loopback
from session_middleware.integrations.server.limits import RequestRates
from session_middleware.user_sessions import UserSessions

Authenticate = Callable[[HTTPConnection], Caller | Awaitable[Caller | None] | None]


@dataclass(frozen=True)
class LoopbackUser:
    """Identifies each program of this machine as one user, and refuses all other callers.

    A web page cannot pass for a program: ``Host`` must name the loopback address, which a name that an attacker
    rebinds to it does not, and ``Origin``, where a browser sends one, must be a page of this machine too. A request
    that a proxy has forwarded is refused, because its sender may be anywhere.

    Raises:
        HTTPException: 403, with a sentence that says what to do.
    """

    user_id: str = "local"
    is_operator: bool = False

    def __call__(self, connection: HTTPConnection) -> Caller:
        headers = connection.headers
        if not is_from_here(connection):
            raise HTTPException(403, "only programs of this machine are served; give authenticate=… to serve others")
        if not is_loopback(_host_name(f"//{headers.get('host', '')}")):
            raise HTTPException(403, "the host has another name; use http://localhost or http://127.0.0.1")
        if "origin" in headers:
            is_foreign = not is_local_origin(headers["origin"])
        else:  # a browser sends none for pictures, scripts and frames; a link that a person follows is no danger
            is_foreign = headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-dest") != "document"
        if is_foreign:
            raise HTTPException(403, "a page of another host may not call this server; give authenticate=… to allow it")
        return Caller(self.user_id, is_operator=self.is_operator)


def is_local_origin(origin: str) -> bool:
    """Whether a page with this ``Origin`` was served by this machine."""
    return is_loopback(_host_name(origin))


def _host_name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as brackets around something else than an address
        return ""


_CALLER = "session_middleware.caller"  # in the scope of a connection


@dataclass(frozen=True)
class Authentication:
    """How an app finds out who calls."""

    authenticate: Authenticate
    sessions: Sessions
    rates: RequestRates

    async def caller_of(self, connection: HTTPConnection) -> Caller:
        """The caller of a request or of a WebSocket, which is found once for each.

        Raises:
            HTTPException: 401 for an unknown caller, 429 if the user calls too often, and what `authenticate` raises.
            UserRevoked: the user is revoked.
        """
        known: Caller | None = connection.scope.get(_CALLER)
        if known is None:
            known = connection.scope[_CALLER] = await self._find_caller(connection)
        return known

    async def _find_caller(self, connection: HTTPConnection) -> Caller:
        caller = await awaited(self.authenticate(connection))
        if caller is None:
            raise HTTPException(401, "not authenticated", headers={"WWW-Authenticate": "Bearer"})
        await caller.check_not_revoked(self.sessions)
        self.rates.take(caller.user_id)
        return caller


async def _caller(connection: HTTPConnection) -> Caller:
    caller: Caller = await connection.app.state.server.authentication.caller_of(connection)
    return caller


CurrentCaller = Annotated[Caller, Depends(_caller)]


def _access(connection: HTTPConnection, caller: CurrentCaller) -> Sessions | UserSessions:
    return caller.access(connection.app.state.server.sessions)


Access = Annotated[Sessions | UserSessions, Depends(_access)]  # the sessions that the caller may see and change
