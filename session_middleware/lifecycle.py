"""The status of a session, its expiry and its access rules, as pure functions of session, settings and time.

`TRANSITIONS` is the complete state machine. Expiry is computed at each read, so it does not depend on sweeps: a
session that is stored as active is read as idle or expired once the time has come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

from session_middleware import errors
from session_middleware.models import (
    MAX_ID_LENGTH,
    Access,
    Admission,
    Identity,
    OnExpire,
    OnResume,
    SessionFields,
    SessionInfo,
    Status,
    Visibility,
    plain_text,
)
from session_middleware.settings import SessionSettings

# Transitions

TRANSITIONS: Mapping[tuple[Status, Status], str] = MappingProxyType(
    {
        ("active", "idle"): "idle",  # by the clock
        ("idle", "active"): "resumed",
        ("active", "completed"): "completed",
        ("active", "failed"): "failed",
        ("active", "abandoned"): "abandoned",
        ("active", "expired"): "expired",
        ("idle", "completed"): "completed",
        ("idle", "failed"): "failed",
        ("idle", "abandoned"): "abandoned",
        ("idle", "expired"): "expired",
        ("expired", "active"): "revived",
        ("completed", "active"): "reopened",
        ("failed", "active"): "reopened",
        ("abandoned", "active"): "reopened",
    }
)
OPEN: frozenset[Status] = frozenset({"active", "idle"})


def check_transition(session_id: str, status: Status, to: Status) -> str:
    """The kind of event that records the transition. Raises `InvalidTransition`."""
    try:
        return TRANSITIONS[status, to]
    except KeyError:
        raise errors.InvalidTransition(session_id, status=status, to=to) from None


def check_visibility(session: SessionInfo, visibility: Visibility | None) -> None:
    """Raise `InvalidArgument` for group visibility of a session without a group."""
    if visibility in ("group", "group-write") and session.group_id is None:
        raise errors.InvalidArgument("visibility", visibility, wanted="the session a group_id when it is opened")


def check_open(session_id: str, status: Status) -> None:
    """Raise `InvalidTransition` for a session that is neither active nor idle."""
    if status not in OPEN:
        raise errors.InvalidTransition(session_id, status=status, to="active")


# Ids


def session_id_of(given: object) -> str:
    """Convert a thread id or a session to a session id.

    Raises:
        InvalidSessionId: the id is missing, empty, not a ``str``, ``int`` or `UUID`, longer than 1,024
            characters, or text that a database cannot store.
    """
    if given is None:
        raise errors.InvalidSessionId("this run has no thread id")
    if isinstance(given, SessionFields):
        return given.id
    if problem := _problem_of(given):
        raise errors.InvalidSessionId(f"a thread id {problem}")
    return plain_text(given)


def owner_id_of(name: str, given: object) -> str:
    """Convert the id of a user or group to text, as `session_id_of`. Raises `InvalidIdentity`, which names it."""
    if problem := _problem_of(given):
        raise errors.InvalidIdentity(f"a {name} {problem}")
    return plain_text(given)


def owner_id_or_none(name: str, given: object) -> str | None:
    """As `owner_id_of`; ``None`` stays ``None``."""
    return None if given is None else owner_id_of(name, given)


def owner_ids_of(name: str, given: object) -> tuple[str, ...]:
    """Convert the ids of groups, or a single one, to text. ``None`` names none. Raises `InvalidIdentity`."""
    ids = (given,) if isinstance(given, str) else () if given is None else given
    if not isinstance(ids, Iterable) or isinstance(ids, (bytes, Mapping)):
        raise errors.InvalidIdentity(f"{name} is a list of ids, and no {type(given).__name__}")
    return tuple(owner_id_of(name, each) for each in ids)


def _problem_of(given: object) -> str | None:
    """The reason why a value is not a valid id."""
    if isinstance(given, bool) or not isinstance(given, (str, int, UUID)):
        return f"is a str, an int or a UUID, and no {type(given).__name__}"
    text = plain_text(given)
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


# Expiry


class Terms(NamedTuple):
    """The settings that apply to one session: its own, and otherwise the general ones."""

    idle_timeout: timedelta | None
    max_age: timedelta | None
    retention: timedelta | None
    on_expire: OnExpire
    on_resume: OnResume


def terms_of(session: SessionInfo, settings: SessionSettings) -> Terms:
    return Terms(
        _own(session.idle_timeout_seconds, settings.idle_timeout),
        _own(session.max_age_seconds, settings.max_age),
        _own(session.retention_seconds, settings.retention),
        session.on_expire or settings.on_expire,
        session.on_resume or settings.on_resume,
    )


def _own(seconds: float | None, otherwise: timedelta | None) -> timedelta | None:
    return otherwise if seconds is None else timedelta(seconds=seconds) or None


class Expiry(NamedTuple):
    at: datetime
    reason: str  # idle_timeout, max_age


def expiry_of(session: SessionInfo, settings: SessionSettings) -> Expiry | None:
    """The time and reason of an open session's expiry without further activity; ``None``: never."""
    ends = []
    if (timeout := _own(session.idle_timeout_seconds, settings.idle_timeout)) is not None:
        ends.append(Expiry(session.last_active_at + timeout, "idle_timeout"))
    if (max_age := _own(session.max_age_seconds, settings.max_age)) is not None:
        ends.append(Expiry((session.active_since or session.created_at) + max_age, "max_age"))
    if not ends or session.pinned is not None:
        return None
    end = min(ends)
    return end if session.postponed_until is None else Expiry(max(end.at, session.postponed_until), end.reason)


