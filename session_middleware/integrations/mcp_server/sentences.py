"""The sentences of errors for a model. Their advice names a tool; the library's names a method.

None of them reveals another user's data, a path, or whether another user's session exists.
"""

from __future__ import annotations

import logging

from pydantic import ValidationError

from session_middleware import errors
from session_middleware.errors import SessionError

logger = logging.getLogger("session_middleware")

_SENTENCES: dict[type[SessionError], str] = {  # a subclass has the sentence of the nearest class
    errors.SessionNotFound: "there is no session {0.session_id!r}; call list_sessions to see those there are",
    errors.SessionExists: "session {0.session_id!r} exists already; call resume_session to continue it, or choose"
    " another session_id",
    errors.SessionExpired: "session {0.session_id!r} has expired and cannot be resumed; call create_session to begin"
    " another one",
    errors.SessionClosed: "session {0.session_id!r} has ended and admits nothing more; call create_session to begin"
    " another one",
    errors.SessionBusy: "a run is in progress in session {0.session_id!r}; call the tool again after that run",
    errors.SessionLimitReached: "the limit of {0.limit} open sessions is reached; end one with complete_session first",
    errors.InvalidTransition: "session {0.session_id!r} is {0.status} and cannot become {0.to}; call resume_session"
    " first, which makes it active again",
    errors.UserRequired: "each session here needs an owner; ask the operator to start this server for a user",
    errors.UserRevoked: "your access was revoked; ask the operator to admit you again",
    errors.SessionAccessDenied: "you may only read this session; call create_session to begin one of your own",
    errors.MemoryAccessDenied: "this memory is not yours; use another scope",
    errors.InvalidSessionId: "{0.problem}; give an id of 1 to 1,024 characters, as create_session made it",
    errors.InvalidIdentity: "{0.problem}; give an id of 1 to 1,024 characters",
    errors.MemoryScopeUnavailable: "the session has no {0.scope}; use the scope 'session'",
    errors.StorageError: "the database cannot be used at the moment; try again, or ask the operator to look at it",
}
_MOST, _LONGEST = 5, 100  # of the problems of a call, and characters of their places
_LITERAL = (errors.InvalidArgument, errors.UnserializableValue)


def error_text(error: SessionError) -> str:
    """The sentence of an error of this package."""
    if isinstance(error, _LITERAL):
        return " ".join(str(error).split())
    if isinstance(error, errors.SessionNotFound) and error.archived:
        return f"session {error.session_id!r} is archived; ask the operator to restore it"
    found = next((_SENTENCES[kind] for kind in type(error).__mro__ if kind in _SENTENCES), None)
    if found is None or isinstance(error, errors.StorageError):
        logger.error("a tool of the MCP server failed", exc_info=error)
    return "this cannot be done now; ask the operator to look at the server's log" if not found else found.format(error)


_PROBLEMS = {"extra_forbidden": "there is no such argument", "missing": "it is missing"}


def arguments_text(tool: str, error: ValidationError) -> str:
    """The sentence of arguments that do not match the tool's input schema. It does not repeat their values."""
    problems = []
    for each in error.errors(include_url=False, include_input=False, include_context=False)[:_MOST]:
        problem = _PROBLEMS.get(each["type"], each["msg"].removeprefix("Value error, "))
        problems.append(f"{'.'.join(map(str, each['loc']))[:_LONGEST]}: {problem}")
    return f"{tool} cannot be called like this ({'; '.join(problems)}); correct the arguments and call it again"
