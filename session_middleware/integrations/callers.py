"""Callers of a server, over HTTP and over MCP: their identity, and which of them are programs of this machine."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from typing import TypeVar

from starlette.requests import HTTPConnection

from session_middleware import Sessions
from session_middleware.errors import UserRevoked
from session_middleware.user_sessions import UserSessions

T = TypeVar("T")

_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")  # what a proxy adds


@dataclass(frozen=True)
class Caller:
    """The user of a request. An operator has access to all sessions."""

    user_id: str
    group_ids: tuple[str, ...] = ()
    is_operator: bool = False
    expires_at: datetime | None = None  # when the token does; open streams end then

    def access(self, sessions: Sessions) -> Sessions | UserSessions:
        """The sessions that the caller may see and change."""
        return sessions if self.is_operator else sessions.for_user(self.user_id, self.group_ids)

    async def check_not_revoked(self, sessions: Sessions) -> None:
        """Raises `UserRevoked`, also for an operator, whose access is not checked later."""
        if await sessions.alist_revoked([self.user_id]):
            raise UserRevoked("", user_id=self.user_id)


async def awaited(found: T | Awaitable[T]) -> T:
    """The result of a function of the host, which may be asynchronous."""
    return await found if inspect.isawaitable(found) else found


def is_from_here(connection: HTTPConnection) -> bool:
    """Whether a program of this machine sends the request. One that a proxy has forwarded may come from anywhere."""
    is_forwarded = any(name in connection.headers for name in _FORWARDED)
    return connection.client is not None and is_loopback(connection.client.host) and not is_forwarded


def is_loopback(host: str) -> bool:
    """Whether this address, or this name, can only be of this machine."""
    if host == "localhost" or host.endswith(".localhost"):  # reserved: no name server may answer for it
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
