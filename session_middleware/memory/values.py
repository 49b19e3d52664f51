"""The values of memories as JSON, and the text that a search sees. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from langgraph.store.base import get_text_at_path, tokenize_path

from session_middleware.errors import InvalidMemoryArgument, UnserializableValue

Index: TypeAlias = Literal[False] | Sequence[str] | None  # LangGraph's: nothing, these paths, everything


def is_text(text: str) -> bool:
    """False for half of a surrogate pair, as in a truncated emoji, which UTF-8 cannot represent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_key(key: object) -> None:
    if not isinstance(key, str):
        raise InvalidMemoryArgument(f"the memory key {key!r} is a {type(key).__name__}", "give a text")
    if not is_text(key):
        raise UnserializableValue(
            f"the memory key {key!r} contains half of a surrogate pair", advice="use text that can be written as UTF-8"
        )


def checked_value(namespace: tuple[str, ...], key: str, value: Any) -> tuple[dict[str, Any], str]:
    """The value as a dict and as JSON, in which tuples are lists and all keys are text.

    Raises:
        UnserializableValue: it is not a mapping, or not JSON.
    """
    if not isinstance(value, Mapping):
        raise UnserializableValue(
            f"memory {key!r} in {namespace!r} is a {type(value).__name__}, not a dict",
            advice='put it in one, such as {"text": …}',
        )
    try:
        found = dict(value)
        return found, json.dumps(found)
    except (TypeError, ValueError, RecursionError) as error:  # a foreign type, a cycle, too deep
        raise UnserializableValue(
            f"memory {key!r} in {namespace!r} cannot be stored as JSON ({error})",
            advice="convert it to text, numbers, lists and dicts first, for example with model_dump(mode='json')",
        ) from error


def words_of(value: Mapping[str, Any], index: Index = None) -> str | None:
    """The text for word search: all texts in the value, depth first, or the texts at the paths of `index`."""
    if index is False:
        return None
    everything = index is None or "$" in index  # "$" too: its JSON would add field names
    texts = _texts(value) if everything else texts_at(value, index or ())
    text = "\n".join(texts)
    # Text that is not UTF-8 has no words; its value is stored all the same.
    return (text if text.isascii() else text.encode(errors="replace").decode()) or None


def texts_at(value: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    """The texts at LangGraph's paths; ``"$"`` is the whole value as JSON."""
    return [text for path in paths for text in get_text_at_path(value, path if path == "$" else tokenize_path(path))]


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
