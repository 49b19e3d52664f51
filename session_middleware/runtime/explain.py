"""Explanations in sentences: why a session has its status, and its next status. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from session_middleware import lifecycle
from session_middleware.display.text import second_text, span_text
from session_middleware.models import Event, Explanation, Question, SessionInfo
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
    "fresh": "starts an empty session and renames this one",
    "reject": "is refused",
}


def explain(
    session: SessionInfo,
    settings: SessionSettings,
    now: datetime,
    events: Sequence[Event] = (),
    questions: Sequence[Question] = (),
) -> Explanation:
    """Explain a session. Its `events` say which session it replaced, or which one replaced it."""
    current = lifecycle.as_of(session, settings, now)
    found: dict[str, Any] = {"session_id": session.id, "status": current.status, "reason": current.reason}
    fill_in = _explain_open if current.status in lifecycle.OPEN else _explain_ended
    sentences = [*fill_in(found, session, current, settings), *_waits(questions), *_fresh_starts(events)]
    return Explanation(**found, text=f"session {session.id!r}: {'; '.join(sentences)}")


def _explain_open(
    found: dict[str, Any], session: SessionInfo, current: SessionInfo, settings: SessionSettings
) -> Iterator[str]:
    """Fill in the facts, and yield the sentences."""
    end = None if session.is_running else lifecycle.expiry_of(session, settings)
    found["since"] = session.active_since or session.created_at
    if current.status == "idle":
        found["since"] = session.last_active_at + settings.idle_after
    if session.is_running:
        yield "it is active: a run is in progress in it, and it does not expire meanwhile"
    else:
        yield f"it is {current.status}: it was last active at {_time(session.last_active_at)}"
    if end is not None:
        found |= {"next_status": "expired", "next_reason": end.reason, "next_at": end.at}
        yield f"it expires at {_time(end.at)} ({end.reason}) if it is not used before"
        if session.postponed_until == end.at:
            yield "that was postponed by a hook"
    elif session.pinned is not None:
        by = f" by {session.pinned.by}" if session.pinned.by else ""
        why = f" ({session.pinned.why})" if session.pinned.why else ""
        yield f"it does not expire, because it was pinned{by}{why}"
    elif not session.is_running:
        yield "it never expires"


def _explain_ended(
    found: dict[str, Any], session: SessionInfo, current: SessionInfo, settings: SessionSettings
) -> Iterator[str]:
    terms = lifecycle.terms_of(session, settings)
    since = found["since"] = current.ended_at or current.expires_at or session.last_active_at
    durations = {name: _duration(getattr(terms, name)) for name in ("idle_timeout", "max_age", "retention")}
    reason = _REASONS.get(current.reason or "", current.reason or "").format(**durations)
    yield f"it is {current.status} since {_time(since)}" + (f": {reason}" if reason else "")
    is_expired = current.status == "expired"
    if is_expired:
        yield f"running it {_ON_RESUME[terms.on_resume]} (on_resume)"
    else:
        yield f"running it {'reopens it' if settings.on_closed == 'reopen' else 'is refused'} (on_closed)"
    deleted_at = lifecycle.deleted_at(current.model_copy(update={"ended_at": since}), settings)
    if is_expired and session.pinned is None and terms.on_expire in ("delete", "archive"):
        action = {"delete": "deleted", "archive": "archived"}[terms.on_expire]
        found |= {"next_status": action, "next_reason": "on_expire", "next_at": since}
        yield f"the next sweep makes it {action} (on_expire)"
    elif deleted_at is not None:
        found |= {"next_status": "deleted", "next_reason": "retention", "next_at": deleted_at}
        yield f"it is deleted at {_time(deleted_at)} (retention)"


def _waits(questions: Sequence[Question]) -> Iterator[str]:
    for question in questions:
        if question.status == "open":
            what = "a run that continues from" if question.interrupt_id is None else "an answer to"
            yield f"its graph waits since {_time(question.asked_at)} for {what} {question.asked}"


def _fresh_starts(events: Sequence[Event]) -> Iterator[str]:
    for event in events:
        if event.kind == "opened" and "renamed" in event.detail:
            yield f"it was started afresh, and its earlier content is in session {event.detail['renamed']!r}"
        elif event.kind == "renamed":
            yield f"it was session {event.detail['was']!r} until that id was started afresh"


def explain_absence(session_id: str, tombstone: TombstoneInfo | None, settings: SessionSettings) -> Explanation:
    """Explain a deleted or archived session, or an unknown id."""
    if tombstone is None:
        text = f"session {session_id!r}: it does not exist, and no deleted session had this id"
        return Explanation(session_id=session_id, status="unknown", text=text)
    if (primary := tombstone.merged_into) is not None:
        text = f"session {session_id!r}: it was merged into session {primary!r} at {_time(tombstone.deleted_at)}"
        text += "; running it runs that session"
        return Explanation(
            session_id=session_id, status="merged", reason=primary, since=tombstone.deleted_at, text=text
        )
    on_resume = tombstone.on_resume or settings.on_resume
    where = back = ""
    is_refused = on_resume == "reject"
    if tombstone.archive is not None:
        where, back, is_refused = f" to {tombstone.archive}", "; it can be restored", on_resume != "fresh"
    facts: dict[str, Any] = {"status": tombstone.action, "reason": tombstone.reason, "since": tombstone.deleted_at}
    if (until := tombstone.archive_ends_at(settings.retention)) is not None:
        facts |= {"next_status": "deleted", "next_reason": "retention", "next_at": until}
        back += f"; it is deleted at {_time(until)} (retention)"
    reason = f" ({tombstone.reason})" if tombstone.reason else ""
    was = f"it was {tombstone.action}{where} at {_time(tombstone.deleted_at)}{reason}"
    text = (
        f"session {session_id!r}: {was}; running it {'is refused' if is_refused else 'opens a new session'} (on_resume)"
    )
    return Explanation(session_id=session_id, **facts, text=text + back)


def _time(moment: datetime) -> str:
    return f"{second_text(moment)} UTC"


def _duration(duration: timedelta | None) -> str:
    return "ever" if duration is None else span_text(duration)
