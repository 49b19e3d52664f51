"""What a memory may be, and which of its words a search sees. Pure; nothing is stored from here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeAlias

from langgraph.store.base import get_text_at_path, tokenize_path

from session_middleware.errors import InvalidMemoryArgument, UnserializableValue

Index: TypeAlias = Literal[False] | Sequence[str] | None  # LangGraph's: not at all, these paths, all of it

_BETWEEN = "\0 between \0"
_BETWEEN_ENCODED = f", {json.dumps(_BETWEEN)}, "


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: half of a surrogate pair, as a cut emoji leaves it, cannot."""
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


def encoded_values(namespace: tuple[str, ...], keys: Sequence[str], values: Sequence[Any]) -> list[str]:
    """The values of these keys as JSON, each as `checked_value` has it.

    One call of the encoder for all takes a third of the time. They are told apart by a text between
    them; if a value has that too, each is encoded by itself, and if one cannot be, so that it is named.
    """
    if all(isinstance(value, dict) for value in values):
        with suppress(TypeError, ValueError, RecursionError):
            together = json.dumps([each for value in values for each in (value, _BETWEEN)])
            found = together[1 : -len(_BETWEEN_ENCODED) + 1].split(_BETWEEN_ENCODED)
            if len(found) == len(values):
                return found
    return [checked_value(namespace, key, value)[1] for key, value in zip(keys, values, strict=True)]


def words_of(value: Mapping[str, Any], index: Index = None) -> str | None:
    """The text a word search sees: every text in the value, depth first, or what is at the paths of `index`."""
    if index is False:
        return None
    everything = index is None or "$" in index  # as words: nobody says the names of its fields
    texts = _texts(value) if everything else texts_at(value, index or ())
    text = "\n".join(texts)
    # What is not UTF-8 is no word of any language, and no reason to refuse the value it is in.
    return (text if text.isascii() else text.encode(errors="replace").decode()) or None


def texts_at(value: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    """What is at LangGraph's paths; ``"$"`` is all of the value, as JSON."""
    return [text for path in paths for text in get_text_at_path(value, path if path == "$" else tokenize_path(path))]


def _texts(value: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    waiting: list[Iterator[Any]] = [iter(value.values())]  # no recursion: JSON may be deeper than Python's stack
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
