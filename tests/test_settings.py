"""Settings come from arguments, then the environment, then a .env file, then the defaults."""

from __future__ import annotations

from datetime import timedelta
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from session_middleware import Sessions
from session_middleware.errors import InvalidSettings
from session_middleware.settings import load_settings, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("7d", 604800), ("1.5h", 5400), ("90", 90), (90, 90), ("250ms", 0.25), ("2w", 1209600)],
)
def test_durations_read_as_people_write_them(text: object, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


NO_DURATIONS = ["soon", "", "-5m", 0, "0s", "5 parsecs", True, None, b"5m", [], nan, inf, 10**400, "9" * 400, 1e-9]
LONG = [timedelta(days=36_526), timedelta(0), timedelta(-1), "36526d"]


@pytest.mark.parametrize("value", [*NO_DURATIONS, *LONG])
def test_a_setting_that_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(InvalidSettings, match=r"idle_after: .* is not a duration of at most 100 years"):
        load_settings(idle_after=value)


UNFIT: list[tuple[str, list[Any]]] = [
    ("redact", [3, True, b"emails", {"emails": 1}, ["phones"], "[", object()]),
    ("record", [None, 3, True, len, ["text"], {"*": 3}, {3: ["messages"]}, {"*": ["text"]}, "{"]),
    ("archive_path", [3, "", "a\0b", ["x"]]),
    ("max_sessions", [True, 0, -1, 1.5, "x", []]),
    ("max_sessions_per_user", [True, 0]),
    ("max_open_resources", [None, True, 0, "x"]),
    ("memory_ttl", [3, {"ttl": 5}, {"default_ttl": "soon"}, {"default_ttl": 0}, {"default_ttl": nan}]),
    ("index", [3, "{", []]),
    ("tracking", ["perhaps", 3, None]),
    ("on_expire", ["forget", None, 3]),
    ("access", [None, "guest"]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNFIT for value in values])
def test_a_setting_of_the_wrong_kind_is_refused_in_a_plain_sentence(name: str, value: object) -> None:
    with pytest.raises(InvalidSettings, match=rf"^invalid settings: {name}[:.]") as refusal:
        load_settings(**{name: value})
    assert "Value error" not in str(refusal.value)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ({}, "dims is None"),
        ({"dims": 3}, "embed is None; give a LangChain Embeddings"),
        ({"dims": 3, "embed": 5}, "embed is 5"),
        ({"dims": 3, "embed": "nothing:known"}, "embed='nothing:known'"),
        ({"dims": 3, "embed": len, "fields": "text"}, "fields is 'text'; give a list of paths"),
        ({"dims": 3, "embed": len, "fields": [5]}, r"fields is \[5\]"),
    ],
)
def test_an_index_that_names_no_model_is_refused_before_a_file_is_created(
    index: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSettings, match=f"index: {expected}"):
        Sessions(tmp_path / "sessions.db", index=index)
    assert list(tmp_path.iterdir()) == []


def test_the_path_of_archives_may_be_a_path() -> None:
    assert load_settings(archive_path=Path("archives")).archive_path == "archives"


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


@pytest.mark.parametrize("name", ["IDLE_TIMEOUT", "MAX_SESSIONS", "TRACKING", "STORAGE_URL", "INDEX", "ON_EXPIRE"])
@pytest.mark.parametrize("where", ["environment", "file"])
def test_an_empty_variable_is_the_default(
    name: str, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    default = load_settings()
    monkeypatch.chdir(tmp_path)
    if where == "file":
        Path(".env").write_text(f"SESSION_{name}=\n")
    else:
        monkeypatch.setenv(f"SESSION_{name}", "")
    assert load_settings() == default


def test_an_empty_duration_is_an_error_where_it_is_an_argument() -> None:
    with pytest.raises(InvalidSettings, match="idle_timeout"):
        load_settings(idle_timeout="")


def test_a_limit_can_be_switched_off_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_MAX_SESSIONS", "none")
    assert load_settings().max_sessions is None


@pytest.mark.parametrize("where", ["environment", "file"])
def test_a_mistyped_variable_is_an_error_that_names_the_right_one(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    if where == "file":
        Path(".env").write_text("session_idle_timout=5m\n")
    else:
        monkeypatch.setenv("SESSION_IDLE_TIMOUT", "5m")
    with pytest.raises(InvalidSettings, match=r"SESSION_IDLE_TIMOUT .*SESSION_IDLE_TIMEOUT"):
        load_settings()


@pytest.mark.parametrize("name", ["SESSION_ID", "SESSION_SECRET", "SESSION_MANAGER", "SESSION_COOKIE_NAME"])
def test_a_variable_of_another_program_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "theirs")
    load_settings()


@pytest.mark.parametrize(
    "line", ["SESSION_IDLE_TIMEOUT: 1h", "SESSION_IDLE_TIMEOUT 1h", "SESSION_IDLE_TIMEOUT", "SESSION_IDLE_TIMEOUT='1h"]
)
def test_a_line_that_gives_a_setting_no_value_is_named(line: str) -> None:
    Path(".env").write_text(f"OTHER: x\nSESSION_ON_RESUME=fresh\n{line}\n")
    with pytest.raises(InvalidSettings, match=r"\.env, line 3: write SESSION_IDLE_TIMEOUT=value"):
        load_settings()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_an_env_file_in_another_encoding_is_named(
    encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("SESSION_STORAGE_URL=café.db\n", encoding=encoding)
    with pytest.raises(InvalidSettings, match=r"\.env is not UTF-8"):
        load_settings()


def test_a_variable_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_INDEX", "{dims: 3}")
    with pytest.raises(InvalidSettings, match="index"):
        load_settings()


def test_an_unknown_setting_is_named_with_those_there_are() -> None:
    with pytest.raises(InvalidSettings, match=r"idle_timout is not a setting; did you mean idle_timeout\? .*max_age"):
        load_settings(idle_timout="5m")


def test_all_wrong_values_are_told_at_once_and_none_is_repeated() -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(on_resume="secret-token", synchronous="maybe")
    assert len(caught.value.problems) == 2
    assert "secret-token" not in str(caught.value)
