"""All settings, read from keyword arguments, ``SESSION_…`` variables and a ``.env`` file, in this precedence.

An empty variable counts as not set. Durations read ``"30m"``, ``"7d"``, seconds, or `timedelta`.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from session_middleware.errors import InvalidArgument, InvalidSettings
from session_middleware.models import LONGEST, Access, OnExpire, OnResume

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_WANTED = "a duration of at most 100 years and longer than zero, such as '30s', '15m', '12h' or '7d'"
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?\s*")


def parse_duration(value: object) -> timedelta:
    """Convert ``"30m"``, ``"1.5h"``, ``"90"`` or 90 (seconds) to a positive `timedelta`. Raises `ValueError`."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    found = value if match is None else float(match[1]) * _UNITS[match[2] or "s"]
    if isinstance(found, (int, float)) and not isinstance(found, bool) and 0 < found <= LONGEST.total_seconds():
        found = timedelta(seconds=found)
    if not isinstance(found, timedelta) or not timedelta(0) < found <= LONGEST:
        raise ValueError(f"{reprlib.repr(value)} is not {_WANTED}")
    return found


def parse_no_duration(value: object) -> timedelta | None:
    """As `parse_duration`; ``None``, ``"none"`` and ``"never"`` give ``None``."""
    value = parse_none(value)
    return None if value is None else parse_duration(value)


def parse_none(value: object) -> object:
    """Convert ``"none"`` and ``"never"``, as written in a variable, to ``None``."""
    return None if isinstance(value, str) and value.strip().lower() in ("none", "never") else value


def parse_count(value: object) -> object:
    """As `parse_none`. Raises `ValueError` for a bool, which pydantic would convert."""
    if isinstance(value, bool):
        raise ValueError("a bool is not a number")
    return parse_none(value)


def parse_path(value: object) -> object:
    """Convert a path to text. Raises `ValueError` for one that no file can have."""
    text = str(value) if isinstance(value, Path) else value
    if isinstance(text, str) and (not text or "\0" in text):
        raise ValueError(f"{text!r} is not a path")
    return text


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
OptionalDuration = Annotated[timedelta | None, BeforeValidator(parse_no_duration)]
Count = Annotated[PositiveInt, BeforeValidator(parse_count)]
OptionalCount = Annotated[PositiveInt | None, BeforeValidator(parse_count)]
OptionalPath = Annotated[str | None, BeforeValidator(parse_path)]


DETECTORS = frozenset({"emails", "keys", "card_numbers"})  # valid names in `redact`
RECORDED = frozenset({"messages", "tool_arguments", "tool_results", "model_calls"})  # valid names in `record`

Redact: TypeAlias = Callable[[str], str] | tuple[str, ...] | None
Record: TypeAlias = Literal["all"] | frozenset[str] | Mapping[str, frozenset[str]]


def parse_redact(value: Any) -> Any:
    """A function from text to text, or names of detectors as a list or comma-separated text."""
    if value is None or callable(value):
        return value
    return tuple(_names(_decoded(value), DETECTORS))


def parse_record(value: Any) -> Any:
    """``"all"``, names of recorded kinds, or a mapping from tool names (``"*"`` for the others) to these."""
    value = _decoded(value)
    if not isinstance(value, Mapping):
        return "all" if value == "all" else frozenset(_names(value, RECORDED))
    if not all(isinstance(tool, str) for tool in value):
        raise ValueError(f"{reprlib.repr(value)} has a key that is not the name of a tool")
    return {tool: frozenset(RECORDED if kinds == "all" else _names(kinds, RECORDED)) for tool, kinds in value.items()}


