"""The differences of two JSON values, and how similar they are. Pure functions."""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from typing import Any

from session_middleware.display.text import SHORT_PART, shortened
from session_middleware.storage.jsonable import plain

_COMPARED = 1_000  # characters, of which the similarity is that of the whole
_ABSENT = object()


def key_of(value: Any) -> str:
    """A JSON value as text, equal for equal values."""
    return json.dumps(plain(value), sort_keys=True, ensure_ascii=False)


def likeness(one: Any, other: Any) -> float:
    """From 0 to 1, by the text of the values."""
    return SequenceMatcher(None, key_of(one)[:_COMPARED], key_of(other)[:_COMPARED]).ratio()


def differences(before: Any, after: Any, name: str = "") -> list[str]:
    """The parts of two JSON values that differ, such as ``filter.city="Rome" → "Oslo"``."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            text
            for key in dict.fromkeys((*before, *after))
            for text in differences(before.get(key, _ABSENT), after.get(key, _ABSENT), f"{name}.{key}" if name else key)
        ]
    if before is not _ABSENT and after is not _ABSENT and key_of(before) == key_of(after):
        return []
    return [f"{name}={_short(before)} → {_short(after)}" if name else f"{_short(before)} → {_short(after)}"]


def _short(value: Any) -> str:
    return "(none)" if value is _ABSENT else shortened(json.dumps(plain(value), ensure_ascii=False), SHORT_PART)
