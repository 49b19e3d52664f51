"""Arguments that are nearly right: told before anything is written, where they would do harm or quietly nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from session_middleware.errors import InvalidArgument, UnknownStatus
from session_middleware.model import OnExpire, OnResume, Status, Visibility
from session_middleware.settings import own_seconds
from session_middleware.storage.upkeep import SessionDetails

T = TypeVar("T")

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
        if name in _ALSO and _ALSO[name] in known:
            meant: str | None = _ALSO[name]
        else:
            meant = next(iter(get_close_matches(name.lower(), known, n=1, cutoff=0.8)), None)
        if meant is not None:
            raise TypeError(f"{function}() takes no {name!r}: it is called {meant!r}")


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
    if moment is not None and (not isinstance(moment, datetime) or moment.tzinfo is None):
        raise InvalidArgument(name, moment, wanted="a datetime with a time zone, such as datetime.now(timezone.utc)")
    return moment


def check_callable(name: str, value: object, wanted: str) -> None:
    if not callable(value):
        raise InvalidArgument(name, value, wanted=wanted)


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
            given[name] = texts_of(name, value)
        elif name in ("title", "purpose"):
            if not isinstance(value, str):
                raise InvalidArgument(name, value, wanted="a text")
        elif not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise InvalidArgument(name, value, wanted="a dict whose keys are texts")
    return SessionDetails(
        **given,
        idle_timeout_seconds=own_seconds("idle_timeout", idle_timeout),
        max_age_seconds=own_seconds("max_age", max_age),
        retention_seconds=own_seconds("retention", retention),
    )
