"""What a memory may be, and which of its words a search sees. Pure; nothing is stored from here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from langgraph.store.base import get_text_at_path, tokenize_path

from session_middleware.errors import UnserializableValue

Index: TypeAlias = Literal[False] | Sequence[str] | None  # LangGraph's: not at all, these paths, all of it


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: half of a surrogate pair, as a cut emoji leaves it, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_key(key: str) -> None:
    if not is_text(key):
        raise UnserializableValue(
            f"the memory key {key!r} holds half of a surrogate pair", advice="use text that can be written as UTF-8"
        )


def checked_value(namespace: tuple[str, ...], key: str, value: Any) -> tuple[dict[str, Any], str]:
    """The value as a dict that JSON can keep, and as JSON, where tuples become lists and all keys text.

    Raises:
        UnserializableValue: it is not a mapping, or holds what JSON has no word for.
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
            f"memory {key!r} in {namespace!r} cannot be kept as JSON ({error})",
            advice="convert it to text, numbers, lists and dicts first, for example with model_dump(mode='json')",
        ) from error


def words_of(value: Mapping[str, Any], index: Index = None) -> str | None:
    """The text a word search sees: every text in the value, depth first, or what is at the paths of `index`."""
    if index is False:
        return None
    everything = index is None or "$" in index  # as words: nobody says the names of its fields
    texts = _texts(value) if everything else texts_at(value, index or ())
    # What is not UTF-8 is no word of any language, and no reason to refuse the value it is in.
    return "\n".join(texts).encode(errors="replace").decode() or None


def texts_at(value: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    """What is at LangGraph's paths; ``"$"`` is all of the value, as JSON."""
    return [text for path in paths for text in get_text_at_path(value, path if path == "$" else tokenize_path(path))]


def _texts(value: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    waiting: list[Any] = [*value.values()][::-1]  # not by recursion: JSON may be nested deeper than Python's stack
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict):
            waiting.extend(reversed(item.values()))
        elif isinstance(item, list | tuple):
            waiting.extend(reversed(item))
    return found
