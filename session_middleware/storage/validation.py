"""Validation of arguments, before anything is written. An invalid argument would do harm, or silently nothing."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, getmembers, iscoroutinefunction, isfunction, signature
from typing import Any, TypedDict, TypeVar, get_args, get_type_hints

from session_middleware.errors import InvalidArgument, InvalidMemoryArgument, UnknownStatus
from session_middleware.models import OnExpire, OnResume, Status, Visibility
from session_middleware.settings import own_seconds, parse_duration
from session_middleware.storage.types import SessionDetails

T = TypeVar("T")
C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

Timeout = str | float | timedelta | None  # "never" for none at all; None leaves what is there


class SessionOptions(TypedDict, total=False):
    """What can be said of a session when it is opened, and changed later. ``None`` leaves what is there."""

    title: str | None
    purpose: str | None
    tags: Sequence[str] | None
    metadata: dict[str, Any] | None
    context: dict[str, Any] | None
    client: dict[str, Any] | None
    visibility: Visibility | None
    idle_timeout: Timeout
    max_age: Timeout
    retention: Timeout
    on_expire: OnExpire | None
    on_resume: OnResume | None


class SessionFilters(TypedDict, total=False):
    """Which sessions are listed and counted. ``None`` is no condition."""

    user_id: str | None
    group_id: str | None
    status: Status | None
    tags: Sequence[str] | None
    since: datetime | None
    until: datetime | None


_HIGHEST = 2**63 - 1  # what a database counts to
_STATUSES: tuple[Status, ...] = get_args(Status)
_CHOICES = {"visibility": get_args(Visibility), "on_expire": get_args(OnExpire), "on_resume": get_args(OnResume)}
_ALSO = {
    "user": "user_id",
    "owner": "user_id",
    "owner_id": "user_id",
    "username": "user_id",
    "group": "group_id",
    "groups": "group_ids",
    "thread": "session_id",
    "thread_id": "session_id",
    "session": "session_id",
    "id": "session_id",
}


def check_names(given: Iterable[str], function: str, known: Sequence[str]) -> None:
    """Raises `TypeError` for a name that is surely meant to be one of `known`."""
    for name in given:
        if (meant := meant_by(name, known)) is not None:
            raise TypeError(f"{function}() has no argument {name!r}; write {meant}=…")


def meant_by(name: str, known: Iterable[str]) -> str | None:
    """The name of `known` that a mistyped one, or another word for it, stands for."""
    names = {each: each for each in known}
    if (also := _ALSO.get(name)) in names:
        return also
    if "session_id" in names:
        names["thread_id"] = "session_id"
    found = get_close_matches(name.lower(), names, n=1, cutoff=0.8)
    return names[found[0]] if found else None


def spelled_out(options: type) -> Callable[[F], F]:
    """Show what ``**options`` may be as keyword arguments in `inspect.signature` and `help`.

    Args:
        options: the `TypedDict` of ``**options: Unpack[…]``, or a pydantic model whose fields they are.
    """

    def decorate(method: F) -> F:
        shown = signature(method)
        known = [one for one in shown.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
        hints = get_type_hints(options)
        fields = getattr(options, "model_fields", dict.fromkeys(hints))
        added = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(field, "default", None), annotation=hints[name])
            for name, field in fields.items()
            if name not in shown.parameters
        ]
        method.__signature__ = shown.replace(parameters=[*known, *added])  # type: ignore[attr-defined]
        return method

    return decorate


def suggesting(cls: C) -> C:
    """A class whose methods, given an argument that they do not have, say which one was meant.

    Its `_elsewhere` says of names that no method has where they are given.
    """
    for name, method in getmembers(cls, isfunction):
        if not name.startswith("_") and method.__module__.startswith("session_middleware."):
            setattr(cls, name, _suggesting(method, getattr(cls, "_elsewhere", {})))
    return cls


def _suggesting(method: Any, elsewhere: Mapping[str, str]) -> Any:
    parameters = signature(method).parameters.values()
    if any(one.kind is Parameter.VAR_KEYWORD for one in parameters):
        return method
    known = [one.name for one in parameters][1:]

    def check(options: dict[str, Any]) -> None:
        unknown = next((name for name in options if name not in known), None)
        if unknown is not None:
            meant = meant_by(unknown, known)
            advice = f"write {meant}=…" if meant else f"it takes {', '.join(known) or 'none'}"
            raise TypeError(f"{method.__name__}() has no argument {unknown!r}; {elsewhere.get(unknown, advice)}")

    if iscoroutinefunction(method):

        @wraps(method)
        async def acall(*args: Any, **options: Any) -> Any:
            check(options)
            return await method(*args, **options)

        return acall

    @wraps(method)
    def call(*args: Any, **options: Any) -> Any:
        check(options)
        return method(*args, **options)

    return call


def checked_status(status: Status | None) -> Status | None:
    """Raises `UnknownStatus`."""
    if status is not None and status not in _STATUSES:
        raise UnknownStatus(str(status), known=_STATUSES)
    return status


# What follows raises `InvalidArgument`, which names the argument and what it may be


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise InvalidArgument(name, value, wanted=f"one of: {', '.join(map(repr, known))}")


def checked_limit(limit: int | None) -> int | None:
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit <= _HIGHEST):
        raise InvalidArgument("limit", limit, wanted="a number, 0 or more, or None for all")
    return limit


def check_after(after: object, kind: type, wanted: str) -> None:
    """Where a page begins: what the one before ended with."""
    if after is not None and (not isinstance(after, kind) or isinstance(after, bool)):
        raise InvalidArgument("after", after, wanted=wanted)


def check_seq(after: object) -> None:
    """Where a page of a session's record begins."""
    check_after(after, int, _SEQ)
    if isinstance(after, int) and abs(after) > _HIGHEST:
        raise InvalidArgument("after", after, wanted=_SEQ)


