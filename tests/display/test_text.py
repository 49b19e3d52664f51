"""Values in words."""

from __future__ import annotations

from datetime import timedelta

import pytest

from session_middleware.display.text import cost_text, plural, span_text


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


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        (None, "–"),  # noqa: RUF001 - an en dash
        (0.0, "$0.00"),
        (0.0000004, "under $0.000001"),
        (0.000052, "$0.000052"),
        (0.0013449, "$0.001345"),
        (0.5, "$0.50"),
        (0.9999999, "$1.00"),
        (12_345.678, "$12,345.68"),
    ],
)
def test_a_cost_has_cents_and_a_small_one_the_digits_that_count(dollars: float | None, text: str) -> None:
    assert cost_text(dollars) == text
