"""Names that are nearly right: refused, where passing them on would quietly do nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import get_args

from session_middleware.errors import UnknownStatus
from session_middleware.model import Status

_STATUSES: tuple[Status, ...] = get_args(Status)
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