_SEQ = "the seq of the last one had"


def checked_moment(name: str, moment: datetime | None) -> datetime | None:
    """The moment, or the nearest one that can be stored and be compared with others."""
    if moment is None:
        return None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidArgument(name, moment, wanted="a datetime with a time zone, such as datetime.now(timezone.utc)")
    return min(max(moment, _EARLIEST), _LATEST)


_EARLIEST, _LATEST = datetime(1000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def check_callable(name: str, value: object, wanted: str) -> None:
    if not callable(value):
        raise InvalidArgument(name, value, wanted=wanted)


def check_kind(name: str, value: object, kind: Any, wanted: str) -> None:
    if not isinstance(value, kind):
        raise InvalidArgument(name, value, wanted=wanted)


def check_optional_text(name: str, value: object) -> None:
    if value is not None:
        check_text(name, value)


def check_resource(name: object, open: object, close: object) -> None:
    check_text("name", name, at_least=1)
    check_callable("open", open, "a function that returns the resource")
    if close is not None:
        check_callable("close", close, "a function of the resource")


def check_until(value: object) -> None:
    if value is not None:
        check_callable("until", value, "a function of a record, which is true after the last one")


def check_detail(value: object) -> None:
    check_kind("detail", value, Mapping | None, "a dict")


def check_error(value: object) -> None:
    check_kind("error", value, BaseException | str | None, "an exception or its text")


def milliseconds_of(name: str, duration: object) -> float | None:
    """A time that a call took."""
    check_kind(name, duration, timedelta | None, "a timedelta")
    if isinstance(duration, timedelta) and duration < timedelta(0):
        raise InvalidArgument(name, duration, wanted="a timedelta of zero or more")
    return None if duration is None else duration / timedelta(milliseconds=1)  # type: ignore[operator]


def check_clock(clock: Any) -> None:
    check_callable("clock", clock, _CLOCK)
    moment = clock()
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidArgument("clock", moment, wanted=_CLOCK)


_CLOCK = "a function that returns a datetime with a time zone, such as lambda: datetime.now(timezone.utc)"


def check_serializer(serde: object) -> None:
    for method in ("dumps_typed", "loads_typed") if serde is not None else ():
        if not callable(getattr(serde, method, None)):
            raise InvalidArgument("serde", serde, wanted="a serializer of LangGraph's, such as an EncryptedSerializer")


def checked_types(allowed: Any) -> tuple[Any, ...]:
    """Classes, and classes named by their module and name."""
    found = tuple(allowed) if isinstance(allowed, Iterable) and not isinstance(allowed, str) else (None,)
    for one in found:
        is_name = isinstance(one, tuple) and len(one) > 1 and all(isinstance(part, str) for part in one)
        if not isinstance(one, type) and not is_name:
            raise InvalidArgument("allowed_types", allowed, wanted="a list of classes, such as [MyType]")
    return found


_LONGEST_TEXT = 1_024  # characters of a title and the like: they are listed, and indexed
_MOST_TAGS = 100


def check_text(name: str, value: object, *, at_least: int = 0) -> None:
    """A text that is a label: what is longer belongs into metadata, or into a message."""
    if not isinstance(value, str) or not at_least <= len(value) <= _LONGEST_TEXT:
        raise InvalidArgument(name, value, wanted=f"a text of {at_least} to {_LONGEST_TEXT:,} characters")


def texts_of(name: str, value: Any) -> tuple[str, ...]:
    """Some texts; a single one is one of them, not its letters."""
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(text, str) for text in found):
        raise InvalidArgument(name, value, wanted="a list of texts")
    return found