def _decoded(value: object) -> object:
    """The list or dict that a text is in JSON; any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{reprlib.repr(value)} is not JSON ({error})") from error


def _names(value: object, known: frozenset[str]) -> list[str]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError(f"{reprlib.repr(value)} is not a list of {', '.join(sorted(known))}")
    names = [name for given in value if (name := str(given).strip()) not in ("", "none")]
    if unknown := sorted(set(names) - known):
        raise ValueError(f"{reprlib.repr(unknown[0])} is not one of {', '.join(sorted(known))}")
    return names


_TTL = ("default_ttl", "refresh_on_read", "omit_expired", "sweep_interval_minutes")  # of LangGraph's TTLConfig


def parse_memory_ttl(value: Any) -> Any:
    """LangGraph's `TTLConfig`. Raises `ValueError` for another name or a value of another type."""
    if not isinstance(value, Mapping):
        return value
    if unknown := sorted(map(str, set(value) - set(_TTL))):
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(_TTL)}")
    if (minutes := value.get("default_ttl")) is not None and not is_minutes(minutes):
        raise ValueError(f"default_ttl={reprlib.repr(minutes)} is not a number of minutes up to 100 years")
    if not isinstance(value.get("refresh_on_read", True), bool):
        raise ValueError(f"refresh_on_read={value['refresh_on_read']!r} is not True or False")
    return value


def is_minutes(value: object) -> bool:
    """Whether it is a number of minutes, longer than zero and at most 100 years."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value <= LONGEST / timedelta(minutes=1)  # type: ignore[operator]


_PREFIX, _ENV_FILE = "SESSION_", ".env"
_SIMILAR = 0.9  # to report a mistyped variable, and not another program's


_HOSTS = re.compile(r"(?:[\w.%-]*|\[[\w:.]*\])(?::\d*)?(?:,[\w.:%-]*)*")


def without_secrets(url: str) -> str:
    """A URL without its user, password and parameters; a path unchanged."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    hosts, slash, database = rest.partition("?")[0].rpartition("@")[2].partition("/")
    return f"{scheme}://{hosts}{slash}{database}" if _HOSTS.fullmatch(hosts) else f"{scheme}://"


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
    """A path, `":memory:"`, or a `postgresql://` URL."""
    tracking: bool = True
    """False: runs, messages and tool calls are not recorded; everything else works."""
    idle_after: Duration = timedelta(minutes=5)
    """After this long without activity, a session is shown as idle."""
    idle_timeout: OptionalDuration = timedelta(days=7)
    """After this long without activity, a session has expired; none: never."""
    max_age: OptionalDuration = None
    """This long after its beginning, a session has expired however active it is, between runs; none: never."""
    on_expire: OnExpire = "keep"
    """What a sweep does with an expired session: `keep`; `prune`: its latest checkpoints and the record stay;
    `archive`: to a file, from which `sessions.restore` brings it back; or `delete`."""
    on_resume: OnResume = "revive"
    """What a run of an expired id does: `revive` the session; begin a `fresh` one, and rename the old one; or `reject`.
    An archived id is refused unless it is `fresh`."""
    on_closed: Literal["reopen", "reject"] = "reopen"
    """What a run of a completed, failed or abandoned session does: `reopen` it, or `reject`."""
    retention: OptionalDuration = None
    """The time from a session's end to its deletion by a sweep, also of its archive."""
    archive_path: OptionalPath = None
    """The folder of archives; none: beside the database."""
    sweep_interval: OptionalDuration = timedelta(minutes=5)
    """The time between background sweeps; none: only explicit sweeps."""
    max_sessions: OptionalCount = None
    """The number of sessions that may be open."""
    max_sessions_per_user: OptionalCount = None
    """The number of sessions of one user that may be open."""
    on_limit: Literal["reject", "expire_oldest"] = "reject"
    """What opening one more session does: `reject` with `SessionLimitReached`, or `expire_oldest`."""
    on_busy: Literal["allow", "wait", "reject"] = "allow"
    """What a second run in a session does: `allow`; `wait` for the first one; or `reject` with `SessionBusy`."""
    busy_timeout: Duration = timedelta(minutes=1)
    """The longest wait for another run."""
    max_open_resources: Count = 32
    """The number of `session.resource`s that one process holds open."""
    require_user: bool = False
    """True: a run, or an opening of a session, that names no user is refused."""
    access: Access = "owner"
    """`owner`: a call without an identity is refused in a session that has an owner. `host`: the surrounding server has
    authorized such calls."""
    redact: Annotated[Redact, NoDecode, BeforeValidator(parse_redact)] = None
    """What is removed from recorded texts, arguments and results: some of `emails`, `keys` and `card_numbers`, or a
    function from text to text, which must be deterministic. The graph's state is not changed."""
    record: Annotated[Record, NoDecode, BeforeValidator(parse_record)] = "all"
    """The recorded kinds: some of `messages`, `tool_arguments`, `tool_results` and `model_calls`; or a dict of these by
    tool name, with `"*"` for all others."""
    stream_flush: Duration = timedelta(milliseconds=500)
    """The longest delay of recording a streamed answer."""
    repair: Literal["auto", "off"] = "auto"
    """`auto`: new input answers interrupted tool calls; or `off`."""
    strict_types: bool = False
    """True: of your own classes, only `allowed_types` and those of the graph's schemas are stored and restored."""
    index: dict[str, Any] | None = None
    """LangGraph's `IndexConfig`: the embedding model (`embed`), its `dims`, and the `fields` of the store's items that
    have vectors."""
    memory_ttl: Annotated[dict[str, Any] | None, BeforeValidator(parse_memory_ttl)] = None
    """LangGraph's `TTLConfig`: `default_ttl` of the store's items in minutes, and `refresh_on_read`."""
    synchronous: Literal["full", "normal"] = "full"
    """`full`: an acknowledged checkpoint survives a power failure. `normal`: it survives `kill -9`."""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, without_secrets(value) if name == "storage_url" else value

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
        problems += _malformed_lines()
        if problems:
            raise InvalidSettings(problems)
        return (init_settings, env_settings, dotenv_settings) if given else (init_settings,)


