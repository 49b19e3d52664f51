"""Validation of arguments, before anything is written."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import partial, wraps
from inspect import Parameter, Signature, iscoroutinefunction, isfunction, signature
from typing import Any, Literal, TypedDict, TypeVar, Unpack, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from session_middleware.errors import InvalidArgument, InvalidMemoryArgument, UnknownStatus
from session_middleware.lifecycle import owner_id_or_none
from session_middleware.models import Identity, Message, OnExpire, OnResume, Run, Status, Visibility, plain_text
from session_middleware.settings import own_seconds
from session_middleware.storage.jsonable import stored_id
from session_middleware.storage.titles import title_key
from session_middleware.storage.types import SessionDetails, SessionFilter

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

_HIGHEST = 2**63 - 1  # of the numbers that a database stores
_LONGEST_TEXT = 1_024  # characters of a title and the like, which are listed and indexed
_MOST_TAGS = 100
_CHOICES = {"visibility": get_args(Visibility), "on_expire": get_args(OnExpire), "on_resume": get_args(OnResume)}
_EARLIEST, _LATEST = datetime(1000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def _listed(value: Any) -> tuple[Any, ...]:
    """The elements; a single text is one element, and not its letters."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (value,)
    return tuple(value)


Timeout = str | float | timedelta | None  # "never": no limit; None: unchanged


class SessionOptions(TypedDict, total=False):
    """The fields of a session that a caller may set. ``None`` leaves a field unchanged."""

    title: str | None
    """for lists; by default made from the first message of a user."""
    purpose: str | None
    """what the session is for, in a text of your own."""
    tags: Sequence[str] | None
    """labels, which `list` filters by."""
    metadata: dict[str, Any] | None
    """facts for your app, which `list` filters by."""
    context: dict[str, Any] | None
    """facts and preferences for the model, which `context_for` returns."""
    client: dict[str, Any] | None
    """the program of the user, such as its name and version."""
    visibility: Visibility | None
    """``"private"``, or what the group may do: ``"group"`` reads, ``"group-write"`` also runs and changes."""
    idle_timeout: Timeout
    """in place of the setting."""
    max_age: Timeout
    """in place of the setting."""
    retention: Timeout
    """in place of the setting."""
    on_expire: OnExpire | None
    """in place of the setting."""
    on_resume: OnResume | None
    """in place of the setting."""


class CallFilters(TypedDict, total=False):
    """The conditions for the sessions of calls. ``None`` is no condition."""

    user_id: str | None
    """the owner."""
    group_id: str | None
    """the group of the session."""
    status: Status | Literal["open"] | Collection[Status] | None
    """the status now, or one of several; ``"open"``: active or idle."""
    tags: Sequence[str] | None
    """labels, all of which the session has."""
    metadata: dict[str, Any] | None
    """values of the metadata, all of which the session has."""
    title: str | None
    """a text in the title, in any case."""
    waiting: bool | None
    """whether the graph waits for a person's answer."""


class SessionFilters(CallFilters, total=False):
    """The conditions for listing and counting sessions. ``None`` is no condition."""

    since: datetime | None
    """active at this time or later."""
    until: datetime | None
    """active before this time."""


def details_of(*, idle_timeout: Any = None, max_age: Any = None, retention: Any = None, **given: Any) -> SessionDetails:
    """The options of a session as they are stored. Raises `InvalidArgument`."""
    for name, value in given.items():
        if value is None:
            continue
        if name in _CHOICES:
            check_choice(name, value, _CHOICES[name])
        elif name == "tags":
            given[name] = tags = _listed(value)
            if len(tags) > _MOST_TAGS or not all(_is_label(tag, at_least=1) for tag in tags):
                wanted = f"at most {_MOST_TAGS} texts of 1 to {_LONGEST_TEXT:,} characters"
                raise InvalidArgument(name, value, wanted=wanted)
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


def filter_of(visible_to: Identity | None, **given: Unpack[SessionFilters]) -> SessionFilter:
    """The conditions as they are stored. Raises `InvalidArgument`, `InvalidIdentity` or `UnknownStatus`."""
    tags, metadata, title = given.get("tags"), given.get("metadata"), given.get("title")
    waiting = given.get("waiting")
    owners = owner_id_or_none("user_id", given.get("user_id")), owner_id_or_none("group_id", given.get("group_id"))
    chosen = checked_tags(tags)
    if metadata is not None and not (isinstance(metadata, Mapping) and all(map(_is_plain, metadata.items()))):
        raise InvalidArgument("metadata", metadata, wanted="a dict from keys to texts, numbers or booleans")
    check_optional_text("title", title)
    period = period_of(given.get("since"), given.get("until"))
    if waiting is not None:
        check_kind("waiting", waiting, bool, "True, False, or None for both")
    statuses = _statuses_of(given.get("status"))
    return SessionFilter(*owners, statuses, chosen, *period, metadata, title and title_key(title), visible_to, waiting)