def details_of(*, idle_timeout: Any = None, max_age: Any = None, retention: Any = None, **given: Any) -> SessionDetails:
    """What an opener says of a session, checked."""
    for name, value in given.items():
        if value is None:
            continue
        if name in _CHOICES:
            check_choice(name, value, _CHOICES[name])
        elif name == "tags":
            given[name] = tags = texts_of(name, value)
            if len(tags) > _MOST_TAGS:
                raise InvalidArgument(name, tags, wanted=f"at most {_MOST_TAGS} tags")
            for tag in tags:
                check_text(name, tag, at_least=1)
        elif name in ("title", "purpose"):
            check_text(name, value)
        elif not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise InvalidArgument(name, value, wanted="a dict whose keys are texts")
    return SessionDetails(
        **given,
        idle_timeout_seconds=own_seconds("idle_timeout", idle_timeout),
        max_age_seconds=own_seconds("max_age", max_age),
        retention_seconds=own_seconds("retention", retention),
    )


# The following functions raise `InvalidMemoryArgument`, which is a `TypeError` too


def check_type(name: str, value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    if not isinstance(value, kind):
        raise InvalidMemoryArgument(f"{name}={reprlib.repr(value)} is a {type(value).__name__}", f"give {wanted}")


def check_string(name: str, value: object) -> None:
    check_type(name, value, str, "text")


def check_mapping(name: str, value: object) -> None:
    check_type(name, value, (Mapping, type(None)), "a dict")


def check_always(value: object) -> None:
    check_type("always", value, bool, "True or False; remember(…, always=True) selects what belongs to every prompt")


def check_members(name: str, values: Any, known: Sequence[str]) -> None:
    """Validate a collection of some of `known`."""
    check_strings(name, values, ", ".join(known))
    for value in values:
        if value not in known:
            problem = f"there is no {name.removesuffix('s')} {reprlib.repr(value)}"
            raise InvalidMemoryArgument(problem, f"use one of {', '.join(known)}")


def check_strings(name: str, values: object, of: str = "texts") -> None:
    if isinstance(values, (str, bytes)) or not isinstance(values, Collection):
        raise InvalidMemoryArgument(
            f"{name}={reprlib.repr(values)} is a {type(values).__name__}", f"give a list of {of}"
        )
    for value in values:
        check_string(f"an element of {name}", value)


def check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _HIGHEST:
        raise InvalidMemoryArgument(
            f"{name}={reprlib.repr(value)} is no count", "give a whole number that is not negative"
        )


def check_marks(value: object) -> None:
    """The texts before and after each found word."""
    if not isinstance(value, tuple) or len(value) != 2 or not all(isinstance(mark, str) for mark in value):
        raise InvalidMemoryArgument(
            f"marks={reprlib.repr(value)} is no pair", "give two texts, such as ('<b>', '</b>')"
        )


def check_weight(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise InvalidMemoryArgument(f"{name}={reprlib.repr(value)} is no weight", f"give a number, such as {name}=0.5")


def check_moment(name: str, value: object) -> None:
    if value is not None and not (isinstance(value, datetime) and value.tzinfo is not None):
        raise InvalidMemoryArgument(f"{name}={reprlib.repr(value)} is no moment", "give a datetime with a time zone")


def checked_ttl(value: object) -> timedelta | None:
    """The time to live of an item that is remembered; ``None``: no limit."""
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise InvalidMemoryArgument(
            f"ttl={reprlib.repr(value)} is no duration", "give one such as '30m' or '7d'"
        ) from error
