"""Every setting, once: keyword arguments, ``SESSION_…`` variables and a ``.env`` file.

Keyword arguments win over variables, variables over ``.env``. Durations read ``"30m"``, ``"7d"``,
seconds, or `timedelta`.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from session_middleware.errors import InvalidSettings

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST = timedelta(days=36_525)
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?\s*")


def parse_duration(value: Any) -> Any:
    """``"30m"``, ``"1.5h"``, ``"90"`` or 90 (seconds) to a positive `timedelta`."""
    if isinstance(value, bool):
        raise ValueError("a duration, such as '30m', is wanted")
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            raise ValueError(f"{value!r} is not a duration; write '30s', '15m', '12h' or '7d'")
        value = float(match[1]) * _UNITS[match[2] or "s"]
    if isinstance(value, (int, float)):
        value = timedelta(seconds=min(value, 2 * _LONGEST.total_seconds()))
    if isinstance(value, timedelta) and not timedelta(0) < value <= _LONGEST:
        raise ValueError("a duration must be longer than nothing and at most 100 years; None means never")
    return value


def parse_no_duration(value: Any) -> Any:
    """A duration, or ``None`` (in a variable: ``none`` or ``never``)."""
    if isinstance(value, str) and value.strip().lower() in ("none", "never", ""):
        return None
    return value if value is None else parse_duration(value)


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
OptionalDuration = Annotated[timedelta | None, BeforeValidator(parse_no_duration)]


class SessionSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SESSION_", env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    storage_url: str = "sessions.db"
    tracking: bool = True  # False: no runs, messages and tool calls are recorded; all else goes on
    idle_after: Duration = timedelta(minutes=5)  # shown as idle
    idle_timeout: OptionalDuration = timedelta(days=7)  # expired
    on_expire: Literal["keep", "delete"] = "keep"
    on_resume: Literal["revive", "fresh", "reject"] = "revive"
    synchronous: Literal["full", "normal"] = "full"


def load_settings(**given: Any) -> SessionSettings:
    """The settings, with what is `given` over the environment over the defaults.

    Raises:
        InvalidSettings: a name nobody knows, or a value that does not parse.
    """
    unknown = sorted(set(given) - set(SessionSettings.model_fields))
    if unknown:
        known = ", ".join(SessionSettings.model_fields)
        raise InvalidSettings([f"{name} is not a setting (there are: {known})" for name in unknown])
    try:
        return SessionSettings(**given)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise InvalidSettings(problems) from error
