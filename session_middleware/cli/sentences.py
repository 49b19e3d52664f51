"""The sentences of errors on the command line. Their advice names a command; the library's names a method."""

from __future__ import annotations

from session_middleware import errors
from session_middleware.errors import SessionError

USAGE_ERRORS = (errors.InvalidArgument, errors.InvalidIdentity, errors.InvalidSessionId, errors.UnknownStatus)
_SENTENCES: dict[type[SessionError], str] = {
    errors.SessionNotFound: "there is no session {0.session_id!r}; list the sessions with session-middleware list",
    errors.SessionExists: "session {0.session_id!r} exists already; see it with session-middleware show",
    errors.SessionExpired: "session {0.session_id!r} has expired; set SESSION_ON_RESUME=revive, or choose another"
    " --thread",
    errors.SessionClosed: "session {0.session_id!r} is {0.status}; set SESSION_ON_CLOSED=reopen, or choose another"
    " --thread",
    errors.SessionBusy: "session {0.session_id!r} has a run in progress; try again after that run",
    errors.InvalidTransition: "session {0.session_id!r} is {0.status} and cannot become {0.to}; see the reason with"
    " session-middleware explain",
    errors.UserRequired: "the app requires a user (require_user); name one with --user",
    errors.UserRevoked: "user {0.user_id!r} was revoked; admit the user again with session-middleware revoke --lift",
    errors.SessionAccessDenied: "session {0.session_id!r} has another owner; name its owner with --user, or choose"
    " another --thread",
    errors.InvalidSessionId: "{0.problem}; give an id of 1 to 1,024 characters",
    errors.InvalidIdentity: "{0.problem}; give an id of 1 to 1,024 characters",
    errors.InvalidSettings: "{1}; correct --db, the SESSION_… variable or the .env file",
}


def error_text(error: SessionError) -> str:
    """The sentence of an error on the command line."""
    if isinstance(error, (errors.SessionNotFound, errors.SessionExpired)) and error.archived:
        return f"session {error.session_id!r} is archived; restore it with session-middleware restore"
    if isinstance(error, errors.SessionExists) and error.line is not None:
        return str(error).replace("if_exists='skip'", "--skip")
    if isinstance(error, errors.UnknownStatus) and error.status == "archived":
        return "an archived session has no status; list archived sessions with session-middleware list --archived"
    if sentence := _SENTENCES.get(type(error)):
        return sentence.format(error, "; ".join(getattr(error, "problems", ())))
    return " ".join(str(error).split())
