"""What memory is asked with, looked at before anything is done. Pure.

A misspelt option that is passed over, or a text taken for a list of letters, would quietly search
somewhere else than was meant.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from session_middleware.errors import InvalidMemoryArgument


def check_options(given: Iterable[str], function: str, known: Collection[str]) -> None:
    """Raises `TypeError` for an option there is not."""
    for name in given:
        if name not in known:
            raise TypeError(f"{function}() takes no {name!r}; it takes {', '.join(sorted(known))}")


def check_names(name: str, given: Any, known: Sequence[str]) -> None:
    """A sequence of some of these, which `name` has in the plural. Raises `InvalidMemoryArgument`."""
    if isinstance(given, str) or not isinstance(given, Collection):
        raise InvalidMemoryArgument(
            f"{name}={given!r} is a {type(given).__name__}", f"give a list of {', '.join(known)}"
        )
    for each in given:
        if each not in known:
            raise InvalidMemoryArgument(
                f"there is no {name.removesuffix('s')} {each!r}", f"use one of {', '.join(known)}"
            )


def check_text(name: str, given: Any) -> None:
    if not isinstance(given, str):
        raise InvalidMemoryArgument(f"{name}={given!r} is a {type(given).__name__}", "give text")


def check_count(name: str, given: Any) -> None:
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise InvalidMemoryArgument(f"{name}={given!r} is no count", f"give a whole number, such as {name}=5")


def check_always(given: Any) -> None:
    if not isinstance(given, bool):
        raise InvalidMemoryArgument(
            f"always={given!r} is a {type(given).__name__}",
            "give True or False; remember(…, always=True) says what belongs into every prompt",
        )


def check_moment(name: str, given: Any) -> None:
    """A moment with a time zone, or ``None``."""
    if given is not None and not (isinstance(given, datetime) and given.tzinfo is not None):
        raise InvalidMemoryArgument(f"{name}={given!r} is no moment", "give a datetime with a time zone")


def check_dict(name: str, given: Any) -> None:
    """A dict, or ``None``."""
    if given is not None and not isinstance(given, Mapping):
        raise InvalidMemoryArgument(f"{name}={given!r} is a {type(given).__name__}", "give a dict")
