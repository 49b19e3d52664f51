"""The values of memories as JSON, and the text that a search sees. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import orjson
from langgraph.store.base import get_text_at_path, tokenize_path

from session_middleware.errors import InvalidMemoryArgument, UnserializableValue
from session_middleware.storage.search.texts import joined

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


def encoded(namespace: tuple[str, ...], key: str, value: Any) -> str:
    """The value as JSON, in which tuples are lists and all keys are text; a UUID is its text, as in LangGraph's stores.

    Raises:
        UnserializableValue: it is not a mapping, or not JSON.
    """
    if not isinstance(value, (dict, Mapping)):
        raise UnserializableValue(
            f"memory {key!r} in {namespace!r} is a {type(value).__name__}, not a dict",
            advice='put it in one, such as {"text": …}',
        )
    try:
        return _quickly_encoded(value) or json.dumps(dict(value))
    except (TypeError, ValueError, RecursionError) as error:  # a foreign type, a cycle, too deep
        raise UnserializableValue(
            f"memory {key!r} in {namespace!r} cannot be stored as JSON ({error})",
            advice="convert it to text, numbers, lists and dicts first, for example with model_dump(mode='json')",
        ) from error


def _quickly_encoded(value: Mapping[str, Any]) -> str | None:
    """The value as JSON by orjson; ``None`` for NaN, which it writes as null, and for all that only `json` accepts."""
    try:
        found = orjson.dumps(value, option=_STRICT)
    except TypeError:
        return None
    return None if b"null" in found else found.decode()


_STRICT = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS


def words_of(value: Mapping[str, Any], index: Index) -> str | None:
    """The text for word search where it is not all texts in the value: those at the paths of `index`, or none."""
    if index is False:
        return ""
    if index is None or "$" in index:  # "$" too: its JSON would add field names
        return None
    return joined(texts_at(value, index))


def texts_at(value: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    """The texts at LangGraph's paths; ``"$"`` is the whole value as JSON."""
    return [text for path in paths for text in get_text_at_path(value, path if path == "$" else tokenize_path(path))]
