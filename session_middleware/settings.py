"""All settings, read from keyword arguments, ``SESSION_…`` variables and a ``.env`` file, in this precedence.

An empty variable counts as not set. Durations read ``"30m"``, ``"7d"``, seconds, or `timedelta`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from session_middleware.errors import InvalidArgument, InvalidSettings
from session_middleware.models import LONGEST, Access, OnExpire, OnResume

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_WANTED = "a duration of at most 100 years and longer than zero, such as '30s', '15m', '12h' or '7d'"
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?\s*")


def parse_duration(value: Any) -> Any:
    """Convert ``"30m"``, ``"1.5h"``, ``"90"`` or 90 (seconds) to a positive `timedelta`."""
    if isinstance(value, bool):
        raise ValueError("a bool is not a duration; write '30s', '15m', '12h' or '7d'")
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            raise ValueError(f"{value!r} is not a duration; write '30s', '15m', '12h' or '7d'")
        value = float(match[1]) * _UNITS[match[2] or "s"]
    if isinstance(value, (int, float)):
        value = timedelta(seconds=min(value, 2 * LONGEST.total_seconds()))
    if isinstance(value, timedelta) and not timedelta(0) < value <= LONGEST:
        raise ValueError("a duration must be longer than zero and at most 100 years; None means never")
    return value


def parse_no_duration(value: Any) -> Any:
    """As `parse_duration`; ``None``, ``"none"`` and ``"never"`` give ``None``."""
    value = parse_none(value)
    return value if value is None else parse_duration(value)


def parse_none(value: Any) -> Any:
    """Convert ``"none"`` and ``"never"``, as written in a variable, to ``None``."""
    return None if isinstance(value, str) and value.strip().lower() in ("none", "never") else value


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
OptionalDuration = Annotated[timedelta | None, BeforeValidator(parse_no_duration)]
OptionalCount = Annotated[PositiveInt | None, BeforeValidator(parse_none)]


DETECTORS = frozenset({"emails", "keys", "card_numbers"})  # valid names in `redact`
RECORDED = frozenset({"messages", "tool_arguments", "tool_results", "model_calls"})  # valid names in `record`

Redact: TypeAlias = Callable[[str], str] | tuple[str, ...] | None
Record: TypeAlias = Literal["all"] | frozenset[str] | Mapping[str, frozenset[str]]


def parse_redact(value: Any) -> Any:
    """A function from text to text, or names of detectors as a list or comma-separated text."""
    if value is None or callable(value):
        return value
    return tuple(_names(value, DETECTORS))


def parse_record(value: Any) -> Any:
    """``"all"``, names of recorded kinds, or a mapping from tool names (``"*"`` for the others) to these."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        value = json.loads(value)
    if isinstance(value, Mapping):
        return {
            tool: frozenset(RECORDED if kinds == "all" else _names(kinds, RECORDED)) for tool, kinds in value.items()
        }
    return "all" if value == "all" else frozenset(_names(value, RECORDED))


def _names(value: Any, known: frozenset[str]) -> list[str]:
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
    names = [name for given in value if (name := str(given).strip()) not in ("", "none")]
    if unknown := sorted(set(names) - known):
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(sorted(known))}")
    return names


_PREFIX, _ENV_FILE = "SESSION_", ".env"
_SIMILAR = 0.9  # to report a mistyped variable, and not another program's


class SessionSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_file=_ENV_FILE,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    storage_url: str = "sessions.db"
    tracking: bool = True  # False: runs, messages and tool calls are not recorded
    idle_after: Duration = timedelta(minutes=5)  # shown as idle
    idle_timeout: OptionalDuration = timedelta(days=7)  # expired
    max_age: OptionalDuration = None  # expired however active, between runs
    on_expire: OnExpire = "keep"
    on_resume: OnResume = "revive"
    on_closed: Literal["reopen", "reject"] = "reopen"
    retention: OptionalDuration = None  # the time from a session's end to its deletion
    archive_path: str | None = None  # None: a folder beside the database
    sweep_interval: OptionalDuration = timedelta(minutes=5)
    max_sessions: OptionalCount = None
    max_sessions_per_user: OptionalCount = None
    on_limit: Literal["reject", "expire_oldest"] = "reject"
    on_busy: Literal["allow", "wait", "reject"] = "allow"
    busy_timeout: Duration = timedelta(minutes=1)  # the longest wait for another run
    max_open_resources: PositiveInt = 32
    access: Access = "owner"  # host: the surrounding server authorizes calls without an identity
    redact: Annotated[Redact, NoDecode, BeforeValidator(parse_redact)] = None  # removed from recorded texts
    record: Annotated[Record, NoDecode, BeforeValidator(parse_record)] = (
        "all"  # the recorded kinds, for all tools or by tool
    )
    stream_flush: Duration = timedelta(milliseconds=500)  # the longest delay of recording a streamed text
    repair: Literal["auto", "off"] = "auto"  # auto: new input answers unanswered tool calls
    strict_types: bool = False  # True: only `allowed_types` and the schemas' classes are restored
    index: dict[str, Any] | None = None  # LangGraph's IndexConfig: embedding model and dimensions
    memory_ttl: dict[str, Any] | None = None  # LangGraph's TTLConfig: the lifetime of store items, in minutes
    synchronous: Literal["full", "normal"] = "full"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # pydantic's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources of settings. Raises `InvalidSettings` for a variable that is probably a mistyped setting."""
        found = {*getattr(env_settings, "env_vars", ()), *getattr(dotenv_settings, "env_vars", ())}
        given = {name.upper() for name in found if name.upper().startswith(_PREFIX)}
        known = {_PREFIX + name.upper() for name in cls.model_fields}
        problems = [
            f"{name} is not a setting; did you mean {meant[0]}?"
            for name in sorted(given - known)
            if (meant := get_close_matches(name, known, n=1, cutoff=_SIMILAR))
        ]
        if problems:
            raise InvalidSettings(problems)
        return init_settings, env_settings, dotenv_settings


def duration_of(name: str, value: Any) -> timedelta | None:
    """Convert an argument to a duration or ``None``. Raises `InvalidArgument`, which names the argument."""
    try:
        duration = parse_no_duration(value)
    except ValueError:
        duration = value
    if duration is not None and not isinstance(duration, timedelta):
        raise InvalidArgument(name, value, wanted=_WANTED)
    return duration


def own_seconds(name: str, value: Any) -> float | None:
    """A session's own duration as stored: ``None`` means unset, and 0 means never. Raises `InvalidArgument`."""
    if value is None:
        return None
    duration = duration_of(name, value)
    return 0.0 if duration is None else float(duration.total_seconds())


def age_of(name: str, value: Any) -> timedelta | None:
    """As `duration_of`, without "never". Raises `InvalidArgument`."""
    age = duration_of(name, value)
    if age is None and value is not None:
        raise InvalidArgument(name, value, wanted=_WANTED)
    return age


def load_settings(**given: Any) -> SessionSettings:
    """The settings; `given` values take precedence.

    Raises:
        InvalidSettings: an unknown name or an invalid value.
    """
    unknown = sorted(set(given) - set(SessionSettings.model_fields))
    if unknown:
        known = ", ".join(SessionSettings.model_fields)
        raise InvalidSettings(
            [f"{name} is not a setting{_meant(name)} (the settings are: {known})" for name in unknown]
        )
    try:
        return SessionSettings(**given)
    except UnicodeDecodeError as error:
        raise InvalidSettings(
            [f"{_ENV_FILE} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"]
        ) from error
    except OSError as error:
        raise InvalidSettings([f"{_ENV_FILE} cannot be read ({error.strerror})"]) from error
    except SettingsError as error:
        raise InvalidSettings([f"{error} ({error.__cause__})"]) from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise InvalidSettings(problems) from error


def _meant(name: str) -> str:
    found = get_close_matches(name, SessionSettings.model_fields, n=1, cutoff=0.7)
    return f"; did you mean {found[0]}?" if found else ""
