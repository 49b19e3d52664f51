"""Explanations in sentences: why a session has its status, and its next status. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from session_middleware import lifecycle
from session_middleware.display.text import second_text, span_text
from session_middleware.models import Event, Explanation, SessionInfo
from session_middleware.settings import SessionSettings
from session_middleware.storage.types import TombstoneInfo

_REASONS = {
    "idle_timeout": "it was idle for {idle_timeout}",
    "max_age": "it was {max_age} old",
    "limit": "another session was opened, and max_sessions was reached",
    "owner_revoked": "its owner was revoked",
    "by_user": "the app ended it",
    "retention": "it had ended {retention} before",
    "older_than": "it was inactive for too long",
}
_ON_RESUME = {
    "revive": "revives it",
    "fresh": "starts an empty session and puts this one aside",
    "reject": "is refused",
}


def explain(
    session: SessionInfo, settings: SessionSettings, now: datetime, events: Sequence[Event] = ()
) -> Explanation:
    """Explain a session. Its `events` say which session it replaced, or which one replaced it."""
    is_open = lifecycle.status_at(session, settings, now) in lifecycle.OPEN
    found = (_explain_open if is_open else _explain_ended)(session, settings, lifecycle.as_of(session, settings, now))
    sentences = [found.text, *_fresh_starts(events)]
    return found.model_copy(update={"text": f"session {session.id!r}: {'; '.join(sentences)}"})


def _explain_open(session: SessionInfo, settings: SessionSettings, current: SessionInfo) -> Explanation:
    last_active = f"it was last active at {_time(session.last_active_at)}"
    since = session.began_at or session.created_at
    end = None if session.is_running else lifecycle.expiry_of(session, settings)
    if session.is_running:
        sentences = ["it is active: a run is in progress in it, and it does not expire meanwhile"]
    elif current.status == "idle":
        since = session.last_active_at + settings.idle_after
        sentences = [f"it is idle: {last_active}"]
    else:
        sentences = [f"it is active: {last_active}"]
    if session.pinned is not None:
        by = f" by {session.pinned.by}" if session.pinned.by else ""
        why = f" ({session.pinned.why})" if session.pinned.why else ""
        sentences.append(f"it does not expire, because it was pinned{by}{why}")
    elif end is not None:
        sentences.append(f"it expires at {_time(end.at)} ({end.reason}) if it is not used before")
        if session.postponed_until == end.at:
            sentences.append("that was postponed by a hook")
    elif not session.is_running:
        sentences.append("it never expires")
    return Explanation(
        session_id=session.id,
        status=current.status,
        reason=current.reason,
        since=since,
        next_status=None if end is None else "expired",
        next_reason=None if end is None else end.reason,
        next_at=None if end is None else end.at,
        text="; ".join(sentences),
    )


def _explain_ended(session: SessionInfo, settings: SessionSettings, current: SessionInfo) -> Explanation:
    terms = lifecycle.terms_of(session, settings)
    since = current.ended_at or current.expires_at or session.last_active_at
    durations = {name: _duration(getattr(terms, name)) for name in ("idle_timeout", "max_age", "retention")}
    reason = _REASONS.get(current.reason or "", current.reason or "").format(**durations)
    sentences = [f"it is {current.status} since {_time(since)}" + (f": {reason}" if reason else "")]
    if current.status == "expired":
        sentences.append(f"running it {_ON_RESUME[terms.on_resume]} (on_resume)")
    else:
        sentences.append(f"running it {'reopens it' if settings.on_closed == 'reopen' else 'is refused'} (on_closed)")
    deleted_at = lifecycle.deleted_at(current.model_copy(update={"ended_at": since}), settings)
    following: dict[str, object] = {}
    if current.status == "expired" and session.pinned is None and terms.on_expire in ("delete", "archive"):
        action = "archived" if terms.on_expire == "archive" else "deleted"
        following = {"next_status": action, "next_reason": "on_expire", "next_at": since}
        sentences.append(f"the next sweep makes it {action} (on_expire)")
    elif deleted_at is not None:
        following = {"next_status": "deleted", "next_reason": "retention", "next_at": deleted_at}
        sentences.append(f"it is deleted at {_time(deleted_at)} (retention)")
    found = {"session_id": session.id, "status": current.status, "reason": current.reason, "since": since}
    return Explanation.model_validate({**found, **following, "text": "; ".join(sentences)})


def _fresh_starts(events: Sequence[Event]) -> list[str]:
    found = []
    for event in events:
        if event.kind == "opened" and "put_aside" in event.detail:
            found.append(f"it was started afresh, and its earlier content is in session {event.detail['put_aside']!r}")
        elif event.kind == "put_aside":
            found.append(f"it was session {event.detail['was']!r} until that id was started afresh")
    return found


def explain_absence(session_id: str, tombstone: TombstoneInfo | None, settings: SessionSettings) -> Explanation:
    """Explain a deleted or archived session, or an unknown id."""
    if tombstone is None:
        text = f"session {session_id!r}: it does not exist, and no deleted session had this id"
        return Explanation(session_id=session_id, status="unknown", text=text)
    on_resume = tombstone.on_resume or settings.on_resume
    is_archived = tombstone.archive is not None
    is_refused = on_resume == "reject" or (is_archived and on_resume == "revive")
    resume = "is refused" if is_refused else "opens it anew"
    where = f" to {tombstone.archive}" if is_archived else ""
    back = "; it can be restored" if is_archived else ""
    reason = f" ({tombstone.reason})" if tombstone.reason else ""
    text = f"session {session_id!r}: it was {tombstone.action}{where} at {_time(tombstone.deleted_at)}{reason}"
    return Explanation.model_validate(
        {
            "session_id": session_id,
            "status": tombstone.action,
            "reason": tombstone.reason,
            "since": tombstone.deleted_at,
            "text": f"{text}; running it {resume} (on_resume){back}",
        }
    )


def _time(moment: datetime) -> str:
    return f"{second_text(moment)} UTC"


def _duration(duration: timedelta | None) -> str:
    return "ever" if duration is None else span_text(duration)
