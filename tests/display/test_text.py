"""Values in words."""

from __future__ import annotations

from datetime import timedelta

import pytest

from session_middleware.display.text import plural, span_text


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(days=7), "7 days"),
        (timedelta(days=1, hours=12), "1 day 12 hours"),
        (timedelta(minutes=30), "30 minutes"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(seconds=90), "1 minute 30 seconds"),
        (timedelta(seconds=1), "1 second"),
        (timedelta(milliseconds=250), "0.25 seconds"),
        (timedelta(days=2, seconds=5), "2 days 5 seconds"),
        (timedelta(0), "0 seconds"),
    ],
)
def test_durations_read_as_people_say_them(duration: timedelta, text: str) -> None:
    assert span_text(duration) == text


def test_one_is_singular() -> None:
    assert [plural(count, "session") for count in (0, 1, 2_000)] == ["0 sessions", "1 session", "2,000 sessions"]
