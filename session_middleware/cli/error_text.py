"""The sentences of errors on the command line: their advice names a command where the library's names a method."""

from __future__ import annotations

from session_middleware.errors import (
    InvalidArgument,
    InvalidIdentity,
    InvalidSessionId,
    InvalidSettings,
    InvalidTransition,
    SessionAccessDenied,
    SessionBusy,
    SessionClosed,
    SessionError,
    SessionExists,
    SessionExpired,
    SessionNotFound,
    UnknownStatus,
    UserRevoked,
)

USAGE_ERRORS = (InvalidArgument, InvalidIdentity, InvalidSessionId, UnknownStatus)  # whatever the database


def error_text(error: SessionError) -> str:
    match error:
        case SessionNotFound(archived=True) | SessionExpired(archived=True):
            text = f"session {error.session_id!r} is archived; restore it with session-middleware restore"
        case SessionNotFound():
            text = f"there is no session {error.session_id!r}; list the sessions with session-middleware list"
        case SessionExists():
            text = f"session {error.session_id!r} exists already; see it with session-middleware show"
        case SessionExpired():
            text = f"session {error.session_id!r} has expired; set SESSION_ON_RESUME=revive, or choose another --thread"
        case SessionClosed():
            problem = f"session {error.session_id!r} is {error.status}"
            text = f"{problem}; set SESSION_ON_CLOSED=reopen, or choose another --thread"
        case SessionBusy():
            text = f"session {error.session_id!r} has a run in progress; try again after that run"
        case InvalidTransition():
            problem = f"session {error.session_id!r} is {error.status} and cannot become {error.to}"
            text = f"{problem}; see the reason with session-middleware explain"
        case UserRevoked():
            text = f"user {error.user_id!r} was revoked; admit the user again with session-middleware revoke --lift"
        case SessionAccessDenied(session_id=str(name)) if name:
            text = f"session {name!r} has another owner; name its owner with --user, or choose another --thread"
        case InvalidSessionId() | InvalidIdentity():
            text = f"{error.problem}; give an id of 1 to 1,024 characters"
        case UnknownStatus(status="archived"):
            text = "an archived session has no status; list archived sessions with session-middleware list --archived"
        case InvalidSettings() if not isinstance(error, InvalidArgument):
            text = f"{'; '.join(error.problems)}; correct --db, the SESSION_… variable or the .env file"
        case _:
            text = " ".join(str(error).split())
    return text