def _is_plain(item: tuple[Any, Any]) -> bool:
    is_finite = not isinstance(item[1], float) or math.isfinite(item[1])
    return isinstance(item[0], str) and isinstance(item[1], str | int | float) and is_finite


def _statuses_of(given: Any) -> tuple[Any, ...]:
    """The statuses of a filter: none, one, ``"open"``, or several. Raises `UnknownStatus`."""
    names = set() if given is None else set(map(plain_text, _listed(given)))
    for name in sorted(names):
        check_status(name, "open")
    if given is not None and not names:
        raise InvalidArgument("status", given, wanted="at least one status, or None for all")
    if "open" in names or {"active", "idle"} <= names:
        names = names - {"active", "idle"} | {"open"}
    return tuple(sorted(names))


def checked_tags(tags: Any) -> Sequence[str]:
    """The tags to look for. Raises `InvalidArgument`."""
    chosen = () if tags is None else _listed(tags)
    if not all(isinstance(tag, str) for tag in chosen):
        raise InvalidArgument("tags", tags, wanted="a list of texts")
    return chosen


def check_status(status: str | None, *also: str) -> None:
    """Raises `UnknownStatus`."""
    known = (*get_args(Status), *also)
    if status is not None and status not in known:
        raise UnknownStatus(str(status), known=known)


def period_of(since: datetime | None, until: datetime | None) -> tuple[datetime | None, datetime | None]:
    return checked_moment("since", since), checked_moment("until", until)


# Names

_ALSO = dict.fromkeys(("user", "owner", "owner_id", "username"), "user_id") | {"group": "group_id"}
_ALSO |= {"groups": "group_ids"} | dict.fromkeys(("thread", "thread_id", "session", "id"), "session_id")


def check_names(given: Iterable[str], function: str, known: Sequence[str]) -> None:
    """Raise `TypeError` for a name that is similar to one of `known`, or another word for it."""
    for name in given:
        if (meant := _meant_by(name, known)) is not None:
            raise TypeError(f"{function}() has no argument {name!r}; write {meant}=…")


def _meant_by(name: str, known: Iterable[str]) -> str | None:
    names = {each: each for each in known}
    if (also := _ALSO.get(name)) in names:
        return also
    if "session_id" in names:
        names["thread_id"] = "session_id"
    found = get_close_matches(name.lower(), names, n=1, cutoff=0.8)
    return names[found[0]] if found else None


def spelled_out(options: type) -> Callable[[F], F]:
    """Show the arguments in ``**options`` in `inspect.signature` and `help`.

    Args:
        options: the `TypedDict` of ``**options: Unpack[…]``, or a pydantic model whose fields they are.
    """
    hints, fields = get_type_hints(options), getattr(options, "model_fields", {})

    def decorate(method: F) -> F:
        shown = signature(method)
        own = [one for one in shown.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
        added = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(fields.get(name), "default", None), annotation=hint)
            for name, hint in hints.items()
            if name not in shown.parameters and (name in fields or not fields)
        ]
        method.__signature__ = shown.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        return method

    return decorate


def signature_of(function: Callable[..., Any]) -> Signature:
    """The signature of a caller's function, whose annotations may name classes that are not defined yet."""
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        return signature(function, annotation_format=Format.FORWARDREF)
    return signature(function)


def suggesting(cls: C) -> C:
    """Let the public methods of a class reject unknown arguments, and name the argument that was meant."""
    for name, method in [*vars(cls).items()]:
        if isfunction(method) and not name.startswith("_") and not iscoroutinefunction(method):
            setattr(cls, name, _checking_names(method))
    return cls


def _checking_names(method: Callable[..., Any]) -> Callable[..., Any]:
    parameters = signature(method).parameters
    if any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values()):
        return method
    known = list(parameters)[1:]

    @wraps(method)
    def call(*args: Any, **given: Any) -> Any:
        unknown = [name for name in given if name not in known]
        if unknown:
            check_names(unknown, method.__name__, known)
            raise TypeError(
                f"{method.__name__}() has no argument {unknown[0]!r}; it takes {', '.join(known) or 'none'}"
            )
        return method(*args, **given)

    return call


# The following functions raise `InvalidArgument`, which names the argument and its valid values