def expires_at(session: SessionInfo, settings: SessionSettings) -> datetime | None:
    """The time of expiry: the past one of an expired session, ``None`` for one that ended otherwise."""
    if session.status == "expired" and session.ended_at is not None:
        return session.ended_at
    if session.status not in ("active", "idle", "expired"):
        return None
    end = expiry_of(session, settings)
    return None if end is None else end.at


def deleted_at(session: SessionInfo, settings: SessionSettings) -> datetime | None:
    """The time at which ``retention`` deletes an ended session; ``None``: never."""
    retention = terms_of(session, settings).retention
    if retention is None or session.ended_at is None or session.pinned is not None:
        return None
    return session.ended_at + retention


def status_at(session: SessionInfo, settings: SessionSettings, now: datetime) -> Status:
    """The status at `now`, independent of sweeps. A session with a run in progress stays active."""
    if session.status != "active" or session.is_running:
        return session.status
    end = expiry_of(session, settings)
    if end is not None and now >= end.at:
        return "expired"
    return "idle" if now - session.last_active_at >= settings.idle_after else "active"


def as_of(session: SessionInfo, settings: SessionSettings, now: datetime) -> SessionInfo:
    """The session with its status, reason and expiry at `now`."""
    status, reason = status_at(session, settings, now), session.reason
    if status == "expired" and session.status != "expired" and (end := expiry_of(session, settings)) is not None:
        reason = end.reason
    return session.model_copy(update={"status": status, "reason": reason, "expires_at": expires_at(session, settings)})


# Access


def may_read(session: SessionInfo, identity: Identity) -> bool:
    return may_write(session, identity) or (session.visibility == "group" and session.group_id in identity.groups)


def may_write(session: SessionInfo, identity: Identity) -> bool:
    """Whether `identity` may write. A session without an owner is open to everyone."""
    if session.user_id is None or session.user_id == identity.user_id:
        return True
    return session.visibility == "group-write" and session.group_id in identity.groups


def is_found_by(session: SessionInfo, identity: Identity) -> bool:
    """Whether `for_user` shows the session. One without an owner is not shown."""
    return session.user_id is not None and may_read(session, identity)


def check_theirs(session: SessionInfo, identity: Identity, *, reading: bool = False) -> None:
    """Raise `SessionNotFound` unless `is_found_by`, and `SessionAccessDenied` for a change by a reader."""
    if not is_found_by(session, identity):
        raise errors.SessionNotFound(session.id)
    if not reading and not may_write(session, identity):
        raise errors.SessionAccessDenied(session.id, user_id=identity.user_id, may_read=True)


def is_vouched_for(identity: Identity, access: Access) -> bool:
    """Whether the call has no identity and the surrounding server has authorized the caller."""
    return access == "host" and identity == Identity()


def check_access(session: SessionInfo, identity: Identity, access: Access = "owner", *, reading: bool = False) -> None:
    """Raise `SessionAccessDenied` unless `identity` may run in the session or, `reading`, read it."""
    if not (may_read if reading else may_write)(session, identity) and not is_vouched_for(identity, access):
        raise errors.SessionAccessDenied(session.id, user_id=identity.user_id, may_read=may_read(session, identity))


def admit(session: SessionInfo | None, settings: SessionSettings, now: datetime) -> Admission:
    """How a new run enters the session: by opening, resuming, reviving, reopening or starting fresh.

    Raises:
        SessionExpired: the session has expired and ``on_resume`` is ``"reject"``.
        SessionClosed: the session has ended otherwise and ``on_closed`` is ``"reject"``.
    """
    if session is None:
        return "opened"
    status = status_at(session, settings, now)
    if status == "expired":
        on_resume = terms_of(session, settings).on_resume
        if on_resume == "reject":
            raise errors.SessionExpired(session.id, since=expires_at(session, settings))
        return "revived" if on_resume == "revive" else "fresh"
    if status in OPEN:
        return "resumed"
    if settings.on_closed == "reject":
        raise errors.SessionClosed(session.id, status=status)
    return "reopened"
