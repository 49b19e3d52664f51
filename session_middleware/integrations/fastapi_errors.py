"""HTTP responses for the exceptions of this package, in an app of FastAPI or Starlette.

A response names the exception and not its sentence, which advises developers and may name a path or a process.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse

from session_middleware import errors

logger = logging.getLogger("session_middleware")

_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")

STATUSES: Mapping[type[Exception], int] = {  # a subclass has the status of the nearest class
    errors.UserRequired: 401,
    errors.SessionAccessDenied: 403,
    errors.SessionNotFound: 404,
    errors.MemoryNotFound: 404,
    errors.SessionExists: 409,
    errors.SessionClosed: 409,
    errors.SessionBusy: 409,
    errors.InvalidTransition: 409,
    errors.SessionExpired: 410,
    errors.InvalidSessionId: 422,
    errors.InvalidIdentity: 422,
    errors.InvalidArgument: 422,
    errors.UnknownStatus: 422,
    errors.UnknownGrouping: 422,
    errors.SessionLimitReached: 429,
    errors.ToolNotFound: 404,
    errors.InvalidToolArguments: 422,
    errors.ToolServerFailed: 502,
    errors.ToolTimedOut: 504,
    errors.SessionError: 500,
    errors.StorageError: 503,
}


def status_of(error: errors.SessionError) -> int:
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


def body_of(error: errors.SessionError) -> dict[str, str]:
    """The JSON of a response, which a stream that has begun can send as its last event."""
    name = type(error).__name__
    return {"error": name, "detail": _CAPITAL.sub(" ", name).lower()}


def add_error_handler(app: Starlette) -> None:
    """Answer each `SessionError` by its status, as ``{"error": "SessionNotFound", "detail": "session not found"}``.

    An exception after a response has begun cannot change its status: call `UserSessions.check` before.
    """
    app.add_exception_handler(errors.SessionError, _respond)


async def _respond(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.SessionError)
    status = status_of(error)
    if status >= 500:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    headers = {"Retry-After": "1"} if isinstance(error, errors.SessionBusy) else None
    return JSONResponse(body_of(error), status, headers=headers)