def validated(name: str, value: object, kind: Any, wanted: str) -> Any:
    """The value as pydantic converts it."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        raise InvalidArgument(name, value, wanted=wanted) from None


def message_id_of(given: object) -> str:
    check_kind("message_id", given, str, "the id of a message, such as messages()[0].message_id")
    return stored_id(given)  # type: ignore[arg-type]  # checked


def point_of(at: object) -> str | None:
    """The id of a point to fork at."""
    found = at.message_id if isinstance(at, Message) else at.id if isinstance(at, Run) else at
    check_kind("at", found, str | None, "a message, run or checkpoint of this session, or its id")
    return None if found is None else stored_id(found)  # type: ignore[arg-type]  # checked


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise InvalidArgument(name, value, wanted=f"one of: {', '.join(map(repr, known))}")


def check_callable(name: str, value: object, wanted: str) -> None:
    if not callable(value):
        raise InvalidArgument(name, value, wanted=wanted)


def check_kind(
    name: str, value: object, kind: Any, wanted: str, error: type[InvalidArgument] = InvalidArgument
) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise error(name, value, wanted=wanted)


def _is_label(value: object, *, at_least: int) -> bool:
    """Whether it is a text that can be listed and indexed. A longer one belongs into metadata, or into a message."""
    return isinstance(value, str) and at_least <= len(value) <= _LONGEST_TEXT


def check_text(name: str, value: object, *, at_least: int = 0) -> None:
    if not _is_label(value, at_least=at_least):
        raise InvalidArgument(name, value, wanted=f"a text of {at_least} to {_LONGEST_TEXT:,} characters")


def check_optional_text(name: str, value: object) -> None:
    if value is not None:
        check_text(name, value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _HIGHEST


def checked_limit(limit: int | None, name: str = "limit") -> int | None:
    if limit is not None and not _is_count(limit):
        raise InvalidArgument(name, limit, wanted="a number, 0 or more, or None for all")
    return limit


def check_seq(seq: object, name: Literal["after", "before"] = "after") -> None:
    """Validate the place in a session's record after which a page begins, or before which it ends."""
    place = "the last record of the page before" if name == "after" else "the first record of the page after"
    check_kind(name, seq, int, f"the seq of {place}")
    if not -_HIGHEST <= cast("int", seq) <= _HIGHEST:
        raise InvalidArgument(name, seq, wanted=f"the seq of {place}")


def checked_moment(name: str, moment: datetime | None) -> datetime | None:
    """The moment, or the nearest one that can be stored and be compared with others."""
    if moment is None:
        return None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidArgument(name, moment, wanted="a datetime with a time zone, such as datetime.now(timezone.utc)")
    return min(max(moment, _EARLIEST), _LATEST)


def milliseconds_of(name: str, duration: timedelta | None) -> float | None:
    """The duration of a call."""
    if duration is None:
        return None
    if not isinstance(duration, timedelta) or duration < timedelta(0):
        raise InvalidArgument(name, duration, wanted="a timedelta of zero or more")
    return duration / timedelta(milliseconds=1)


# The following functions raise `InvalidMemoryArgument`

check_given = partial(check_kind, error=InvalidMemoryArgument)


def check_always(value: object) -> None:
    check_given("always", value, bool, "True or False; remember(…, always=True) selects what belongs to every prompt")


def check_members(name: str, values: Any, known: Sequence[str]) -> None:
    """Validate a collection of some of `known`."""
    check_texts(name, values, ", ".join(known))
    for value in values:
        if value not in known:
            raise InvalidMemoryArgument(name.removesuffix("s"), value, wanted=f"one of: {', '.join(known)}")


def check_texts(name: str, values: object, of: str = "texts") -> None:
    if isinstance(values, (str, bytes)) or not isinstance(values, Collection):
        raise InvalidMemoryArgument(name, values, wanted=f"a list of {of}")
    for value in values:
        check_given(f"an element of {name}", value, str, "text")


def check_count(name: str, value: object) -> None:
    if not _is_count(value):
        raise InvalidMemoryArgument(name, value, wanted="a whole number that is not negative")


def check_marks(value: object) -> None:
    """Validate the texts before and after each found word."""
    if not isinstance(value, tuple) or len(value) != 2 or not all(isinstance(mark, str) for mark in value):
        raise InvalidMemoryArgument("marks", value, wanted="two texts, such as ('<b>', '</b>')")


def check_weight(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise InvalidMemoryArgument(name, value, wanted=f"a number that is not negative, such as {name}=0.5")


def check_moment(name: str, value: object) -> None:
    if value is not None and not (isinstance(value, datetime) and value.tzinfo is not None):
        raise InvalidMemoryArgument(name, value, wanted="a datetime with a time zone")
