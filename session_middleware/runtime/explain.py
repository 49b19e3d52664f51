"""Saying in words why a session is as it is, and what comes next if nothing happens. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from session_middleware import lifecycle
from session_middleware.display.text import span_text
from session_middleware.models import Event, Explanation, SessionInfo
from session_middleware.settings import SessionSettings
from session_middleware.storage.upkeep import TombstoneInfo

_WHY = {
    "idle_timeout": "nothing happened in it for {idle_timeout}",
    "max_age": "it was {max_age} old",
    "limit": "another session was opened, and no more may be open",
    "owner_revoked": "its owner was revoked",
    "by_user": "its app said so",
    "retention": "it had ended {retention} before",
    "older_than": "it was cleaned away by its age",
}


def explain(
    session: SessionInfo, settings: SessionSettings, now: datetime, events: Sequence[Event] = ()
) -> Explanation:
    """`events` are the session's: those that say what it took the place of, or what took its place."""
    seen = lifecycle.as_of(session, settings, now)
    terms = lifecycle.terms_of(session, settings)
    told = {name: _long(getattr(terms, name)) for name in ("idle_timeout", "max_age", "retention")}
    why = _WHY.get(seen.reason or "", seen.reason or "").format(**told)
    sentences = []
    next_status: str | None = None
    next_at = next_reason = None
    if seen.status in lifecycle.OPEN:
        since = session.began_at or session.created_at
        if session.is_running:
            sentences.append("it is active: a run is in progress in it, and it does not expire meanwhile")
        elif seen.status == "idle":
            since = session.last_active_at + settings.idle_after
            sentences.append(f"it is idle: it was last active at {_at(session.last_active_at)}")
        else:
            sentences.append(f"it is active: it was last active at {_at(session.last_active_at)}")
        end = None if session.is_running else lifecycle.expiry_of(session, settings)
        if session.pinned is not None:
            by, why = session.pinned.by or "somebody", session.pinned.why or "who has not said why"
            sentences.append(f"it does not expire: {by} has pinned it ({why})")
        elif end is not None:
            next_status, next_at, next_reason = "expired", end.at, end.reason
            sentences.append(f"it expires at {_at(end.at)} ({end.reason}) unless something happens before")
            if session.postponed_until == end.at:
                sentences.append("that was postponed by a hook")
        elif not session.is_running:
            sentences.append("it never expires")
    else:
        since = seen.ended_at or seen.expires_at or session.last_active_at
        sentences.append(f"it is {seen.status} since {_at(since)}" + (f": {why}" if why else ""))
        sentences += _after_end(seen, terms, settings)
        until = lifecycle.deleted_at(seen.model_copy(update={"ended_at": since}), settings)
        if seen.status == "expired" and session.pinned is None and terms.on_expire in ("delete", "archive"):
            next_status = "archived" if terms.on_expire == "archive" else "deleted"
            next_at, next_reason = since, "on_expire"
            sentences.append(f"the next sweep makes it {next_status} (on_expire)")
        elif until is not None:
            next_status, next_at, next_reason = "deleted", until, "retention"
            sentences.append(f"it is deleted at {_at(until)} (retention)")
    sentences += _fresh_starts(events)
    return Explanation(
        session_id=session.id,
        status=seen.status,
        reason=seen.reason,
        since=since,
        next_status=next_status,
        next_reason=next_reason,
        next_at=next_at,
        text=f"session {session.id!r}: " + "; ".join(sentences),
    )


def _fresh_starts(events: Sequence[Event]) -> list[str]:
    told = []
    for event in events:
        if event.kind == "opened" and "put_aside" in event.detail:
            told.append(f"it was started afresh, and what was said before is in session {event.detail['put_aside']!r}")
        elif event.kind == "put_aside":
            told.append(f"it was session {event.detail['was']!r} until that was started afresh")
    return told


def _after_end(seen: SessionInfo, terms: lifecycle.Terms, settings: SessionSettings) -> list[str]:
    if seen.status == "expired":
        what = {"revive": "revives it", "fresh": "starts afresh and puts it aside", "reject": "is refused"}
        return [f"running it {what[terms.on_resume]} (on_resume)"]
    return ["running it " + ("reopens it" if settings.on_closed == "reopen" else "is refused") + " (on_closed)"]


def explain_absence(session_id: str, buried: TombstoneInfo | None, settings: SessionSettings) -> Explanation:
    if buried is None:
        text = f"session {session_id!r}: there is none with this id, and no trace of one"
        return Explanation(session_id=session_id, status="unknown", text=text)
    on_resume = buried.on_resume or settings.on_resume
    is_archived = buried.archive is not None
    is_refused = on_resume == "reject" or (is_archived and on_resume == "revive")
    resume = "is refused" if is_refused else "opens it anew"
    where = f" to {buried.archive}" if is_archived else ""
    back = f"; sessions.restore({session_id!r}) brings it back" if is_archived else ""
    why = f" ({buried.reason})" if buried.reason else ""
    return Explanation.model_validate(
        {
            "session_id": session_id,
            "status": buried.action,
            "reason": buried.reason,
            "since": buried.buried_at,
            "text": f"session {session_id!r}: it was {buried.action}{where} at {_at(buried.buried_at)}{why}; "
            f"running it {resume} (on_resume){back}",
        }
    )


def _at(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _long(duration: timedelta | None) -> str:
    return "ever" if duration is None else span_text(duration)
