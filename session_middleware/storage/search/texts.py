"""The text of a memory item for word search: all texts in its value. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def text_of(value: Mapping[str, Any]) -> str:
    """All texts in a value of JSON, depth first, a line each."""
    return joined(_texts(value))


def joined(texts: Iterable[str]) -> str:
    """The texts, a line each; half of a surrogate pair, which is not UTF-8, becomes a question mark."""
    text = "\n".join(texts)
    return text if text.isascii() else text.encode(errors="replace").decode()


def _texts(value: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    waiting: list[Iterator[Any]] = [iter(value.values())]  # no recursion: JSON may be nested deeper than Python's stack
    while waiting:
        for item in waiting[-1]:
            if isinstance(item, str):
                found.append(item)
            elif isinstance(item, dict):
                waiting.append(iter(item.values()))
                break
            elif isinstance(item, (list, tuple)):
                waiting.append(iter(item))
                break
        else:
            waiting.pop()
    return found
