"""The lifecycle is decided by the clock and the settings, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from session_middleware import lifecycle
from session_middleware.errors import InvalidSessionId, SessionExpired
from session_middleware.models import SessionInfo
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


def test_on_resume_reject_names_the_moment_of_expiry() -> None:
    settings = load_settings(idle_timeout=60, on_resume="reject")
    with pytest.raises(SessionExpired, match=r"expired at 2026-01-01T12:01:00\+00:00"):
        lifecycle.admit(session(), settings, NOON + timedelta(seconds=61))


@pytest.mark.parametrize("given", ["thread-42", 42, "ü/😀", "x'; DROP TABLE sessions; --", " ", "a" * 1024])
def test_any_reasonable_thread_id_is_a_session_id(given: object) -> None:
    assert lifecycle.session_id_of(given) == str(given)


@pytest.mark.parametrize("given", [None, "", "a" * 1025, "a\x00b", "\ud800"])
def test_an_impossible_thread_id_is_refused_with_advice(given: object) -> None:
    with pytest.raises(InvalidSessionId, match=r"sessions\.config"):
        lifecycle.session_id_of(given)
