"""The lifecycle is decided by the clock and the settings, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from session_middleware import lifecycle
from session_middleware.errors import InvalidSessionId, SessionAccessDenied, SessionExpired
from session_middleware.models import Identity, SessionInfo
from session_middleware.settings import load_settings

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def session(**fields: object) -> SessionInfo:
    return SessionInfo(**{"id": "t", "family_id": "t", "created_at": NOON, "last_active_at": NOON, **fields})


@pytest.mark.parametrize(
    ("after", "status"),
    [
        (0, "active"),
        (299, "active"),
        (300, "idle"),
        (1799, "idle"),
        (1800, "expired"),
        (10**6, "expired"),
        (-60, "active"),
    ],
)
def test_status_follows_the_clock_to_the_second(after: int, status: str) -> None:
    settings = load_settings(idle_after="5m", idle_timeout="30m")
    assert lifecycle.status_at(session(), settings, NOON + timedelta(seconds=after)) == status


def test_without_a_timeout_a_session_is_idle_for_ever() -> None:
    settings = load_settings(idle_timeout=None)
    assert lifecycle.expires_at(session(), settings) is None
    assert lifecycle.status_at(session(), settings, NOON + timedelta(days=9999)) == "idle"


def test_an_ended_session_stays_as_it_ended() -> None:
    assert lifecycle.status_at(session(status="completed"), load_settings(), NOON + timedelta(days=99)) == "completed"


@pytest.mark.parametrize(("on_resume", "admission"), [("revive", "revived"), ("fresh", "fresh")])
def test_an_expired_session_is_admitted_as_on_resume_says(on_resume: str, admission: str) -> None:
    settings = load_settings(idle_timeout=1, on_resume=on_resume)
    assert lifecycle.admit(session(), settings, NOON + timedelta(seconds=2)) == admission


def test_on_resume_reject_names_the_moment_of_expiry() -> None:
    settings = load_settings(idle_timeout=60, on_resume="reject")
    with pytest.raises(SessionExpired, match=r"expired at 2026-01-01T12:01:00\+00:00"):
        lifecycle.admit(session(), settings, NOON + timedelta(seconds=61))


def test_an_unknown_id_is_opened_and_a_known_one_resumed() -> None:
    assert lifecycle.admit(None, load_settings(), NOON) == "opened"
    assert lifecycle.admit(session(), load_settings(), NOON) == "resumed"


def test_an_owned_session_is_its_owners_alone_and_an_unowned_one_is_everybodys() -> None:
    owned = session(user_id="alice")
    lifecycle.check_access(owned, Identity(user_id="alice"))
    lifecycle.check_access(session(), Identity(user_id="bob"))
    for stranger in (Identity(), Identity(user_id="bob"), Identity(group_id="alice")):
        with pytest.raises(SessionAccessDenied):
            lifecycle.check_access(owned, stranger)


@pytest.mark.parametrize("given", ["thread-42", 42, "ü/😀", "x'; DROP TABLE sessions; --", " ", "a" * 1024])
def test_any_reasonable_thread_id_is_a_session_id(given: object) -> None:
    assert lifecycle.session_id_of(given) == str(given)


@pytest.mark.parametrize("given", [None, "", "a" * 1025, "a\x00b", "\ud800"])
def test_an_impossible_thread_id_is_refused_with_advice(given: object) -> None:
    with pytest.raises(InvalidSessionId, match=r"sessions\.config"):
        lifecycle.session_id_of(given)
