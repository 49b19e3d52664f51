"""The values of memories as JSON, and the text that a search sees. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import orjson
from langgraph.store.base import get_text_at_path, tokenize_path

from session_middleware.errors import UnserializableValue
from session_middleware.storage.memory_types import joined
from session_middleware.storage.validation import check_string

Index: TypeAlias = Literal[False] | Sequence[str] | None  # LangGraph's: nothing, these paths, everything


def is_text(text: str) -> bool:
    """False for half of a surrogate pair, as in a truncated emoji, which UTF-8 cannot represent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_key(key: object) -> None:
    check_string("key", key)
    if not is_text(str(key)):
        raise UnserializableValue(
            f"the memory key {key!r} contains half of a surrogate pair", advice="use text that can be written as UTF-8"
        )


def encoded(namespace: tuple[str, ...], key: str, value: Any) -> str:
    """The value as JSON, in which tuples are lists and all keys are text; a UUID is its text, as in LangGraph's stores.

    Raises:
        UnserializableValue: it is not a mapping, or not JSON.
    """
    if type(value) is dict:
        try:
            quick = orjson.dumps(value, option=_STRICT)
        except TypeError:  # not JSON, or JSON that only `json` writes
            quick = b"null"
        if b"null" not in quick:  # which may stand for NaN
            return quick.decode()
    if not isinstance(value, Mapping):
        raise UnserializableValue(
            f"memory {key!r} in {namespace!r} is a {type(value).__name__}, not a dict",
            advice='put it in one, such as {"text": …}',
        )
    try:
        return json.dumps(dict(value))
    except (TypeError, ValueError, RecursionError) as error:  # a foreign type, a cycle, too deep
        raise UnserializableValue(
            f"memory {key!r} in {namespace!r} cannot be stored as JSON ({error})",
            advice="convert it to text, numbers, lists and dicts first, for example with model_dump(mode='json')",
        ) from error


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
