"""Settings come from arguments, then the environment, then a .env file, then the defaults."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from session_middleware.errors import InvalidSettings
from session_middleware.settings import load_settings, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("7d", 604800), ("1.5h", 5400), ("90", 90), (90, 90), ("250ms", 0.25), ("2w", 1209600)],
)
def test_durations_read_as_people_write_them(text: object, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["soon", "", "-5m", 0, "0s", "5 parsecs", True])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(InvalidSettings, match="idle_after"):
        load_settings(idle_after=text)


def test_an_argument_wins_over_a_variable_over_the_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("SESSION_IDLE_TIMEOUT=1h\nSESSION_IDLE_AFTER=1m\nSESSION_ON_RESUME=fresh\n")
    monkeypatch.setenv("SESSION_IDLE_TIMEOUT", "2h")
    monkeypatch.setenv("SESSION_IDLE_AFTER", "2m")
    settings = load_settings(idle_timeout="3h")
    assert (settings.idle_timeout, settings.idle_after) == (timedelta(hours=3), timedelta(minutes=2))
    assert settings.on_resume == "fresh"


def test_a_timeout_can_be_switched_off_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_IDLE_TIMEOUT", "never")
    assert load_settings().idle_timeout is None


def test_an_unknown_setting_is_named_with_those_there_are() -> None:
    with pytest.raises(InvalidSettings, match=r"idle_timout is not a setting .*idle_timeout"):
        load_settings(idle_timout="5m")


def test_all_wrong_values_are_told_at_once_and_none_is_repeated() -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(on_resume="secret-token", synchronous="maybe")
    assert len(caught.value.problems) == 2
    assert "secret-token" not in str(caught.value)
