"""Who is calling: the identity of a request, and the sessions that it has access to."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from fastapi.exceptions import HTTPException

from session_middleware import Sessions
from session_middleware.user_sessions import UserSessions


@dataclass(frozen=True)
class Caller:
    """The user of a request. An operator has access to all sessions."""

    user_id: str
    group_ids: tuple[str, ...] = ()
    is_operator: bool = False

    def access(self, sessions: Sessions) -> Sessions | UserSessions:
        """The sessions that the caller may see and change."""
        return sessions if self.is_operator else sessions.for_user(self.user_id, self.group_ids)


Authenticate = Callable[[Request], Caller | Awaitable[Caller | None] | None]


@dataclass(frozen=True)
class Authentication:
    """How an app finds out who calls; without a callable, each caller from the loopback address is `single_user`."""

    authenticate: Authenticate | None
    single_user: Caller = field(default_factory=lambda: Caller("local"))

    async def caller_of(self, request: Request) -> Caller:
        """The caller of a request. Raises `HTTPException` 401 if nobody is known, and 403 off the loopback address."""
        if self.authenticate is None:
            if not _is_loopback(request):
                raise HTTPException(403, "without authenticate=… only the loopback address is served")
            return self.single_user
        found = self.authenticate(request)
        caller = await found if inspect.isawaitable(found) else found
        if caller is None:
            raise HTTPException(401, "not authenticated", headers={"WWW-Authenticate": "Bearer"})
        return caller


def _is_loopback(request: Request) -> bool:
    return request.client is not None and request.client.host in {"127.0.0.1", "::1"}


async def _caller(request: Request) -> Caller:
    caller: Caller = await request.app.state.server.authentication.caller_of(request)
    return caller


CurrentCaller = Annotated[Caller, Depends(_caller)]


def _access(request: Request, caller: CurrentCaller) -> Sessions | UserSessions:
    return caller.access(request.app.state.server.sessions)


Access = Annotated[Sessions | UserSessions, Depends(_access)]  # the sessions that the caller may see and change
