"""Who is calling: the identity of a request, which the transport provides, and never an argument of a tool."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_REQUEST
from starlette.exceptions import HTTPException
from starlette.requests import Request

from session_middleware.errors import UserRevoked
from session_middleware.integrations.callers import Caller, awaited, is_from_here
from session_middleware.integrations.mcp_server.sentences import error_text
from session_middleware.sessions import Sessions
from session_middleware.user_sessions import UserSessions

logger = logging.getLogger("session_middleware")


IdentityOf = Callable[[AccessToken], Caller | Awaitable[Caller | None] | None]


class CallerVerifier(Protocol):
    """Finds the caller of a token, as `JwtVerifier` of the HTTP server does. Raises `HTTPException` for another one."""

    async def caller_of(self, token: str) -> Caller: ...


class _CallersToken(AccessToken):
    caller: Caller


class _Verifier:
    """A `CallerVerifier` as the SDK's `TokenVerifier`."""

    def __init__(self, verifier: CallerVerifier) -> None:
        self._verifier = verifier

    async def verify_token(self, token: str) -> AccessToken | None:
        try:
            caller = await self._verifier.caller_of(token)
        except HTTPException as error:
            if error.status_code >= 500:
                logger.warning("a token cannot be verified: %s", error.detail)
            return None
        return _CallersToken(token=token, client_id=caller.user_id, scopes=[], subject=caller.user_id, caller=caller)


def token_verifier_of(verifier: TokenVerifier | CallerVerifier) -> TokenVerifier:
    if hasattr(verifier, "verify_token"):
        return verifier  # type: ignore[return-value]  # checked
    return _Verifier(verifier)


LOCAL = Caller("local")  # over HTTP without tokens
_access: ContextVar[Sessions | UserSessions] = ContextVar("session_middleware_mcp_access")


def current_access() -> Sessions | UserSessions:
    """The sessions that the caller of the current request may see and change."""
    return _access.get()


def subject_of(token: AccessToken) -> Caller | None:
    """The subject of a token, and the groups that its claim ``groups`` lists; ``None`` without a subject."""
    if isinstance(token, _CallersToken):
        return token.caller
    if not token.subject:
        return None
    groups = (token.claims or {}).get("groups")
    named = groups if isinstance(groups, list) else ()
    return Caller(token.subject, tuple(each for each in named if isinstance(each, str)))


class Identification:
    """A middleware of the server that finds the caller of each request, and refuses those it does not know."""

    def __init__(self, sessions: Sessions, identity: Caller | IdentityOf | None, *, has_tokens: bool) -> None:
        self._sessions, self._identity, self._has_tokens = sessions, identity, has_tokens

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        token = _access.set(await self._access_of(ctx.request))
        try:
            return await call_next(ctx)
        finally:
            _access.reset(token)

    async def _access_of(self, request: Request | None) -> Sessions | UserSessions:
        if self._has_tokens:
            caller = await self._caller_of_token()
            if caller.is_operator:  # users are checked by their access
                try:
                    await caller.check_not_revoked(self._sessions)
                except UserRevoked as error:
                    raise MCPError(INVALID_REQUEST, error_text(error)) from error
            return caller.access(self._sessions)
        assert self._identity is None or isinstance(self._identity, Caller)
        if request is None:  # stdio: the process belongs to the person who started it
            return self._sessions if self._identity is None else self._identity.access(self._sessions)
        if not is_from_here(request):  # names in ``Host`` and ``Origin``, of web pages, are compared by the SDK
            advice = "give a token_verifier for others"
            raise MCPError(INVALID_REQUEST, f"only programs of this machine are served; {advice}")
        return (self._identity or LOCAL).access(self._sessions)

    async def _caller_of_token(self) -> Caller:
        token = get_access_token()
        if token is None:
            raise MCPError(INVALID_REQUEST, "this server needs a token; connect over HTTP with a bearer token")
        identity = subject_of if self._identity is None else self._identity
        if isinstance(identity, Caller):
            return identity
        caller = await awaited(identity(token))
        if caller is None:
            raise MCPError(INVALID_REQUEST, "the token names no user of this server; sign in with another one")
        return caller
