"""What a session is at a moment, and what may be done with it: pure functions.

Each takes a session, the settings and the clock's reading; none touches storage. Expiry is decided
here at every read, so it holds whether or not a sweep has run.
"""

from __future__ import annotations

from datetime import datetime

from session_middleware.errors import InvalidIdentity, InvalidSessionId, SessionAccessDenied, SessionExpired
from session_middleware.model import MAX_ID_LENGTH, Admission, Identity, OpenedAs, SessionInfo, Status
from session_middleware.settings import SessionSettings


def session_id_of(given: object) -> str:
    """A thread id as a session id: coerced to ``str`` once, checked once.

    Raises:
        InvalidSessionId: none, empty, over 1,024 characters, or text no database can keep.
    """
    if given is None:
        raise InvalidSessionId("this run has no thread id")
    text = str(given)
    if problem := _problem_of(text):
        raise InvalidSessionId(f"a thread id {problem}")
    return text


def owner_id_of(name: str, given: object) -> str:
    """A user's or group's id as text, checked. Raises `InvalidIdentity`, which names it."""
    text = str(given)
    if problem := _problem_of(text):
        raise InvalidIdentity(f"a {name} {problem}")
    return text


def _problem_of(text: str) -> str | None:
    """Why a text cannot be an id."""
    if not text:
        return "may not be empty"
    if len(text) > MAX_ID_LENGTH:
        return f"of {len(text):,} characters is too long"
    if "\x00" in text:
        return f"may not have a NUL character, as {text!r} has"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"must be valid unicode, and {text!r} is not"
    return None


def expires_at(session: SessionInfo, settings: SessionSettings) -> datetime | None:
    """When the session expires if nothing more happens; ``None``: never."""
    if session.status not in ("active", "idle", "expired") or settings.idle_timeout is None:
        return None
    return session.last_active_at + settings.idle_timeout


def status_at(session: SessionInfo, settings: SessionSettings, now: datetime) -> Status:
    """The status that holds now, whatever a sweep has written. A clock set back changes nothing."""
    if session.status != "active":
        return session.status
    end = expires_at(session, settings)
    if end is not None and now >= end:
        return "expired"
    return "idle" if now - session.last_active_at >= settings.idle_after else "active"


def as_of(session: SessionInfo, settings: SessionSettings, now: datetime) -> SessionInfo:
    """The session as a reader sees it at `now`."""
    return session.model_copy(
        update={"status": status_at(session, settings, now), "expires_at": expires_at(session, settings)}
    )


def check_access(session: SessionInfo, identity: Identity) -> None:
    """Raises `SessionAccessDenied` unless the session is unowned or owned by `identity`."""
    if session.user_id is not None and session.user_id != identity.user_id:
        raise SessionAccessDenied(session.id, user_id=identity.user_id)


def admit(session: SessionInfo | None, settings: SessionSettings, now: datetime) -> Admission:
    """What a new run of this session is: an opening, a resumption, a revival, or a fresh start.

    Raises:
        SessionExpired: it has expired and ``on_resume`` is ``"reject"``.
    """
    if session is None:
        return "opened"
    status = status_at(session, settings, now)
    if status == "expired":
        if settings.on_resume == "reject":
            raise SessionExpired(session.id, since=expires_at(session, settings))
        return "revived" if settings.on_resume == "revive" else "fresh"
    return "resumed" if status in ("active", "idle") else "reopened"


def opened_as(admission: Admission) -> OpenedAs:
    """A fresh start opens a session; the old one was put aside under another id."""
    return "opened" if admission == "fresh" else admission