def _malformed_lines() -> list[str]:
    """Sentences about the lines of ``.env`` that name a setting and give it no value. Values are not shown."""
    from dotenv.parser import parse_stream

    found = []
    with suppress(OSError, UnicodeError), Path(_ENV_FILE).open(encoding="utf-8") as stream:  # reported by pydantic
        for line in parse_stream(stream):
            name = re.match(rf"\s*(?:export\s+)?({_PREFIX}\w+)", line.original.string, re.IGNORECASE)
            if name and (line.error or line.value is None):
                found.append(f"{_ENV_FILE}, line {line.original.line}: write {name[1]}=value")
    return found


def duration_of(name: str, value: object) -> timedelta | None:
    """Convert an argument to a duration or ``None``. Raises `InvalidArgument`, which names the argument."""
    try:
        return parse_no_duration(value)
    except ValueError as error:
        raise InvalidArgument(name, value, wanted=_WANTED) from error


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


# The settings that decide the status, the expiry and the end of sessions. None of them is secret.
LASTING = frozenset(
    {
        *("idle_after", "idle_timeout", "max_age", "on_expire", "on_resume", "on_closed", "retention", "archive_path"),
        *("max_sessions", "max_sessions_per_user", "on_limit"),
    }
)


def lasting_settings(settings: SessionSettings) -> dict[str, Any]:
    """The settings that decide the status, the expiry and the end of sessions, and are not the defaults, as JSON.

    `load_settings` reads them.
    """
    found = settings.model_dump(include=set(LASTING), exclude_defaults=True)
    if (path := found.get("archive_path")) is not None:
        found["archive_path"] = str(Path(path).absolute())
    return {name: one.total_seconds() if isinstance(one, timedelta) else one for name, one in sorted(found.items())}


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
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise InvalidSettings(problems) from error


def _meant(name: str) -> str:
    found = get_close_matches(name, SessionSettings.model_fields, n=1, cutoff=0.7)
    return f"; did you mean {found[0]}?" if found else ""
